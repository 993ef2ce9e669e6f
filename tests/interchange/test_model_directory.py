"""The model folder: bit-equal round trip, never half-written, and every complaint about a folder that is not whole."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mc2
from mc2.interchange import model_directory
from mc2.interchange.model_directory import FILES, Clip, load, save
from mc2.model.two_tower import TwoTower
from tests.interchange.tiny import CAPTIONS, CONTEXT, tiny_config, tiny_parts, tiny_tokenizer


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20 + i, 50 - i, 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip(*tiny_parts(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def folder(original: Clip, tmp_path: Path) -> Path:
    save(tmp_path / "model", original.towers, original.tokenizer, original.preprocess)
    return tmp_path / "model"


def test_features_are_equal_bit_for_bit_after_a_round_trip(original: Clip, folder: Path) -> None:
    clip = mc2.load(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert clip.towers.config == original.towers.config
    assert clip.preprocess == original.preprocess
    assert clip.tokenizer.context_length == CONTEXT
    assert clip.logit_scale == original.logit_scale
    assert torch.equal(clip.encode_image(pictures(5)), original.encode_image(pictures(5)))
    assert torch.equal(clip.encode_text(CAPTIONS[:5]), original.encode_text(CAPTIONS[:5]))
    weights = load_file(folder / "model.safetensors")
    for name, tensor in original.towers.state_dict().items():
        np.testing.assert_array_equal(weights[name].numpy(), tensor.numpy())


def test_the_same_model_gives_the_same_bytes(original: Clip, folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "again", original.towers, original.tokenizer, original.preprocess)
    assert [(folder / name).read_bytes() for name in FILES] == [(tmp_path / "again" / name).read_bytes() for name in FILES]


def test_embeddings_are_unit_float32_rows_in_any_batch_size(original: Clip) -> None:
    for rows in (original.encode_image(pictures(5)), original.encode_text(CAPTIONS[:5])):
        assert (rows.shape, rows.dtype, rows.requires_grad) == ((5, 24), torch.float32, False)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(original.encode_image(pictures(5), batch_size=2), original.encode_image(pictures(5)))
    torch.testing.assert_close(original.encode_text(CAPTIONS[:5], batch_size=2), original.encode_text(CAPTIONS[:5]))
    assert original.encode_image([]).shape == original.encode_text([]).shape == (0, 24)


def test_an_image_is_seen_as_training_saw_it(original: Clip) -> None:
    """Grey and transparent images become RGB; the embedding is that of the preprocessed pixels."""
    grey = pictures(1)[0].convert("LA")
    pixels = original.preprocess.evaluate(grey)[None]
    assert torch.equal(original.encode_image([grey]), original.towers.encode_image(pixels))


def test_an_older_model_is_replaced_and_anything_else_is_not(original: Clip, folder: Path, tmp_path: Path) -> None:
    before = (folder / "model.safetensors").stat().st_ino
    save(folder, original.towers, original.tokenizer, original.preprocess)
    assert (folder / "model.safetensors").stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something that is no model"):
        save(folder, original.towers, original.tokenizer, original.preprocess)
    assert (folder / "thesis.tex").exists()


def test_a_failed_write_leaves_nothing_under_the_name(original: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_directory, "save_file", full)
    with pytest.raises(ValueError, match=r"model.safetensors: cannot be written \(.*No space left"):
        save(tmp_path / "model", original.towers, original.tokenizer, original.preprocess)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_were_not_made_for_each_other_are_refused(original: Clip, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found image_size 64 in tokenizer or preprocessing, need 32 of the towers"):
        Clip(original.towers, original.tokenizer, replace(original.preprocess, image_size=64))
    with pytest.raises(ValueError, match="found mean"):
        save(tmp_path / "model", original.towers, original.tokenizer, replace(original.preprocess, mean=(0.5, 0.5, 0.5)))
    small = TwoTower(tiny_config(vocab_size=100))
    with pytest.raises(ValueError, match="the text tower 100 rows"):
        Clip(small, original.tokenizer, original.preprocess)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_shape(path: Path) -> None:
    weights = load_file(path)
    weights["text.ln_final.weight"] = torch.zeros(7)
    save_file(weights, path)


def without_a_weight(path: Path) -> None:
    weights = load_file(path)
    del weights["logit_scale.log"]
    save_file(weights, path)


def edit_config(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


WEIGHTS, CONFIG = "model.safetensors", "config.json"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"model\.safetensors: not found; a model folder has"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), r"tokenizer\.model: not found"),
    "cut short": (lambda f: shorten(f / WEIGHTS), r"model\.safetensors: no safetensors file, or cut short"),
    "pickle": (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"a": 1})), r"model\.safetensors: no safetensors file"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), r"model\.safetensors: no safetensors file"),
    "other shape": (lambda f: other_shape(f / WEIGHTS), r"found text\.ln_final\.weight of shape \(7,\), need \(32,\)"),
    "weight missing": (lambda f: without_a_weight(f / WEIGHTS), r"found no weight 'logit_scale\.log'"),
    "no json": (lambda f: (f / CONFIG).write_text("{"), r"config\.json: not valid JSON"),
    "another format": (lambda f: (f / CONFIG).write_text('{"model_type": "clip"}'), r"config\.json: not the config of an mc2 model folder"),
    "no towers": (lambda f: edit_config(f / CONFIG, towers={}), r"config\.json: written by mc2 .* export the model again"),
    "unknown setting": (lambda f: edit_config(f / CONFIG, preprocess={"colour": 1}), r"config\.json: written by mc2"),
    "tokenizer of another model": (lambda f: (f / "tokenizer.model").write_bytes(b"x"), r"tokenizer\.model: found SHA-256"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named_in_one_line(folder: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/model\.safetensors: not found"):
        mc2.load(tmp_path / "nowhere")


def test_a_tokenizer_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tiny_tokenizer(tmp_path / "other")
    assert other.vocab_size <= load(folder).towers.config.text.vocab_size
    edit_config(folder / CONFIG, towers={**json.loads((folder / CONFIG).read_text())["towers"], "mean": [0.5, 0.5, 0.5]})
    with pytest.raises(ValueError, match="found mean"):
        load(folder)
