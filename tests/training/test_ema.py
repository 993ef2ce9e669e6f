"""The moving average of the weights, against the formula, sharded, saved and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mc2.interchange.commands import read_towers
from mc2.training.checkpoints import Checkpoints, check_checkpoint, checkpoint_folder
from mc2.training.ema import EmaConfig, decay_at
from mc2.training.parallel import FSDP2Strategy
from tests.processes import run_processes
from tests.training.test_checkpoints import StopAfter
from tests.training.test_parallel import whole
from tests.training.tiny import TOWERS, TinyData, tiny_module, tiny_trainer

DECAY = 0.6


class Follows(Callback):
    """The average by the formula, in float64, of the whole weights after each step."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    def _weights(self, module: Any) -> dict[str, torch.Tensor]:
        return {name: whole(parameter).detach().double().clone() for name, parameter in module.towers.named_parameters()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self.average = self._weights(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        decay = min(DECAY, (1 + trainer.global_step) / (10 + trainer.global_step))
        for name, weight in self._weights(pl_module).items() if self.average else ():
            self.average[name] = decay * self.average[name] + (1 - decay) * weight


def train(run: str, strategy: str, devices: int, stop_after: int = 5, resume: str | None = None) -> dict[str, Any]:
    """Trains and returns the average of the module, the one of the formula, and features in evaluation."""
    chosen: Any = FSDP2Strategy(save_distributed_checkpoint=True, timeout_minutes=0.5) if strategy == "fsdp2" else strategy
    follows, module = Follows(), tiny_module(ema=EmaConfig(DECAY))
    trainer = tiny_trainer(
        run,
        strategy=chosen,
        devices=devices,
        max_steps=5,
        callbacks=[follows, StopAfter(stop_after), Checkpoints()],
        enable_checkpointing=True,
    )
    trainer.fit(module, TinyData(), ckpt_path=resume)
    found = {name: whole(parameter).detach().double() for name, parameter in module.ema_towers.named_parameters()}
    module.eval()
    with torch.no_grad():
        features = module.encode_text(torch.tensor([[0, 5, 2], [0, 6, 2]]))
    return {
        "average": {name: value.tolist() for name, value in found.items()},
        "formula": {name: value.tolist() for name, value in follows.average.items()},
        "features": features.tolist(),
    }


def assert_close(found: dict[str, Any], need: dict[str, Any], rounding: float = 1e-5) -> None:
    """`rounding`: of other runs 1e-4, as AdamW divides by the gradient's size: rounding shows where gradients are nearly 0. A step moves weights by 1e-3."""
    assert found.keys() == need.keys()
    for name, value in need.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(value), rtol=10 * rounding, atol=rounding)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("alone")
    return run, train(str(run), "auto", 1)


def test_it_is_the_formula(alone: tuple[Path, dict[str, Any]]) -> None:
    found = alone[1]
    assert_close(found["average"], found["formula"])
    assert decay_at(1, DECAY) == pytest.approx(2 / 11)  # the beginning
    assert decay_at(1000, DECAY) == DECAY


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_keep_the_same_average(strategy: str, alone: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for found in run_processes(train, [(str(tmp_path), strategy, 2)] * 2, join=False):
        assert_close(found["average"], found["formula"])
        assert_close(found["average"], alone[1]["average"], rounding=1e-4)
        assert_close({"": found["features"]}, {"": alone[1]["features"]}, rounding=1e-4)


def test_it_goes_on_after_a_resume_on_another_number_of_ranks(tmp_path: Path) -> None:
    straight = run_processes(train, [(str(tmp_path / "a"), "fsdp2", 1)], join=False)[0]
    run_processes(train, [(str(tmp_path / "b"), "fsdp2", 2, 3)] * 2, join=False)
    last = str(checkpoint_folder(tmp_path / "b") / "step=3.ckpt")
    found = run_processes(train, [(str(tmp_path / "c"), "fsdp2", 1, 5, last)], join=False)[0]
    assert_close(found["average"], straight["average"], rounding=1e-4)


def test_it_is_exported_and_told_from_the_weights(alone: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, found = alone
    file = checkpoint_folder(run) / "step=5.ckpt"
    average = {name: parameter.double().tolist() for name, parameter in read_towers(file, ema=True).named_parameters()}
    assert_close(average, found["average"])
    latest = read_towers(file)
    assert not torch.allclose(
        latest.text.projection.weight.double(), torch.tensor(average["text.projection.weight"], dtype=torch.float64), atol=1e-4
    )
    with torch.no_grad():
        features = read_towers(file, ema=True).eval().encode_text(torch.tensor([[0, 5, 2], [0, 6, 2]]))
    assert_close({"": found["features"]}, {"": features.tolist()})
    trainer = tiny_trainer(str(tmp_path), strategy="auto", devices=1, max_steps=2, callbacks=[Checkpoints()], enable_checkpointing=True)
    trainer.fit(tiny_module(), TinyData())
    plain = checkpoint_folder(tmp_path) / "step=2.ckpt"
    with pytest.raises(ValueError, match="has no moving average; leave --ema out"):
        read_towers(plain, ema=True)
    with pytest.raises(ValueError, match="ema: found no moving average, need one"):
        check_checkpoint(plain, TOWERS.to_json(), reads_folders=True, ema=True)
    with pytest.raises(ValueError, match="ema: found a moving average, need none"):
        check_checkpoint(file, TOWERS.to_json(), reads_folders=True)


def test_the_weights_are_evaluated_if_wished(tmp_path: Path) -> None:
    module = tiny_module(ema=EmaConfig(DECAY, evaluate=False))
    trainer = tiny_trainer(str(tmp_path), strategy="auto", devices=1, max_steps=2)
    trainer.fit(module, TinyData())
    module.eval()
    assert module.active_towers is module.towers


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.ema\.decay: found 1\.0, need a number between 0 and 1"):
        EmaConfig(1.0)
