"""The contract of an engine, kept by all of them: order, errors by name, processes that die."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mc2 import storage
from mc2.engines.engine import Engine, Schedule, ShardErrors
from mc2.engines.local import LocalEngine
from mc2.engines.options import make_engine
from mc2.engines.ray import RayEngine, RaySettings
from mc2.engines.slurm import SlurmEngine, SlurmSettings
from tests.engines.functions import CountedWork, fail_on_odd, fill_the_disk, give_what_cannot_travel, raise_odd, square

KINDS = ["here", "local", "ray", "slurm"]
Making = Callable[[str], Engine]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Making:
    """An engine of a kind."""

    def engine(kind: str) -> Engine:
        if kind == "ray":
            running: RayEngine = request.getfixturevalue("ray_engine")
            return running
        if kind == "slurm":
            settings = SlurmSettings(items_per_task=5, cluster="local")
            return SlurmEngine(tmp_path_factory.mktemp("slurm"), settings, workers=2, progress=False)
        return LocalEngine(1 if kind == "here" else 2, progress=False)

    return engine


@pytest.mark.parametrize("kind", KINDS)
def test_results_in_the_order_of_the_items(kind: str, make: Making) -> None:
    engine = make(kind)
    assert engine.map("square", square, [str(i) for i in range(9)]) == [i * i for i in range(9)]
    assert engine.map("square", square, []) == []
    assert engine.map("square", square, ["3", "3"]) == [9, 9]


@pytest.mark.parametrize("kind", KINDS)
def test_a_poisoned_shard_is_named_and_stops_nothing(kind: str, make: Making) -> None:
    message = r"match: 2 of 5 failed \(1\.tar, 3\.tar; the others are done\); first error: p/1\.tar is poisoned; mend that"
    with pytest.raises(ShardErrors, match=message) as caught:
        make(kind).map("match", fail_on_odd, [Path(f"p/{i}.tar") for i in range(5)])
    assert list(caught.value.failures) == ["p/1.tar", "p/3.tar"]
    assert "in fail_on_odd" in "".join(caught.value.failures["p/1.tar"].__notes__)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_item_that_kills_its_process_every_time_is_named_and_stops_nothing(kind: str, make: Making, tmp_path: Path) -> None:
    work = CountedWork(tmp_path, "victim", deaths=99)
    with pytest.raises(
        ShardErrors, match=r"match: 1 of 9 failed \(victim; the others are done\); first error: victim: its worker died 3 times"
    ):
        make(kind).map("match", work, [*"abcd", "victim", *"efgh"])
    assert {item.name: work.runs(item.name) for item in tmp_path.iterdir()} == {**dict.fromkeys("abcdefgh", 1), "victim": 3}


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_item_whose_process_was_killed_is_run_again(kind: str, make: Making, tmp_path: Path) -> None:
    work = CountedWork(tmp_path, "victim", deaths=2)
    assert make(kind).map("match", work, [*"abcd", "victim", *"efgh"]) == [
        *(2 * item for item in "abcd"),
        "victimvictim",
        "ee",
        "ff",
        "gg",
        "hh",
    ]
    assert {item.name: work.runs(item.name) for item in tmp_path.iterdir()} == {**dict.fromkeys("abcdefgh", 1), "victim": 3}


@pytest.mark.parametrize("kind", KINDS[1:])
def test_what_cannot_be_pickled_is_the_error_of_its_item(kind: str, make: Making) -> None:
    engine = make(kind)
    with pytest.raises(ShardErrors, match=r"odd: 2 of 2 failed .* first error: RuntimeError: OddError: a 7"):
        engine.map("odd", raise_odd, ["a", "b"])
    with pytest.raises(ShardErrors, match=r"far: 2 of 2 failed .* first error: RuntimeError: TypeError: cannot pickle"):
        engine.map("far", give_what_cannot_travel, ["a", "b"])
    assert engine.map("square", square, ["2", "3"]) == [4, 9]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_ends_it_at_once(kind: str, make: Making, tmp_path: Path) -> None:
    """All others would fail too; thousands of shards would be computed for nothing."""
    out = tmp_path / "out"
    with pytest.raises(storage.DiskFullError, match=r"the disk is full; free some space"):
        make(kind).map("match", fill_the_disk, [out / str(number) for number in range(400)])
    assert len(list(out.iterdir())) < 200


def test_the_last_attempt_is_alone() -> None:
    schedule = Schedule("match", ["a", "b"], attempts=3)
    assert [schedule.next(0), schedule.next(1), schedule.next(2)] == [0, 1, None]
    assert schedule.died(0, "killed") is None
    assert schedule.next(1) == 0  # the second attempt has company
    assert schedule.died(0, "killed") is None
    assert [schedule.next(1), schedule.next(0)] == [None, 0]
    outcome = schedule.died(0, "killed")
    assert outcome is not None
    assert "a: its worker died 3 times (killed)" in str(outcome.error)


# --- the options --------------------------------------------------------------------------------------------------------


def test_options_make_the_engine(tmp_path: Path) -> None:
    local = make_engine(tmp_path, workers=3)
    assert isinstance(local, LocalEngine)
    assert local.workers == 3
    assert isinstance(make_engine(tmp_path, "slurm", slurm=SlurmSettings(cluster="local")), SlurmEngine)
    assert isinstance(make_engine(tmp_path, "ray", ray=RaySettings("auto")), RayEngine)


def test_options_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="found 0 workers, need at least 1"):
        make_engine(tmp_path, workers=0)
    with pytest.raises(ValueError, match="found 0 attempts, need at least 1"):
        make_engine(tmp_path, attempts=0)
    with pytest.raises(ValueError, match="found settings of ray for engine 'local', where they have no effect; add --engine ray"):
        make_engine(tmp_path, ray=RaySettings("auto"))
    with pytest.raises(ValueError, match="found settings of slurm for engine 'ray'"):
        make_engine(tmp_path, "ray", slurm=SlurmSettings("cpu"))
    with pytest.raises(ValueError, match=r"found slurm\.items_per_task 0, need more than 0"):
        make_engine(tmp_path, "slurm", slurm=SlurmSettings(items_per_task=0))
    with pytest.raises(ValueError, match=r"found ray\.cpus_per_item 0, need more than 0"):
        make_engine(tmp_path, "ray", ray=RaySettings(cpus_per_item=0))
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ValueError, match="found no sbatch, need a machine of the SLURM cluster"):
        make_engine(tmp_path, "slurm")


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_its_extra(engine: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"the package {package} is not installed; run `pip install 'mc2\[{engine}\]'`"):
        make_engine(tmp_path, engine)  # type: ignore[arg-type]


def test_the_bar_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    LocalEngine(1).map("square", square, ["1"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "square" in captured.err
