"""The model folder: two towers, tokenizer and preprocessing, complete and readable without the run that made them.

model.safetensors    weights under the names of `TwoTower.state_dict()`
config.json          {"format": "mc2", "mc2": version, "towers": TwoTowerConfig, "preprocess": ImagePreprocess}
tokenizer.model      SentencePiece
tokenizer.json       form, size and SHA-256 of it
parity.json          of an imported model: how far it is from where it came from

Shapes: N images or texts, D embedding.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mc2 import __version__, storage
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.weights import CONFIG, FORMAT, WEIGHTS, read_weights
from mc2.training.initial_weights import read_folder_config

PARITY = "parity.json"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"  # in folders of open_clip and transformers
FILES = (WEIGHTS, CONFIG, "tokenizer.model", "tokenizer.json")


@final
class Clip:
    """A trained model with everything around it: PIL images and texts in, unit vectors out. Evaluation mode, no gradients."""

    def __init__(self, towers: TwoTower, tokenizer: Tokenizer, preprocess: ImagePreprocess) -> None:
        check_parts("clip", towers.config, tokenizer, preprocess)
        self.towers, self.tokenizer, self.preprocess = towers.eval().requires_grad_(False), tokenizer, preprocess

    @property
    def device(self) -> torch.device:
        return self.towers.logit_scale.log.device

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before a softmax turns them into probabilities."""
        return float(self.towers.logit_scale())

    @property
    def logit_bias(self) -> float | None:
        """What is added to them before a sigmoid; None for a model that was trained without (by softmax)."""
        return None if self.towers.logit_bias is None else float(self.towers.logit_bias())

    @torch.no_grad()
    def encode_image(self, images: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
        """Images of any size and mode -> float32 (N, D), unit length, on the model's device."""
        parts = [self.towers.text.projection.weight.new_empty(0, self.towers.config.embed_dim)]
        for start in range(0, len(images), batch_size):
            pixels = torch.stack([self.preprocess.evaluate(image) for image in images[start : start + batch_size]])
            parts.append(self.towers.encode_image(pixels.to(self.device)))
        return torch.cat(parts)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts in any language -> float32 (N, D), unit length, on the model's device; what exceeds the context is cut off."""
        parts = [self.towers.text.projection.weight.new_empty(0, self.towers.config.embed_dim)]
        for start in range(0, len(texts), batch_size):
            parts.append(self.towers.encode_text(self.tokenizer(texts[start : start + batch_size]).to(self.device)))
        return torch.cat(parts)


def check_parts(where: str, config: TwoTowerConfig, tokenizer: Tokenizer, preprocess: ImagePreprocess) -> None:
    """Errors: ValueError for towers, tokenizer and preprocessing that were not made for each other."""
    pairs = {
        "context_length": (tokenizer.context_length, config.text.context_length),
        "image_size": (preprocess.image_size, config.vision.image_size),
        "mean": (tuple(preprocess.mean), tuple(config.mean)),
        "std": (tuple(preprocess.std), tuple(config.std)),
    }
    for name, (found, need) in pairs.items():
        if found != need:
            raise ValueError(
                f"{where}: found {name} {found} in tokenizer or preprocessing, need {need} of the towers; take those of the same run"
            )
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ValueError(
            f"{where}: tokenizer has {tokenizer.vocab_size} ids, the text tower {config.text.vocab_size} rows; take those of the same run"
        )


def save(
    folder: str | Path, towers: TwoTower, tokenizer: Tokenizer, preprocess: ImagePreprocess, parity: Mapping[str, object] | None = None
) -> None:
    """Write a model folder; it appears under its name when it is whole, and then takes the place of an older model folder.

    Errors: ValueError for parts that do not fit each other, a folder that holds something else, or a full disk.
    """
    folder = Path(folder)
    check_parts(str(folder), towers.config, tokenizer, preprocess)
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {*FILES, PARITY}):
        raise ValueError(f"{folder}: holds something that is no model; choose a new folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        tokenizer.save(temporary)
        config = {"format": FORMAT, "mc2": __version__, "towers": towers.config.to_json(), "preprocess": asdict(preprocess)}
        storage.write_json(temporary / CONFIG, config)
        write_weights(temporary / WEIGHTS, towers.state_dict())
        if parity is not None:
            storage.write_json(temporary / PARITY, parity)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a safetensors file and sync it to the disk."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be written ({error}); free some space and run the same line again") from error


def replace_folder(new: Path, folder: Path) -> None:
    """Rename a finished folder to its name; an older one under that name is moved aside before and deleted after."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: str | Path, device: str | torch.device = "cpu") -> Clip:
    """Read a model folder. Errors: ValueError in one line for a file that is missing, cut short, no safetensors, or of another shape."""
    folder = Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name}: not found; a model folder has {', '.join(FILES)} (`mc2 export` or `mc2 quickstart` writes one)"
            )
    config, preprocess = read_config(folder / CONFIG)
    towers = TwoTower(config)
    weights = read_weights(folder / WEIGHTS, {name: tensor.shape for name, tensor in towers.state_dict().items()})
    towers.load_state_dict(weights)
    tokenizer = Tokenizer(folder, context_length=config.text.context_length)
    check_parts(str(folder), config, tokenizer, preprocess)
    return Clip(towers.to(device), tokenizer, preprocess)


def read_config(path: Path) -> tuple[TwoTowerConfig, ImagePreprocess]:
    """The settings in config.json. Errors: ValueError for another format or for settings that this version does not know."""
    value = read_folder_config(path)
    try:
        plain: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in value["preprocess"].items()}
        return TwoTowerConfig.from_json(value["towers"]), ImagePreprocess(**plain)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: written by mc2 {value.get('mc2')}, this is {__version__} ({error}); export the model again") from error
