"""Keyed draws, fingerprints, atomic writes and stages: what every output on disk relies on."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc2 import storage
from mc2.storage import Stage


def test_draws_depend_on_every_part_of_the_key_and_on_nothing_else() -> None:
    draw = storage.keyed_uniform(0, "balance", 3, "pair")
    assert draw == storage.keyed_uniform(0, "balance", 3, "pair")
    others = [(1, "balance", 3, "pair"), (0, "caption", 3, "pair"), (0, "balance", 4, "pair"), (0, "balance", 3, "pain")]
    assert draw not in [storage.keyed_uniform(*other) for other in others]


def test_draws_are_uniform() -> None:
    one_by_one = np.array([storage.keyed_uniform(0, "test", 0, str(i)) for i in range(20_000)])
    at_once = storage.keyed_uniforms(0, "test", 0, "key", np.arange(20_000))
    for draws in (one_by_one, at_once):
        assert 0 <= draws.min() < draws.max() < 1
        np.testing.assert_allclose(np.histogram(draws, 10, (0, 1))[0] / 20_000, 0.1, atol=0.01)
    assert abs(np.corrcoef(at_once[:-1], at_once[1:])[0, 1]) < 0.03


def test_draws_for_entries_do_not_depend_on_their_company() -> None:
    alone = [storage.keyed_uniforms(7, "balance", 1, "pair", [entry])[0] for entry in (5, 0, 2**31)]
    assert storage.keyed_uniforms(7, "balance", 1, "pair", [5, 0, 2**31]).tolist() == alone


def test_order_does_not_depend_on_the_order_given() -> None:
    keys = [f"{i:05d}" for i in range(50)]
    order = storage.keyed_order(0, "shards", 0, keys)
    assert order == storage.keyed_order(0, "shards", 0, reversed(keys))
    assert sorted(order) == keys != order


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_bytes(path, b"old")
    with pytest.raises(TypeError), storage.atomic_write(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "file: the disk is full; free some space"),
        (errno.EFBIG, "file: the disk is full; free some space"),
        (errno.EROFS, "file: cannot be written .* give a folder"),
    ],
)
def test_a_full_or_read_only_disk_is_one_line_with_the_cure(
    code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match=message):
        storage.write_bytes(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_json_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: not found"):
        storage.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json: not valid JSON"):
        storage.read_json(tmp_path / "bad.json")


@pytest.mark.filterwarnings("ignore:Exporting an unversioned DLPack")  # numpy's second try with the column that has nulls
def test_columns_of_numbers_are_read_without_pandas(tmp_path: Path) -> None:
    columns = {"offset": np.arange(5), "probability": np.linspace(0, 1, 5), "entry": list("abcde"), "none": [None] * 5}
    pq.write_table(pa.table(columns), tmp_path / "some.parquet", row_group_size=2)
    pq.write_table(pa.table({"offset": pa.array([], pa.int64())}), tmp_path / "empty.parquet")
    probability, offset = storage.read_columns(tmp_path / "some.parquet", "probability", "offset")
    np.testing.assert_array_equal(probability, columns["probability"])
    np.testing.assert_array_equal(offset, columns["offset"])
    assert storage.read_columns(tmp_path / "empty.parquet", "offset")[0].shape == (0,)
    for name, error in (("size", KeyError), ("none", pa.ArrowException)):
        with pytest.raises(error):
            storage.read_columns(tmp_path / "some.parquet", name)
    (tmp_path / "pandas.py").write_text("print('pandas')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from mc2 import storage; print(storage.read_columns('some.parquet', 'offset')[0].sum())"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout == "10\n"


def test_a_stage_is_done_once_and_only_with_its_own_inputs(tmp_path: Path) -> None:
    with Stage(tmp_path / "out", "match", {"seed": 0, "pool": "a"}) as stage:
        assert not stage.done
        stage.finish({"captions": 3})
    with Stage(tmp_path / "out", "match", {"seed": 0, "pool": "a"}) as stage:
        assert stage.done
        assert stage.results == {"captions": 3}
    with pytest.raises(ValueError, match=r"belongs to another run \(pool: found 'a', need 'b'\); choose another output folder or delete"):
        Stage(tmp_path / "out", "match", {"seed": 0, "pool": "b"}).__enter__()


def test_an_interrupted_stage_is_not_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Stage(tmp_path, "pack", {}):
        raise KeyboardInterrupt
    with Stage(tmp_path, "pack", {}) as stage:
        assert not stage.done


def hold(folder: Path, ready: multiprocessing.synchronize.Event, leave: multiprocessing.synchronize.Event) -> None:
    with Stage(folder, "pack", {}):
        ready.set()
        leave.wait(30)


def test_a_stage_that_has_made_nothing_begins_anew_with_other_inputs(tmp_path: Path) -> None:
    def begun(seed: int, *made: str) -> None:
        with Stage(tmp_path / "out", "match", {"seed": seed}, kept=["counts"], scratch=[".sums"]) as stage:
            for name in made:
                (stage.folder / name).parent.mkdir(exist_ok=True)
                (stage.folder / name).touch()

    begun(0, ".sums/0", ".git/0", "counts/0")
    begun(1)
    assert storage.read_json(tmp_path / "out/inputs.json")["seed"] == 1
    assert not (tmp_path / "out/.sums").exists()
    assert (tmp_path / "out/counts/0").exists()
    assert (tmp_path / "out/.git/0").exists()
    begun(1, "0.parquet")
    with pytest.raises(ValueError, match=r"belongs to another run \(seed: found 1, need 2\)"):
        Stage(tmp_path / "out", "match", {"seed": 2}, kept=["counts"]).__enter__()
    with Stage(tmp_path / "out", "match", {"seed": 2}, still_right=lambda different: different == {"seed"}) as stage:
        assert (stage.folder / "0.parquet").exists()


def test_two_jobs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, leave))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(ValueError, match=rf"another job is writing here \(process {other.pid} on "):
            Stage(tmp_path, "pack", {}).__enter__()
    finally:
        leave.set()
        other.join(30)
    with Stage(tmp_path, "pack", {}) as stage:
        assert not stage.done


def test_experiments_are_found_beside_the_package() -> None:
    assert (storage.experiments() / "quickstart.yaml").is_file()


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    """Under the lock, in the stage's own folder and its caches; another stage's folder is its own business."""
    with Stage(tmp_path / "other", "match", {}):
        leftovers = [tmp_path / ".a.json.1f.tmp", tmp_path / ".cache" / ".b.2e.tmp", tmp_path / "other" / ".c.tar.3d.tmp"]
        for path in [*leftovers, tmp_path / "whole.tmp"]:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
        with Stage(tmp_path, "run", {}):
            assert [path.exists() for path in leftovers] == [False, False, True]
            leftovers[0].write_bytes(b"half")  # of a worker that is killed now
        assert not leftovers[0].exists()
        assert (tmp_path / "whole.tmp").exists()
    assert not leftovers[2].exists()


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", fail)
    (tmp_path / ".a.json.1f.tmp").write_bytes(b"half")
    with (
        pytest.warns(UserWarning, match="the file system has no locks; take care that no other job writes here"),
        Stage(tmp_path, "run", {}) as stage,
    ):
        stage.finish({})
    assert stage.done
    assert (tmp_path / ".a.json.1f.tmp").exists()  # it may be the other job's


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file" / "out", Path("/sys/kernel/mc2")):  # the second one: not even by root
        with pytest.raises(ValueError, match=r"cannot be written \(.*\); give a folder that you may write to"):
            Stage(folder, "run", {}).__enter__()
