"""Both towers as ONNX graphs for runtimes without torch.

vision.onnx   pixels: normalised fp32 (N, 3, H, W) -> image: (N, D) of unit length
text.onnx     tokens: int64 (T, L), L the context length, padded -> text: (T, D) of unit length
model.json    context length, image size, mean, std, logit scale, logit bias (null without one)
tokenizer files, see `tokenizer_files`
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc2 import storage
from mc2.interchange.model_directory import Clip
from mc2.interchange.parity import OtherSide
from mc2.interchange.tokenizer_files import write_tokenizer_files

VISION, TEXT, CARD = "vision.onnx", "text.onnx", "model.json"


class Normalised(nn.Module):
    """A tower with features of unit length."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, batch: Tensor) -> Tensor:
        return normalize(self.tower(batch), dim=-1)


def write(folder: Path, clip: Clip) -> None:
    """Write both graphs, into a folder that is there. Weights beyond 2 GB lie in a file beside the graph."""
    towers, preprocess = clip.towers, clip.preprocess
    pixels_N3HW = torch.zeros(2, 3, preprocess.image_size, preprocess.image_size)
    tokens_TL = torch.full((2, towers.config.text.context_length), towers.config.text.eos_id, dtype=torch.int64)
    write_graph(folder / VISION, towers.vision, pixels_N3HW, "pixels", "image")
    write_graph(folder / TEXT, towers.text, tokens_TL, "tokens", "text")
    card = {
        "context_length": towers.config.text.context_length, "pad_id": clip.tokenizer.pad_id, "image_size": preprocess.image_size, "mode": preprocess.mode,
        "mean": list(preprocess.mean), "std": list(preprocess.std), "logit_scale": clip.logit_scale, "logit_bias": clip.logit_bias,
    }  # fmt: skip
    storage.write_json(folder / CARD, card)
    write_tokenizer_files(folder, clip.tokenizer)


def write_graph(path: Path, tower: nn.Module, example: Tensor, source: str, result: str) -> None:
    """One tower with a free batch size."""
    import onnxscript  # noqa: F401  (torch needs it; its absence is named by our own error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about its own parts
        torch.onnx.export(
            Normalised(tower).eval(), (example,), path, input_names=[source], output_names=[result], dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip


def open_side(folder: Path) -> OtherSide:
    """What onnxruntime makes of the graphs."""
    import onnxruntime

    def run(name: str) -> Any:
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0].name
        return lambda batch: torch.from_numpy(session.run(None, {source: batch.numpy()})[0])

    card = storage.read_json(folder / CARD)
    return OtherSide(run(VISION), encode_tokens=run(TEXT), logit_scale=float(card["logit_scale"]), logit_bias=card["logit_bias"])
