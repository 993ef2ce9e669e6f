"""Files with random damage never crash a reader: they give pairs, or counted drops, or both; the same with and without images."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc2.curation.pool import read_pairs
from mc2.records import DROP_REASONS, Pair
from tests.curation.pools import CAPTIONS, record, tar_bytes
from tests.curation.wats import image, page, wat_members

MUTATIONS = 150
NOISE = random.Random(0).randbytes(700)


def tar_file() -> bytes:
    return tar_bytes(member for i, captions in enumerate(CAPTIONS) for member in record(f"{i:04d}", captions, NOISE))


def parquet_file(**settings: object) -> bytes:
    table = {
        "url": [f"https://ex.org/{i // 2}.jpg" for i in range(40)],
        "captions": [CAPTIONS[i % 5] for i in range(40)],
        "hint": ["de", None, "und-CH", "x"] * 10,
        "image": [{"bytes": NOISE[: 50 + i], "path": None} for i in range(40)],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer, row_group_size=10, **settings)
    return buffer.getvalue()


def wat_file() -> bytes:
    pages = [page(f"https://ex.org/{i}", [image(f"{i}.jpg", *captions[:1], title=captions[1])]) for i, captions in enumerate(CAPTIONS * 3)]
    return b"".join(wat_members(pages))


FILES: dict[str, Callable[[], bytes]] = {
    "0.tar": tar_file,
    "snappy.parquet": parquet_file,
    "plain.parquet": lambda: parquet_file(compression="none", use_dictionary=False, write_page_checksum=True),
    "v2.parquet": lambda: parquet_file(compression="zstd", data_page_version="2.0", write_statistics=False),
    "0.warc.wat.gz": wat_file,
}


@lru_cache
def whole(name: str) -> bytes:
    return FILES[name]()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file with a few bytes changed, or with a piece cut off, taken out, doubled or put elsewhere."""
    changed = bytearray(data)
    kind = rng.randrange(6)
    start, length = rng.randrange(len(data)), rng.choice([1, 4, 40, 400])
    piece = data[start : start + length]
    if kind == 0:
        for _ in range(rng.choice([1, 1, 3, 20])):
            changed[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        changed = changed[:start]
    elif kind == 2:
        del changed[start : start + length]
    elif kind == 3:
        changed[start:start] = piece
    elif kind == 4:
        changed[start : start + length] = rng.choice([b"\0", b"\xff"]) * len(piece)
    else:
        place = rng.randrange(len(data))
        changed[place : place + len(piece)] = piece
    return bytes(changed)


def read(path: Path, images: bool) -> tuple[list[Pair], Counter[str]]:
    drops: Counter[str] = Counter()
    pairs = list(read_pairs(path, drops, images))
    assert set(drops) <= set(DROP_REASONS)
    assert len({pair.key for pair in pairs}) == len(pairs)
    assert all(pair.captions and all(isinstance(caption, str) for caption in pair.captions) for pair in pairs)
    return pairs, drops


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path, rng = tmp_path / name, random.Random(f"fuzz {name}")
    path.write_bytes(whole(name))
    good = len(read(path, images=True)[0])
    assert good >= 5
    complaints = 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(whole(name), rng))
        try:
            pairs, drops = read(path, images=True)
        except ValueError as error:
            assert "found" in str(error)  # noqa: PT017  (a column that has lost its name)
            complaints += 1
            continue
        complaints += bool(drops) or len(pairs) != good
        assert [(pair.key, pair.captions) for pair in read(path, images=False)[0]] == [(pair.key, pair.captions) for pair in pairs]
    assert complaints > MUTATIONS // 5


def test_damaged_footers(tmp_path: Path) -> None:
    """Everything about a parquet stands there, and Arrow aborts the process over some of it, if it is asked."""
    data, path = whole("snappy.parquet"), tmp_path / "0.parquet"
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(footer, len(data), 13):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x81]) + data[place + 1 :])
        try:
            pairs, _ = read(path, images=True)
        except ValueError as error:
            assert "found" in str(error)  # noqa: PT017
            continue
        assert [(pair.key, pair.captions) for pair in read(path, images=False)[0]] == [(pair.key, pair.captions) for pair in pairs]


# --- captions nobody would write ----------------------------------------------------------------------------------------

ODD = [
    "x" * 10_000_000,
    "\u200b\u200d\ufeff",
    "\0",
    "a\u0301" * 1000,
    "\U0010ffff",
    "🏴\U000e0067\U000e0062\U000e0065",
    "\r\n\t",
    "\u202e abc",
]


@pytest.mark.parametrize("kind", ["0.tar", "0.parquet", "0.warc.wat.gz"])
def test_odd_captions_come_through(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "0.tar":
        path.write_bytes(tar_bytes(record("a", ["first", *ODD], NOISE)))
    elif kind == "0.parquet":
        pq.write_table(pa.table({"key": ["a"], "captions": [["first", *ODD]]}), path)
    else:
        path.write_bytes(b"".join(wat_members([page("https://ex.org/", [image("a.jpg", caption) for caption in ["first", *ODD]])])))
    pairs, drops = read(path, images=False)
    assert not drops
    expected = [caption.replace("\n", " ").strip() for caption in ODD] if kind == "0.warc.wat.gz" else ODD
    assert pairs[0].captions == ("first", *filter(None, expected))
