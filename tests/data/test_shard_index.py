"""Offsets of records against tarfile, from indexes that pack wrote and from those built on first use; what is stale."""

from __future__ import annotations

import io
import os
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mc2.data import shard_index
from mc2.data.shard_folder import ShardFolder, open_folder
from mc2.data.shard_index import index_tar, indexed, plain_index_folder
from mc2.data.shard_reader import ShardReader, read_shard
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


def test_many_tars_are_indexed_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "TARS_PER_WORKER", 2)
    write_folder(tmp_path, [1, 2, 3, 4])
    assert list(indexed(open_folder(tmp_path)).num_records.values()) == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert indexed(open_folder(plain)).num_records["0.tar"] == 4
    assert not (plain / ".mc2_index").exists()
    assert plain_index_folder(plain).is_relative_to(tmp_path / "cache" / "mc2")


def test_no_tar_at_all_is_refused(plain: Path) -> None:
    (plain / "1.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(
        ValueError, match=r"index: 1 of 3 failed .*1\.tar: not a readable tar \(.*copy it again or take it out of the folder"
    ):
        indexed(open_folder(plain))


def test_what_is_stale(plain: Path) -> None:
    folder = indexed(open_folder(plain))
    write_tar(plain / "0.tar", record("new", b"a hen"))  # while a run reads them
    reader = ShardReader(folder)
    assert [item.drops for item in reader.read("0.tar")] == [("stale_shard",)]
    swapped = ShardFolder(plain, folder.names, "", folder.num_bytes, {**folder.num_records, "1.tar": 5})
    with pytest.raises(
        ValueError, match=r"1\.index\.parquet: is stale: 4 records up to byte \d+, need 5 within the \d+ bytes of 1\.tar; copy"
    ):
        ShardReader(swapped).num_records("1.tar")
    other = index_tar(plain / "1.tar") + np.array([512, 0])
    reader = ShardReader(folder)
    reader._index = lambda _: other  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"2\.tar: has no record at byte \d+, its index is stale"):
        reader.record("2.tar", 1)
