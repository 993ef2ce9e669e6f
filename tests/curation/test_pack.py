"""The plan of the training shards against plain lists, and shards that join and split those of the pool."""

from __future__ import annotations

import shutil
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc2.curation import pool_tar
from mc2.curation.balance_stage import run_balance
from mc2.curation.match_stage import run_match
from mc2.curation.pack_plan import PackSettings, Plan
from mc2.curation.pack_stage import member_key, run_pack
from mc2.data.shard_folder import open_folder
from mc2.data.shard_reader import read_shard
from mc2.engines.engine import ShardErrors
from mc2.engines.local import LocalEngine
from mc2.records import ShardManifest
from tests.curation.pools import folder_bytes, image_file, record, tar_bytes

HERE = LocalEngine(1, progress=False)
CAPTION = "a brown fox in the snow"


@given(st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(any), st.integers(1, 30))
def test_the_plan_deals_all_pairs_in_order(pairs_per_shard: list[int], shard_pairs: int) -> None:
    plan = Plan([f"p{i}" for i in range(len(pairs_per_shard))], np.cumsum([0, *pairs_per_shard]), shard_pairs, {})
    row = [(f"p{shard}", pair) for shard, number in enumerate(pairs_per_shard) for pair in range(number)]
    dealt = [[(shard, pair) for shard, first, last in plan.parts(name) for pair in range(first, last)] for name in plan.names]
    assert dealt == [row[start : start + shard_pairs] for start in range(0, len(row), shard_pairs)]


def test_names_sort_in_the_order_of_the_pairs() -> None:
    assert Plan(["p"], np.array([0, 3]), 2, {}).names == ["00000", "00001"]
    names = Plan(["p"], np.array([0, 100_001]), 1, {}).names
    assert (names[0], names[-1]) == ("000000", "100000")
    assert all(a < b for a, b in pairwise(names))


@pytest.fixture(scope="module")
def uneven(metadata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with shards of 7, 0, 1 and 4 pairs of which one has no match and two have a broken image, matched and balanced."""
    out = tmp_path_factory.mktemp("uneven")
    (out / "pool").mkdir()
    number = 0
    for shard, num_pairs in enumerate([7, 0, 1, 4]):
        members = []
        for _ in range(num_pairs):
            image = b"broken" if number in (2, 9) else image_file(number)
            members += record(f"{number:03d}", ["qqqq wwww" if number == 5 else CAPTION], image)
            number += 1
        (out / "pool" / f"part{shard}.tar").write_bytes(tar_bytes(members))
    run_match(out / "pool", metadata, out / "matched", engine=HERE)
    run_balance(out / "matched", metadata, out / "balance", 4, engine=HERE)
    return out


def pack(run: Path, out: Path, engine: LocalEngine = HERE, pool: str = "pool", **settings: int) -> ShardManifest:
    return run_pack(run / pool, run / "matched", run / "balance", out, PackSettings(**settings), engine)  # type: ignore[arg-type]


def keys(folder: Path) -> list[list[str]]:
    """Of all shards, as the loader reads them."""
    opened = open_folder(folder)
    records = [list(read_shard(opened.path / name)) for name in opened.names]
    assert not any(record.drops for shard in records for record in shard)
    return [[record.key for record in shard] for shard in records]


@pytest.mark.parametrize("shard_pairs", [1, 2, 3, 5, 8, 11, 100])
def test_shards_join_and_split_those_of_the_pool(uneven: Path, tmp_path: Path, shard_pairs: int) -> None:
    manifest = pack(uneven, tmp_path, shard_pairs=shard_pairs)
    chosen = [f"{number:03d}" for number in range(12) if number != 5]
    dealt = [chosen[start : start + shard_pairs] for start in range(0, len(chosen), shard_pairs)]
    left = [[key for key in shard if key not in ("002", "009")] for shard in dealt]
    assert keys(tmp_path) == [shard for shard in left if shard]
    assert [shard.name for shard in manifest.shards] == [f"{k:05d}" for k, shard in enumerate(left) if shard]
    assert manifest.drops == {"broken_image": 2, "no_captions": 1, "no_entry": 1}
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [
        *(f"{k:05d}.index.parquet" for k in range(len(dealt))),
        "plan.parquet",
    ]


def test_the_same_bytes_with_two_processes_and_after_a_break(uneven: Path, tmp_path: Path) -> None:
    pack(uneven, tmp_path / "one", shard_pairs=3)
    pack(uneven, tmp_path / "two", LocalEngine(2, progress=False), shard_pairs=3)
    assert folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "one")
    for name in ("done.json", "manifest.json", "00002.index.parquet", "plan.parquet"):
        (tmp_path / "two" / name).unlink()
    pack(uneven, tmp_path / "two", shard_pairs=3)
    assert folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "one")


def test_the_plan_says_where_pairs_come_from(uneven: Path, tmp_path: Path) -> None:
    pack(uneven, tmp_path)
    assert pq.read_table(tmp_path / "plan.parquet").to_pydict() == {
        "pool_shard": ["part0.tar", "part1.tar", "part2.tar", "part3.tar"],
        "first_pair": [0, 6, 6, 7],
        "num_pairs": [6, 0, 1, 4],
    }


def test_each_image_is_read_once(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = pool_tar._read

    def noted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        read.append(member.name)
        return original(tar, member)

    monkeypatch.setattr(pool_tar, "_read", noted)
    pack(uneven, tmp_path, shard_pairs=2)
    images = [name for name in read if name.endswith(".jpg")]
    assert sorted(images) == [f"{number:03d}.jpg" for number in range(12) if number != 5]


def test_a_pool_that_changed_after_its_match_is_an_error_that_names_it(uneven: Path, tmp_path: Path) -> None:
    shutil.copytree(uneven / "pool", uneven / "changed", dirs_exist_ok=True)
    data = (uneven / "pool" / "part3.tar").read_bytes()
    (uneven / "changed" / "part3.tar").write_bytes(data.replace(b"009.", b"900."))
    with pytest.raises(
        ShardErrors, match=r"pack: 1 of 3 failed \(00002; .*part3\.tar: 1 pairs that were matched are not there any more \(009,"
    ):
        pack(uneven, tmp_path, pool="changed", shard_pairs=4)
    other = data.replace(b'"captions": ["a brown fox in the snow"]', b'"captions": [] , "filling": "abcdefg"  ')
    (uneven / "changed" / "part3.tar").write_bytes(other)
    with pytest.raises(ShardErrors, match=r"part3\.tar"):
        pack(uneven, tmp_path, pool="changed", shard_pairs=4)
    (uneven / "changed" / "part3.tar").write_bytes(data)
    assert pack(uneven, tmp_path, pool="changed", shard_pairs=4).num_pairs == 9


def test_pool_shards_that_use_the_same_keys(metadata: Path, tmp_path: Path) -> None:
    """Nothing is lost: the later pair gets a key of its own inside the training shard."""
    (tmp_path / "pool").mkdir()
    for shard in ("a", "b.c"):
        members = [member for number in range(2) for member in record(f"x/{number}", [CAPTION], image_file(number))]
        (tmp_path / "pool" / f"{shard}.tar").write_bytes(tar_bytes(members))
    run_match(tmp_path / "pool", metadata, tmp_path / "matched", engine=HERE)
    run_balance(tmp_path / "matched", metadata, tmp_path / "balance", 4, engine=HERE)
    assert pack(tmp_path, tmp_path / "shards").num_pairs == 4
    assert keys(tmp_path / "shards") == [["x/0", "x/1", "b_c_x_0", "b_c_x_1"]]
    assert pq.read_table(tmp_path / "shards" / "00000.index.parquet")["key"].to_pylist() == keys(tmp_path / "shards")[0]


@pytest.mark.parametrize(
    ("key", "name"), [("a", "a"), ("x/a", "x/a"), ("http://mc2.org/a.b.jpg", "http://mc2.org/a_b_jpg"), ("x/", "x/_"), ("", "_")]
)
def test_keys_that_a_file_name_cannot_hold(key: str, name: str) -> None:
    assert member_key(key, "p.tar", set()) == name
    assert member_key(key, "p.tar", {name}) == f"p_{name.replace('/', '_')}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_pairs": 0}, "pack: found shard_pairs 0, need at least 1"),
        ({"max_pixels": 0}, "max_pixels: found 0, need between 1 and 89478485"),
        ({"max_pixels": 10**9}, "max_pixels: found 1000000000, need between 1 and 89478485"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackSettings(**settings)  # type: ignore[arg-type]
