"""The benchmark of telemetry, small: it times what it says. Never how much."""

from __future__ import annotations

import time
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer

from mc2.bench import telemetry_cost
from mc2.bench.telemetry_cost import Setting, choose_device, measure
from mc2.training.telemetry import Telemetry
from tests.training.tiny import TOWERS

SLEEP = 0.02


class Slow(Telemetry):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        time.sleep(SLEEP)
        super().on_train_batch_end(trainer, pl_module, *rest)


def test_a_slow_callback_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_cost, "Telemetry", Slow)
    figures = measure(Setting(TOWERS, batch=4, steps=4, log_every_n_steps=2, device="cpu", precision="32-true"))
    assert SLEEP < figures["seconds_of"]["Slow"] < figures["seconds_per_step"]
    assert figures["share_of"]["Slow"] == pytest.approx(figures["seconds_of"]["Slow"] / figures["seconds_per_step"])
    assert set(figures["seconds_of"]) == {"Guard", "Slow"}


def test_no_gpu_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device(None) == "cpu"
    with pytest.raises(ValueError, match="bench telemetry: found no GPU"):
        choose_device("cuda")
