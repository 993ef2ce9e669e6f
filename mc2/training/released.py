"""A model folder (`mc2 import`, `mc2 export`) as it is, for `mc2 validate | test`: its towers, tokenizer and preprocessing, nothing to train.

model: {class_path: mc2.training.released.ReleasedModel, init_args: {folder: models/h14}}
data:  {class_path: mc2.training.released.ReleasedData, init_args: {folder: models/h14}}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer
from mc2.model.two_tower import TwoTower
from mc2.model.weights import CONFIG
from mc2.training.initial_weights import TOWERS, load_initial_weights, read_folder_config, read_tower_config


class ReleasedModel(LightningModule):
    """The towers of a model folder, in evaluation mode. Errors: ValueError at construction for what is no model folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.tower_config = folder, read_tower_config(folder)

    def configure_model(self) -> None:
        if "towers" not in self._modules:  # runs once per stage
            self.towers = TwoTower(self.tower_config).requires_grad_(False)
            load_initial_weights(self.towers, self.folder, TOWERS)

    def test_step(self, batch: Tensor, batch_index: int) -> None:
        """Nothing: benchmarks are callbacks."""

    validation_step = test_step

    def encode_image(self, image_B3HW: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> fp32 features of unit length, (B, D)."""
        return self.towers.encode_image(image_B3HW)

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids (B, L) -> fp32 features of unit length, (B, D)."""
        return self.towers.encode_text(tokens_BL)

    def text_state(self) -> tuple[str, Mapping[str, Tensor]]:
        """All that decides `encode_text`: settings in words, and weights."""
        return f"{self.tower_config.text} {self.tower_config.embed_dim} {self.trainer.precision}", self.towers.text.state_dict()


class ReleasedData(LightningDataModule):
    """Tokenizer and preprocessing of a model folder; its only batch is empty. Errors: ValueError at construction for what is no model folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        towers = read_tower_config(folder)
        self.tokenizer = Tokenizer(folder, towers.text.context_length)
        plain: dict[str, Any] = read_folder_config(folder / CONFIG)["preprocess"]
        settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        self.preprocess = ImagePreprocess(**settings)
        self.vocab_size, self.context_length, self.eos_id = self.tokenizer.vocab_size, towers.text.context_length, self.tokenizer.eos_id

    def test_dataloader(self) -> DataLoader[Tensor]:
        """One batch of nothing, because Lightning evaluates nothing without a batch."""
        return DataLoader([torch.empty(0)], batch_size=None)  # type: ignore[arg-type]  # a list is a map from positions

    val_dataloader = test_dataloader
