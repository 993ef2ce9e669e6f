"""Checkpoints: whole or not there, when they are written, while training goes on, and what is refused before and while they are read."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from mc2.training import checkpoint_files, checkpoints
from mc2.training.checkpoint_files import load_parts
from mc2.training.checkpoints import Checkpoints, check_checkpoint, checkpoint_folder, checkpoints_by_step
from mc2.training.parallel import FSDP2Strategy
from tests.processes import free_port, run_processes, start
from tests.training.tiny import TOWERS, Losses, TinyData, tiny_module, tiny_trainer


def fit(run: Path, *callbacks: Callback, steps: int = 6, resume: bool = False, **settings: Any) -> list[float]:
    losses = Losses()
    settings |= {"max_steps": steps, "limit_val_batches": 0, "enable_checkpointing": True}
    trainer = tiny_trainer(str(run), callbacks=[losses, *callbacks], **settings)
    trainer.fit(tiny_module(), TinyData(), ckpt_path=checkpoints_by_step(checkpoint_folder(run))[-1] if resume else None, weights_only=True)
    return losses.values


def saved(run: Path) -> list[str]:
    return sorted(path.name for path in checkpoint_folder(run).iterdir())


def sharded(devices: int) -> dict[str, Any]:
    return {"strategy": FSDP2Strategy(save_distributed_checkpoint=True, timeout_minutes=0.5), "devices": devices}


class Clock(Callback):
    """Twenty seconds a step, on rank 0; other ranks live in another time."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.now = (trainer.global_step + 1) * (20.0 if trainer.is_global_zero else 1e6)


def fit_by_the_clock(run: Path, devices: int, every_n_minutes: float) -> tuple[list[str], int]:
    clock = Clock()
    checkpoints.monotonic = clock  # type: ignore[attr-defined]
    try:
        fit(
            run,
            clock,
            Checkpoints(1000, 10, every_n_minutes, async_save=devices > 1),
            steps=12,
            **(sharded(devices) if devices > 1 else {}),
        )
    finally:
        checkpoints.monotonic = time.monotonic  # type: ignore[attr-defined]
    return saved(run), clock.looks


def test_saves_by_minutes_of_the_first_rank(tmp_path: Path) -> None:
    expected = ["last.ckpt", "step=12.ckpt", "step=3.ckpt", "step=6.ckpt", "step=9.ckpt"]
    assert fit_by_the_clock(tmp_path / "alone", 1, 1.0)[0] == expected
    for names, _ in run_processes(fit_by_the_clock, [(tmp_path / "two", 2, 1.0)] * 2, join=False):
        assert names == expected


def test_the_clock_is_asked_seldom(tmp_path: Path) -> None:
    _, looks = fit_by_the_clock(tmp_path, 1, 4.0)  # due after 12 steps: looks at 1, 6, 9, 10, 11, (12: the end)
    assert looks <= 8


@pytest.mark.parametrize("parts", [False, True])
def test_training_goes_on_while_a_copy_is_written(parts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writing of step 2 ends only after step 3; what it wrote is step 2 all the same."""
    if parts:
        run_processes(_goes_on, [(tmp_path, True)], join=False)
    else:
        with monkeypatch.context():
            _goes_on(tmp_path, False)


def _goes_on(folder: Path, parts: bool) -> None:
    settings = sharded(1) if parts else {}
    fit(folder / "whole", Checkpoints(2, 10), **settings)
    third_step = threading.Event()
    name = "write_parts" if parts else "write_file"
    original = getattr(checkpoints, name)

    class Releases(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            if trainer.global_step == 3:
                third_step.set()

    def slow(*arguments: Any) -> None:
        assert third_step.wait(timeout=30), "training waited for the file"
        original(*arguments)

    setattr(checkpoints, name, slow)
    try:
        fit(folder / "async", Releases(), Checkpoints(2, 10, async_save=True), **(sharded(1) if parts else {}))
    finally:
        setattr(checkpoints, name, original)
    assert saved(folder / "async") == saved(folder / "whole") == ["last.ckpt", "step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]
    for step in (2, 6):
        whole, other = (weights(folder / run / "checkpoints" / f"step={step}.ckpt") for run in ("whole", "async"))
        assert whole.keys() == other.keys()
        assert all(torch.equal(whole[key], other[key]) for key in whole)


def weights(path: Path) -> dict[str, torch.Tensor]:
    if path.is_dir():
        index = checkpoint_files.read_index(path / ".metadata").state_dict_metadata
        state: dict[str, Any] = {key: torch.empty(entry.size) for key, entry in index.items() if hasattr(entry, "size")}
        load_parts(state, path)
        return state
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return loaded


@pytest.mark.parametrize("async_save", [False, True])
def test_a_full_disk_ends_the_run_with_one_line(async_save: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_file", full)
        with pytest.raises(
            ValueError, match=r"checkpoints: a checkpoint could not be written \(.*No space left on device\); the ones before"
        ):
            fit(tmp_path, Checkpoints(2, async_save=async_save))
    assert not checkpoints_by_step(checkpoint_folder(tmp_path))


def hangs_while_writing(run: Path, parts: bool) -> None:
    """Step 2 is whole; of step 4 a half is written, for ever."""
    original = torch.save

    def half(value: Any, file: Any) -> None:
        if (checkpoint_folder(run) / "step=2.ckpt").exists():
            file.write(b"half of it")
            file.flush()
            time.sleep(1000)
        original(value, file)

    torch.save = half  # type: ignore[assignment]
    fit(run, Checkpoints(2, async_save=True), **(sharded(1) if parts else {}))


@pytest.mark.parametrize("parts", [False, True])
def test_kill_9_while_writing_leaves_no_half_checkpoint(parts: bool, tmp_path: Path) -> None:
    process, pipe = start(0, 1, free_port(), False, hangs_while_writing, (tmp_path, parts))
    temporary = checkpoint_folder(tmp_path) / ".step=4.ckpt.tmp"
    deadline = time.monotonic() + 60
    while not temporary.exists() or (parts and not (temporary / "meta.pt").exists() and not list(temporary.glob("*"))):
        assert process.is_alive() or temporary.exists(), pipe.recv()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert saved(tmp_path) == [".step=4.ckpt.tmp", "last.ckpt", "step=2.ckpt"]
    settings = [(tmp_path, parts)]
    assert run_processes(goes_on_after_a_kill, settings, join=False) == [4]
    assert saved(tmp_path) == ["last.ckpt", "step=4.ckpt", "step=6.ckpt"]


def goes_on_after_a_kill(run: Path, parts: bool) -> int:
    return len(fit(run, Checkpoints(2), resume=True, **(sharded(1) if parts else {})))


def fit_parts(run: Path, devices: int, steps: int, resume: bool) -> list[float]:
    """Six steps are planned; it may stop earlier."""
    return fit(run, Checkpoints(2, async_save=True), StopAfter(steps), resume=resume, **sharded(devices))


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.should_stop = True


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_parts_go_on_on_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", Checkpoints())
    first = run_processes(fit_parts, [(tmp_path / "run", before, 3, False)] * before, join=False)[0]
    then = run_processes(fit_parts, [(tmp_path / "run", after, 6, True)] * after, join=False)[0]
    assert first + then == pytest.approx(whole, rel=1e-5)
    assert len(first) == len(then) == 3


# --- what is refused ----------------------------------------------------------------------------------------------------


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_processes(fit_parts, [(tmp_path, 1, 2, False)], join=False)
    return checkpoint_folder(tmp_path) / "step=2.ckpt"


def test_a_folder_is_checked_before_anything_starts(folder: Path) -> None:
    check_checkpoint(folder, TOWERS.to_json(), reads_folders=True)
    with pytest.raises(
        ValueError, match=r"found a folder of sharded parts, need a strategy that reads it; set trainer.strategy to .*FSDP2Strategy"
    ):
        check_checkpoint(folder, TOWERS.to_json(), reads_folders=False)
    other = TOWERS.to_json()
    other["text"] = {**other["text"], "vocab_size": 50}
    with pytest.raises(ValueError, match=r"is of another model \(towers.text.vocab_size: found 40, need 50\)"):
        check_checkpoint(folder, other, reads_folders=True)
    part = next(folder.glob("*.distcp"))
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"distcp: found \d+ bytes, need at least \d+: cut short; take the checkpoint before it"):
        check_checkpoint(folder, TOWERS.to_json(), reads_folders=True)
    part.unlink()
    with pytest.raises(ValueError, match="found 0 bytes"):
        check_checkpoint(folder, TOWERS.to_json(), reads_folders=True)
    mark = folder.parent / "mark"
    (folder / ".metadata").write_bytes(pickle.dumps(Malice(mark)))
    with pytest.raises(ValueError, match=r"no sharded checkpoint that can be read safely \(refused posix.mkdir in a pickle\)"):
        check_checkpoint(folder, TOWERS.to_json(), reads_folders=True)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_code_in_a_part_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    state_dict_saver.save({"lr": Malice(mark)}, checkpoint_id=tmp_path / "folder")
    with pytest.raises(ValueError, match=r"sharded checkpoint cannot be read \(Weights only load failed"):
        load_parts({"lr": None}, tmp_path / "folder")
    assert not mark.exists()
    state_dict_loader.load({"lr": None}, checkpoint_id=tmp_path / "folder")
    assert mark.exists(), "torch's own way runs it: there was something to refuse"


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpoints.every_n_minutes: found 0, need a number above 0"):
        Checkpoints(every_n_minutes=0)
