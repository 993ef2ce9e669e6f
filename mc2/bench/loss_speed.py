"""Time and extra memory of the contrastive loss and of open_clip's, forward and backward. Imports torch: only `mc2 bench loss` imports this.

Memory of the CPU is the peak of a fresh process that runs one side once, above what it had with the features made and everything loaded.
Shapes: B pairs of one rank, G captions, D embedding.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import rich
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from mc2.bench.clocks import extra_peak_bytes
from mc2.model.loss import ContrastiveLoss
from mc2.model.ranks import Gathered, SumOfOwnRows

SCALE = 50.0
OURS, THEIRS = "mc2", "open_clip"


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    batch: int
    dim: int
    repeats: int
    columns: int
    tile: int
    device: str

    @classmethod
    def checked(cls, batch: int, dim: int, repeats: int, columns: int | None, tile: int | None, device: str | None) -> Setting:
        """With defaults filled in. Errors: ValueError."""
        for name, value in (("batch", batch), ("dim", dim), ("repeats", repeats), ("tile", tile or 1)):
            if value < 1:
                raise ValueError(f"loss: found {name} {value}, need at least 1")
        if columns is not None and columns < batch:
            raise ValueError(f"loss: found columns {columns}, need at least the {batch} of the batch")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("loss: found no CUDA device; leave --device out")
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(batch, dim, repeats, columns or batch, tile or ContrastiveLoss().tile, chosen)

    @property
    def sides(self) -> tuple[str, ...]:
        """open_clip's loss in one process knows no captions of others."""
        return (OURS, THEIRS) if self.columns == self.batch else (OURS,)


class SimulatedRanks(Gathered):
    """Captions of others as if they had been gathered; the sums for them go nowhere."""

    def __init__(self, own_BD: Tensor, others: Tensor) -> None:
        super().__init__(own_BD)
        self.num_rows, self._others = len(own_BD) + len(others), others

    def __getitem__(self, rows: slice) -> Tensor:
        return super().__getitem__(rows) if rows.stop <= self.last else self._others[rows.start - self.last : rows.stop - self.last]

    def send_sums(self, all_GD: Tensor) -> SumOfOwnRows:
        return cast(SumOfOwnRows, Arrived(all_GD[: self.last]))


@dataclass
class Arrived:
    """Sums that are there at once."""

    own_BD: Tensor

    def wait(self) -> Tensor:
        return self.own_BD


def make_features(num_rows: int, setting: Setting, seed: int) -> Tensor:
    """Random features of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_rows, setting.dim, generator=generator), dim=1).to(setting.device)


def inputs(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Image features, text features, logit scale."""
    image_BD, text_BD = (make_features(setting.batch, setting, seed).requires_grad_() for seed in (0, 1))
    return image_BD, text_BD, torch.tensor(SCALE, device=setting.device, requires_grad=True)


def step_of(side: str, setting: Setting) -> Callable[[tuple[Tensor, Tensor, Tensor]], Any]:
    """Forward and backward pass of one side. Errors: ValueError if open_clip is not installed."""
    if side == THEIRS:
        try:
            from open_clip.loss import ClipLoss
        except ModuleNotFoundError as error:
            raise ValueError(f"loss: the package {error.name} is not installed; run `pip install 'mc2[interchange]'`") from error
        return lambda given: ClipLoss()(*given).backward()
    loss = ContrastiveLoss(setting.tile)
    if setting.columns == setting.batch:
        return lambda given: loss(*given).backward()
    others = make_features(setting.columns - setting.batch, setting, 2)

    def with_others(given: tuple[Tensor, Tensor, Tensor]) -> Any:
        with torch.no_grad():
            return loss.loss_and_gradients(given[0], SimulatedRanks(given[1], others), given[2], None, True)

    return with_others


def synchronize(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def seconds(side: str, setting: Setting) -> float:
    """Of one forward and backward pass."""
    given, step = inputs(setting), step_of(side, setting)
    synchronize(setting)
    start = time.perf_counter()
    step(given)
    synchronize(setting)
    return time.perf_counter() - start


def extra_bytes(side: str, setting: Setting) -> int:
    """The most memory above the features, in this process, which should be a fresh one."""
    small = replace(setting, batch=64, columns=64 if setting.columns == setting.batch else 128)
    step_of(side, small)(inputs(small))  # libraries, threads, compiled kernels
    given, step = inputs(setting), step_of(side, setting)
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(given)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return extra_peak_bytes(lambda: step(given))


def extra_bytes_in_a_fresh_process(side: str, setting: Setting) -> int:
    """Errors: ValueError with what the process said."""
    command = [sys.executable, "-m", "mc2.bench.loss_speed", side, json.dumps(asdict(setting))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"loss: {side} ended with status {done.returncode}: {done.stderr[-300:]}")
    return int(done.stdout.splitlines()[-1])


def gradient_difference(setting: Setting) -> float:
    """The largest difference of gradients in units of the largest gradient, over images, texts and scale: both sides compute the same."""
    ours, theirs = inputs(setting), inputs(setting)
    step_of(OURS, setting)(ours)
    step_of(THEIRS, setting)(theirs)
    pairs = [(one.grad, other.grad) for one, other in zip(ours, theirs, strict=True)]
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs if one is not None and other is not None)


def measure(setting: Setting) -> dict[str, Any]:
    """Seconds and extra bytes of each side, their ratios where there are two."""
    memory = {side: extra_bytes_in_a_fresh_process(side, setting) for side in setting.sides}
    if THEIRS in setting.sides:
        ratio = {"largest_gradient_difference": gradient_difference(setting)}
    else:
        ratio = {}
        seconds(OURS, setting)  # the first pass is slower
    rounds = [{side: seconds(side, setting) for side in setting.sides} for _ in range(setting.repeats)]
    best = {side: min(one[side] for one in rounds) for side in setting.sides}
    if THEIRS in setting.sides:
        ratio |= {"seconds_ratio": best[OURS] / best[THEIRS], "extra_bytes_ratio": memory[OURS] / memory[THEIRS]}
    device = torch.cuda.get_device_name() if setting.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    sides = {side: {"seconds": best[side], "extra_bytes": memory[side]} for side in setting.sides}
    return {"setting": asdict(setting), "device": device, "sides": sides, **ratio, "all_seconds": rounds}


def print_table(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    setting = figures["setting"]
    title = f"contrastive loss, forward and backward: {setting['batch']} x {setting['columns']} logits, {setting['dim']} numbers a feature, {figures['device']}"
    table = Table("loss", "seconds", "extra memory", title=title, title_justify="left")
    for side, row in figures["sides"].items():
        table.add_row(side, f"{row['seconds']:.3f}", f"{row['extra_bytes'] / 2**20:.0f} MiB")
    if "seconds_ratio" in figures:
        table.add_row("ratio", f"{figures['seconds_ratio']:.2f}", f"1 / {1 / figures['extra_bytes_ratio']:.1f}")
    rich.print(table)


if __name__ == "__main__":
    print(extra_bytes(sys.argv[1], Setting(**json.loads(sys.argv[2]))))
