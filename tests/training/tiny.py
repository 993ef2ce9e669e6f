"""A model and data small enough to train in a test, and repeatable to the bit."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer

from mc2.data.batch import PairBatch
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import TwoTowerConfig
from mc2.model.vision_tower import VisionConfig
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig

VOCABULARY, CONTEXT, PIXELS = 40, 8, 16
TOWERS = TwoTowerConfig(
    embed_dim=8,
    vision=VisionConfig(image_size=PIXELS, patch_size=8, width=16, layers=2, heads=2),
    text=TextConfig(vocab_size=VOCABULARY, context_length=CONTEXT, width=16, layers=2, heads=2),
)


def tiny_module(warmup_steps: int = 1, **settings: Any) -> ContrastiveModule:
    torch.manual_seed(0)
    return ContrastiveModule(TOWERS, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=warmup_steps), **settings)


def fit_config(run: Path, max_steps: int) -> dict[str, Any]:
    """The settings of `mc2 fit` for `tiny_module` on `TinyData`."""
    towers = {
        "embed_dim": 8,
        "vision": {"image_size": PIXELS, "patch_size": 8, "width": 16, "layers": 2, "heads": 2},
        "text": {"width": 16, "layers": 2, "heads": 2},
    }
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": max_steps,
            "log_every_n_steps": 1,
            "default_root_dir": str(run),
            "enable_progress_bar": False,
        },
        "model": {
            "class_path": "mc2.training.module.ContrastiveModule",
            "init_args": {"towers": towers, "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1}},
        },
        "data": {"class_path": "tests.training.tiny.TinyData", "init_args": {"num_batches": 4}},
    }


class Pairs:
    """A loader of global batches made from their number; of each a rank gets its part. It remembers its place, as the real one does."""

    def __init__(self, num_batches: int, batch_size: int, rank: int, world_size: int) -> None:
        self.num_batches, self.batch_size, self.rank, self.world_size = num_batches, batch_size, rank, world_size
        self.place = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[PairBatch]:
        for index in range(self.place, self.num_batches):
            self.place = (index + 1) % self.num_batches
            yield self.batch(index)

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]

    def batch(self, index: int) -> PairBatch:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (self.batch_size, 3, PIXELS, PIXELS), generator=generator, dtype=torch.uint8)
        tokens = torch.randint(3, VOCABULARY, (self.batch_size, CONTEXT), generator=generator, dtype=torch.int32)
        tokens[:, 0], tokens[:, -1] = 0, 2
        rows = slice(self.rank, None, self.world_size)
        languages = [("de", "sw", "")[row % 3] for row in range(self.batch_size)]
        keys = [f"{index}-{row}" for row in range(self.batch_size)]
        return PairBatch(image[rows], tokens[rows], languages[rows], keys[rows])


class TinyTokenizer:
    """Every character is a token."""

    vocab_size = VOCABULARY
    pad_id, eos_id = 1, 2

    def __call__(self, texts: list[str]) -> Tensor:
        rows = [[0, *(3 + ord(character) % (VOCABULARY - 3) for character in text[: CONTEXT - 2]), 2] for text in texts]
        return torch.tensor([row + [1] * (CONTEXT - len(row)) for row in rows], dtype=torch.int32)


class TinyPreprocess:
    """The image in the tower's size."""

    image_size = PIXELS

    def evaluate(self, data: bytes) -> Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((PIXELS, PIXELS))
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(PIXELS, PIXELS, 3).permute(2, 0, 1)


class TinyData(LightningDataModule):
    """In memory; its loader remembers its place, as the real one does."""

    def __init__(self, num_batches: int = 6, batch_size: int = 8, validates: bool = True) -> None:
        super().__init__()
        self.num_batches, self.batch_size, self.validates = num_batches, batch_size, validates
        self.vocab_size, self.context_length, self.eos_id = VOCABULARY, CONTEXT, 2
        self.tokenizer, self.preprocess = TinyTokenizer(), TinyPreprocess()

    def _loader(self, num_batches: int) -> Pairs:
        assert self.trainer is not None
        return Pairs(num_batches, self.batch_size, self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> Pairs:
        return self._loader(self.num_batches)

    def val_dataloader(self) -> Pairs | list[Any]:
        return self._loader(2) if self.validates else []

    def test_dataloader(self) -> Pairs:
        return self._loader(2)


class SignalAt(Callback):
    """Sends one rank a signal in the middle of a step."""

    def __init__(self, step: int, number: int, times: int = 1, rank: int = 0) -> None:
        self.step, self.number, self.times, self.rank = step, number, times, rank

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:  # noqa: ARG002
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class Losses(Callback):
    """The mean over ranks of every step's loss, as it is logged."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        self.values.append(float(trainer.callback_metrics["train/loss"]))


class Seen(Callback):
    """Appends "step loss keys" of every step of this rank to <run>/seen-<rank>; `pause` seconds a step leave time for a signal in the middle."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        line = f"{trainer.global_step} {float(outputs['loss']).hex()} {','.join(batch.keys)}\n"
        with open(Path(trainer.default_root_dir) / f"seen-{trainer.global_rank}", "a", encoding="utf-8") as file:
            file.write(line)
        time.sleep(self.pause)


def tiny_trainer(run: str, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    fixed = {"accelerator": "cpu", "max_epochs": -1, "inference_mode": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=run, **{**quiet, **fixed, **settings})
