"""Checkpoints of a run: written whole or not at all, by steps, by minutes and before every stop, found again for `--ckpt_path last`.

Layout: <run>/checkpoints/step=<number>.ckpt (a file; a folder where FSDP2Strategy saves distributed) and last.ckpt, a link to the newest.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, cast
from zipfile import BadZipFile

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from mc2.training.checkpoint_files import METADATA, check_parts, reason, snapshot, write_file, write_parts
from mc2.training.parallel import FSDP2Strategy

STEP = re.compile(r"step=(\d+)\.ckpt")
LAST = "last.ckpt"


def checkpoint_folder(run: str | Path) -> Path:
    """Where the checkpoints of a run folder are."""
    return Path(run) / "checkpoints"


def checkpoints_by_step(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first. Temporary names do not match."""
    found = {path: STEP.fullmatch(path.name) for path in folder.iterdir()} if folder.is_dir() else {}
    return sorted((path for path, match in found.items() if match), key=step_of)


def step_of(path: Path) -> int:
    """17 for step=17.ckpt."""
    return int(path.stem.removeprefix("step="))


def remove(path: Path) -> None:
    """Delete a checkpoint, file or folder, if it is there. A kill in between leaves no half folder under its name."""
    if path.is_dir() and not path.is_symlink():
        hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.removed")
        if hidden != path:
            shutil.rmtree(hidden, ignore_errors=True)
            os.replace(path, hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


def put_in_place(temporary: Path, final: Path, keep: int) -> None:
    """Give a whole checkpoint its name, point `last.ckpt` to it, and remove the older ones but for the `keep` - 1 newest of them."""
    remove(final)
    os.replace(temporary, final)
    link = final.with_name(f".{LAST}.tmp")
    remove(link)
    link.symlink_to(final.name)
    os.replace(link, final.with_name(LAST))
    sync_folder(final.parent)
    older = [path for path in checkpoints_by_step(final.parent) if step_of(path) < step_of(final)]
    for old in older[: max(0, len(older) - keep + 1)]:
        remove(old)


def sync_folder(folder: Path) -> None:
    """Names of a folder, on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpoints(Checkpoint):
    """Saves after every `every_n_steps` steps, when `every_n_minutes` have passed since the last save, and after the last step of a run, for whatever
    reason it stops there (max_steps, max_time, a signal).

    `keep` newest ones stay; an old one goes only when a newer one is whole under its name. With `async_save` training goes on while the files of a copy in
    the memory of the host are written; the end of the run waits for them. An error in writing ends the run at the next save or the end, on all ranks.
    Lightning runs this callback after all others.
    """

    def __init__(self, every_n_steps: int = 1000, keep: int = 2, every_n_minutes: float | None = None, async_save: bool = False) -> None:
        super().__init__()
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"checkpoints: found every_n_steps {every_n_steps} and keep {keep}, need at least 1 of each")
        if every_n_minutes is not None and every_n_minutes <= 0:
            raise ValueError(f"checkpoints.every_n_minutes: found {every_n_minutes}, need a number above 0, or null")
        self.every_n_steps, self.keep, self.every_n_minutes, self.async_save = every_n_steps, keep, every_n_minutes, async_save
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.seconds = 0.0  # that training has waited for
        self._pending: Future[None] | None = None
        self._group: dist.ProcessGroup | None = None  # of the writing threads: training's own exchanges must not come in between

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        folder = checkpoint_folder(trainer.default_root_dir)
        if trainer.is_global_zero and folder.is_dir():
            for path in folder.glob(".step=*"):  # what a killed run left
                remove(path)
        if saves_parts(trainer):
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._start_clock(trainer)

    def _start_clock(self, trainer: Trainer) -> None:
        self._saved = self._looked = monotonic()
        self._looked_step, self._next_look = trainer.global_step, trainer.global_step + 1

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            return
        stops = trainer.should_stop or trainer.global_step == trainer.max_steps
        if stops or trainer.global_step % self.every_n_steps == 0 or self._minutes_are_over(trainer):
            self.save(trainer)

    def _minutes_are_over(self, trainer: Trainer) -> bool:
        """By the clock of rank 0, which all ranks ask together: after the first step, then half way to the moment, half of the rest, and so on."""
        if self.every_n_minutes is None or trainer.global_step < self._next_look:
            return False
        now = monotonic()
        step_seconds = max(1e-6, (now - self._looked) / (trainer.global_step - self._looked_step))
        left = self._saved + 60 * self.every_n_minutes - now
        wait_steps = trainer.strategy.broadcast(max(1, int(left / step_seconds / 2)) if left > 0 else 0)
        self._looked, self._looked_step, self._next_look = now, trainer.global_step, trainer.global_step + wait_steps
        return wait_steps == 0

    def save(self, trainer: Trainer) -> None:
        """Write under a temporary name, rename, then prune. All ranks call it; rank 0 renames and prunes."""
        start = perf_counter()
        self._finish(trainer)
        final = checkpoint_folder(trainer.default_root_dir) / f"step={trainer.global_step}.ckpt"
        temporary = final.with_name(f".{final.name}.tmp")
        parts = saves_parts(trainer)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)  # what trainer.save_checkpoint writes at once
        if trainer.is_global_zero:
            final.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
        trainer.strategy.barrier("the way is free")
        if parts or trainer.is_global_zero:
            copy = snapshot(checkpoint) if self.async_save else checkpoint
            self._pending = self._writer.submit(self._write, copy, temporary, final, parts, trainer.is_global_zero)
        if not self.async_save:
            self._finish(trainer)
        self._start_clock(trainer)
        self.seconds += perf_counter() - start

    def _write(self, checkpoint: dict[str, Any], temporary: Path, final: Path, parts: bool, is_global_zero: bool) -> None:
        if parts:
            write_parts(checkpoint, temporary, self._group)  # rank 0 comes back when all ranks have written
        else:
            write_file(checkpoint, temporary)
        if is_global_zero:
            put_in_place(temporary, final, self.keep)

    def _finish(self, trainer: Trainer) -> None:
        """Wait for the checkpoint that is being written. Errors: ValueError on all ranks if it failed."""
        error = self._pending.exception() if self._pending is not None else None
        self._pending = None
        failure = trainer.strategy.broadcast(reason(error) if error is not None else "")
        if failure:
            raise ValueError(
                f"{checkpoint_folder(trainer.default_root_dir)}: a checkpoint could not be written ({failure}); the ones before it are whole; "
                "make room and go on with --ckpt_path last"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """What is being written may become whole, whatever ended the run; other ranks may be gone, so nobody is asked."""
        if self._pending is not None:
            wait([self._pending], timeout=600)


def saves_parts(trainer: Trainer) -> bool:
    """Whether each rank writes its part of a checkpoint."""
    return isinstance(trainer.strategy, FSDP2Strategy) and trainer.strategy.save_distributed_checkpoint


def find_checkpoint(ckpt_path: str, run: str | Path) -> Path | None:
    """The checkpoint that `--ckpt_path` means: a path, or "last" for the newest whole one of the run folder (the one that last.ckpt names, or else by step), None if
    there is none yet. Warns of newer ones that are cut short.

    Errors: ValueError if the path is not there, or if of several checkpoints none is whole.
    """
    if ckpt_path != "last":
        if not Path(ckpt_path).exists():
            raise ValueError(
                f'--ckpt_path: found nothing at {ckpt_path}, need a checkpoint, such as {checkpoint_folder(run)}/{LAST}, or "last"'
            )
        return Path(ckpt_path)
    found = checkpoints_by_step(checkpoint_folder(run))[::-1]
    newest = (checkpoint_folder(run) / LAST).resolve()
    for path in sorted(found, key=lambda path: path.resolve() != newest):  # stable: the others stay in their order
        try:
            check_whole(path)
        except ValueError as error:
            rank_zero_only(print)(f"warning: {error}; --ckpt_path last does so", file=sys.stderr)
        else:
            return path
    if found:
        raise ValueError(f"{checkpoint_folder(run)}: found {len(found)} checkpoints and none of them whole; take them away to begin anew")
    return None


def check_whole(path: Path) -> None:
    """Errors: ValueError for a checkpoint that is cut short."""
    read_values(path)
    if path.is_dir():
        check_parts(path)


def read_values(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors: "towers", the configuration that it was written with, "ema" and more. Errors: ValueError if it is no
    checkpoint of mc2 or cut short.
    """
    try:
        values: dict[str, Any] = torch.load(path / METADATA if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True)
        values["towers"]
    except (RuntimeError, OSError, KeyError, TypeError, EOFError, BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: found no whole checkpoint of mc2, need one that `mc2 fit` wrote; take the one before it") from error
    return values


def differences(found: Any, need: Any, name: str = "towers") -> list[str]:
    """Readable lines for every leaf in which two nested configurations differ."""
    if isinstance(found, dict) and isinstance(need, dict):
        keys = sorted({*found, *need})
        return [line for key in keys for line in differences(found.get(key), need.get(key), f"{name}.{key}")]
    same = list(found) == list(need) if isinstance(found, tuple | list) and isinstance(need, tuple | list) else found == need
    return [] if same else [f"{name}: found {found}, need {need}"]


def check_checkpoint(
    path: Path, need: dict[str, Any], reads_folders: bool, ema: bool = False, students: dict[str, Any] | None = None
) -> None:
    """Errors: ValueError if the checkpoint was written by towers of another shape, has or lacks a moving average, is cut short, or is a folder that the
    strategy cannot read.
    """
    values = read_values(path)
    different = differences(values["towers"], need) + differences(values.get("students", {}), students or {}, "students")
    if values.get("ema", False) != ema:
        different.append(f"ema: found {'no moving average' if ema else 'a moving average'}, need {'one' if ema else 'none'}")
    if different:
        raise ValueError(
            f"{path} is of another model ({'; '.join(different)}); give the config that it was trained with, its run's config.yaml"
        )
    if path.is_dir():
        if not reads_folders:
            raise ValueError(
                f"{path}: found a folder of sharded parts, need a strategy that reads it; set trainer.strategy to mc2.training.parallel.FSDP2Strategy "
                "(any number of processes, one too), or make a model of it with `mc2 export`"
            )
        check_parts(path)
