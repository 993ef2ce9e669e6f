"""The benchmark of the loader, small: both sides read the same shards and cut captions alike. Never how fast."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from mc2.bench.clocks import Clock
from mc2.bench.loader_sample import jpeg_of_size, picture, write_sample
from mc2.bench.loader_speed import Setting, appetite, stages
from mc2.cli import main
from mc2.data.shard_folder import open_folder
from mc2.data.shard_reader import read_shard
from mc2.data.stages import STAGES
from tests.data.shards import small_tokenizer

SMALL = [
    "--pairs",
    "24",
    "--pixels",
    "48",
    "--image_bytes",
    "1500",
    "--image_size",
    "16",
    "--batch",
    "4",
    "--batches",
    "2",
    "--repeats",
    "1",
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")  # webdataset leaves tars open
def test_the_whole_command_beside_open_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open_clip_train")
    path = tmp_path / "figures.json"
    assert main(["bench", "loader", *SMALL, "--workers", "[0, 1]", "--against", "open_clip", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    for side in figures["sides"].values():
        assert side["workers"].keys() == {"0", "1"}
        assert all(row["tokens_per_second"] > 3 * row["samples_per_second"] for row in side["workers"].values())
    ours, theirs = (figures["sides"][name]["workers"]["1"]["samples_per_second"] for name in ("mc2", "open_clip"))
    assert figures["ratio"]["1"] == pytest.approx(ours / theirs)
    assert figures["stages"].keys() == set(STAGES)
    assert {"commit", "machine", "versions", "sample"} <= set(figures)
    printed = capsys.readouterr().out
    assert "ViT-B-32" in printed
    assert "processor time of a sample" in printed


def test_the_sample_is_what_was_asked_for(tmp_path: Path) -> None:
    captions = write_sample(tmp_path / "shards", pairs=10, shards=3, pixels=64, image_bytes=2500)
    records = [record for name in open_folder(tmp_path / "shards").names for record in read_shard(tmp_path / "shards" / name)]
    assert [record.captions[0].text for record in records] == captions
    for record in records:
        assert isinstance(record.image, bytes)
        assert Image.open(io.BytesIO(record.image)).size == (64, 64)
    whole = picture(0, 64)
    assert 2500 <= len(jpeg_of_size(whole, 2500)) < 3000
    assert len(jpeg_of_size(whole, 10**9)) > 2500


def test_stages_count_processor_time(tmp_path: Path) -> None:
    write_sample(tmp_path / "shards", pairs=8, shards=1, pixels=64, image_bytes=2500)
    setting = Setting(tmp_path / "shards", small_tokenizer(tmp_path / "tokenizer"), 16, batch=4, batches=3, repeats=1)
    start = time.process_time()
    seconds = stages(setting)
    assert 0 < 8 * sum(seconds.values()) < time.process_time() - start
    ticks = iter([0.0, 1.0, 3.0, 7.0])
    clock = Clock(lambda: next(ticks))
    with clock("outer"), clock("inner"):
        pass
    assert clock.seconds == {"outer": 5.0, "inner": 2.0}


def test_the_gpu_is_asked_for_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="found --gpu_decode, need a GPU and a torchvision with nvJPEG"):
        Setting(Path(), Path(), 16, batch=4, batches=3, repeats=1, gpu_decode=True)


def test_a_larger_model_takes_fewer_samples() -> None:
    needs = appetite("H100", 0.4, tokens=77, batch=1024)
    assert needs["ViT-S-16"] > needs["ViT-B-16"] > needs["ViT-L-14"] > needs["ViT-H-14-quickgelu"] > needs["ViT-bigG-14"]
    assert appetite("H100", 0.2, 77, 1024)["ViT-B-16"] == pytest.approx(needs["ViT-B-16"] / 2)
    with pytest.raises(ValueError, match="found --gpu 'H1', need one of"):
        appetite("H1", 0.4, 77, 1024)
    with pytest.raises(ValueError, match="found --mfu 40, need a share"):
        appetite("H100", 40, 77, 1024)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "[]"], "found workers []"),
        (["--batch", "0"], "found batch 0"),
        (["--shards", "/nowhere"], "found --shards without --tokenizer"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "loader", *SMALL, *arguments]) == 1
    assert message in capsys.readouterr().err
