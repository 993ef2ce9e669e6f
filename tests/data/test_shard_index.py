"""Offsets of records against tarfile, from indexes that pack wrote and from those built on first use; what is stale."""

from __future__ import annotations

import io
import os
import resource
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from mc2.data import shard_index
from mc2.data.shard_folder import ShardFolder, open_folder
from mc2.data.shard_index import index_tar, indexed, plain_index_folder
from mc2.data.shard_reader import ShardReader, read_shard
from mc2.data.shard_stream import Plan, Position, stream_records
from mc2.data.tar_records import members
from tests.data.shards import record, write_folder, write_tar


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tar_format: int, tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tar_format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, size in (("folder/a.jpg", 0), ("b" * 90 + ".txt", 511), ("folder/" * 16 + "c.jpg", 512), ("狐.json", 1500), ("d.jpg", 7)):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, 12345
            tar.addfile(info, io.BytesIO(b"x" * size))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "d.jpg"
        tar.addfile(link)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset, info.offset_data, info.size) for info in tar if info.isreg()]
    with path.open("rb") as file:
        found = list(members(file))
    assert [member[:4] for member in found] == expected
    assert len(found) == 5


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    for shard in range(3):
        write_tar(folder / f"{shard}.tar", [file for pair in range(4) for file in record(f"{shard}-{pair}", b"a fox")])
    return folder


def test_every_record_is_found_by_its_index(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "shards", [5]) / "00000.tar"
    write_tar(path.with_name("1.tar"), [*record("a\udcff", b"fox"), *record("b", b"fox"), *record("b", b"hen"), ("c.txt", b"owl")])
    reader = ShardReader(indexed(open_folder(path.parent)))
    for name in reader.folder.names:
        whole = list(read_shard(path.parent / name))
        assert reader.num_records(name) == len(whole) == reader.folder.num_records[name]
        assert [reader.record(name, number) for number in range(len(whole))] == whole
        for first in range(len(whole) + 2):
            assert list(reader.read(name, first)) == whole[first:]


@pytest.mark.parametrize("num_bytes", [None, 9000], ids=["whole", "cut off"])
def test_blocks_of_any_size_are_the_records_one_after_the_other(num_bytes: int | None, tmp_path: Path) -> None:
    """With an index, by the headers, and from memory."""
    path = write_folder(tmp_path / "shards", [7]) / "00000.tar"
    if num_bytes:
        os.truncate(path, num_bytes)
    by_header = ShardFolder(path.parent, (path.name,), "", {path.name: path.stat().st_size})
    whole = list(read_shard(path))
    assert len(whole) == (3 if num_bytes else 7)
    for folder in (by_header, indexed(open_folder(path.parent))):
        for size in range(1, 9):
            reader = ShardReader(folder, cache_bytes=10**6)
            for _ in range(2):
                blocks = list(reader.blocks(path.name, 0, size))
                assert [replace(item, cached=False) for block in blocks for item in block] == whole
                assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)


@contextmanager
def open_files(more: int) -> Iterator[None]:
    """No file can be opened but for so many."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("with_index", [True, False], ids=["index", "headers"])
def test_a_stream_of_many_shards_needs_few_open_files(with_index: bool, tmp_path: Path) -> None:
    folder = open_folder(write_folder(tmp_path, [5] * 16))
    plan = Plan(indexed(folder) if with_index else folder, seed=0, shuffle_shards=16, shuffle_block=2)
    with open_files(4):
        assert len({item.key for _, item in islice(stream_records(plan, 0, Position(), ShardReader(plan.folder)), 80)}) == 80


def test_too_many_open_files_are_told_with_the_cure(plain: Path) -> None:
    folder = indexed(open_folder(plain))
    with (
        open_files(0),
        pytest.raises(ValueError, match=r"0\.tar: .*\(Too many open files\); .* may have \d+; raise that with `ulimit -n`$"),
    ):
        next(ShardReader(folder).read("0.tar"))


def test_a_tar_that_is_cut_off_has_a_last_record_that_says_so(plain: Path) -> None:
    with (plain / "1.tar").open("r+b") as file:
        file.truncate(int(index_tar(plain / "1.tar")[2, 0]) + 700)
    (plain / "2.tar").write_bytes(b"")
    reader = ShardReader(indexed(open_folder(plain)))
    assert reader.folder.num_records == {"0.tar": 4, "1.tar": 2, "2.tar": 1}
    assert [item.key for item in islice(reader.read("1.tar"), 1)] == ["1-0"]  # of 1-1 nobody knows whether a third file was to follow
    for last in (reader.record("1.tar", 1), *reader.read("1.tar", 1), reader.record("2.tar", 0), *reader.read("2.tar")):
        assert last.drops == ("truncated_tar",)


def test_indexes_of_plain_tars_are_built_once_and_again_for_a_tar_that_changed(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    original = shard_index.index_tar

    def noted(file: Path) -> NDArray[np.int64]:
        built.append(file.name)
        return original(file)

    monkeypatch.setattr(shard_index, "index_tar", noted)
    for _ in range(2):
        assert indexed(open_folder(plain)).num_records == {"0.tar": 4, "1.tar": 4, "2.tar": 4}
    assert built == ["0.tar", "1.tar", "2.tar"]
    assert open_folder(plain).names == ("0.tar", "1.tar", "2.tar")
    write_tar(plain / "1.tar", record("x", b"a hen"))
    assert indexed(open_folder(plain)).num_records["1.tar"] == 1
    assert built[3:] == ["1.tar"]


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"0.tar": 3}', '{"0.tar": [1, 2]}'])
def test_sizes_that_are_none_are_taken_again(text: str, plain: Path) -> None:
    indexed(open_folder(plain))
    (plain / ".mc2_index/sizes.json").write_text(text)
    assert indexed(open_folder(plain)).num_records == {"0.tar": 4, "1.tar": 4, "2.tar": 4}


def test_many_tars_are_indexed_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "TARS_PER_WORKER", 2)
    write_folder(tmp_path, [1, 2, 3, 4])
    assert list(indexed(open_folder(tmp_path)).num_records.values()) == [1, 2, 3, 4]


@pytest.mark.parametrize("has_index", [False, True])
def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(
    has_index: bool, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_index:
        (plain / ".mc2_index").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert indexed(open_folder(plain)).num_records["0.tar"] == 4
    assert not list(plain.glob(".mc2_index/*"))
    assert plain_index_folder(plain).is_relative_to(tmp_path / "cache" / "mc2")


def test_no_tar_at_all_is_refused(plain: Path) -> None:
    (plain / "1.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(
        ValueError, match=r"index: 1 of 3 failed .*1\.tar: not a readable tar \(.*copy it again or take it out of the folder"
    ):
        indexed(open_folder(plain))


def write_index(path: Path, rows: NDArray[Any]) -> None:
    pq.write_table(pa.table({"offset": rows[:, 0], "size": rows[:, 1]}), path)


def cut_off(folder: Path) -> None:
    with (folder / "00001.tar").open("r+b") as file:
        file.truncate(3000)


def bent_header(folder: Path) -> None:
    start = int(index_tar(folder / "00001.tar")[7, 0])
    with (folder / "00001.tar").open("r+b") as file:
        file.seek(start + 124)
        file.write(b"99999999999")


def no_tar(folder: Path) -> None:
    data = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(b"\xff" * len(data))


def no_index(folder: Path) -> None:
    (folder / "00001.index.parquet").unlink()


def torn_index(folder: Path) -> None:
    (folder / "00001.index.parquet").write_bytes(b"PAR1")


def short_index(folder: Path) -> None:
    write_index(folder / "00001.index.parquet", index_tar(folder / "00001.tar")[:-2])


def strange_index(folder: Path) -> None:
    write_index(folder / "00001.index.parquet", index_tar(folder / "00001.tar") + np.array([512, 0]))


def negative_index(folder: Path) -> None:
    write_index(folder / "00001.index.parquet", index_tar(folder / "00001.tar") - np.array([512, 0]))


def float_index(folder: Path) -> None:
    write_index(folder / "00001.index.parquet", index_tar(folder / "00001.tar").astype(float))


def huge_index(folder: Path) -> None:
    write_index(folder / "00001.index.parquet", index_tar(folder / "00001.tar") + np.array([2**63 - 100_000, 0]))


DAMAGE: list[tuple[list[Callable[[Path], None]], Counter[str]]] = [
    ([cut_off], Counter(stale_shard=1)),
    ([bent_header], Counter(damaged_record=1, used=11)),
    ([bent_header, no_index], Counter(truncated_tar=1, used=6)),  # of the one before nobody knows whether a third file was to follow
    ([no_tar], Counter(damaged_record=12)),
    ([no_tar, no_index], Counter(truncated_tar=1)),
    ([no_index], Counter(used=12)),
    ([torn_index], Counter(used=12)),
    ([short_index], Counter(used=12)),
    ([strange_index], Counter(damaged_record=12)),
    ([negative_index], Counter(used=12)),
    ([float_index], Counter(used=12)),
    ([huge_index], Counter(used=12)),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGE, ids=["-".join(d.__name__ for d in damage) for damage, _ in DAMAGE])
def test_a_damaged_shard_goes_on_from_every_place_as_it_is_read_whole(
    damage: list[Callable[[Path], None]], expected: Counter[str], tmp_path: Path
) -> None:
    write_folder(tmp_path, [12, 12, 12])
    for name in ("00000", "00001", "00002"):
        write_index(tmp_path / f"{name}.index.parquet", index_tar(tmp_path / f"{name}.tar"))
    folder = replace(open_folder(tmp_path), num_records={f"0000{shard}.tar": 12 for shard in range(3)})
    for do in damage:
        do(tmp_path)
    records = list(ShardReader(folder).read("00001.tar"))
    assert Counter(drop for item in records for drop in item.drops or ["used"]) == expected
    plan = Plan(folder, seed=0, shuffle_shards=3, shuffle_block=5)
    whole = list(islice(stream_records(plan, 0, Position(), ShardReader(folder)), 60))
    for place in range(len(whole)):
        reader = ShardReader(folder)
        assert reader.num_records("00001.tar") == len(records)
        assert list(islice(stream_records(plan, 0, whole[place][0], reader), 59 - place)) == whole[place + 1 :], place


def test_a_tar_that_changes_while_a_run_reads_it_is_left_out(plain: Path) -> None:
    folder = indexed(open_folder(plain))
    reader = ShardReader(folder)
    assert len(list(reader.read("0.tar"))) == 4
    write_tar(plain / "0.tar", record("new", b"a hen"))
    assert [item.drops for item in reader.read("0.tar")] == [("stale_shard",)]
