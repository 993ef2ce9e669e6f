"""The local engine's processes: kept, killed, interrupted, and never left behind. The driver is a process of its own here, so that it can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mc2.engines.local import LocalEngine, ProcessPool
from tests.engines.functions import process, square

DRIVER = """
import sys
from pathlib import Path
from mc2.engines.local import LocalEngine
from tests.engines.functions import Sleep
LocalEngine(2, progress=False).map("sleep", Sleep(Path(sys.argv[1])), ["a", "b", "c"])
"""


def wait_until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """True for a process that runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def written(folder: Path) -> list[int]:
    """The process ids that workers wrote."""
    return [int(text) for path in folder.glob("*.pid") if (text := path.read_text())]


def busy_driver(folder: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A driver in a session of its own, and its two workers, both at work."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder)], stderr=subprocess.PIPE, start_new_session=True)
    wait_until(lambda: len(written(folder)) == 2)
    return driver, written(folder)


def test_workers_stay_for_the_next_map_and_end_with_the_engine() -> None:
    engine = LocalEngine(2, progress=False)
    first, second = (set(engine.map("pid", process, [str(i) for i in range(20)])) for _ in range(2))
    assert os.getpid() not in first
    assert first == second
    assert len(first) == 2
    del engine
    wait_until(lambda: not any(map(alive, first)))


def test_an_idle_worker_that_was_killed_is_replaced() -> None:
    engine = LocalEngine(2, progress=False)
    for pid in set(engine.map("pid", process, [str(i) for i in range(20)])):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: engine.map("square", square, ["2", "3"]) == [4, 9])


@pytest.mark.parametrize(
    ("number", "group", "status"),
    [
        (signal.SIGKILL, False, -signal.SIGKILL),
        (signal.SIGTERM, False, 128 + signal.SIGTERM),
        (signal.SIGINT, True, -signal.SIGINT),  # as Ctrl-C does it
    ],
)
def test_no_worker_outlives_its_driver(number: signal.Signals, group: bool, status: int, tmp_path: Path) -> None:
    driver, workers = busy_driver(tmp_path)
    sent = time.monotonic()
    (os.killpg if group else os.kill)(driver.pid, number)
    driver.communicate(timeout=60)
    assert driver.returncode == status
    wait_until(lambda: not any(map(alive, workers)), 10)
    assert time.monotonic() - sent < 20  # the workers would sleep for a minute
    assert len(written(tmp_path)) == 2  # nothing new was begun


def test_a_worker_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mc2.engines.local.STOP_SECONDS", 0.2)
    pool = ProcessPool(1, attempts=1)
    outcomes = pool.run("deaf", deaf, [tmp_path / "deaf.pid", tmp_path / "deaf.pid"])
    next(outcomes)
    outcomes.close()
    wait_until(lambda: not alive(*written(tmp_path)))


def deaf(path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if path.exists():
        time.sleep(60)
    path.write_text(str(os.getpid()))
