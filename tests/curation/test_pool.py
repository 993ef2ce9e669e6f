"""The pool reader on good tars, and on every kind of broken one."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from mc2.curation.pair_keys import SeenKeys
from mc2.curation.pool import pool_fingerprint, pool_shards, read_pairs
from mc2.records import DROP_REASONS, Pair
from tests.curation.pools import image_file, record, tar_bytes

IMAGE = image_file()
GOOD = record("0001", ["one"], IMAGE) + record("0002", ["two", "zwei"], IMAGE)


def read(tmp_path: Path, data: bytes, images: bool = True) -> tuple[list[Pair], dict[str, int]]:
    path = tmp_path / "00000.tar"
    path.write_bytes(data)
    drops: Counter[str] = Counter()
    pairs = list(read_pairs(path, drops, images))
    assert set(drops) <= set(DROP_REASONS)
    return pairs, dict(drops)


def test_pairs_in_order(tmp_path: Path) -> None:
    pairs, drops = read(tmp_path, tar_bytes(GOOD))
    assert pairs == [Pair("0001", ("one",), IMAGE), Pair("0002", ("two", "zwei"), IMAGE)]
    assert not drops


def test_without_the_bytes_of_the_images(tmp_path: Path) -> None:
    pairs, _ = read(tmp_path, tar_bytes(GOOD), images=False)
    assert pairs == [Pair("0001", ("one",)), Pair("0002", ("two", "zwei"))]


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ([("a.jpg", IMAGE), ("a.txt", b"text")], ("text",)),  # no JSON
        ([("a.jpg", IMAGE), ("a.txt", b"text"), ("a.json", b'{"url": "x"}')], ("text",)),  # img2dataset's own JSON
        ([("a.json", b'{"captions": ["c", ""]}'), ("a.txt", b"text"), ("a.PNG", IMAGE)], ("c", "")),  # any order, any case
        ([("sub/a.b/x.jpg", IMAGE), ("sub/a.b/x.txt", b"text")], ("text",)),
        ([("a.jpg", IMAGE), ("a.txt", b"caf\xe9")], ("caf\udce9",)),  # not UTF-8: left to the match, caption by caption
        ([("a.jpg", IMAGE), ("a.json", b'{"captions": ["good", "caf\xe9"]}')], ("good", "caf\udce9")),
    ],
)
def test_where_captions_come_from(tmp_path: Path, members: list[tuple[str, bytes]], captions: tuple[str, ...]) -> None:
    pairs, drops = read(tmp_path, tar_bytes(members))
    assert [pair.captions for pair in pairs] == [captions]
    assert not drops


@pytest.mark.parametrize(
    ("saved", "pair"),
    [
        (
            {"url": "https://ex.org/a.jpg", "hint": "und-CH", "language": "en"},
            Pair("a", ("text",), IMAGE, "https://ex.org/a.jpg", "und-CH"),
        ),
        ({"URL": "u", "LANGUAGE": "pt_br", "captions": None, "caption": "other"}, Pair("a", ("text",), IMAGE, "u", "pt-BR")),
        ({"url": None, "lang": 7, "hint": "", "captions": ["b", "c"]}, Pair("a", ("b", "c"), IMAGE)),
    ],
)
def test_what_img2dataset_saves_beside_an_image(tmp_path: Path, saved: dict[str, object], pair: Pair) -> None:
    own = {"key": "000000001", "status": "success", "error_message": None, "width": 24, "height": 16, "exif": "{}", "sha256": "0" * 64}
    pairs, drops = read(tmp_path, tar_bytes([("a.jpg", IMAGE), ("a.json", json.dumps(saved | own).encode()), ("a.txt", b"text")]))
    assert (pairs, drops) == ([pair], {})


def test_seen_keys_against_a_set() -> None:
    rng, seen, known = random.Random(0), SeenKeys(), set[str]()
    for _ in range(200):
        keys = [str(rng.randrange(5000)) for _ in range(rng.randrange(80))]
        expected = [not (key in known or known.add(key)) for key in keys]  # type: ignore[func-returns-value]
        assert seen.first(keys).tolist() == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.tar", "b.parquet"], r"found several kinds of shards \(1 \*\.tar, 1 \*\.parquet\), need one"),
        (["a.tar", "a.TAR", "b.tar"], r"found shards of one name \(a\.TAR, a\.tar\), need a name for each; rename them"),
        (["x.csv", "y.csv", "z.csv", "zz.csv"], r"found no shard in the pool \(x\.csv, y\.csv, z\.csv \.\.\.\)"),
        ([".hidden.tar"], r"found no shard in the pool \(it is empty\)"),
    ],
)
def test_pools_of_nothing_or_of_several_kinds(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        pool_shards(tmp_path)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    (tmp_path / "1.tar").symlink_to("/nowhere")
    with pytest.raises(ValueError, match=r"1\.tar: is a link that leads nowhere; take it out of the pool"):
        pool_shards(tmp_path)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.txt", b"text")], "no_image"),
        ([("a.jpg", IMAGE)], "no_captions"),
        ([("a.jpg", IMAGE), ("a.json", b'{"captions": []}')], "no_captions"),
        ([("a.jpg", IMAGE), ("a.json", b'{"captions": ')], "broken_record"),
        ([("a.jpg", IMAGE), ("a.json", b'{"captions": "text"}'), ("a.txt", b"text")], "broken_record"),
        ([("a.jpg", IMAGE), ("a.json", b'{"captions": [1]}')], "broken_record"),
        ([("a.jpg", IMAGE), ("a.json", b"[1]")], "broken_record"),
        ([("a.jpg", IMAGE), ("a.json", b"[" * 100_000)], "broken_record"),
        ([("\udce9.jpg", IMAGE), ("\udce9.txt", b"text")], "broken_record"),
        (record("0001", ["again"], IMAGE), "duplicate_key"),
    ],
)
@pytest.mark.parametrize("images", [True, False])
def test_broken_pairs_are_dropped_alone(tmp_path: Path, members: list[tuple[str, bytes]], reason: str, images: bool) -> None:
    pairs, drops = read(tmp_path, tar_bytes(GOOD + members + record("0003", ["three"], IMAGE)), images)
    assert [pair.key for pair in pairs] == ["0001", "0002", "0003"]
    assert drops == {reason: 1}


@pytest.mark.parametrize("data", [b"", b"this is no tar" * 100, json.dumps({"a": 1}).encode()])
def test_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, data) == ([], {"unreadable_tar": 1})


def test_a_tar_cut_anywhere_gives_whole_pairs_and_the_same_with_and_without_images(tmp_path: Path) -> None:
    whole = tar_bytes(GOOD)
    content = len(whole.rstrip(b"\0"))
    for cut in range(512, content, 97):
        pairs, drops = read(tmp_path, whole[:cut])
        assert drops == {"truncated_tar": 1}
        assert [pair.key for pair in pairs] in ([], ["0001"])
        assert all(pair in (Pair("0001", ("one",), IMAGE), Pair("0002", ("two", "zwei"), IMAGE)) for pair in pairs)
        without, drops = read(tmp_path, whole[:cut], images=False)
        assert drops == {"truncated_tar": 1}
        assert [pair.key for pair in without] == [pair.key for pair in pairs]


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(GOOD + record("0003", ["three"], IMAGE)))
    header = data.index(b"0002.jpg")
    data[header : header + 512] = b"\xff" * 512
    pairs, drops = read(tmp_path, bytes(data))
    assert pairs == []  # the pair before the damage may lack members
    assert drops == {"truncated_tar": 1}


def test_a_header_that_promises_terabytes_is_not_believed(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(GOOD))
    header = data.index(b"0002.jpg")
    data[header + 124 : header + 136] = b"77777777777\0"
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    assert read(tmp_path, bytes(data))[1] == {"truncated_tar": 1}


def test_a_missing_pool_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the pool is not there; give a folder"):
        pool_shards(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"found no shard in the pool \(it is empty\), need img2dataset tars"):
        pool_shards(tmp_path)


def test_the_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_bytes(GOOD))
    first = pool_fingerprint(pool_shards(tmp_path))
    assert pool_fingerprint(pool_shards(tmp_path)) == first
    (tmp_path / "00001.tar").write_bytes(tar_bytes(GOOD))
    assert pool_fingerprint(pool_shards(tmp_path)) != first
