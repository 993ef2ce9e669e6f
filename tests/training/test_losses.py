"""Losses in whole runs: what YAML's class_path chooses trains alike in one process, DDP and FSDP2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mc2.model.loss import ContrastiveLoss, SigmoidLoss
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from tests.processes import run_processes
from tests.training.gradients import Gradients, assert_equal, gradients_of_fit
from tests.training.tiny import TOWERS

BIASED = replace(TOWERS, init_logit_scale=10.0, init_logit_bias=-10.0)


def sigmoid_gradients(run: str, strategy: str, devices: int, micro_batches: int) -> Gradients:
    torch.manual_seed(0)
    module = ContrastiveModule(BIASED, SigmoidLoss(tile=5), OptimizerConfig(warmup_steps=1), micro_batches=micro_batches)
    gradients = gradients_of_fit(run, module, strategy, devices)
    assert "towers.logit_bias.bias" in gradients
    return gradients


@pytest.mark.parametrize(("strategy", "micro_batches"), [("ddp", 1), ("fsdp2", 1), ("fsdp2", 2)])
def test_sigmoid_loss_on_two_ranks(strategy: str, micro_batches: int, tmp_path: Path) -> None:
    need = sigmoid_gradients(str(tmp_path), "auto", 1, 1)
    for found in run_processes(sigmoid_gradients, [(str(tmp_path), strategy, 2, micro_batches)] * 2, join=False):
        assert_equal(found, need, 1e-4)


def test_loss_and_towers_agree_on_a_bias() -> None:
    with pytest.raises(
        ValueError, match=r"model.loss: found towers without a logit bias for SigmoidLoss, need one; set towers.init_logit_bias"
    ):
        ContrastiveModule(TOWERS, SigmoidLoss())
    for loss in (None, ContrastiveLoss()):
        with pytest.raises(
            ValueError, match=r"model.loss: found towers with a logit bias for ContrastiveLoss, need none .* remove init_logit_bias"
        ):
            ContrastiveModule(BIASED, loss)
