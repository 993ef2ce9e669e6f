"""The benchmark under FSDP2, where every forward is a collective: two ranks with uneven work get the results of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from mc2.benchmarks.callbacks import MultilingualBenchmark
from mc2.benchmarks.results import Result, read_results
from mc2.benchmarks.tasks import TaskFolder
from mc2.data.batch import PairBatch
from mc2.data.preprocess import ImagePreprocess
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import TwoTowerConfig
from mc2.model.vision_tower import VisionConfig
from mc2.training.module import ContrastiveModule
from mc2.training.parallel import FSDP2Strategy
from tests.benchmarks.toys import CharacterTokenizer, write_toy_task
from tests.processes import run_processes

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

TOWERS = TwoTowerConfig(
    embed_dim=24,
    vision=VisionConfig(image_size=32, width=32, layers=2, heads=2),
    text=TextConfig(vocab_size=100, context_length=40, width=32, layers=2, heads=2),
)


class NoPairs(LightningDataModule):
    """One batch without pairs: nothing to validate but the benchmarks."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer, self.preprocess = CharacterTokenizer(), ImagePreprocess(image_size=32)

    def val_dataloader(self) -> DataLoader[PairBatch]:
        batch = PairBatch(torch.empty(0, 3, 32, 32, dtype=torch.uint8), torch.empty(0, 4, dtype=torch.int32), [], [])
        return DataLoader([batch], batch_size=None)  # type: ignore[arg-type]  # a list is a map from positions


def validate(run: Path, task: Path, **settings: Any) -> None:
    torch.manual_seed(0)
    callback = MultilingualBenchmark([TaskFolder(task)], batch_size=4, num_names=2)
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
        "use_distributed_sampler": False,
    }
    trainer = Trainer(accelerator="cpu", default_root_dir=run, callbacks=[callback], **{"devices": 1, **quiet, **settings})
    trainer.validate(ContrastiveModule(TOWERS), datamodule=NoPairs(), verbose=False)


def validate_sharded(run: Path, task: Path) -> None:
    validate(run, task, devices=2, strategy=FSDP2Strategy(timeout_minutes=0.5))


def rows(run: Path) -> list[Result]:
    return read_results(run / "results.csv")


def test_two_sharded_ranks_agree_with_one_process(tmp_path: Path) -> None:
    task = write_toy_task(tmp_path / "toy")
    validate(tmp_path / "one", task)
    run_processes(validate_sharded, [(tmp_path / "two", task)] * 2, join=False)
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    assert len(rows(tmp_path / "one")) == 8 * 7  # three languages and four means
