"""Text is curated before images are downloaded: pool of text -> match -> balance -> urls -> (tars as img2dataset makes them) -> match finds the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc2 import cli, storage
from mc2.curation.balance import Balance, draw_caption
from mc2.curation.balance_stage import run_balance
from mc2.curation.match_stage import run_match
from mc2.curation.pack_stage import run_pack
from mc2.curation.pool import pool_shards
from mc2.curation.pool_columns import PoolColumns
from mc2.curation.urls_stage import URLS_SCHEMA, fetchable_url, img2dataset_command, run_urls
from mc2.engines.engine import ShardErrors
from mc2.engines.local import LocalEngine
from mc2.records import PackedCaption
from tests.curation.pools import CAPTIONS, folder_bytes, image_file, tar_bytes
from tests.curation.wats import image, page, write_wat

HERE = LocalEngine(1, progress=False)


def parquet_pool(folder: Path) -> Path:
    """CAPTIONS in two files, with columns that must be named."""
    folder.mkdir()
    for shard in range(2):
        urls = [f"https://ex.org/{shard}/bild {i} ä.jpg" for i in range(len(CAPTIONS))]
        table = pa.table(
            {"href": urls, "alt": CAPTIONS, "text": ["other"] * len(CAPTIONS), "language": ["de-CH", None, "en", "und-CH", ""]}
        )
        pq.write_table(table, folder / f"part{shard}.parquet")
    return folder


def wat_pool(folder: Path) -> Path:
    """CAPTIONS in two WAT files: alt and title give two captions, a second link to the image the third."""
    folder.mkdir()
    for shard in range(2):
        pages = [
            page(
                f"https://ex.ch/{i}",
                [image(f"{shard}/bild {i} ä.jpg", *captions[:1], title=captions[1]), image(f"{shard}/bild {i} ä.jpg", captions[-1])],
            )
            for i, captions in enumerate(CAPTIONS)
        ]
        write_wat(folder / f"part{shard}.warc.wat.gz", pages)
    return folder


COLUMNS: dict[Callable[[Path], Path], PoolColumns] = {parquet_pool: PoolColumns(url="href", caption="alt"), wat_pool: PoolColumns()}


def curate(pool: Path, metadata: Path, out: Path, columns: PoolColumns, threshold: int = 4, **settings: Any) -> dict[str, Any]:
    run_match(pool, metadata, out / "matched", engine=HERE, columns=columns)
    run_balance(out / "matched", metadata, out / "balance", english_threshold=threshold, engine=HERE)
    return run_urls(pool, out / "matched", out / "balance", out / "urls", engine=HERE, **settings)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def download(urls: Path, tars: Path) -> Path:
    """What img2dataset 1.47 leaves: tars with <key>.jpg, .txt, .json, beside each its account in parquet and JSON."""
    tars.mkdir()
    for number, path in enumerate(sorted(urls.glob("*.parquet"))):
        members: list[tuple[str, bytes]] = []
        account = []
        for i, row in enumerate(pq.read_table(path).to_pylist()):
            key = f"{number:05d}{i:04d}"
            saved = {name: row[name] for name in ("captions", "hint", "pair_key", "caption", "url")}
            sizes = {"width": 24, "height": 16, "original_width": 24, "original_height": 16}
            account.append({**saved, "key": key, "status": "success", "error_message": None, **sizes, "exif": "{}", "sha256": "0" * 64})
            members += [
                (f"{key}.jpg", image_file(i)),
                (f"{key}.json", json.dumps(account[-1], indent=4).encode()),
                (f"{key}.txt", row["caption"].encode()),
            ]
        (tars / f"{number:05d}.tar").write_bytes(tar_bytes(members))
        pq.write_table(pa.Table.from_pylist(account), tars / f"{number:05d}.parquet")
        (tars / f"{number:05d}_stats.json").write_text('{"count": 5, "successes": 5}')
    return tars


@pytest.mark.parametrize("make_pool", [parquet_pool, wat_pool])
def test_the_round_trip_finds_the_same_languages_and_entries(make_pool: Callable[[Path], Path], metadata: Path, tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    results = curate(pool, metadata, tmp_path, COLUMNS[make_pool])
    listed = rows(tmp_path / "urls")
    matched = [row for row in rows(tmp_path / "matched") if row["drop"] is None]
    assert results["pairs"] == len(listed) == 10
    assert results["captions"] == sum(len(row["captions"]) for row in listed) == len(matched)
    assert [language for row in listed for language in row["languages"]] == [row["language"] for row in matched]
    assert [row["caption"] for row in listed] == [row["captions"][0] for row in listed]
    assert listed[0]["url"].endswith("/bild%200%20%C3%A4.jpg")
    tars = download(tmp_path / "urls", tmp_path / "tars")
    assert [path.name for path in pool_shards(tars)] == ["00000.tar", "00001.tar"]
    run_match(tars, metadata, tmp_path / "again", engine=HERE)
    again = rows(tmp_path / "again")
    assert [(row["language"], row["score"], row["entries"], row["drop"]) for row in again] == [
        (row["language"], row["score"], row["entries"], None) for row in matched
    ]
    run_balance(tmp_path / "again", metadata, tmp_path / "balance2", english_threshold=4, engine=HERE)
    assert run_pack(tars, tmp_path / "again", tmp_path / "balance2", tmp_path / "shards", engine=HERE).num_pairs == 10


def test_an_offline_list_holds_the_captions_that_balancing_draws(metadata: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    captions = [["the dog and the cat", "der Hund im Garten"]] * 40 + [
        ["a fox in the snow"],
        ["the moon over the mountains", "der Fuchs im Schnee"],
    ]
    urls = [f"https://ex.org/{i}.jpg" for i in range(len(captions))]
    pq.write_table(pa.table({"url": urls, "captions": captions}), tmp_path / "pool" / "0.parquet")
    results = curate(tmp_path / "pool", metadata, tmp_path, PoolColumns(), threshold=3, balanced="offline", seed=3)
    probabilities = Balance.load(tmp_path / "balance").probabilities
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in rows(tmp_path / "matched"):
        if row["drop"] is None:
            by_key.setdefault(row["key"], []).append(row)
    drawn = {
        key: draw_caption(key, [PackedCaption("", row["language"], tuple(row["entries"])) for row in captions], probabilities, 3, 0)
        for key, captions in by_key.items()
    }
    kept = {key: by_key[key][index] for key, index in drawn.items() if index is not None}
    assert {row["pair_key"]: row["languages"] for row in rows(tmp_path / "urls")} == {key: [row["language"]] for key, row in kept.items()}
    assert 0 < results["drops"]["balanced_away"] == len(by_key) - len(kept)


def test_the_same_bytes_in_two_processes_and_after_a_break(metadata: Path, tmp_path: Path) -> None:
    pool = parquet_pool(tmp_path / "pool")
    curate(pool, metadata, tmp_path, COLUMNS[parquet_pool])
    first = folder_bytes(tmp_path / "urls")
    run_urls(pool, tmp_path / "matched", tmp_path / "balance", tmp_path / "two", engine=LocalEngine(2, progress=False))
    assert folder_bytes(tmp_path / "two") == first
    for name in ("done.json", "part1.parquet"):
        (tmp_path / "two" / name).unlink()
    run_urls(pool, tmp_path / "matched", tmp_path / "balance", tmp_path / "two", engine=HERE)
    assert folder_bytes(tmp_path / "two") == first
    assert pq.read_schema(tmp_path / "two" / "part0.parquet").remove_metadata().equals(URLS_SCHEMA)


def test_pairs_without_a_url_are_counted(metadata: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    table = {
        "key": ["a", "b", "c"],
        "url": ["https://ex.org/a.jpg", None, "nonsense with spaces"],
        "caption": ["the fox", "the dog", "the cat"],
    }
    pq.write_table(pa.table(table), tmp_path / "pool" / "0.parquet")
    results = curate(tmp_path / "pool", metadata, tmp_path, PoolColumns())
    assert [row["pair_key"] for row in rows(tmp_path / "urls")] == ["a"]
    assert (results["pairs"], results["drops"]) == (1, {"no_url": 2})


@pytest.mark.parametrize(
    ("url", "fetchable"),
    [
        ("https://ex.org/a%20b.jpg?x=[1]#f", "https://ex.org/a%20b.jpg?x=[1]#f"),
        ("https://ex.org/a b/ä.jpg?q=ü", "https://ex.org/a%20b/%C3%A4.jpg?q=%C3%BC"),
        ("https://bücher.example/b.jpg", "https://xn--bcher-kva.example/b.jpg"),
        ('http://ex.org/"a"<b>', "http://ex.org/%22a%22%3Cb%3E"),
    ],
)
def test_urls_as_they_go_over_the_wire(url: str, fetchable: str) -> None:
    assert fetchable_url(url) == fetchable


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no host here",
        "https://" + "ü" * 80 + ".de/a.jpg",
        "data:image/png;base64,AAA",
        "//cdn.de/a.jpg",
        "http://[bad/a.jpg",
        "ftp://x.de/a.jpg",
        "https:///a",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"found no host|label|Invalid IPv6"):
        fetchable_url(url)


# --- errors and the command ---------------------------------------------------------------------------------------------


def test_folders_that_do_not_belong_together(metadata: Path, tmp_path: Path) -> None:
    pool = parquet_pool(tmp_path / "pool")
    columns = COLUMNS[parquet_pool]
    with pytest.raises(ValueError, match="has no finished stage 'match'"):
        run_urls(pool, tmp_path / "matched", tmp_path / "balance", tmp_path / "urls", engine=HERE)
    curate(pool, metadata, tmp_path, columns)
    with pytest.raises(ValueError, match=r"found no images in the pool, need them to pack; .*`mc2 curate urls`"):
        run_pack(pool, tmp_path / "matched", tmp_path / "balance", tmp_path / "shards", engine=HERE)
    with pytest.raises(ValueError, match=r"belongs to another run \(columns: "):
        run_match(pool, metadata, tmp_path / "matched", engine=HERE, columns=PoolColumns(url="href", caption="text"))
    with pytest.raises(ValueError, match=r"found several columns for the caption \(alt, text\)"):
        run_match(pool, metadata, tmp_path / "other", engine=HERE)
    shutil.copytree(pool, tmp_path / "changed")
    data = (pool / "part0.parquet").read_bytes()
    (tmp_path / "changed" / "part0.parquet").write_bytes(data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2))
    with pytest.raises(ShardErrors, match=r"urls: 1 of 2 failed \(part0\.parquet; .* pairs that were matched are not there any more"):
        run_urls(tmp_path / "changed", tmp_path / "matched", tmp_path / "balance", tmp_path / "again", engine=HERE)


def test_run_over_a_pool_of_text_ends_with_the_line_that_downloads_it(
    metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, out = parquet_pool(tmp_path / "pool"), tmp_path / "out"
    line = [
        "curate",
        "run",
        "--pool",
        str(pool),
        "--metadata",
        str(metadata),
        "--out",
        str(out),
        "--english_threshold",
        "4",
        "--workers",
        "1",
    ]
    assert cli.main([*line, "--progress", "false", "--columns.url", "href", "--columns.caption", "alt"]) == 0
    printed = capsys.readouterr().out
    assert "the pool has no images, so 10 URLs" in printed
    assert img2dataset_command(out / "urls", Path("TARS")) in printed
    assert len(rows(out / "urls")) == 10
    assert not (out / "shards").exists()
    assert storage.read_json(out / "curation" / "report.json")["total"]["matched"] > 10


def test_run_over_a_parquet_with_images_packs_it(metadata: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    images = [{"bytes": image_file(i), "path": None} for i in range(len(CAPTIONS))]
    images[1]["bytes"] = image_file(1)[:100]
    pq.write_table(
        pa.table({"key": range(len(CAPTIONS)), "image": images, "captions": CAPTIONS}), tmp_path / "pool" / "train-00000.parquet"
    )
    line = [
        "--metadata",
        str(metadata),
        "--out",
        str(tmp_path / "out"),
        "--english_threshold",
        "4",
        "--workers",
        "1",
        "--progress",
        "false",
    ]
    assert cli.main(["curate", "run", "--pool", str(tmp_path / "pool"), *line]) == 0
    manifest = storage.read_json(tmp_path / "out" / "shards" / "manifest.json")
    assert [shard["num_pairs"] for shard in manifest["shards"]] == [4]
    assert manifest["drops"]["broken_image"] == 1
