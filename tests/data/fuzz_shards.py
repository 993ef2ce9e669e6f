"""Training shards with random damage, drawn by a seed: each gives samples or counted drops, never a crash, a hang or a record that moves.

    python -m tests.data.fuzz_shards --shards 10000

A damaged shard is indexed, read from its beginning and from a record in the middle, by its headers and by the index that it had before, and its samples are made.
The alarm makes a hang an error.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import struct
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mc2.data.preprocess import ImagePreprocess
from mc2.data.samples import Sample, SampleMaker, drop_reasons
from mc2.data.shard_folder import ShardFolder
from mc2.data.shard_index import index_tar
from mc2.data.shard_reader import Record, ShardReader, read_shard
from mc2.data.stages import Laps
from mc2.records import DROP_REASONS
from tests.data.shards import jpeg, packed, record

MAX_SECONDS = 20
MAKER = SampleMaker(ImagePreprocess(image_size=8, max_pixels=1_000_000), seed=0)
Members = list[tuple[str, bytes]]


# --- damage -------------------------------------------------------------------------------------------------------------


def whole_members(rng: random.Random) -> Members:
    """The files of six pairs, packed or as img2dataset leaves them."""
    members: Members = []
    for number in range(6):
        key = f"{number:05d}"
        if rng.random() < 0.5:
            members += record(key, f"a red fox {number}".encode(), _images()[0])
        else:
            members += [(f"{key}.jpg", _images()[0]), (f"{key}.json", packed(("ein Fuchs", "de", (1, 2)), ("a fox", "en", ())))]
    return members


@lru_cache
def _images() -> list[bytes]:
    """A JPEG, and what else lies under the name of one."""
    found = [jpeg(0, 32, 24)]
    for kind in ("PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"):
        file = io.BytesIO()
        Image.open(io.BytesIO(found[0])).save(file, kind)
        found.append(file.getvalue())
    return [*found, huge_png(found[1]), b"", b"\xff\xd8\xff", b"P4 30000 30000\n", b"GIF89a"]


def huge_png(png: bytes) -> bytes:
    """A PNG whose header says 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


JUNK: tuple[Any, ...] = (None, 0, -1, 1.5, True, "x", "captions", [], {}, [[]], {"text": "a"}, 2**70, "\udcff", "\0", " ", "a" * 5000)


def other_json(rng: random.Random) -> bytes:
    """A JSON of the wrong shape, or none."""
    caption: dict[str, Any] = {"text": "a fox", "language": "en", "entries": [1]}
    caption[rng.choice(list(caption))] = rng.choice(JUNK)
    value = rng.choice(
        [rng.choice(JUNK), {"captions": rng.choice(JUNK)}, {"captions": [rng.choice(JUNK)]}, {"captions": [caption, caption]}]
    )
    texts = [json.dumps(value), json.dumps(value)[:-1], "[" * 100_000, "", '{"captions": [NaN, Infinity]}', "9" * 5000]
    return rng.choice([texts[0]] * 6 + texts[1:]).encode()


NAMES = (
    "../../etc/passwd.jpg",
    "/etc/x.jpg",
    "/etc/x.json",
    "..",
    ".jpg",
    "a/b/../c.json",
    "x.",
    "",
    "\udcff.jpg",
    "k" * 300 + ".jpg",
    "a.b.c.JPG",
)


def damage_members(members: Members, rng: random.Random) -> None:
    """Other images, texts and names in the place of one file; or a file fewer or twice."""
    place = rng.randrange(len(members))
    name, data = members[place]
    choice = rng.randrange(5)
    if choice == 0:
        members[place] = (name, other_json(rng) if name.endswith(".json") else rng.choice(_images()))
    elif choice == 1:
        members[place] = (rng.choice(NAMES), data)
    elif choice == 2:
        del members[place]
    elif choice == 3:
        members.insert(rng.randrange(len(members)), members[place])
    else:
        members[place] = (name, damage_bytes(data, rng))


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, taken out, doubled or cut off."""
    if not data:
        return b"\0"
    first = rng.randrange(len(data))
    last = min(len(data), first + rng.choice((1, 2, 16, 512, 4096)))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:first] + rng.randbytes(last - first) + data[last:]
    if kind == 1:
        return data[:first] + data[last:]
    if kind == 2:
        return data[:last] + data[first:]
    return data[:first]


def damage_header(data: bytes, start: int, rng: random.Random) -> bytes:
    """One field of the header at a byte of the tar changed, with the checksum that belongs to it."""
    header = bytearray(data[start : start + 512].ljust(512, b"\0"))
    first, length, values = rng.choice(
        [
            (0, 100, [b"../x.jpg", b"/x.jpg", b"", b"\xff\xfe.jpg", b"x" * 100]),
            (
                124,
                12,
                [
                    b"-0000001000",
                    b"77777777777",
                    b"00000000000",
                    b"1_000",
                    b" +12 ",
                    b"\x80" + b"\xff" * 11,
                    b"\xff" * 12,
                    b"\x80" + b"\0" * 10 + b"\x09",
                    b"\x80\0\0\0\x10" + b"\0" * 7,
                ],
            ),
            (156, 1, [bytes([kind]) for kind in b"\x00123456LKSxgXVN7"]),
            (345, 155, [b"/etc", b"../..", b"x" * 155]),
        ]
    )
    header[first : first + length] = rng.choice(values).ljust(length, b"\0")
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    header[148:156] = b"%06o\0 " % checksum
    return data[:start] + header + data[start + 512 :]


def damaged_shard(seed: int) -> tuple[bytes, bytes]:
    """The bytes of one shard with one to three damages; and those that it had before its bytes and headers were damaged."""
    rng = random.Random(seed)
    members = whole_members(rng)
    kinds = [rng.choice(("members", "members", "header", "bytes")) for _ in range(rng.randint(1, 3))]
    for _ in range(kinds.count("members")):
        damage_members(members, rng)
    data, headers = _tar(members)
    whole = data
    for kind in kinds:
        if kind == "header" and headers:
            data = damage_header(data, rng.choice(headers), rng)
        elif kind == "bytes":
            data = damage_bytes(data, rng)
    return data, whole


def _tar(members: Members) -> tuple[bytes, list[int]]:
    """A tar, and where the headers of its files begin."""
    file, headers = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            headers.append(tar.offset)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue(), headers


# --- what must hold -----------------------------------------------------------------------------------------------------


def outcomes(file: Path) -> Counter[str]:
    """Number of samples and of drops by reason of a damaged shard; {"refused": 1} for one that is no tar. Errors: AssertionError for what must not be."""
    try:
        rows = index_tar(file)
    except ValueError as error:
        assert "not a readable tar" in str(error)  # noqa: PT017
        assert [record.drops for record in read_shard(file)] == [("truncated_tar",)]
        return Counter(refused=1)
    records = list(read_shard(file))
    assert len(records) == len(rows)
    middle = len(rows) // 2
    if len(rows) and rows[middle, 1]:
        assert list(read_shard(file, int(rows[middle, 0]))) == records[middle:]
    return _of_records(records, file)


def outcomes_by_index(file: Path, whole: bytes) -> Counter[str]:
    """The same of a shard whose index was made before the damage. Records are the same one by one, from the middle and from the beginning."""
    original = file.with_name("whole.tar")
    original.write_bytes(whole)
    rows = index_tar(original)
    pq.write_table(pa.table({"offset": rows[:, 0], "size": rows[:, 1]}), file.with_name("0.index.parquet"))
    reader = ShardReader(ShardFolder(file.parent, (file.name,), "", {file.name: file.stat().st_size}, {file.name: len(rows)}))
    records = list(reader.read(file.name))
    assert reader.num_records(file.name) == len(records)
    assert [reader.record(file.name, number) for number in range(len(records))] == records
    assert list(reader.read(file.name, len(records) // 2)) == records[len(records) // 2 :]
    return _of_records(records, file)


def _of_records(records: list[Record], file: Path) -> Counter[str]:
    reader = ShardReader(ShardFolder(file.parent, (file.name,), ""))
    return sum((_of_record(item, reader) for item in records), Counter[str]())


def _of_record(item: Record, reader: ShardReader) -> Counter[str]:
    sample = MAKER.train(item, 0, reader, Laps())
    found = Counter(drop_reasons(item, sample))
    assert found.keys() <= DROP_REASONS.keys()
    if isinstance(sample, Sample):
        assert sample.image.shape == (3, 8, 8)
        assert sample.text.strip()
        found["sample"] += 1
    assert found
    return found


@contextmanager
def alarm(seconds: int, what: str) -> Iterator[None]:
    """TimeoutError in the middle of what takes longer."""

    def ring(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise TimeoutError(what)

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(folder: Path, seeds: range) -> Counter[str]:
    """Sums of the outcomes. Errors: AssertionError that names the seed of a shard that is handled wrongly."""
    found: Counter[str] = Counter()
    for seed in seeds:
        file = folder / "0.tar"
        damaged, whole = damaged_shard(seed)
        file.write_bytes(damaged)
        try:
            with alarm(MAX_SECONDS, "hangs"):
                found += outcomes(file)
                found += Counter({f"{what} by index": number for what, number in outcomes_by_index(file, whole).items()})
        except Exception as error:
            raise AssertionError(f"shard of seed {seed}: {error!r}") from error
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(Path(folder), range(arguments.seed, arguments.seed + arguments.shards))
    print(f"{arguments.shards} damaged shards: " + ", ".join(f"{what} {number}" for what, number in found.most_common()))


if __name__ == "__main__":
    main()
