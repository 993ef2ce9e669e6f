"""Gradients as they reach the optimizer, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mc2.training.parallel import FSDP2Strategy
from tests.training.tiny import TinyData, tiny_trainer

Gradients = dict[str, list[float]]


class FirstGradients(Callback):
    """Of the first step, whole."""

    def __init__(self) -> None:
        self.values: Gradients = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:  # noqa: ARG002
        for name, parameter in pl_module.named_parameters():
            gradient: Any = parameter.grad
            whole: Tensor = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            self.values.setdefault(name, whole.flatten().tolist())


def gradients_of_fit(
    run: str,
    module: LightningModule,
    strategy: str,
    devices: int,
    precision: str = "32-true",
    data: TinyData | None = None,
    callbacks: Sequence[Callback] = (),
) -> Gradients:
    """Gradients of the first of two steps of a Trainer, which also validates."""
    gradients = FirstGradients()
    chosen = FSDP2Strategy(timeout_minutes=0.5) if strategy == "fsdp2" else strategy
    settings: dict[str, Any] = {"max_steps": 2, "val_check_interval": 2, "check_val_every_n_epoch": None, "precision": precision}
    tiny_trainer(run, strategy=chosen, devices=devices, callbacks=[gradients, *callbacks], **settings).fit(
        module, data or TinyData(batch_size=16)
    )
    return gradients.values


def assert_equal(found: Gradients, need: Gradients, tolerance: float) -> None:
    """All gradients, the logit scale's too, each in units of its own largest value."""
    assert found.keys() == need.keys()
    assert "towers.logit_scale.log" in found
    for name, values in need.items():
        largest = max(abs(value) for value in values)
        assert largest > 0
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), rtol=0, atol=tolerance * largest, msg=name)
