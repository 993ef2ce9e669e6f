"""Random weights in the released models' own shapes and layout, from one tool to the next until the first is reached again."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from mc2.cli import main
from mc2.data.tokenizer import Tokenizer
from mc2.data.tokenizer_forms import MT5, XLM_V, Form
from mc2.interchange.convert import named_towers
from mc2.interchange.open_clip_folder import places_of
from mc2.interchange.weight_names import to_theirs
from mc2.model.two_tower import TwoTower
from tests.interchange.tiny import CAPTIONS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of the other tools


def write_pieces(path: Path, form: Form) -> Path:
    """A SentencePiece file that begins as the form's do."""
    ids: dict[str, Any] = (
        {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if form is MT5 else {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=model, vocab_size=80, hard_vocab_limit=False, minloglevel=2, **ids
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("size", "form", "rows", "millions"), [("ViT-S-16-mT5", MT5, 250_000, 139.3), ("ViT-B-32", XLM_V, 901_629, 587.6)])
def test_a_released_checkpoint_goes_all_the_way_round(size: str, form: Form, rows: int, millions: float, tmp_path: Path) -> None:
    """mini_clip -> mc2 -> transformers -> mc2 -> open_clip. Each step compares features with the tool itself; at the end the weights are those of the start."""
    pieces = write_pieces(tmp_path / "sentencepiece.model", form)
    config = named_towers(size)
    config = replace(config, text=replace(config.text, vocab_size=rows, eos_id=Tokenizer(pieces).eos_id))
    torch.manual_seed(0)
    weights = to_theirs((towers := TwoTower(config)).state_dict(), places_of(towers))
    assert sum(tensor.numel() for tensor in weights.values()) == pytest.approx(millions * 1e6, abs=1e5)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "mini.pt")
    del towers
    source = ["--source", str(tmp_path / "mini.pt"), "--size", size, "--tokenizer", str(pieces)]
    for to, folder in (("transformers", "a"), ("open_clip", "b")):
        assert main(["import", *source, "--out", str(tmp_path / folder)]) == 0
        assert main(["export", "--model", str(tmp_path / folder), "--to", to, "--out", str(tmp_path / to)]) == 0
        source = ["--source", str(tmp_path / to)]
        (tmp_path / folder / "model.safetensors").unlink()  # gigabytes
        (tmp_path / "mini.pt").unlink(missing_ok=True)
    end = load_file(tmp_path / "open_clip/open_clip_model.safetensors")
    assert end.keys() == weights.keys()
    assert all(torch.equal(end[name], tensor) for name, tensor in weights.items())
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
