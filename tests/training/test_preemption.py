"""Signals before, in and after a step, on one rank or several, more than once; checkpoints that were cut short."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from mc2.training import early_signals
from mc2.training.checkpoints import checkpoint_folder, checkpoints_by_step, find_checkpoint, put_in_place
from mc2.training.commands import main
from tests.processes import run_processes
from tests.training.tiny import fit_config

STEPS = 6


class SignalsAt(Callback):
    """Sends this process signals at moments: "start" (before the first step), "save" (while a checkpoint is made)."""

    def __init__(self, moment: str, numbers: list[int], rank: int = 0) -> None:
        self.moment, self.numbers, self.rank = moment, numbers, rank

    def _send(self, moment: str, rank: int) -> None:
        for number in self.numbers if (moment, rank) == (self.moment, self.rank) else []:
            os.kill(os.getpid(), number)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._send("start", trainer.global_rank)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if not trainer.sanity_checking:
            (Path(trainer.default_root_dir) / "validated").touch()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        self._send("save", trainer.global_rank)


def fit(run: Path, *moments: tuple[str, list[int], int], ranks: int = 1) -> tuple[int, list[str]]:
    """Exit status of `mc2 fit ... --ckpt_path last` and the names of its checkpoints."""
    settings = fit_config(run, STEPS)
    settings["checkpoints"] = {"every_n_steps": 2, "keep": 10, "async_save": True}
    settings["trainer"]["callbacks"] = [
        {"class_path": "tests.training.test_preemption.SignalsAt", "init_args": {"moment": moment, "numbers": numbers, "rank": rank}}
        for moment, numbers, rank in moments
    ]
    if ranks > 1:
        strategy = {
            "class_path": "mc2.training.parallel.FSDP2Strategy",
            "init_args": {"timeout_minutes": 0.5, "save_distributed_checkpoint": True},
        }
        settings["trainer"] |= {"devices": ranks, "strategy": strategy}
    path = run.with_suffix(f".{os.getpid()}.yaml")
    path.write_text(yaml.safe_dump(settings))
    status = main(["fit", "--config", str(path), "--ckpt_path", "last"])
    return status, [path.name for path in checkpoints_by_step(checkpoint_folder(run))]


TERM, USR1 = int(signal.SIGTERM), int(signal.SIGUSR1)


def test_a_signal_before_the_first_step_ends_the_run_without_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handlers = [signal.getsignal(number) for number in (TERM, USR1)]
    assert fit(tmp_path / "run", ("start", [TERM], 0)) == (128 + TERM, [])
    assert fit(tmp_path / "run") == (0, ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"])
    assert capfd.readouterr().out.count(f"checkpoint: none in {tmp_path / 'run'} yet, begins anew") == 2
    assert [signal.getsignal(number) for number in (TERM, USR1)] == handlers


def test_a_job_that_is_preempted_while_it_starts_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes before torch is there; the mark tells the job's script, and only when a signal ended the run."""
    mark, run = tmp_path / "mark", tmp_path / "run"
    monkeypatch.setenv("MC2_REQUEUE", str(mark))
    before = [signal.getsignal(number) for number in (TERM, USR1)]
    try:
        early_signals.keep()
        os.kill(os.getpid(), USR1)
        assert fit(run) == (128 + USR1, [])
        assert mark.exists()
        mark.unlink()
    finally:
        for number, handler in zip((TERM, USR1), before, strict=True):
            signal.signal(number, handler)
    assert fit(run)[0] == 0
    assert not mark.exists()


def disturbed_twice(run: Path) -> list[tuple[int, list[str]]]:
    """One rank gets a signal while step 2 is saved, then both get more of them while the step behind it is; then nobody."""
    first = fit(run, ("save", [TERM, TERM, USR1], 1), ("save", [TERM], 0), ranks=2)
    assert not (run / "validated").exists(), "there was time for a validation"
    return [first, fit(run, ranks=2)]


def test_signals_while_a_checkpoint_is_written_do_no_harm(tmp_path: Path) -> None:
    """The save of step 2 goes on; all ranks leave with the next step, which is saved under the same fire; the status is that of the strongest signal."""
    for first, then in run_processes(disturbed_twice, [(tmp_path / "run",)] * 2, join=False, timeout=240):
        assert first == (128 + USR1, ["step=2.ckpt", "step=3.ckpt"])
        assert then == (0, ["step=2.ckpt", "step=3.ckpt", "step=4.ckpt", "step=6.ckpt"])


def test_a_checkpoint_that_was_cut_short_is_skipped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    fit(run)
    folder = checkpoint_folder(run)
    assert find_checkpoint("last", run) == folder / "step=6.ckpt"
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").symlink_to("step=4.ckpt")  # somebody went back to step 2, and came to step 4
    assert find_checkpoint("last", run) == folder / "step=4.ckpt"
    with (folder / "step=4.ckpt").open("ab") as file:
        file.truncate(1000)
    assert find_checkpoint("last", run) == folder / "step=6.ckpt"
    with (folder / "step=6.ckpt").open("ab") as file:
        file.truncate(0)
    capfd.readouterr()
    assert find_checkpoint("last", run) == folder / "step=2.ckpt"
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith(f"warning: {folder}/step=4.ckpt: found no whole checkpoint of mc2")
    assert said[1].startswith(f"warning: {folder}/step=6.ckpt: ")
    assert fit(run) == (0, ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"])
    assert find_checkpoint("last", run) == folder / "step=6.ckpt"
    for path in checkpoints_by_step(folder):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="found 3 checkpoints and none of them whole; take them away to begin anew"):
        find_checkpoint("last", run)


def test_a_folder_that_was_cut_short_is_skipped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_processes(fit_twice_sharded, [(run,)], join=False, timeout=240)
    folder = checkpoint_folder(run)
    part = next((folder / "step=6.ckpt").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-100])
    assert find_checkpoint("last", run) == folder / "step=4.ckpt"
    shutil.rmtree(folder / "step=4.ckpt")
    (folder / "step=4.ckpt").mkdir()
    assert find_checkpoint("last", run) == folder / "step=2.ckpt"


def fit_twice_sharded(run: Path) -> None:
    settings = fit_config(run, STEPS)
    strategy = {"class_path": "mc2.training.parallel.FSDP2Strategy", "init_args": {"save_distributed_checkpoint": True}}
    settings |= {"checkpoints": {"every_n_steps": 2, "keep": 10}, "trainer": {**settings["trainer"], "strategy": strategy, "devices": 1}}
    run.with_suffix(".yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(run.with_suffix(".yaml"))]) == 0


@pytest.mark.parametrize(("keep", "left"), [(1, {"step=3.ckpt", "step=9.ckpt"}), (2, {"step=2.ckpt", "step=3.ckpt", "step=9.ckpt"})])
def test_only_older_checkpoints_are_pruned_and_only_behind_a_whole_one(keep: int, left: set[str], tmp_path: Path) -> None:
    """step=9 was cut short, so that the run went on from step 2: the new one must not count as one too many."""
    for step in (1, 2, 9):
        (tmp_path / f"step={step}.ckpt").touch()
    (tmp_path / ".new").touch()
    put_in_place(tmp_path / ".new", tmp_path / "step=3.ckpt", keep)
    assert {path.name for path in tmp_path.iterdir()} == {*left, "last.ckpt"}
    assert (tmp_path / "last.ckpt").readlink() == Path("step=3.ckpt")
