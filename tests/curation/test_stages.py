"""match -> balance -> pack on a small pool: by hand, twice, in one and two processes, broken off, and with folders that do not belong together."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mc2 import storage
from mc2.curation.balance import Balance, draw_caption, keep_probability
from mc2.curation.balance_stage import Draws, run_balance
from mc2.curation.language_id import LanguageSettings
from mc2.curation.match_stage import CaptionMatcher, MatchSettings, batches, matched_drops, run_match, write_matched
from mc2.curation.pack_plan import PackSettings
from mc2.curation.pack_stage import image_extension, run_pack
from mc2.engines.engine import ShardErrors
from mc2.engines.local import LocalEngine
from mc2.metadata.build import build_metadata
from mc2.metadata.entries import Metadata
from mc2.records import MATCHED_SCHEMA, PackedCaption, Pair, ShardManifest
from tests.curation.pools import CAPTIONS, folder_bytes, image_file, record, tar_bytes, write_pool

HERE = LocalEngine(1, progress=False)


def curate(pool: Path, metadata: Path, out: Path, engine: LocalEngine = HERE) -> ShardManifest:
    run_match(pool, metadata, out / "matched", engine=engine)
    run_balance(out / "matched", metadata, out / "balance", english_threshold=4, engine=engine)
    run_pack(pool, out / "matched", out / "balance", out / "offline", PackSettings("offline", seed=3, shard_pairs=4), engine)
    return run_pack(pool, out / "matched", out / "balance", out / "shards", PackSettings(shard_pairs=4), engine)


@pytest.fixture(scope="module")
def done(pool: Path, metadata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a finished run."""
    out = tmp_path_factory.mktemp("stages")
    curate(pool, metadata, out)
    return out


def packed(folder: Path, shard: str = "*") -> dict[str, list[PackedCaption]]:
    """Captions by key of all shards or one, read with tarfile alone."""
    pairs = {}
    for path in sorted(folder.glob(f"{shard}.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    rows = json.load(tar.extractfile(member) or io.BytesIO())["captions"]
                    pairs[member.name.removesuffix(".json")] = [
                        PackedCaption(row["text"], row["language"], tuple(row["entries"])) for row in rows
                    ]
    return pairs


# --- what comes out -----------------------------------------------------------------------------------------------------


def test_matched_captions(done: Path, metadata: Path) -> None:
    table = pq.read_table(done / "matched" / "00000.parquet")
    assert table.schema.equals(MATCHED_SCHEMA)
    opened = Metadata.open(metadata)
    rows = {(row["key"][-1], row["caption_index"]): row for row in table.to_pylist()}
    assert len(rows) == sum(map(len, CAPTIONS))
    found = {
        place: [opened.entries(row["language"])[entry] for entry in row["entries"]] for place, row in rows.items() if row["drop"] is None
    }
    assert found["0", 0] == ["a", "brown fox", "fox", "snow", "the"]
    assert found["0", 1] == ["Fuchs", "Schnee", "im"]
    assert found["0", 2] == ["の", "キツネ", "雪"]
    assert rows["1", 2]["drop"] == "empty_caption"
    assert rows["1", 3]["drop"] == "no_entry"  # "image"
    assert rows["0", 0]["language"] == "en"


def test_the_balance_adds_up(done: Path) -> None:
    """Counts, tail share and expectations again, from the packed shards' entries and plain Python."""
    value, captions = storage.read_json(done / "balance" / "balance.json"), Counter[str]()
    counts: dict[str, Counter[int]] = {}
    expected: dict[str, list[float]] = {}
    loaded = Balance.load(done / "balance")
    for path in sorted((done / "matched").glob("*.parquet")):
        rows = [row for row in pq.read_table(path).to_pylist() if row["drop"] is None]
        captions_of_pair = Counter(row["key"] for row in rows)
        for row in rows:
            captions[row["language"]] += 1
            counts.setdefault(row["language"], Counter()).update(row["entries"])
            keep = keep_probability(row["entries"], loaded.probabilities[row["language"]])
            kept, pairs = expected.setdefault(row["language"], [0.0, 0.0])
            expected[row["language"]] = [kept + keep, pairs + keep / captions_of_pair[row["key"]]]
    for code, row in value["languages"].items():
        assert row["matched"] == captions[code]
        assert row["matches"] == counts[code].total() == row["head_matches"] + row["tail_matches"]
        assert [row["expected_captions"], row["expected_pairs"]] == pytest.approx(expected[code])
        assert {entry: int(loaded.languages[code].counts[entry]) for entry in counts[code]} == counts[code]
    tail = sum(count for count in counts["en"].values() if count < 4)
    assert value["tail_share"] == pytest.approx(tail / counts["en"].total())
    assert value["total"]["matched"] == captions.total()


def test_expected_counts_of_entries(done: Path) -> None:
    """An entry's expected count is the sum of the keep probabilities of its captions."""
    loaded = Balance.load(done / "balance")
    expected = Counter[tuple[str, int]]()
    for captions in [captions for path in sorted((done / "matched").glob("*.parquet")) for captions in pq.read_table(path).to_pylist()]:
        for entry in captions["entries"]:
            expected[captions["language"], entry] += keep_probability(captions["entries"], loaded.probabilities[captions["language"]])  # type: ignore[assignment]
    for code in loaded.languages:
        for row in pq.read_table(done / "balance" / f"{code}.parquet").to_pylist():
            assert row["expected_count"] == pytest.approx(expected[code, row["id"]])
            assert row["probability"] == loaded.probabilities[code][row["id"]]


def test_online_shards_hold_every_matched_caption(done: Path) -> None:
    pairs = packed(done / "shards")
    assert sorted(pairs) == [f"{shard:05d}{number:04d}" for shard in range(3) for number in range(4)]  # the fifth image is broken
    assert [caption.text for caption in pairs["000000001"]] == CAPTIONS[1][:2]
    assert [caption.language for caption in pairs["000000000"]] == ["en", "de", "ja"]


def test_offline_shards_hold_what_the_loader_would_draw(done: Path) -> None:
    probabilities = Balance.load(done / "balance").probabilities
    drawn = {
        key: (captions, draw_caption(key, captions, probabilities, seed=3, epoch=0)) for key, captions in packed(done / "shards").items()
    }
    assert packed(done / "offline") == {key: [captions[index]] for key, (captions, index) in drawn.items() if index is not None}
    manifest = storage.read_json(done / "offline" / "manifest.json")
    assert (
        manifest["drops"].get("balanced_away", 0)
        + sum(shard["num_pairs"] for shard in manifest["shards"])
        + manifest["drops"]["broken_image"]
        == 15
    )


def test_the_balance_counts_what_offline_packing_draws(metadata: Path, tmp_path: Path) -> None:
    """A pool of one caption over and over: most pairs are balanced away, by the same draws in both stages."""
    (tmp_path / "pool").mkdir()
    for shard in range(2):
        texts = [(f"{shard}-{pair}", "the house by the sea") for pair in range(20)] + [(f"{shard}-fox", "a fox in the snow")]
        members = [member for key, text in texts for member in record(key, [text, text], b"" if key == "0-3" else image_file())]
        (tmp_path / "pool" / f"{shard}.tar").write_bytes(tar_bytes(members))
    run_match(tmp_path / "pool", metadata, tmp_path / "matched", engine=HERE)
    balance, settings = tmp_path / "balance", PackSettings("offline", seed=2, epoch=1, shard_pairs=5)
    value = run_balance(tmp_path / "matched", metadata, balance, tail_share=0.0, engine=HERE, draws=Draws(seed=2, epoch=1))
    manifest = run_pack(tmp_path / "pool", tmp_path / "matched", balance, tmp_path / "shards", settings, HERE)
    assert 10 < manifest.drops["balanced_away"] < 40
    assert value["total"]["drawn_pairs"] == 42 - manifest.drops["balanced_away"]
    assert value["total"]["drawn_pairs"] == manifest.num_pairs + manifest.drops.get("broken_image", 0)
    probabilities = Balance.load(balance).probabilities
    captions = {
        row["key"]: row["entries"] for path in sorted((tmp_path / "matched").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    }
    drawn = {
        key
        for key, ids in captions.items()
        if draw_caption(key, [PackedCaption("", "en", tuple(ids))] * 2, probabilities, 2, 1) is not None
    }
    assert set(packed(tmp_path / "shards")) == drawn - {"0-3"}


def test_manifest_and_index_tell_the_truth(done: Path, pool: Path) -> None:
    manifest = ShardManifest.from_json(storage.read_json(done / "shards" / "manifest.json"))
    assert manifest.num_pairs == 12
    assert [shard.num_pairs for shard in manifest.shards] == [4, 3, 3, 2]  # 15 pairs by fours; number 4, 9 and 14 have broken images
    assert manifest.drops == {"broken_image": 3, "empty_caption": 3, "no_entry": manifest.drops["no_entry"]}
    assert set(manifest.fingerprints) == {"metadata", "balance"}
    originals = {name: data for path in pool.glob("*.tar") for name, data in tar_members(path.read_bytes())}
    for shard in manifest.shards:
        path = done / "shards" / f"{shard.name}.tar"
        data = path.read_bytes()
        assert (shard.num_bytes, shard.sha256) == (len(data), storage.sha256_file(path))
        pairs = [Counter(caption.language for caption in captions) for captions in packed(done / "shards", shard.name).values()]
        languages = sum(pairs, Counter[str]())
        assert shard.captions == languages
        drawn = {code: float(sum(Fraction(pair[code], pair.total()) for pair in pairs)) for code in languages}
        assert shard.pairs == pytest.approx(drawn, abs=1e-6) != languages
        for row in pq.read_table(done / "shards" / f"{shard.name}.index.parquet").to_pylist():
            members = tar_members(data[row["offset"] : row["offset"] + row["size"]])
            assert [name for name, _ in members] == [f"{row['key']}.jpg", f"{row['key']}.json"]
            assert members[0][1] == originals[f"{row['key']}.jpg"]


def tar_members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, (tar.extractfile(member) or io.BytesIO()).read()) for member in tar]


# --- again --------------------------------------------------------------------------------------------------------------


def test_the_same_bytes_with_two_processes(done: Path, pool: Path, metadata: Path, tmp_path: Path) -> None:
    curate(pool, metadata, tmp_path, LocalEngine(2, progress=False))
    assert folder_bytes(tmp_path) == folder_bytes(done)


def test_a_run_that_was_broken_off_ends_with_the_same_bytes(done: Path, pool: Path, metadata: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    lost = ["matched/done.json", "matched/00001.parquet", "balance/balance.json", "balance/done.json", "balance/de.parquet"]
    for name in [*lost, "shards/done.json", "shards/manifest.json", "shards/00002.index.parquet", "offline/done.json", "offline/00000.tar"]:
        (tmp_path / name).unlink()
    (tmp_path / "offline" / "00000.index.parquet").unlink()
    curate(pool, metadata, tmp_path)
    assert folder_bytes(tmp_path) == folder_bytes(done)


def test_finished_stages_are_not_run_again(done: Path, pool: Path, metadata: Path) -> None:
    class Idle:
        def map(self, name: str, function: Any, items: Any) -> Any:
            raise AssertionError(f"{name} {function} {items}")

    run_match(pool, metadata, done / "matched", engine=Idle())
    run_balance(done / "matched", metadata, done / "balance", english_threshold=4, engine=Idle())
    assert run_pack(pool, done / "matched", done / "balance", done / "shards", PackSettings(shard_pairs=4), Idle()).num_pairs == 12


def test_the_same_bytes_whatever_the_size_of_a_batch(metadata: Path, tmp_path: Path) -> None:
    """Also one caption at a time; readable captions between those that are dropped for each reason, with and without a hint."""
    captions = [
        *(caption for own in CAPTIONS for caption in own),
        "fox \ud800",
        "fox " * 9,
        "\u2003",
        "",
        "12345",
        "рыжая лиса прыгает через забор",
    ]
    pairs = [Pair(f"{i}", (caption, "the black cat"), hint="de" if i % 3 else "") for i, caption in enumerate(captions)]
    matcher = CaptionMatcher(Metadata.open(metadata), tmp_path / "cache", MatchSettings(max_characters=35))
    written = set()
    for most in (1, 3, 10_000):
        write_matched(tmp_path / "shard.parquet", [matcher(batch) for batch in batches(pairs, most)], {"no_image": 2})
        written.add((tmp_path / "shard.parquet").read_bytes())
    assert len(written) == 1
    table = pq.read_table(tmp_path / "shard.parquet")
    assert table["key"].to_pylist() == [pair.key for pair in pairs for _ in pair.captions]
    drops = dict(
        zip(zip(table["key"].to_pylist(), table["caption_index"].to_pylist(), strict=True), table["drop"].to_pylist(), strict=True)
    )
    last = [drops[str(len(pairs) - 6 + i), 0] for i in range(6)]
    assert last[:4] == ["not_utf8", "long_caption", "empty_caption", "empty_caption"]
    assert last[4] in ("unknown_language", "no_metadata", "no_entry")
    assert last[5] == "no_metadata"
    assert matched_drops(tmp_path / "shard.parquet") == dict(
        sorted({**Counter(drop for drop in drops.values() if drop), "no_image": 2}.items())
    )
    assert [len(batch) for batch in batches(pairs, max_characters=1)] == [1] * len(pairs)


# --- folders that do not belong together --------------------------------------------------------------------------------


def test_stages_in_the_wrong_order(pool: Path, metadata: Path, done: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no finished stage 'match'; run `mc2 curate match`"):
        run_balance(tmp_path, metadata, tmp_path / "balance")
    with pytest.raises(ValueError, match=r"has no finished stage 'balance'; run `mc2 curate balance`"):
        run_pack(pool, done / "matched", done / "matched", tmp_path / "shards")


def test_other_settings_never_mix(pool: Path, metadata: Path, done: Path) -> None:
    with pytest.raises(
        ValueError, match=r"matched: belongs to another run \(language: found \{.*'min_score': 0.0.*, need \{.*'min_score': 0.5"
    ):
        run_match(pool, metadata, done / "matched", MatchSettings(LanguageSettings(min_score=0.5)), HERE)
    with pytest.raises(ValueError, match=r"balance: belongs to another run \(english_rule: found 'paper', need 'published_code'\)"):
        run_balance(done / "matched", metadata, done / "balance", 4, "published_code", engine=HERE)


def test_another_pool_or_metadata_or_balance_is_noticed(pool: Path, metadata: Path, done: Path, tmp_path: Path) -> None:
    other = build_metadata(tmp_path / "metadata", [], {"en": ["fox"]}, progress=False)
    with pytest.raises(ValueError, match="was matched with other metadata"):
        run_balance(done / "matched", other.folder, tmp_path / "balance", 4, engine=HERE)
    shutil.copytree(pool, tmp_path / "pool")
    shutil.copy(pool / "00000.tar", tmp_path / "pool" / "00003.tar")
    with pytest.raises(ValueError, match=r"is not the pool that .* was matched from"):
        run_pack(tmp_path / "pool", done / "matched", done / "balance", tmp_path / "shards", engine=HERE)
    run_match(tmp_path / "pool", metadata, tmp_path / "matched", engine=HERE)
    with pytest.raises(ValueError, match="was balanced over another match"):
        run_pack(tmp_path / "pool", tmp_path / "matched", done / "balance", tmp_path / "shards", engine=HERE)


def test_metadata_that_changes_under_a_running_job(pool: Path, metadata: Path, tmp_path: Path) -> None:
    shutil.copytree(metadata, tmp_path / "metadata")
    (tmp_path / "metadata" / "de.txt").write_text("Fuchs\n")
    with pytest.raises(ShardErrors, match=r"automata: 1 of 3 failed \(de; .*de\.txt: is missing or has changed"):
        run_match(pool, tmp_path / "metadata", tmp_path / "matched", engine=HERE)


# --- bad input ----------------------------------------------------------------------------------------------------------


def test_dirt_is_counted_and_the_rest_goes_through(metadata: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    good = record("good", ["a brown fox in the snow"], image_file())
    dirty = [
        *good,
        ("latin1.jpg", image_file()), ("latin1.txt", b"a fox in a caf\xe9"),
        ("surrogate.jpg", image_file()), ("surrogate.json", b'{"captions": ["a fox \\ud800", "the brown fox and the dog"]}'),
        *record("long", ["fox " * 5000], image_file()),
        *record("nothing", ["  \t"], image_file()),
    ]  # fmt: skip
    (pool / "00000.tar").write_bytes(tar_bytes(dirty))
    (pool / "00001.tar").write_bytes(tar_bytes(dirty)[:700])
    (pool / "00002.tar").write_bytes(b"")
    manifest = curate(pool, metadata, tmp_path)
    assert manifest.drops == {
        "empty_caption": 1,
        "long_caption": 1,
        "no_captions": 3,
        "not_utf8": 2,
        "truncated_tar": 1,
        "unreadable_tar": 1,
    }
    assert {key: [caption.text for caption in captions] for key, captions in packed(tmp_path / "shards").items()} == {
        "good": ["a brown fox in the snow"],
        "surrogate": ["the brown fox and the dog"],
    }
    assert [shard.name for shard in manifest.shards] == ["00000"]
    assert sorted(path.name for path in (tmp_path / "shards").glob("*.tar")) == ["00000.tar"]


def test_a_pool_of_which_nothing_is_left(metadata: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "00000.tar").write_bytes(tar_bytes(record("a", ["a brown fox in the snow"], b"no image")))
    with pytest.raises(ValueError, match=r"no pair is left \(drops: \{'broken_image': 1\}\)"):
        curate(tmp_path / "pool", metadata, tmp_path)


def test_a_shard_that_cannot_be_opened_is_named(pool: Path, metadata: Path, tmp_path: Path) -> None:
    shutil.copytree(pool, tmp_path / "pool")
    (tmp_path / "pool" / "00001.tar").unlink()
    (tmp_path / "pool" / "00001.tar").mkdir()
    with pytest.raises(ShardErrors, match=r"match: 1 of 3 failed \(00001\.tar; the others are done\)"):
        run_match(tmp_path / "pool", metadata, tmp_path / "matched", engine=HERE)
    assert sorted(path.name for path in (tmp_path / "matched").glob("*.parquet")) == ["00000.parquet", "00002.parquet"]


@pytest.mark.parametrize("cure", ["mended", "taken out"])
def test_a_poisoned_shard_is_mended_and_the_others_stay(cure: str, pool: Path, metadata: Path, tmp_path: Path) -> None:
    own, matched = tmp_path / "pool", tmp_path / "matched"
    shutil.copytree(pool, own)
    (own / "00001.tar").unlink()
    (own / "00001.tar").mkdir()
    with pytest.raises(ShardErrors, match=r"\(00001\.tar; the others are done\).*mend that and run the same line again"):
        run_match(own, metadata, matched, engine=HERE)
    with pytest.raises(ValueError, match="belongs to another run"):
        run_match(own, metadata, matched, MatchSettings(max_characters=99), engine=HERE)
    before = {path.name: path.stat().st_mtime_ns for path in matched.glob("*.parquet")}
    (own / "00001.tar").rmdir()
    if cure == "mended":
        shutil.copy(pool / "00001.tar", own)
    run_match(own, metadata, matched, engine=HERE)
    run_match(own, metadata, tmp_path / "whole", engine=HERE)
    assert folder_bytes(matched) == folder_bytes(tmp_path / "whole")
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in matched.glob("*.parquet")}.items()


def test_shards_that_were_damaged_and_counted_are_matched_again(pool: Path, metadata: Path, tmp_path: Path) -> None:
    """Not those that are as they were. A pool of which nothing is known is another pool; so is any other than its own to a match that has finished."""
    own, matched = tmp_path / "pool", tmp_path / "matched"
    shutil.copytree(pool, own)
    (own / "00000.tar").write_bytes((pool / "00000.tar").read_bytes()[:3000])
    (own / "00001.tar").unlink()
    (own / "00001.tar").mkdir()
    with pytest.raises(ShardErrors, match=r"\(00001\.tar; the others are done\)"):
        run_match(own, metadata, matched, engine=HERE)
    with pytest.raises(ValueError, match="belongs to another run"):
        run_match(write_pool(tmp_path / "other", 1), metadata, matched, engine=HERE)
    before = (matched / "00002.parquet").stat().st_mtime_ns
    (own / "00001.tar").rmdir()
    shutil.copy(pool / "00000.tar", own)
    run_match(own, metadata, matched, engine=HERE)
    run_match(own, metadata, tmp_path / "whole", engine=HERE)
    assert folder_bytes(matched) == folder_bytes(tmp_path / "whole")
    assert before == (matched / "00002.parquet").stat().st_mtime_ns
    (own / "00000.tar").unlink()
    with pytest.raises(ValueError, match="belongs to another run"):
        run_match(own, metadata, matched, engine=HERE)


def test_a_setting_that_is_refused_can_be_changed(pool: Path, metadata: Path, tmp_path: Path) -> None:
    """No caption is English, so that a threshold for English says nothing."""
    run_match(pool, metadata, tmp_path / "matched", MatchSettings(language=LanguageSettings(assume="ja")), engine=HERE)
    with pytest.raises(ValueError, match=r"no English caption matched, .*set `tail_share`"):
        run_balance(tmp_path / "matched", metadata, tmp_path / "balance", english_threshold=4, engine=HERE)
    run_balance(tmp_path / "matched", metadata, tmp_path / "balance", tail_share=0.06, engine=HERE)
    run_balance(tmp_path / "matched", metadata, tmp_path / "whole", tail_share=0.06, engine=HERE)
    assert folder_bytes(tmp_path / "balance") == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_images_that_decode(kind: str, extension: str) -> None:
    assert image_extension(image_file(kind=kind), 10_000) == (extension, None)


def huge_png() -> bytes:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


def test_the_first_picture_of_a_telephone_is_packed() -> None:
    """Pillow calls a JPEG with more pictures behind the first MPO."""
    file = io.BytesIO()
    first, second = (Image.open(io.BytesIO(image_file(seed))) for seed in (0, 1))
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert Image.open(file).format == "MPO"
    assert image_extension(file.getvalue(), 10**6) == ("jpg", None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "broken_image"),
        (b"", "broken_image"),
        (b"GIF89a", "broken_image"),
        (image_file()[:200], "broken_image"),
        (image_file(kind="PNG")[:200], "broken_image"),
        (image_file(kind="WEBP")[:60], "broken_image"),
        (image_file(kind="GIF"), "broken_image"),
        (image_file(size=(200, 100)), "huge_image"),
        (huge_png(), "huge_image"),
    ],
)
def test_images_that_do_not(data: bytes | None, reason: str) -> None:
    assert image_extension(data, 10_000) == ("", reason)


def test_a_jpeg_cut_anywhere_is_broken() -> None:
    data = image_file(size=(96, 96))
    assert {image_extension(data[:cut], 10_000)[1] for cut in range(0, len(data) - 8, 101)} == {"broken_image"}


def test_shard_info_travels_as_plain_json(done: Path) -> None:
    manifest = ShardManifest.from_json(storage.read_json(done / "shards" / "manifest.json"))
    assert ShardManifest.from_json(json.loads(json.dumps(asdict(manifest)))) == manifest
