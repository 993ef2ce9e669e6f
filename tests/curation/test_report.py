"""The report of a small run, and the commands that end in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mc2 import storage
from mc2.cli import main
from mc2.curation.pair_keys import MAX_CAPTIONS
from mc2.curation.report import threshold_advice, write_report
from tests.curation.pools import CAPTIONS, image_file, record, tar_bytes, write_pool

TRUTH = ["en", "de", "ja", "en", "de", None, "", "en", "de", "en", "de", "ja", "en", "fr"]  # of CAPTIONS in order


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    places = [
        (f"{shard:05d}{pair:04d}", index) for shard in range(3) for pair, captions in enumerate(CAPTIONS) for index in range(len(captions))
    ]
    path = tmp_path_factory.mktemp("truth") / "truth.parquet"
    pq.write_table(
        pa.table({"key": [key for key, _ in places], "caption_index": [index for _, index in places], "language": TRUTH * 3}), path
    )
    return path


@pytest.fixture(scope="module")
def done(pool: Path, metadata: Path, truth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mc2 curate run` leaves."""
    out = tmp_path_factory.mktemp("run")
    options = ["--english_threshold", "4", "--workers", "1", "--progress", "false", "--truth", str(truth)]
    assert main(["curate", "run", "--pool", str(pool), "--metadata", str(metadata), "--out", str(out), *options]) == 0
    return out


def test_run_leaves_all_folders(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {"matched", "balance", "shards", "curation"}
    assert {path.name for path in (done / "curation").iterdir()} == {"report.json", "report.png"}


def test_agreement_with_the_truth(done: Path) -> None:
    """All captions are told right but the one in no language, whose truth says "fr"; captions without truth take no part."""
    report = storage.read_json(done / "curation" / "report.json")
    assert {code: (row["true_captions"], row["id_agreement"]) for code, row in report["languages"].items() if "id_agreement" in row} == {
        "de": (12, 1.0), "en": (15, 1.0), "fr": (3, 0.0), "ja": (6, 1.0),
    }  # fmt: skip
    assert report["total"]["id_agreement"] == pytest.approx(33 / 36)
    assert report["total"]["id_agreement_macro"] == pytest.approx(3 / 4)


def test_the_report_shows_what_was_packed(done: Path) -> None:
    report, manifest = storage.read_json(done / "curation" / "report.json"), storage.read_json(done / "shards" / "manifest.json")
    assert report["total"]["packed_pairs"] == 12
    assert report["languages"]["en"]["packed_captions"] == sum(shard["captions"]["en"] for shard in manifest["shards"])
    assert report["drops"] == manifest["drops"]
    assert report["languages"]["en"]["tail_share"] == report["languages"]["en"]["tail_matches"] / report["languages"]["en"]["matches"]


def test_offline_shards_are_trained_without_a_balance(
    pool: Path, metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--english_threshold", "4", "--workers", "1", "--progress", "false", "--balanced", "offline"]
    assert main(["curate", "run", "--pool", str(pool), "--metadata", str(metadata), "--out", str(tmp_path), *options]) == 0
    assert f"{tmp_path}/shards: balanced already: train on it without data.balance" in capsys.readouterr().out
    assert storage.read_json(tmp_path / "shards" / "manifest.json")["balanced"] == "offline"


def test_folders_that_do_not_belong_together(done: Path, metadata: Path, truth: Path, tmp_path: Path) -> None:
    options = ["--english_threshold", "2", "--workers", "1", "--progress", "false"]
    other = write_pool(tmp_path / "pool", 2)
    assert main(["curate", "run", "--pool", str(other), "--metadata", str(metadata), "--out", str(tmp_path), *options]) == 0
    with pytest.raises(ValueError, match="shards: was packed with another balance than the report's; give the two that belong together"):
        write_report(done / "balance", tmp_path / "report", shards=tmp_path / "shards")
    with pytest.raises(ValueError, match=r"matched: is another match than .*balance was balanced over"):
        write_report(done / "balance", tmp_path / "report", tmp_path / "matched", truth)
    assert not (tmp_path / "report").exists()


def test_the_picture_is_a_picture(done: Path) -> None:
    with Image.open(done / "curation" / "report.png") as image:
        assert image.size == (1430, 935)
        assert np.asarray(image.convert("L")).std() > 10


def test_the_table(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    write_report(done / "balance", tmp_path, shards=done / "shards")
    printed = capsys.readouterr().out
    for text in ("tail share p =", "en English", "ja Japanese", "captions kept", "(drawn)", "Drops: broken_image 3, empty_caption 3"):
        assert text in printed
    assert "Pairs: 15 in the pool = 15 matched - 3 broken_image = 12 packed.\n" in printed
    assert "id agrees" not in printed
    monkeypatch.setenv("COLUMNS", "80")
    write_report(done / "balance", tmp_path)
    narrow = capsys.readouterr().out
    assert "captions kept" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow


def test_ways_add_up(done: Path) -> None:
    """From one number to the next that is left, the losses between them make the difference; and all are known from elsewhere."""
    report = storage.read_json(done / "curation" / "report.json")
    for way in report["ways"].values():
        left = 0
        for number, (what, change) in enumerate(way):
            if number and change > 0:
                assert change == left, (what, way)
            left = change if change > 0 else left + change
    captions, pairs = dict(report["ways"]["captions"]), dict(report["ways"]["pairs"])
    assert captions["in the pool"] == 3 * sum(map(len, CAPTIONS))
    assert captions["matched"] == sum(row["matched"] for row in report["languages"].values())
    assert (pairs["in the pool"], pairs["broken_image"], pairs["packed"]) == (15, -3, 12)
    assert {reason: -number for way in (captions, pairs) for reason, number in way.items() if number < 0} == report["drops"]


def test_what_could_not_be_read_is_in_the_ways(
    metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    pool = write_pool(tmp_path / "pool", 1)
    fox = record("fox", ["a brown fox", *(f"the house {number}" for number in range(MAX_CAPTIONS + 4))], image_file())
    members = [
        *record("twice", ["a dog"], image_file()),
        *fox,
        *record("twice", ["a cat"], image_file()),
        ("blind.txt", b"a dog"),
        ("mute.jpg", b"x"),
    ]
    (pool / "00001.tar").write_bytes(tar_bytes([*members, ("bent.jpg", b"x"), ("bent.json", b"{"), *record("vain", [" "], image_file())]))
    options = ["--english_threshold", "4", "--workers", "1", "--progress", "false"]
    assert main(["curate", "run", "--pool", str(pool), "--metadata", str(metadata), "--out", str(tmp_path / "out"), *options]) == 0
    printed = capsys.readouterr().out
    lost = "1 broken_record - 1 duplicate_key - 1 no_image - 2 no_captions"
    assert f"Pairs: 12 in the pool - {lost} = 7 matched" in printed
    assert f"Captions: {len(TRUTH) + 1 + MAX_CAPTIONS + 5 + 1:,} in the pool - 2 empty_caption - 5 many_captions = " in printed


def test_totals_are_the_sums_of_the_languages(done: Path) -> None:
    report = storage.read_json(done / "curation" / "report.json")
    rows, total = report["languages"].values(), report["total"]
    not_summed = {"name", "threshold", "tail_share", "true_captions", "id_agreement", "pairs_deviation"}
    names = {name for row in rows for name in row} - not_summed
    assert {"matches", "head_matches", "tail_entries", "expected_tail_matches", "drawn_pairs", "packed_captions"} <= names
    for name in names:
        assert total[name] == pytest.approx(sum(row.get(name, 0) for row in rows)), name


@pytest.mark.parametrize(("share", "advice"), [(0.06, ""), (0.9, "thins out less than theirs"), (0.001, "thins out more than theirs")])
def test_advice_on_the_threshold(share: float, advice: str) -> None:
    given = threshold_advice({"tail_share": share, "usual_english_threshold": 7, "english_threshold": 170_000})
    assert advice in given
    assert bool(given) == bool(advice)
    assert not given or "--english_threshold 7 would give 6 % here" in given


def test_reports_of_nothing(done: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no finished stage 'balance'; run `mc2 curate balance`"):
        write_report(tmp_path, tmp_path)
    (tmp_path / "truth.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read as a truth"):
        write_report(done / "balance", tmp_path, done / "matched", tmp_path / "truth.parquet")
    with pytest.raises(ValueError, match="found a truth without matched captions"):
        write_report(done / "balance", tmp_path, truth=tmp_path / "truth.parquet")


def test_the_stages_one_by_one_give_the_same_shards(pool: Path, metadata: Path, done: Path, tmp_path: Path) -> None:
    common = ["--workers", "1", "--progress", "false"]
    matched, balance, shards = (str(tmp_path / name) for name in ("matched", "balance", "shards"))
    assert main(["curate", "match", "--pool", str(pool), "--metadata", str(metadata), "--out", matched, *common]) == 0
    assert (
        main(
            ["curate", "balance", "--matched", matched, "--metadata", str(metadata), "--out", balance, "--english_threshold", "4", *common]
        )
        == 0
    )
    assert main(["curate", "pack", "--pool", str(pool), "--matched", matched, "--balance", balance, "--out", shards, *common]) == 0
    assert main(["curate", "report", "--balance", balance, "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "shards" / "manifest.json").read_bytes() == (done / "shards" / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["match", "--pool", "nowhere", "--metadata", "nowhere", "--out", "x"], "nowhere: the pool is not there"),
        (["balance", "--matched", "nowhere", "--metadata", "nowhere", "--out", "x"], "nowhere: has no finished stage 'match'"),
        (["report", "--balance", "nowhere", "--out", "x"], "nowhere: has no finished stage 'balance'"),
    ],
)
def test_errors_are_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["curate", *argv]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [["match", "--pol", "x"], ["balance", "--english_rule", "mine"], ["fly"]])
def test_misspelt_options_are_refused(argv: list[str]) -> None:
    assert main(["curate", *argv]) == 2
