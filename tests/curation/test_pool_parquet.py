"""The parquet reader against plain Python over the same rows; names of columns, types, damage, memory."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections import Counter
from collections.abc import Container
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc2.curation import pair_keys
from mc2.curation.pool import pool_has_images, pool_shards, read_pairs
from mc2.curation.pool_columns import BY_NAME, PoolColumns, find_columns
from mc2.records import DROP_REASONS, Pair


def read(path: Path, images: bool | Container[str] = True, columns: PoolColumns = BY_NAME) -> tuple[list[Pair], dict[str, int]]:
    drops: Counter[str] = Counter()
    pairs = list(read_pairs(path, drops, images, columns))
    assert set(drops) <= set(DROP_REASONS)
    assert all(drops.values())
    return pairs, dict(drops)


def written(tmp_path: Path, table: pa.Table | dict[str, Any], name: str = "0.parquet", **settings: Any) -> Path:
    path = tmp_path / name
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **settings)
    return path


def sha(url: str) -> str:
    return hashlib.sha224(url.encode()).hexdigest()[:24]


# --- rows ---------------------------------------------------------------------------------------------------------------


def plain_pairs(rows: list[dict[str, Any]]) -> tuple[list[Pair], Counter[str]]:
    """The same by lists of dictionaries."""
    pairs: list[Pair] = []
    drops: Counter[str] = Counter()
    named = [(sha(row["url"].replace(" ", "")), row) for row in rows if row["url"]]
    drops["no_url"] = len(rows) - len(named)
    for key, group in groupby(named, key=lambda item: item[0]):
        same = [row for _, row in group]
        captions = [caption or "" for row in same for caption in (row["captions"] or [])]
        if not captions:
            drops["no_captions"] += 1
        elif key in {pair.key for pair in pairs}:
            drops["duplicate_key"] += 1
        else:
            pairs.append(Pair(key, tuple(dict.fromkeys(captions)), None, same[0]["url"], same[0]["hint"] or ""))
    return pairs, +drops


@pytest.mark.parametrize("seed", range(8))
def test_against_plain_python(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mc2.curation.pool_parquet.BATCH_ROWS", 7)  # pairs run over the ends of batches, and of row groups
    rng = random.Random(seed)
    words = ["ein Fuchs", "狐", "", None, "a fox", "แมว", "👩‍🚀 x", "e\u0301"]
    rows = [
        {
            "url": rng.choice([None, "", *(f"https://ex.org/{i} {i % 3}.jpg" for i in range(60))]),
            "captions": rng.choice([None, [], *([rng.choices(words, k=3)] * 4)]),
            "hint": rng.choice([None, "de", "pt-BR", "und-CH"]),
        }
        for _ in range(300)
    ]
    rows = [row for row in rows for _ in range(rng.choice([1, 1, 3]))]
    schema = pa.schema([("url", pa.string()), ("captions", pa.list_(pa.string())), ("hint", pa.string())])
    path = written(tmp_path, pa.Table.from_pylist(rows, schema), row_group_size=50)
    pairs, drops = read(path)
    expected, expected_drops = plain_pairs(rows)
    assert pairs == expected
    assert drops == expected_drops
    assert read(path, images=False) == (pairs, drops)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "ü"]),
        pa.array(["a", None, "ü"], pa.large_string()),
        pa.array(["a", None, "ü"], pa.string_view()),
        pa.array(["a", None, "ü"]).dictionary_encode(),
        pa.array([b"a", None, "ü".encode()]),
        pa.array([["a"], None, ["ü"]]),
        pa.array([["a"], None, ["ü"]], pa.large_list(pa.large_string())),
        pa.array([["a"], [], ["ü"]]),
    ],
    ids=lambda column: str(column.type),
)
def test_captions_of_every_type_of_text(tmp_path: Path, column: pa.Array) -> None:
    pairs, drops = read(written(tmp_path, {"key": [1, 2, 3], "caption": column}))
    assert [(pair.key, pair.captions) for pair in pairs] == [("1", ("a",)), ("3", ("ü",))]
    assert drops == {"no_captions": 1}


def test_captions_that_are_not_utf8_are_left_to_the_match(tmp_path: Path) -> None:
    wrong = pa.array([b"caf\xe9", b"good"]).view(pa.string())  # as careless writers do
    pairs, drops = read(written(tmp_path, {"key": ["a", "b"], "caption": wrong}))
    assert [pair.captions for pair in pairs] == [("caf\udce9",), ("good",)]
    assert not drops
    lists = pa.ListArray.from_arrays([0, 2], wrong)
    assert read(written(tmp_path, {"key": ["a"], "caption": lists}))[0][0].captions == ("caf\udce9", "good")


def test_what_keys_may_be(tmp_path: Path) -> None:
    keys = ["plain", "日本", "dir/0.1.jpg", "a b", "", None, "x" * 300, b"\xff".decode("utf-8", "surrogateescape")]
    column = pa.array([None if key is None else key.encode("utf-8", "surrogateescape") for key in keys])
    pairs, drops = read(written(tmp_path, {"key": column, "url": ["u"] * len(keys), "text": ["t"] * len(keys)}))
    assert [pair.key for pair in pairs] == ["plain", "日本", sha("dir/0.1.jpg"), sha("ab"), sha("x" * 300)]
    assert drops == {"broken_record": 3}
    assert {pair.url for pair in pairs} == {"u"}


def test_a_pair_has_at_most_1000_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_keys, "MAX_CAPTIONS", 10)
    pairs, drops = read(written(tmp_path, {"url": ["u"] * 30 + ["v"], "caption": [f"c{i}" for i in range(30)] + ["w"]}))
    assert [len(pair.captions) for pair in pairs] == [10, 1]
    assert drops == {"many_captions": 20}


# --- images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hugging_face", [True, False])
def test_images(tmp_path: Path, hugging_face: bool) -> None:
    data = [b"\xff\xd8one", None, b"", b"four"]
    image = pa.array([{"bytes": value, "path": "p"} for value in data] if hugging_face else data)
    path = written(tmp_path, {"key": list("abcd"), "image": image, "text": list("wxyz")})
    assert [(pair.key, pair.image) for pair in read(path)[0]] == [("a", data[0]), ("b", None), ("c", None), ("d", data[3])]
    assert [(pair.key, pair.image) for pair in read(path, images=False)[0]] == [(key, None) for key in "abcd"]
    assert [pair.image for pair in read(path, images={"d"})[0]] == [None, None, None, data[3]]
    assert pool_has_images([path])
    assert not pool_has_images([path], PoolColumns(image=""))


def test_images_are_not_read_for_their_captions(tmp_path: Path) -> None:
    """The image column is filled with 0xff on the disk: whoever reads captions does not notice, whoever reads images finds the same pairs without images."""
    table = {"key": [str(i) for i in range(100)], "text": ["t"] * 100, "image": [random.Random(i).randbytes(2000) for i in range(100)]}
    path = written(tmp_path, table, row_group_size=50, compression="none", use_dictionary=False, write_page_checksum=True)
    whole = read(path)[0]
    chunk = pq.read_metadata(path).row_group(1).column(2)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + 50_000 : chunk.data_page_offset + 60_000] = b"\xff" * 10_000
    path.write_bytes(data)
    pairs, drops = read(path)
    assert pairs[:50] == whole[:50]
    assert [pair.key for pair in pairs] == [pair.key for pair in whole]
    assert {pair.image for pair in pairs[50:]} == {None}  # pack drops and counts them as broken images
    assert not drops
    assert [pair.key for pair in read(path, images=False)[0]] == [pair.key for pair in whole]


# --- columns ------------------------------------------------------------------------------------------------------------

TEXT, WORDS = pa.string(), pa.list_(pa.string())


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"URL": TEXT, "TEXT": TEXT, "LANGUAGE": TEXT, "NSFW": TEXT}, PoolColumns("URL", None, "TEXT", None, "LANGUAGE")),  # LAION
        ({"uid": TEXT, "url": TEXT, "text": TEXT, "sha256": TEXT}, PoolColumns("url", "uid", "text")),  # DataComp
        (
            {"image_url": TEXT, "page_url": TEXT, "caption": TEXT, "language": TEXT},
            PoolColumns("image_url", None, "caption", None, "language"),
        ),
        (
            {"url": TEXT, "caption": TEXT, "captions": WORDS, "hint": TEXT, "language": TEXT},
            PoolColumns("url", None, "captions", None, "hint"),
        ),
        (
            {"image": pa.struct([("bytes", pa.binary()), ("path", TEXT)]), "alt_text": TEXT, "__key__": TEXT},
            PoolColumns(None, "__key__", "alt_text", "image"),
        ),
        ({"url": TEXT, "image": TEXT, "text": TEXT}, PoolColumns("url", None, "text")),  # an image that is text is no image
    ],
    ids=["laion", "datacomp", "wit", "urls", "huggingface", "text"],
)
def test_columns_of_known_data_sets(fields: dict[str, pa.DataType], found: PoolColumns) -> None:
    assert find_columns(pa.schema(list(fields.items())), PoolColumns(), "x") == found


@pytest.mark.parametrize(
    ("fields", "wanted", "message"),
    [
        (
            {"url": TEXT},
            {},
            r"0\.parquet: found no column with captions \(its columns: url string\), need one; name it with --columns\.caption",
        ),
        ({"url": TEXT, "caption": pa.int64()}, {}, r"found no column with captions \(its columns: url string, caption int64\)"),
        ({"text": TEXT}, {}, r"found neither a URL nor a key \(its columns: text string\)"),
        (
            {"url": TEXT, "text": TEXT, "caption": TEXT},
            {},
            r"found several columns for the caption \(text, caption\), need one; name it with --columns\.caption",
        ),
        ({"url": TEXT, "URL": TEXT, "text": TEXT}, {}, r"found several columns for the url \(url, URL\)"),
        (
            {"url": TEXT, "text": TEXT},
            {"caption": "alt"},
            r"found no column 'alt' \(its columns: url string, text string\), need it for the caption",
        ),
        (
            {"url": TEXT, "text": pa.list_(WORDS)},
            {"caption": "text"},
            r"found list<.*> in column 'text', need strings or lists of strings for the caption",
        ),
        ({"url": TEXT, "text": TEXT, "image": TEXT}, {"image": "image"}, r"found string in column 'image', need bytes or \{bytes, path\}"),
        ({"key": pa.float64(), "text": TEXT}, {"key": "key"}, "found double in column 'key', need strings or integers"),
    ],
)
def test_columns_that_do_not_fit_are_one_clear_line(
    tmp_path: Path, fields: dict[str, pa.DataType], wanted: dict[str, str], message: str
) -> None:
    path = written(tmp_path, pa.schema(list(fields.items())).empty_table())
    with pytest.raises(ValueError, match=message):
        read(path, columns=PoolColumns(**wanted))
    with pytest.raises(ValueError, match=message):
        pool_has_images([path], PoolColumns(**wanted))


def test_a_column_can_be_named_or_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, {"url": ["u"], "language": ["de"], "text": ["t"], "caption": ["c"]})
    assert read(path, columns=PoolColumns(caption="text", hint=""))[0] == [Pair(sha("u"), ("t",), None, "u")]


def test_names_of_columns_are_refused_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    with pytest.raises(ValueError, match="found names of columns, but only a pool of parquet files has columns"):
        pool_has_images(pool_shards(tmp_path), PoolColumns(caption="text"))


def test_a_file_without_any_image_says_nothing_of_the_pool(tmp_path: Path) -> None:
    """Whoever writes a column of nothing gives it no type."""
    empty = written(tmp_path, {"key": ["a"], "text": ["x"], "image": pa.nulls(1)})
    whole = written(tmp_path, {"key": ["b"], "text": ["y"], "image": [b"image"]}, "1.parquet")
    assert read(empty)[0] == [Pair("a", ("x",))]
    assert not pool_has_images([empty])
    assert pool_has_images([empty, whole])


# --- damage and size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1 this is no parquet PAR1", b"\0" * 1000])
def test_what_is_no_parquet(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.parquet").write_bytes(data)
    assert read(tmp_path / "0.parquet") == ([], {"unreadable_parquet": 1})
    assert not pool_has_images(pool_shards(tmp_path))


def test_a_damaged_row_group_is_dropped_alone(tmp_path: Path) -> None:
    table = {"key": [str(i) for i in range(90)], "text": [f"caption {i}" for i in range(90)]}
    path = written(tmp_path, table, row_group_size=30, write_page_checksum=True)
    chunk = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + 30 : chunk.data_page_offset + 40] = b"\xff" * 10
    path.write_bytes(data)
    pairs, drops = read(path)
    assert [int(pair.key) for pair in pairs] == [*range(30), *range(60, 90)]
    assert drops == {"damaged_row_group": 1}


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "0.parquet")


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    """One row group of 150 captions of 1 MB, of which a few are held at a time, by Arrow as by Python."""
    texts = pa.array(["x" * 1_000_000]).take(pa.array([0] * 150))
    path = written(tmp_path, {"key": range(150), "text": texts}, use_dictionary=False, data_page_size=1 << 20, write_batch_size=1)
    assert pq.read_metadata(path).num_row_groups == 1
    del texts
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        for pair in read_pairs(path, Counter(), images=False):
            assert len(pair.captions[0]) == 1_000_000
            most = max(most, pa.total_allocated_bytes() - before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1_000_000 < most < 70_000_000
    assert 1_000_000 < peak < 70_000_000
