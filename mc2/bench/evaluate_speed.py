"""Seconds of a zero-shot evaluation in many languages, ours and clip-benchmark's loop over languages: the same towers, files, names and prompts, in one run.

Imports torch: only `mc2 bench evaluate` imports this. Both sides read the same parquet of JPEG files, prepare images by the same function and encode with the
same towers; theirs runs `clip_benchmark.metrics.zeroshot_classification.evaluate` once for each language, with tokens padded to the context, as open_clip's
tokenizers do. Ours is `Engine.evaluate`, with all its metrics and intervals. Both must find the same accuracies.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
import torch.distributed as dist
from clip_benchmark.metrics import zeroshot_classification
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from mc2.benchmarks.evaluate import Engine
from mc2.benchmarks.tasks import TaskFolder, write_task_folder
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer, train_tokenizer
from mc2.model.two_tower import TwoTower, TwoTowerConfig

OURS, THEIRS = "mc2", "clip-benchmark"
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


@dataclass(frozen=True)
class Setting:
    """What is measured: `languages` x `classes` names with `prompts` each, on `images` files."""

    towers: TwoTowerConfig
    languages: int
    images: int
    classes: int
    prompts: int
    batch: int
    repeats: int
    processes: int

    def __post_init__(self) -> None:
        for name in ("languages", "images", "prompts", "batch", "repeats", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluate: found {name} {getattr(self, name)}, need at least 1")
        if not 5 <= self.classes <= self.images:
            raise ValueError(f"evaluate: found {self.classes} classes for {self.images} images, need at least 5 and an image for each")


def write_sample(folder: Path, setting: Setting) -> None:
    """A task folder of noise with random names, and a tokenizer that was trained on them."""
    codes = language_codes(setting.languages)
    names = [(code, label, random_name(code, label)) for code in codes for label in range(setting.classes)]
    prompts = {code: [f"{random_name(code, -1 - number)} {{}}" for number in range(setting.prompts)] for code in codes}
    images = [(f"{number:06}", noise(number), number % setting.classes) for number in range(setting.images)]
    write_task_folder(folder / "task", "noise", images, names, prompts=prompts)
    train_tokenizer([name for _, _, name in names] + [text for texts in prompts.values() for text in texts], folder / "tokenizer", 2000)


def language_codes(number: int) -> list[str]:
    """Codes of real languages, for their names. Errors: ValueError if there are not so many."""
    from mc2.languages import LID176, WIKIPEDIAS, canonical

    codes: dict[str, None] = {}
    for code in [*sorted(LID176 - {"other"}), *sorted(WIKIPEDIAS)]:
        try:
            codes[canonical(code)] = None
        except ValueError:  # names of Wikipedias that are no codes
            continue
    if number > len(codes):
        raise ValueError(f"evaluate: found {number} languages, need at most {len(codes)}")
    return list(codes)[:number]


def random_name(code: str, label: int) -> str:
    """Three to six syllables, drawn by language and class."""
    rng = np.random.default_rng([*code.encode(), label + 1000])
    return "".join(rng.choice(SYLLABLES, rng.integers(3, 7)))


def noise(number: int) -> bytes:
    """A JPEG of 320 x 240 pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


class Data:
    """What the engine asks of a data module."""

    def __init__(self, folder: Path, towers: TwoTowerConfig) -> None:
        self.tokenizer = Tokenizer(folder / "tokenizer", towers.text.context_length)
        self.preprocess = ImagePreprocess(image_size=towers.vision.image_size)


class Files(Dataset[tuple[Tensor, int]]):
    """The task's images as clip-benchmark reads a data set: decoded afresh in every pass."""

    def __init__(self, task: TaskFolder, data: Data, num_classes: int) -> None:
        self.files, self.data, self.classes = list(task.image_set.read(0, len(task.image_set.keys))), data, range(num_classes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data.preprocess.evaluate(self.files[index]), index % len(self.classes)  # as `write_sample` has it


def our_side(towers: TwoTower, data: Data, task: TaskFolder, batch: int) -> dict[str, float]:
    """Top-1 of each language."""
    with torch.no_grad():
        evaluation = next(Engine(towers, data, torch.device("cpu"), batch).evaluate([task], [task.languages]))
    return {row.language: row.value for row in evaluation.results if row.metric == "top1" and not row.is_mean}


def accuracy(logits: Tensor, label: Tensor, topk: Sequence[int]) -> list[float]:
    """Top-k shares. In the place of clip-benchmark's own, which numpy 2.4 refuses (it makes a float of an array of one number)."""
    hits = logits.topk(max(topk), dim=1).indices == label[:, None]
    return [float(hits[:, :k].any(dim=1).float().mean()) for k in topk]


def their_side(
    towers: TwoTower, data: Data, task: TaskFolder, batch: int, names: dict[str, list[str]], prompts: dict[str, list[str]]
) -> dict[str, float]:
    """Top-1 of each language, the shell loop over languages without its shell."""
    context = data.tokenizer.context_length

    def tokenizer(texts: Sequence[str]) -> Tensor:
        tokens = data.tokenizer(texts)
        return pad(tokens, (0, context - tokens.shape[1]), value=data.tokenizer.pad_id)

    zeroshot_classification.accuracy = accuracy
    found = {}
    for code in task.languages:
        templates = [prompt.replace("{}", "{c}") for prompt in prompts[code]]
        loader = DataLoader(Files(task, data, len(names[code])), batch_size=batch)
        with redirect_stderr(io.StringIO()):  # a progress bar for each language
            scores: Any = zeroshot_classification.evaluate(towers, loader, tokenizer, names[code], templates, "cpu", amp=False)
        found[code] = float(scores["acc1"])
    return found


def measure(setting: Setting, folder: Path) -> dict[str, Any]:
    """Figures of both sides. Errors: ValueError if they find other accuracies, because then they do not do the same work."""
    write_sample(folder, setting)
    data = Data(folder, setting.towers)
    task, towers = TaskFolder(folder / "task"), build(setting.towers, data)
    names = {code: [random_name(code, label) for label in range(setting.classes)] for code in task.languages}
    prompts = {code: [f"{random_name(code, -1 - number)} {{}}" for number in range(setting.prompts)] for code in task.languages}
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for _ in range(setting.repeats):
        start = time.perf_counter()
        ours = our_side(towers, data, task, setting.batch)
        middle = time.perf_counter()
        theirs = their_side(towers, data, task, setting.batch, names, prompts)
        seconds[OURS].append(middle - start)
        seconds[THEIRS].append(time.perf_counter() - middle)
    different = [code for code in ours if abs(ours[code] - theirs[code]) > 2 / setting.images]  # two images whose best classes are as near
    if different:
        code = different[0]
        raise ValueError(f"evaluate: {len(different)} languages differ, {code}: {ours[code]} here and {theirs[code]} in clip-benchmark")
    figures: dict[str, Any] = {
        "sides": {name: {"seconds": min(times), "seconds_of_each_round": times} for name, times in seconds.items()},
        "ratio": min(seconds[THEIRS]) / min(seconds[OURS]),
    }
    if setting.processes > 1:
        times = {number: min(ranks_seconds(folder, setting, number) for _ in range(setting.repeats)) for number in (1, setting.processes)}
        figures["processes"] = {
            "seconds_of_one": times[1],
            "seconds_of_all": times[setting.processes],
            "ratio": times[1] / times[setting.processes],
        }
    return figures


def build(config: TwoTowerConfig, data: Data) -> TwoTower:
    """Towers of random weights for the tokenizer."""
    from dataclasses import replace

    text = replace(config.text, vocab_size=data.tokenizer.vocab_size, eos_id=data.tokenizer.eos_id)
    torch.manual_seed(0)
    return TwoTower(replace(config, text=text)).eval().requires_grad_(False)


def ranks_seconds(folder: Path, setting: Setting, number: int) -> float:
    """Seconds of our side in so many processes of one thread each, the slowest; without their start."""
    for path in folder.glob("seconds-*"):
        path.unlink()
    (folder / "store").unlink(missing_ok=True)
    spawn(rank_seconds, (folder, setting, number), nprocs=number)  # type: ignore[no-untyped-call]
    return max(float(path.read_text()) for path in folder.glob("seconds-*"))


def rank_seconds(rank: int, folder: Path, setting: Setting, number: int) -> None:
    """The work of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", timedelta(hours=1), number, rank)
    data = Data(folder, setting.towers)
    task, towers = TaskFolder(folder / "task"), build(setting.towers, data)
    dist.barrier()
    start = time.perf_counter()
    our_side(towers, data, task, setting.batch)
    dist.barrier()
    (folder / f"seconds-{rank}").write_text(str(time.perf_counter() - start))
    dist.destroy_process_group()


def print_table(setting: Setting, figures: dict[str, Any]) -> None:
    """A row for each side, and the ratios."""
    table = Table(
        title=f"{setting.languages} languages, {setting.images} images, {setting.classes} classes x {setting.prompts} prompts, CPU"
    )
    for heading in ("", "seconds", "languages/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for side, row in figures["sides"].items():
        table.add_row(side, f"{row['seconds']:.2f}", f"{setting.languages / row['seconds']:.2f}")
    rich.print(table)
    rich.print(f"mc2 is {figures['ratio']:.2f} x as fast as clip-benchmark's loop over languages; both find the same accuracies.")
    if "processes" in figures:
        rich.print(f"{setting.processes} processes of one thread are {figures['processes']['ratio']:.2f} x as fast as one.")
    if "retrieval" in figures:
        row = figures["retrieval"]
        rich.print(
            f"Retrieval in {len(row['codes'])} languages, {row['images']} images x {row['captions']} captions: "
            f"{row['extra_bytes'] / 1e9:.2f} GB above the model, {row['seconds']:.1f} s with random features in the place of the model's."
        )
