"""The local engine: order, failures by name, a worker that dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mc2.engines.engine import Engine, ShardErrors
from mc2.engines.local import LocalEngine


def square(item: str) -> int:
    return int(item) ** 2


def process(_item: str) -> int:
    return os.getpid()


def fail_on_odd(item: Path) -> str:
    if int(item.stem) % 2:
        raise ValueError(f"{item} is poisoned")
    return item.name


def die(item: str) -> str:
    if item == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize("workers", [1, 2])
def test_results_in_the_order_of_the_items(workers: int) -> None:
    engine: Engine = LocalEngine(workers, progress=False)
    assert engine.map("square", square, [str(i) for i in range(9)]) == [i * i for i in range(9)]
    assert engine.map("square", square, []) == []


def test_workers_stay_for_the_next_map() -> None:
    engine = LocalEngine(2, progress=False)
    first, second = (set(engine.map("pid", process, [str(i) for i in range(20)])) for _ in range(2))
    assert os.getpid() not in first | second
    assert len(first | second) <= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_poisoned_shard_is_named_and_stops_nothing(workers: int) -> None:
    with pytest.raises(
        ShardErrors, match=r"match: 2 of 5 failed \(1\.tar, 3\.tar; the others are done\); first error: p/1\.tar is poisoned"
    ) as caught:
        LocalEngine(workers, progress=False).map("match", fail_on_odd, [Path(f"p/{i}.tar") for i in range(5)])
    assert list(caught.value.failures) == ["1.tar", "3.tar"]


def test_a_worker_that_dies_is_one_clear_line_and_the_engine_lives_on() -> None:
    engine = LocalEngine(2, progress=False)
    with pytest.raises(ValueError, match=r"match: a worker process died .* run the same line again"):
        engine.map("match", die, ["1", "2", "3"])
    assert engine.map("square", square, ["2", "3"]) == [4, 9]


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="found 0 workers, need at least 1"):
        LocalEngine(0)


def test_the_bar_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    LocalEngine(1).map("square", square, ["1"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "square" in captured.err
