"""Tokens without padding, and the use of a GPU by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from mc2.training.blocks import ParallelConfig
from mc2.training.flops import PairFlops, meta_towers
from mc2.training.telemetry import Telemetry, num_tokens
from tests.training.tiny import CONTEXT, TOWERS, TinyData, tiny_module, tiny_trainer

PEAK = 1e9


class OnAKnownGpu(Telemetry):
    """As on a GPU with a peak of 1 GFLOP/s."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._peak_flops = PEAK


@pytest.mark.parametrize(
    ("rows", "eos", "need"),
    [
        ([[0, 5, 2, 1, 1], [0, 5, 6, 7, 2]], 2, 3 + 5),  # XLM-V: bos ... eos pad
        ([[5, 1, 1, 1], [5, 6, 7, 1]], 1, 2 + 4),  # mT5: eos is what pads
    ],
)
def test_padding_does_not_count(rows: list[list[int]], eos: int, need: int) -> None:
    assert int(num_tokens(torch.tensor(rows), eos).sum()) == need


def test_mfu_is_operations_of_the_samples_a_second(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = []

    class Logger(CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
            logged.append(metrics)

    logger = Logger(str(tmp_path))
    trainer = tiny_trainer(str(tmp_path), max_steps=4, logger=logger, log_every_n_steps=2, val_check_interval=4, callbacks=[OnAKnownGpu()])
    parallel = ParallelConfig(checkpoint_every=1)
    trainer.fit(tiny_module(parallel=parallel), TinyData())
    flops = PairFlops.of(meta_towers(TOWERS))
    of_pair = flops.step(CONTEXT, all_pairs=8)
    found = [metrics for metrics in logged if "speed/mfu" in metrics]
    assert len(found) == 2
    for metrics in found:
        assert metrics["speed/mfu"] == pytest.approx(metrics["speed/samples_per_second"] * of_pair / PEAK)
        assert metrics["speed/hfu"] / metrics["speed/mfu"] == pytest.approx(1 + flops.recomputed(CONTEXT, parallel, 1) / of_pair)
