"""`mc2 curate run` over a pool with planted copies, an overlap with a benchmark and pictures for the filters; killed, and run again."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mc2 import storage
from mc2.cli import main
from tests.curation.pools import folder_bytes, picture, record, tar_bytes


def encoded(image: Image.Image, kind: str = "JPEG", quality: int = 92) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return file.getvalue()


@pytest.fixture(scope="module")
def config(metadata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML of `mc2 curate run` without `out`."""
    folder = tmp_path_factory.mktemp("planted")
    pictures = [picture(seed) for seed in range(7)]
    files = [encoded(image) for image in pictures]
    shards = [
        record("a", ["a brown fox in the snow"], files[0]) + record("b", ["a house by the sea"], files[1]) + record("c", ["qqqq"], files[2]),
        record("d", ["the moon over the mountains"], files[0])  # exact copy of a
        + record("e", ["das alte Haus am Meer"], encoded(pictures[1].resize((300, 200)), quality=50))  # near copy of b
        + record("f", ["the dog and the cat"], files[2])  # the same as c, whose caption does not match
        + record("g", ["the garden"], files[3]),  # in the benchmark
        record("h", ["the fox of the garden"], encoded(pictures[4])) + record("i", ["the sea and the house"], files[5])
        + record("j", ["a black cat"], files[6][:200]),
    ]  # fmt: skip
    (folder / "pool").mkdir()
    for number, members in enumerate(shards):
        (folder / "pool" / f"{number:05d}.tar").write_bytes(tar_bytes(members))
    (folder / "test" / "garden").mkdir(parents=True)
    (folder / "test" / "garden" / "3.png").write_bytes(encoded(pictures[3].resize((240, 160)), "PNG"))
    judge = {"class_path": "tests.curation.test_filters.CountingFilter", "init_args": {"word": "sea and", "grey": "fox of"}}
    settings = {
        "pool": str(folder / "pool"),
        "metadata": str(metadata),
        "english_threshold": 4,
        "drop_duplicates": True,
        "filters": [judge],
    }
    options = {"benchmarks": [str(folder / "test")], "shard_pairs": 2, "workers": 1, "progress": False}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings | options))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def done(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done")
    assert main(["curate", "run", "--config", str(config), "--out", str(out)]) == 0
    return out


def test_the_right_pairs_are_gone_and_the_numbers_add_up(done: Path) -> None:
    members = dict[str, bytes]()
    for path in sorted((done / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}
    assert sorted(members) == ["a.jpg", "a.json", "b.jpg", "b.json", "f.jpg", "f.json", "h.json", "h.png"]
    assert Image.open(io.BytesIO(members["h.png"])).mode == "L"
    drops = {
        "benchmark_overlap": 1, "broken_image": 1, "exact_duplicate": 1, "filter:word": 1, "near_duplicate": 1, "no_captions": 1, "no_entry": 1,
    }  # fmt: skip
    manifest, report = storage.read_json(done / "shards" / "manifest.json"), storage.read_json(done / "curation" / "report.json")
    assert manifest["drops"] == report["drops"] == drops
    assert manifest["replaced"] == report["total"]["replaced_images"] == 1
    pairs = sum(shard["num_pairs"] for shard in manifest["shards"])
    assert (
        pairs + sum(number for reason, number in drops.items() if reason != "no_entry") == 10
    )  # no_entry is a caption, its pair has no_captions
    total = report["total"]
    assert (total["pairs"], total["pairs_matched"], total["duplicate_pairs"]) == (10, 6, 3)


def test_duplicates_do_not_count_in_the_balance(done: Path) -> None:
    """`moon`, `Haus` and `Meer` stand in captions of duplicates alone."""
    languages = storage.read_json(done / "balance" / "balance.json")["languages"]
    assert languages["en"]["matched"] == 6
    assert languages.get("de", {"matched": 0})["matched"] == 0


def test_a_run_that_is_killed_ends_with_the_same_bytes(config: Path, done: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mc2", "curate", "run", "--config", str(config), "--out", str(tmp_path / "out")]
    for mark in ("hashes/00001.parquet", "shards/inputs.json"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not (tmp_path / "out" / mark).exists() and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        _, error = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), error
    subprocess.run(command, check=True, capture_output=True)
    assert folder_bytes(tmp_path / "out") == folder_bytes(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drop_duplicates", "false"], "found benchmarks, but duplicates are not dropped; give --drop_duplicates true"),
        (["--radius", "12"], "found a radius of 12 bits, need 0 to 8"),
        (["--benchmarks", "[nowhere]"], "nowhere: not found; need a folder of images, or a pool with images"),
    ],
)
def test_wrong_settings(config: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", "run", "--config", str(config), "--out", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_pack_needs_the_duplicates_of_the_balance(config: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--matched", str(done / "matched"), "--balance", str(done / "balance"), "--out", str(tmp_path / "out")]
    assert main(["curate", "pack", "--pool", str(config.parent / "pool"), *folders]) == 1
    assert "give the same --duplicates to `mc2 curate balance` and `mc2 curate pack`" in capsys.readouterr().err
