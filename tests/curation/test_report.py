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
from mc2.curation.report import write_report
from tests.curation.pools import CAPTIONS

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


def test_the_picture_is_a_picture(done: Path) -> None:
    with Image.open(done / "curation" / "report.png") as image:
        assert image.size == (1430, 935)
        assert np.asarray(image.convert("L")).std() > 10


def test_the_table(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    write_report(done / "balance", tmp_path, shards=done / "shards")
    printed = capsys.readouterr().out
    for text in ("tail share p =", "en English", "ja Japanese", "kept (expected)", "Drops: broken_image 3, empty_caption 3"):
        assert text in printed
    assert "id agrees" not in printed


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
    with pytest.raises(SystemExit, match="2"):
        main(["curate", *argv])
