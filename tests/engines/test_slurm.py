"""Tasks of a job array that end early, with submitit's local executor: real processes with the same life as SLURM's."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from mc2.engines.engine import Outcome, ShardErrors
from mc2.engines.slurm import POLL_SECONDS, RunItems, SlurmEngine, SlurmSettings, read_frames
from tests.engines.functions import EndTheTask, Sleep, square
from tests.engines.test_local import alive, wait_until, written


def engine(logs: Path, items_per_task: int) -> SlurmEngine:
    return SlurmEngine(logs, SlurmSettings(items_per_task=items_per_task, cluster="local"), workers=3, progress=False)


def test_only_the_unfinished_items_of_a_task_that_was_killed_run_again(tmp_path: Path) -> None:
    """The whole task dies once, in the middle of its third item."""
    work = EndTheTask(tmp_path / "runs", "c", deaths=1)
    assert engine(tmp_path / "logs", 5).map("match", work, list("abcde")) == [2 * item for item in "abcde"]
    assert Counter(work.runs()) == {"a": 1, "b": 1, "c": 2, "d": 1, "e": 1}


def test_an_item_that_ends_its_task_every_time_is_named_and_stops_nothing(tmp_path: Path) -> None:
    work = EndTheTask(tmp_path / "runs", "c", deaths=99)
    message = r"match: 1 of 5 failed \(c; .* first error: c: its task died 3 times; see .*/logs/match/.*_log\.err"
    with pytest.raises(ShardErrors, match=message):
        engine(tmp_path / "logs", 5).map("match", work, list("abcde"))
    assert Counter(work.runs()) == {"a": 1, "b": 1, "c": 3, "d": 1, "e": 1}


def test_ctrl_c_cancels_the_tasks(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()

    def interrupt() -> None:
        wait_until(lambda: len(written(tmp_path / "pids")) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        engine(tmp_path / "logs", 1).map("sleep", Sleep(tmp_path / "pids"), ["a", "b"])
    wait_until(lambda: not any(map(alive, written(tmp_path / "pids"))))


def test_a_requeued_task_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Were it killed in the middle of writing an outcome."""
    path = tmp_path / "outcomes"
    RunItems("square", square, ((7, "7"), (8, "8")), path, workers=1, attempts=1)()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    RunItems("square", square, ((7, "not run again"), (8, "nor this"), (9, "9")), path, workers=1, attempts=1)()
    assert read_frames(path)[0] == [(7, Outcome(49)), (8, Outcome(64)), (9, Outcome(81))]


def test_outcomes_are_read_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "outcomes"
    assert read_frames(path) == ([], 0)
    RunItems("square", square, ((0, "2"), (1, "3")), path, workers=1, attempts=1)()
    whole, seen, offset = path.read_bytes(), list[int](), 0
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        frames, offset = read_frames(path, offset)
        seen += [position for position, _ in frames]
    assert seen == [0, 1]
    assert offset == len(whole)


SBATCH = """#!{python}
import os, re, subprocess, sys
array, me = re.search(r"--array=0-(\\d+)", open(sys.argv[1]).read()), str(os.getpid())
for task in range(int(array[1]) + 1) if array else [None]:
    name = me if task is None else f"{{me}}_{{task}}"
    env = dict(os.environ, SLURM_JOB_ID=me) | ({{}} if task is None else dict(SLURM_ARRAY_JOB_ID=me, SLURM_ARRAY_TASK_ID=str(task)))
    process = subprocess.Popen(["sh", sys.argv[1]], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    open(f"{bin}/queue/{{name}}", "w").write(str(process.pid))
print("Submitted batch job", me)
"""
SQUEUE = """#!/bin/sh
for job in {bin}/queue/*; do if kill -0 $(cat $job) 2> /dev/null; then basename $job; fi; done
"""
SRUN = '#!/bin/sh\nshift 5; exec "$@"\n'  # --unbuffered --output FILE --error FILE


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What submitit and the engine see of SLURM, with processes of this machine behind it, and no accounting."""
    folder = tmp_path / "bin"
    (folder / "queue").mkdir(parents=True)
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "srun": SRUN}.items():
        (folder / name).write_text(text.format(python=sys.executable, bin=folder) if name != "srun" else text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("mc2.engines.slurm.QUEUE_SECONDS", 0.5)
    monkeypatch.setitem(POLL_SECONDS, "slurm", 0.1)
    return folder


def test_an_array_one_of_whose_tasks_dies_without_a_word(cluster: Path, tmp_path: Path) -> None:
    work = EndTheTask(tmp_path / "runs", "c", deaths=1)
    slurm = SlurmEngine(tmp_path / "logs", SlurmSettings(items_per_task=3), progress=False)
    assert slurm.map("match", work, list("abcde")) == [2 * item for item in "abcde"]
    assert Counter(work.runs()) == {"a": 1, "b": 1, "c": 2, "d": 1, "e": 1}
    assert len(list((cluster / "queue").iterdir())) == 3  # abc, de, and c again


def test_what_sbatch_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose sbatch knows no such partition."""
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(
            f"#!/bin/sh\ncp $1 {tmp_path}/script\necho 'sbatch: error: invalid partition specified: moon' >&2\nexit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster = SlurmEngine(tmp_path / "logs", SlurmSettings("moon", extra={"account": "us"}), progress=False)
    with pytest.raises(ValueError, match=r"engine: sbatch refuses square: .*invalid partition specified: moon"):
        cluster.map("square", square, ["1", "2"])
    options = (tmp_path / "script").read_text()
    for option in ("--partition=moon", "--account=us", "--time=60", "--mem=40GB", "--cpus-per-task=1", "--job-name=mc2-square"):
        assert option in options
