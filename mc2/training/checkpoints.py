"""Checkpoints of a run: written whole or not at all, by steps and before every stop, found again for `--ckpt_path last`.

Layout: <run>/checkpoints/step=<number>.ckpt (a file; a folder where FSDP2Strategy saves distributed) and last.ckpt, a link to the newest.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

STEP = re.compile(r"step=(\d+)\.ckpt")
LAST = "last.ckpt"
METADATA = "meta.pt"  # what Lightning writes beside the parts of a distributed checkpoint, last of all


def checkpoint_folder(run: str | Path) -> Path:
    """Where the checkpoints of a run folder are."""
    return Path(run) / "checkpoints"


def checkpoints_by_step(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first. Temporary names do not match."""
    found = {path: STEP.fullmatch(path.name) for path in folder.iterdir()} if folder.is_dir() else {}
    return sorted((path for path, match in found.items() if match), key=lambda path: int(path.stem.removeprefix("step=")))


def remove(path: Path) -> None:
    """Delete a checkpoint, file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Saves after every `every_n_steps` steps and after the last step of a run, for whatever reason it stops there (max_steps, max_time, a signal).

    `keep` newest ones stay; an old one goes only when a newer one is whole under its name. Lightning runs this callback after all others.
    """

    def __init__(self, every_n_steps: int = 1000, keep: int = 2) -> None:
        super().__init__()
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"checkpoints: found every_n_steps {every_n_steps} and keep {keep}, need at least 1 of each")
        self.every_n_steps, self.keep = every_n_steps, keep

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            return
        stops = trainer.should_stop or trainer.global_step == trainer.max_steps
        if stops or trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write under a temporary name, rename, then prune. All ranks call it; rank 0 renames and prunes."""
        folder = checkpoint_folder(trainer.default_root_dir)
        final = folder / f"step={trainer.global_step}.ckpt"
        temporary = folder / f".{final.name}.tmp"
        trainer.save_checkpoint(temporary)  # ends with a barrier
        if trainer.is_global_zero:
            remove(final)
            os.replace(temporary, final)
            link = folder / f".{LAST}.tmp"
            remove(link)
            link.symlink_to(final.name)
            os.replace(link, folder / LAST)
            for old in checkpoints_by_step(folder)[: -self.keep]:
                remove(old)
        trainer.strategy.barrier("checkpoint is in place")


def find_checkpoint(ckpt_path: str, run: str | Path) -> Path | None:
    """The checkpoint that `--ckpt_path` means: a path, or "last" for the newest of the run folder, None if there is none yet.

    Errors: ValueError if the path is not there.
    """
    if ckpt_path == "last":
        return next(reversed(checkpoints_by_step(checkpoint_folder(run))), None)
    if not Path(ckpt_path).exists():
        raise ValueError(
            f'--ckpt_path: found nothing at {ckpt_path}, need a checkpoint, such as {checkpoint_folder(run)}/{LAST}, or "last"'
        )
    return Path(ckpt_path)


def read_tower_config(path: Path) -> dict[str, Any]:
    """The configuration of the towers that a checkpoint was written with. Errors: ValueError if it is no checkpoint of mc2 or cut short."""
    try:
        towers: dict[str, Any] = torch.load(path / METADATA if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True)[
            "towers"
        ]
    except (RuntimeError, OSError, KeyError, TypeError, EOFError, BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: found no whole checkpoint of mc2, need one that `mc2 fit` wrote; take the one before it") from error
    return towers


def differences(found: Any, need: Any, name: str = "towers") -> list[str]:
    """Readable lines for every leaf in which two nested configurations differ."""
    if isinstance(found, dict) and isinstance(need, dict):
        keys = sorted({*found, *need})
        return [line for key in keys for line in differences(found.get(key), need.get(key), f"{name}.{key}")]
    same = list(found) == list(need) if isinstance(found, tuple | list) and isinstance(need, tuple | list) else found == need
    return [] if same else [f"{name}: found {found}, need {need}"]


def check_checkpoint(path: Path, need: dict[str, Any]) -> None:
    """Errors: ValueError if the checkpoint was written by towers of another shape."""
    different = differences(read_tower_config(path), need)
    if different:
        raise ValueError(
            f"{path} is of another model ({'; '.join(different)}); give the config that it was trained with, its run's config.yaml"
        )
