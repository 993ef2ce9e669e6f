"""Damaged shards: mutations drawn by a seed, headers that lead in circles, and the memory of a worker over many passes."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
from itertools import islice
from pathlib import Path

import pytest

from mc2.bench.clocks import memory_bytes
from mc2.data.datamodule import ShardDataModule
from mc2.data.preprocess import ImagePreprocess
from mc2.data.shard_index import index_tar
from mc2.data.shard_reader import read_shard
from tests.data.fuzz_shards import alarm, fuzz
from tests.data.shards import jpeg, record, write_tar


def test_damaged_shards_give_samples_or_counted_drops(tmp_path: Path) -> None:
    found = fuzz(tmp_path, range(300))  # `python -m tests.data.fuzz_shards` runs 10,000
    fuzz(tmp_path, range(8278, 8279))  # no regular file, of 2**63 bytes: an offset that no file has
    assert found["sample"] > 800
    assert {
        "truncated_tar",
        "no_image",
        "broken_image",
        "huge_image",
        "broken_record",
        "no_captions",
        "not_utf8",
        "refused",
        "damaged_record by index",
    } <= found.keys()


@pytest.mark.parametrize("size", [b"-0000001000", b"-0000000001", b"\x80" + b"\xff" * 10 + b"\x00", b"\xff" * 12])
def test_a_header_that_leads_back_ends_the_shard(size: bytes, tmp_path: Path) -> None:
    """A size of -512 makes the next header this one: a reader that believes it never ends."""
    write_tar(tmp_path / "0.tar", [member for key in "abc" for member in record(key, b"a fox")])
    data = bytearray((tmp_path / "0.tar").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        start = tar.getmembers()[2].offset
    data[start + 124 : start + 136] = size.ljust(12, b"\0")
    checksum = sum(data[start : start + 512]) - sum(data[start + 148 : start + 156]) + 8 * ord(" ")
    data[start + 148 : start + 156] = b"%06o\0 " % checksum
    (tmp_path / "0.tar").write_bytes(data)
    with alarm(20, "hangs"):
        records = list(read_shard(tmp_path / "0.tar"))
        assert len(index_tar(tmp_path / "0.tar")) == len(records)
    assert [item.key for item in records[:-1]] == ["a"][: len(records) - 1]
    assert records[-1].drops == ("truncated_tar",)


def header(name: bytes, kind: bytes, size: bytes, extended: bool = False) -> bytes:
    """A header of 512 bytes with its checksum; `extended`: of a sparse file whose map goes on in the next block."""
    data = bytearray(512)
    data[: len(name)], data[124:136], data[156:157] = name, size.ljust(12, b"\0"), kind
    data[257:265], data[482:483] = b"ustar  \0", bytes([extended])
    data[148:156] = b"%06o\0 " % (sum(data) + 8 * ord(" "))
    return bytes(data)


@pytest.mark.parametrize(
    "strange",
    [
        header(b"x.jpg", b"S", b"00000001000", extended=True),
        header(b"x", b"L", b"00000001000") * 4000,
        header(b"x", b"L", b"\x80\0\0\0\x10" + b"\0" * 7),
        header(b"x", b"x", b"\x80\0\0\0\x10" + b"\0" * 7),
    ],
    ids=["sparse", "chain", "long", "pax"],
)
def test_headers_that_tarfile_itself_fails_on(strange: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [member for key in "ab" for member in record(key, b"a fox")])
    data = (tmp_path / "0.tar").read_bytes()
    end = int(index_tar(tmp_path / "0.tar")[1].sum())
    (tmp_path / "0.tar").write_bytes(data[:end] + strange)
    (tmp_path / "1.tar").write_bytes(strange)
    first, *_, last = read_shard(tmp_path / "0.tar")
    assert (first.key, last.drops) == ("a", ("truncated_tar",))
    assert [item.drops for item in read_shard(tmp_path / "1.tar")] == [("truncated_tar",)]
    with pytest.raises(ValueError, match=r"1\.tar: not a readable tar"):
        index_tar(tmp_path / "1.tar")


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", "a/../x.jpg"])
def test_names_that_lead_out_of_the_folder_are_names_only(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(name, jpeg()), (name.replace(".jpg", ".txt"), b"a fox")])
    (item,) = read_shard(tmp_path / "0.tar")
    assert (item.key, item.drops) == (name.removesuffix(".jpg"), ())
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_memory_of_a_worker_stays_flat_over_ten_passes(tokenizer_folder: Path, tmp_path: Path) -> None:
    """One that keeps what it read would grow by 3 MB a pass."""
    image = jpeg(1, 400, 300) + bytes(30_000)
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", [member for i in range(40) for member in record(f"{shard}-{i}", b"a fox", image)])
    preprocess = ImagePreprocess(image_size=32)
    module = ShardDataModule(str(tmp_path), str(tokenizer_folder), batch_size=16, num_workers=1, preprocess=preprocess)
    before = {child.pid for child in multiprocessing.active_children()}
    batches, sizes = iter(module.train_dataloader()), []
    for _ in range(12):
        for _ in islice(batches, 5):  # 80 records: one pass
            pass
        (worker,) = {child.pid for child in multiprocessing.active_children()} - before
        sizes.append(memory_bytes(str(worker))["own"])
    module.teardown("fit")
    growth = [(last - first) / 8 for first, last in zip(sizes[1:4], sizes[9:], strict=True)]  # the first passes fill pools
    assert sum(growth) / 3 < 2**20, sizes
