"""What telemetry costs a training step: the seconds that its callbacks take, in the Trainer, on the thread that makes the steps."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mc2.data.batch import PairBatch
from mc2.model.two_tower import TwoTowerConfig
from mc2.training.guards import Guard
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from mc2.training.telemetry import Telemetry

HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")
LANGUAGES = ("de", "en", "ja", "sw")


@dataclass(frozen=True)
class Setting:
    """What is trained, and how often it is written."""

    towers: TwoTowerConfig
    batch: int
    steps: int
    log_every_n_steps: int
    device: str
    precision: str


def choose_device(device: str | None) -> str:
    """A GPU where one is, if nothing was said. Errors: ValueError for one that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("bench telemetry: found no GPU, need one for --device cuda; leave it out")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


class RandomPairs(LightningDataModule):
    """The same batch again and again."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        generator, text, size = torch.Generator().manual_seed(0), setting.towers.text, setting.towers.vision.image_size
        image = torch.randint(0, 256, (setting.batch, 3, size, size), dtype=torch.uint8, generator=generator)
        tokens = torch.randint(
            text.eos_id + 1, text.vocab_size, (setting.batch, text.context_length), generator=generator, dtype=torch.int32
        )
        tokens[:, -1] = text.eos_id
        languages = [LANGUAGES[row % len(LANGUAGES)] for row in range(setting.batch)]
        self.batch, self.steps = PairBatch(image, tokens, languages, [str(row) for row in range(setting.batch)]), setting.steps

    def train_dataloader(self) -> Batches:
        return Batches(self.batch, self.steps)


@dataclass(frozen=True)
class Batches:
    """A loader."""

    batch: PairBatch
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[PairBatch]:
        return iter([self.batch] * self.steps)


class StepClock(Callback):
    """When each step ended; the first ones, which warm up, are left out."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.times = warm_up, [perf_counter()]
        self.seconds: dict[str, float] = {}

    def timed(self, callback: Callback) -> Callback:
        """The same callback, whose hooks count their seconds."""
        for hook in HOOKS:
            setattr(callback, hook, self._timed(type(callback).__name__, getattr(callback, hook)))
        return callback

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            start = perf_counter()
            try:
                return function(*arguments, **settings)
            finally:
                if len(self.times) > self.warm_up:
                    self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

        return run

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        self.times.append(perf_counter())


def measure(setting: Setting) -> dict[str, Any]:
    """Seconds of a step, and of each callback in it. On a GPU the guard's include waiting for the device, which the step would do without it a little later."""
    warm_up = setting.log_every_n_steps
    clock = StepClock(warm_up)
    with tempfile.TemporaryDirectory(prefix="mc2-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for noisy in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        trainer = Trainer(
            accelerator="gpu" if setting.device == "cuda" else "cpu",
            devices=1,
            precision=setting.precision,  # type: ignore[arg-type]  # one of its names
            max_steps=setting.steps + warm_up,
            max_epochs=-1,
            log_every_n_steps=setting.log_every_n_steps,
            logger=TensorBoardLogger(folder, name="", version=""),
            default_root_dir=Path(folder),
            callbacks=[clock.timed(Guard()), clock.timed(Telemetry()), clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        torch.manual_seed(0)
        trainer.fit(ContrastiveModule(setting.towers, optimizer=OptimizerConfig(warmup_steps=1)), RandomPairs(setting))
    measured = clock.times[warm_up:]
    step = (measured[-1] - measured[0]) / (len(measured) - 1)
    parts = {name: seconds / (len(measured) - 1) for name, seconds in clock.seconds.items()}
    return {"seconds_per_step": step, "seconds_of": parts, "share_of": {name: seconds / step for name, seconds in parts.items()}}
