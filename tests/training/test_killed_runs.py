"""kill -9 at random moments, and on with `--ckpt_path last`: the same pairs, and the same losses to the bit, as a run that nobody killed.

Real processes, the real data module with workers, validation in the middle, a batch in two micro-batches; one process, DDP and FSDP2. Three runs are killed once each;
`MC2_KILLS=20 pytest tests/training/test_killed_runs.py` kills each twenty times.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from mc2.data.batch import PairBatch
from mc2.data.datamodule import ShardDataModule
from mc2.data.preprocess import ImagePreprocess
from mc2.training.checkpoints import Checkpoints, find_checkpoint
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from mc2.training.parallel import FSDP2Strategy
from tests.data.shards import small_tokenizer, write_folder
from tests.processes import TIMEOUT_SECONDS, free_port, run_processes, start
from tests.training.tiny import PIXELS, TOWERS, tiny_trainer

KILLS = int(os.environ.get("MC2_KILLS", "1"))
STEPS = 6 + 4 * KILLS
GLOBAL_BATCH = 8


class Diary(Callback):
    """A line for each step of this rank: its number, the keys, the loss to the bit. Every line is on the disk before the next step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        loss = float(trainer.callback_metrics["train/loss"]).hex()
        with (self.folder / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, batch.keys, loss]) + "\n")


class Killed(Callback):
    """Kills one rank in a step, at one of three moments."""

    def __init__(self, step: int, rank: int, moment: str) -> None:
        self.step, self.rank, self.moment = step, rank, moment

    def _now(self, trainer: Trainer, moment: str) -> None:
        if (trainer.global_step + 1, trainer.global_rank, moment) == (self.step, self.rank, self.moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._now(trainer, "loaded")

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self._now(trainer, "computed")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # the step counts, its checkpoint is not there yet
        if (trainer.global_step, trainer.global_rank, self.moment) == (self.step, self.rank, "stepped"):
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder: Path, strategy: str, ranks: int, num_workers: int, kill: tuple[int, int, str] | None) -> None:
    multiprocessing.process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # the tests' processes may have no children
    data = ShardDataModule(
        str(folder.parent / "shards"),
        str(folder.parent / "tokenizer"),
        batch_size=GLOBAL_BATCH // ranks,
        steps_per_epoch=5,
        num_workers=num_workers,
        context_length=16,
        preprocess=ImagePreprocess(image_size=PIXELS),
        shuffle_shards=2,
        shuffle_block=3,
        lanes=2,
        streams_per_lane=2,
        val_pairs=4,
    )
    text = replace(TOWERS.text, vocab_size=data.vocab_size, context_length=16, eos_id=data.eos_id)
    run = folder / "run"
    trainer = tiny_trainer(
        str(run),
        callbacks=[Diary(folder), *([Killed(*kill)] if kill else []), Checkpoints(2, keep=2)],
        enable_checkpointing=True,
        max_steps=STEPS,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        devices=ranks,
        strategy=FSDP2Strategy(save_distributed_checkpoint=True, timeout_minutes=0.5) if strategy == "fsdp2" else strategy,
        log_every_n_steps=1,
    )
    torch.manual_seed(0)
    module = ContrastiveModule(replace(TOWERS, text=text), optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1), micro_batches=2)
    trainer.fit(module, data, ckpt_path=find_checkpoint("last", run), weights_only=True)


def diary(folder: Path, ranks: int) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Keys of the global batches and losses by step; a step that was made again after a kill must have been the same."""
    keys: dict[int, list[str]] = {}
    losses: dict[int, str] = {}
    parts = [[json.loads(line) for line in (folder / f"{rank}.jsonl").read_text().splitlines()] for rank in range(ranks)]
    for rank, lines in enumerate(parts):
        mine: dict[int, list[str]] = {}
        for step, batch, loss in lines:
            assert mine.setdefault(step, batch) == batch, f"rank {rank}, step {step}"
            assert losses.setdefault(step, loss) == loss, f"rank {rank}, step {step}"
        for step, batch in mine.items():
            keys[step] = keys.get(step, []) + batch
    return keys, losses


def run(folder: Path, strategy: str, ranks: int, num_workers: int = 0, kill: tuple[int, int, str] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    arguments = (folder, strategy, ranks, num_workers, kill)
    if kill is None:
        run_processes(fit, [arguments] * ranks, join=False)
        return
    port = free_port()
    processes = [start(rank, ranks, port, False, fit, arguments)[0] for rank in range(ranks)]
    try:
        wait([process.sentinel for process in processes], timeout=TIMEOUT_SECONDS)
        processes[kill[1]].join(timeout=5)
        assert processes[kill[1]].exitcode == -signal.SIGKILL
    finally:
        for process in processes:  # the others wait for the dead one
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_folder(folder / "shards", [9, 12, 4, 10, 7, 13])
    small_tokenizer(folder / "tokenizer")
    return folder


def kills(seed: str, ranks: int) -> list[tuple[int, int, str]]:
    """Ascending steps, a rank and a moment each."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(3, STEPS), KILLS))
    return [(step, draw.randrange(ranks), draw.choice(["loaded", "computed", "stepped"])) for step in steps]


@pytest.mark.parametrize(("strategy", "ranks"), [("auto", 1), ("ddp", 2), ("fsdp2", 2)])
def test_killed_runs_go_on_exactly(strategy: str, ranks: int, place: Path) -> None:
    """With another number of workers after each kill, too."""
    run(place / f"{strategy}-whole", strategy, ranks)
    for number, kill in enumerate(kills(strategy, ranks)):
        run(place / f"{strategy}-killed", strategy, ranks, num_workers=2 - number % 3, kill=kill)
    run(place / f"{strategy}-killed", strategy, ranks, num_workers=1)
    whole, found = diary(place / f"{strategy}-whole", ranks), diary(place / f"{strategy}-killed", ranks)
    assert found == whole
    assert list(whole[0]) == list(range(1, STEPS + 1))


def test_a_killed_run_goes_on_with_another_number_of_ranks(place: Path) -> None:
    """The same global batches; the losses differ in the last bits, because sums over ranks have another order: an fp32 number has 1.2e-7 of itself."""
    run(place / "elastic", "ddp", 2, kill=(5, 1, "computed"))
    two = diary(place / "elastic", 2)
    (place / "elastic" / "1.jsonl").unlink()
    (place / "elastic" / "0.jsonl").unlink()
    run(place / "elastic", "auto", 1)
    keys, losses = diary(place / "elastic", 1)
    whole_keys, whole_losses = diary(place / "ddp-whole", 2)
    assert list(keys) == list(range(5, STEPS + 1))
    assert {**two[0], **keys} == whole_keys
    for step, loss in losses.items():
        assert float.fromhex(loss) == pytest.approx(float.fromhex(whole_losses[step]), rel=2e-6)
