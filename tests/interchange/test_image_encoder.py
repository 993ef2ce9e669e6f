"""A model folder as the encoder of `mc2 curate hash`."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import mc2
from mc2.cli import main
from mc2.curation.image_hash import directions, hash_embeddings
from mc2.interchange.image_encoder import ClipEncoder
from mc2.interchange.model_directory import save
from tests.curation.pools import picture
from tests.interchange.tiny import tiny_parts


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(tmp_path / "model", *tiny_parts(tmp_path / "tokenizer"))
    return tmp_path / "model"


def test_the_command_with_a_model_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of this process
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        picture(seed).save(tmp_path / "pictures" / f"{seed}.png")
    encoder = ["--encoder", "mc2.interchange.image_encoder.ClipEncoder", "--encoder.folder", str(model)]
    arguments = ["--pool", str(tmp_path / "pictures"), "--out", str(tmp_path / "hashes"), "--workers", "1", "--progress", "false"]
    assert main(["curate", "hash", *arguments, *encoder]) == 0
    embedding = mc2.load(model).encode_image([picture(seed) for seed in range(3)]).numpy()
    found = pq.read_table(tmp_path / "hashes" / "00000.parquet")["hash"].to_pylist()
    assert found == hash_embeddings(embedding, directions(24, 0)).tolist()


def test_its_identity_is_that_of_the_weights(model: Path, tmp_path: Path) -> None:
    clip, threads = mc2.load(model), torch.get_num_threads()
    before = ClipEncoder(model, threads=threads).identity
    model.rename(tmp_path / "elsewhere")
    assert ClipEncoder(tmp_path / "elsewhere", threads=threads).identity == before
    with torch.no_grad():
        clip.towers.text.projection.weight.mul_(2)
    save(tmp_path / "other", clip.towers, clip.tokenizer, clip.preprocess)
    assert ClipEncoder(tmp_path / "other", threads=threads).identity != before
