"""A number that is none, on one rank only, changes nothing on any rank; what went wrong is counted, named and, in a row, ends the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from mc2.data.datamodule import ShardDataModule
from mc2.data.preprocess import ImagePreprocess
from mc2.model.ranks import HostCopy, local
from mc2.training.guards import SPIKES, Guard, Made, Origin, check_weights
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from mc2.training.parallel import FSDP2Strategy
from tests.data.shards import small_tokenizer, write_folder
from tests.processes import run_processes
from tests.training.test_parallel import whole
from tests.training.tiny import TOWERS, Losses, TinyData, tiny_module, tiny_trainer


class Rows(Logger):
    """Keeps what is logged, on every rank."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # noqa: ARG002
        self.rows.append(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


class Break(Callback):
    """Puts NaN into one gradient of the last rank; notes the weights and moments before and after each step."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps
        self.states: list[list[float]] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step in self.steps and trainer.global_rank == trainer.world_size - 1:
            gradient = pl_module.towers.vision.projection.weight.grad  # type: ignore[union-attr]
            local(gradient).view(-1)[0] = math.nan  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        state = trainer.optimizers[0].state
        numbers = [local(parameter).detach().double().sum().item() for parameter in pl_module.parameters()]
        numbers += [float(local(value).double().sum()) for moments in state.values() for value in moments.values()]
        self.states.append(numbers)


def guarded(run: str, strategy: str, devices: int, broken: tuple[int, ...], lazy: bool = False, **settings: Any) -> dict[str, Any]:
    chosen = FSDP2Strategy(replicate=2 if strategy == "hsdp" else 1, timeout_minutes=0.5) if strategy in ("fsdp2", "hsdp") else strategy
    guard, broke, losses = Guard(stop_after=2), Break(broken), Losses()
    logger = Rows()
    more = {"max_steps": 6, "limit_val_batches": 0, "log_every_n_steps": 2, "logger": logger, **settings}
    trainer = tiny_trainer(run, strategy=chosen, devices=devices, callbacks=[broke, guard, losses], **more)
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, vocabulary="lazy" if lazy else "dense")
    torch.manual_seed(0)
    module = ContrastiveModule(TOWERS, optimizer=config)
    error = ""
    try:
        trainer.fit(module, TinyData())
    except ValueError as caught:
        error = str(caught)
    logged = [row for row in logger.rows if "norm/gradient" in row]
    return {"states": broke.states, "skipped": guard.skipped, "losses": losses.values, "error": error, "norms": logged}


CASES = [("auto", 1), ("ddp", 2), ("fsdp2", 2), ("hsdp", 2)]


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("strategy", "devices"), CASES)
def test_a_step_without_numbers_is_left_out_on_all_ranks(strategy: str, devices: int, clip: float | None, tmp_path: Path) -> None:
    runs = run_processes(clipped, [(str(tmp_path), strategy, devices, (2,), clip)] * devices, join=False)
    for found in runs:
        assert found["states"][2] == found["states"][1], "weights and moments are as before"
        assert found["states"][3] != found["states"][2]
        assert (found["skipped"], found["error"]) == (1, "")
        assert all(math.isfinite(loss) for loss in found["losses"])
    lines = [json.loads(line) for line in (tmp_path / SPIKES).read_text().splitlines()]
    assert [(line["step"], line["reason"], line["gradient_norm"]) for line in lines] == [(2, "the gradient is no number", None)]
    assert sorted(key for keys in lines[0]["keys"] for key in keys) == sorted(f"2-{row}" for row in range(8))


def clipped(run: str, strategy: str, devices: int, broken: tuple[int, ...], clip: float | None) -> dict[str, Any]:
    return guarded(run, strategy, devices, broken, gradient_clip_val=clip)


@pytest.mark.parametrize(("strategy", "devices"), [("auto", 1), ("fsdp2", 2)])
def test_lazy_rows_are_left_out_too(strategy: str, devices: int, tmp_path: Path) -> None:
    dense = run_processes(guarded, [(str(tmp_path), strategy, devices, (2,))] * devices, join=False)
    for found, need in zip(
        run_processes(guarded, [(str(tmp_path), strategy, devices, (2,), True)] * devices, join=False), dense, strict=True
    ):
        assert found["skipped"] == 1
        assert found["losses"] == pytest.approx(need["losses"], rel=1e-5)
        assert [row["norm/gradient"] for row in found["norms"]] == pytest.approx([row["norm/gradient"] for row in need["norms"]], rel=1e-4)


@pytest.mark.parametrize(("strategy", "devices"), [("auto", 1), ("fsdp2", 2)])
def test_two_in_a_row_end_the_run(strategy: str, devices: int, tmp_path: Path) -> None:
    for found in run_processes(guarded, [(str(tmp_path), strategy, devices, (1, 2))] * devices, join=False):
        assert found["error"].startswith("guard: found 2 steps in a row without a finite loss and gradient, the last one 2; ")
        assert str(tmp_path / SPIKES) in found["error"]


class Norms(Callback):
    """The slow way: whole tensors, one after the other."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:  # noqa: ARG002
        self.before = [whole(parameter).detach().double().clone() for parameter in pl_module.parameters()]
        self.gradient = math.sqrt(sum(float(whole(p.grad).double().square().sum()) for p in pl_module.parameters() if p.grad is not None))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        after = [whole(parameter).detach().double() for parameter in pl_module.parameters()]
        update = sum(float((b - a).square().sum()) for a, b in zip(self.before, after, strict=True))
        self.found.append((self.gradient, math.sqrt(sum(float(a.square().sum()) for a in after)), math.sqrt(update)))


def norms(run: str, strategy: str, devices: int) -> tuple[list[Any], list[Any]]:
    slow = Norms()
    found = guarded(run, strategy, devices, (), max_steps=4)
    chosen = FSDP2Strategy(replicate=2 if strategy == "hsdp" else 1, timeout_minutes=0.5) if strategy in ("fsdp2", "hsdp") else strategy
    # the schedule depends on the number of steps, so both have four
    trainer = tiny_trainer(run, strategy=chosen, devices=devices, callbacks=[slow], max_steps=4, limit_val_batches=0)
    trainer.fit(tiny_module(), TinyData())
    return [[row[f"norm/{name}"] for name in ("gradient", "parameters", "update")] for row in found["norms"]], slow.found


@pytest.mark.parametrize(("strategy", "devices"), CASES)
def test_norms_are_those_of_the_whole_model(strategy: str, devices: int, tmp_path: Path) -> None:
    fast, slow = run_processes(norms, [(str(tmp_path), strategy, devices)] * devices, join=False)[0]
    assert len(fast) == 2
    for row, expected in zip(fast, slow[1::2], strict=True):
        assert row == pytest.approx(list(expected), rel=1e-4)


def test_a_spike_is_reported_and_nothing_else(tmp_path: Path) -> None:
    guard = Guard(spike_deviations=5.0)
    trainer = tiny_trainer(str(tmp_path), max_steps=1)
    generator = torch.Generator().manual_seed(0)
    for step, noise in enumerate(torch.randn(200, generator=generator).tolist()):
        values = torch.tensor([9.0 if step == 150 else 2.0 + 0.1 * noise, 4.0])
        guard._pending = Made(step, HostCopy(values), Origin(["a", "b"], lambda: ["0.tar"]))
        guard._judge(trainer)
    lines = [json.loads(line) for line in (tmp_path / SPIKES).read_text().splitlines()]
    expected = {"step": 150, "loss": 9.0, "gradient_norm": 2.0, "keys": [["a", "b"]], "shards": [["0.tar"]]}
    assert [expected.items() <= line.items() for line in lines] == [True]


def test_the_shards_of_a_batch_are_named(tmp_path: Path) -> None:
    """Two ranks with two workers each: the shard that every pair's key names is among those of its batch, and the others are few."""
    write_folder(tmp_path / "shards", [5, 9, 4, 10, 7, 6, 8, 3])
    small_tokenizer(tmp_path / "tokenizer")
    preprocess = ImagePreprocess(image_size=8)
    settings: dict[str, Any] = {"batch_size": 2, "steps_per_epoch": 12, "lanes": 2, "shuffle_shards": 1, "preprocess": preprocess}
    data = ShardDataModule(str(tmp_path / "shards"), str(tmp_path / "tokenizer"), **settings)
    for rank in (0, 1):
        loader = data.loader(rank, 2)
        for batch in loader:
            shards = loader.origin()()
            assert {str(tmp_path / f"shards/{int(key[0]):05d}.tar") for key in batch.keys} <= set(shards)
            assert len(shards) <= 2


def test_weights_that_are_no_numbers_are_named() -> None:
    module = tiny_module()
    module.trainer = tiny_trainer("unused", max_steps=1)
    module.configure_model()
    check_weights(module)
    with torch.no_grad():
        module.towers.logit_scale.log.fill_(math.inf)
    with pytest.raises(
        ValueError, match=r"weights: found NaN or infinity in 1 of them \(towers.logit_scale.log\), need numbers; take a checkpoint"
    ):
        check_weights(module)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"guard: found stop_after 0 and spike_deviations 6.0, need at least 1"):
        Guard(stop_after=0)
