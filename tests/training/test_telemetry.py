"""What stands in TensorBoard's event file: of all ranks, by hand; tokens without padding; the use of a GPU by hand."""

from __future__ import annotations

import time
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from mc2.curation.balance import Balance, LanguageBalance
from mc2.data.batch import PairBatch
from mc2.data.datamodule import ShardDataModule
from mc2.data.language_shares import LanguageShares
from mc2.data.loader import Tally
from mc2.data.preprocess import ImagePreprocess
from mc2.data.samples import SampleMaker
from mc2.data.stages import STAGES
from mc2.training.blocks import ParallelConfig
from mc2.training.flops import PairFlops, meta_towers
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from mc2.training.telemetry import Telemetry, num_tokens
from tests.data.shards import packed, small_tokenizer, write_folder, write_tar
from tests.data.test_datamodule import manifest
from tests.processes import run_processes
from tests.training.test_commands import scalars
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
    shards = manifest(write_folder(tmp_path / "shards", [40, 40]), pairs={"en": 40, "de": 40, "fr": 40})
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


# --- two ranks, the second one slow -------------------------------------------------------------------------------------

STEPS, EVERY, BATCH, SLEEP, LENGTH = 6, 3, 4, 0.02, 6


class Diary(Callback):
    """What this rank saw, step by step; drops and rejections are sums since the start."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        assert isinstance(pl_module, ContrastiveModule)
        assert pl_module.loss.pair_losses is not None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tally = data.tally
        line = {"languages": batch.languages, "losses": pl_module.loss.pair_losses.tolist(), "ids": (batch.tokens != 1).sum(1).tolist()}
        self.lines.append({**line, "drops": Counter(tally.drops), "rejected": Counter(tally.rejected)})


def fit(folder: Path, rank: int) -> list[dict[str, Any]]:
    train = SampleMaker.train

    def slow(self: SampleMaker, *arguments: Any) -> Any:
        time.sleep(SLEEP)  # before the record is drawn: a disk that is slow to read
        return train(self, *arguments)

    if rank == 1:
        SampleMaker.train = slow  # type: ignore[assignment,method-assign]
    preprocess = ImagePreprocess(image_size=PIXELS)
    settings: dict[str, Any] = {"context_length": LENGTH, "batch_size": BATCH, "preprocess": preprocess}
    data = ShardDataModule(str(folder / "shards"), str(folder / "tokenizer"), str(folder / "balance"), **settings)
    text = replace(TOWERS.text, vocab_size=data.vocab_size, context_length=LENGTH, eos_id=data.eos_id)
    diary = Diary()
    trainer = tiny_trainer(
        str(folder / "run"),
        strategy="ddp",
        devices=2,
        max_steps=STEPS,
        log_every_n_steps=EVERY,
        limit_val_batches=0,
        logger=TensorBoardLogger(str(folder / "run"), name="", version=""),
        callbacks=[diary, Telemetry()],
    )
    module = ContrastiveModule(replace(TOWERS, text=text), optimizer=OptimizerConfig(warmup_steps=1))
    trainer.fit(module, data)
    return diary.lines


def test_numbers_are_those_of_all_ranks(tmp_path: Path) -> None:
    """Loss, share and rejections of each language, drops, truncation; the slow rank and its slow stage."""
    shards = write_folder(tmp_path / "shards", [20] * 4)
    for shard in range(4):  # images that cannot be decoded
        write_tar(shards / f"9{shard}.tar", [(f"9{shard}.jpg", b"broken"), (f"9{shard}.json", packed(("ein Fuchs", "de", (0,))))])
    small_tokenizer(tmp_path / "tokenizer")
    probabilities = {"en": [0.5, 0.5], "de": [1.0, 1.0, 0.2], "fr": [1.0]}  # French captions have no entry: all are rejected
    balances = {
        code: LanguageBalance(np.ones(len(each), dtype=np.int64), 1, np.array(each, dtype=np.float64))
        for code, each in probabilities.items()
    }
    Balance(0.06, 1, "paper", balances).save(tmp_path / "balance", lambda code: [str(i) for i in range(len(probabilities[code]))])
    ranks = run_processes(fit, [(tmp_path, 0), (tmp_path, 1)], join=False)
    found = scalars(tmp_path / "run")
    nothing: dict[str, Any] = {"drops": Counter(), "rejected": Counter()}
    for last in range(EVERY - 1, STEPS, EVERY):
        lines = [line for rank in ranks for line in rank[last - EVERY + 1 : last + 1]]
        captions = Counter(language for line in lines for language in line["languages"])
        before = [rank[last - EVERY] if last >= EVERY else nothing for rank in ranks]
        drops, rejected = Counter[str](), Counter[str]()
        for rank, old in zip(ranks, before, strict=True):
            drops += rank[last]["drops"] - old["drops"]
            rejected += rank[last]["rejected"] - old["rejected"]
        assert rejected["fr"] > 0
        for code in captions:
            assert found[f"languages/{code}"][last] == pytest.approx(captions[code] / (2 * EVERY * BATCH))
            assert found[f"rejected/{code}"][last] == pytest.approx(rejected[code] / (captions[code] + rejected[code]))
            losses = [
                loss
                for rank in ranks
                for loss, language in zip(rank[last]["losses"], rank[last]["languages"], strict=True)
                if language == code
            ]
            if losses:
                assert found[f"loss/{code}"][last] == pytest.approx(np.mean(losses), rel=1e-5)
        assert found["rejected/fr"][last] == 1
        assert found["data/accepted"][last] == pytest.approx(captions.total() / (captions.total() + rejected.total()))
        for reason, number in drops.items():
            assert found[f"data/drops/{reason}"][last] == pytest.approx(number / captions.total())
        ids = [number for line in lines for number in line["ids"]]
        assert found["data/full_context"][last] == pytest.approx(np.mean([number == LENGTH for number in ids]))
        assert found["speed/tokens_per_second"][last] == pytest.approx(np.mean(ids) * found["speed/samples_per_second"][last])
        assert found["speed/slowest_rank"][last] == 1
        assert found["speed/slowest_wait_seconds"][last] >= BATCH * SLEEP
        assert found["speed/wait_seconds"][last] <= found["speed/slowest_wait_seconds"][last]
        parts = {stage: found[f"wait/{stage}"][last] for stage in STAGES}
        assert sum(parts.values()) == pytest.approx(found["speed/wait_seconds"][last], rel=1e-5)
        assert max(parts, key=lambda stage: parts[stage]) == "read"
    assert "data/drops/broken_image" in found
    assert {"data/drops/balanced_away", "train/loss", "time/goodput"} <= found.keys()
