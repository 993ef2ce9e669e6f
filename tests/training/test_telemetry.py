"""Tokens without padding, the use of a GPU by hand, what balancing rejects of each language."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from mc2.data.datamodule import ShardDataModule
from mc2.data.language_shares import LanguageShares
from mc2.data.loader import Tally
from mc2.data.preprocess import ImagePreprocess
from mc2.training.blocks import ParallelConfig
from mc2.training.flops import PairFlops, meta_towers
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from mc2.training.telemetry import Telemetry, num_tokens
from tests.data.shards import small_tokenizer, write_folder
from tests.data.test_datamodule import manifest
from tests.training.tiny import CONTEXT, PIXELS, TOWERS, TinyData, tiny_module, tiny_trainer

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


def test_rejected_captions_are_logged_by_language(tmp_path: Path) -> None:
    """English is bounded: about 4 of 5 of its captions go, and none of the others. The tally of the first two steps, then that of the next two."""
    shards = manifest(write_folder(tmp_path / "shards", [40, 40]), captions={"en": 80, "de": 80, "fr": 80})
    data = ShardDataModule(
        str(shards),
        str(small_tokenizer(tmp_path / "tokenizer")),
        batch_size=16,
        context_length=CONTEXT,
        preprocess=ImagePreprocess(image_size=PIXELS),
        language_shares=LanguageShares(most={"en": 0.1}),
        val_pairs=4,
    )
    logged: list[dict[str, float]] = []
    tallies: list[Tally] = []

    class Logger(CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
            logged.append({tag: value for tag, value in metrics.items() if tag.startswith("rejected/")})

    class Tallies(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ARG002
            tallies.append(deepcopy(data.tally))

    text = replace(TOWERS.text, vocab_size=data.vocab_size, eos_id=data.eos_id)
    trainer = tiny_trainer(
        str(tmp_path),
        max_steps=4,
        logger=Logger(str(tmp_path)),
        log_every_n_steps=2,
        limit_val_batches=0,
        callbacks=[Tallies(), Telemetry()],
    )
    trainer.fit(ContrastiveModule(replace(TOWERS, text=text), optimizer=OptimizerConfig(warmup_steps=1)), data)
    found = [metrics for metrics in logged if metrics]
    first, second = tallies[1], tallies[3]
    of_first = first.rejected["en"] / (first.rejected["en"] + first.accepted["en"])
    new_rejected, new_accepted = second.rejected["en"] - first.rejected["en"], second.accepted["en"] - first.accepted["en"]
    assert found == [
        {"rejected/en": pytest.approx(of_first), "rejected/de": 0, "rejected/fr": 0},
        {"rejected/en": pytest.approx(new_rejected / (new_rejected + new_accepted)), "rejected/de": 0, "rejected/fr": 0},
    ]
    assert of_first > 0.5
