"""`model.micro_batches`: the gradient of one large batch, the memory of a part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import profile

from mc2.model.loss import ContrastiveLoss
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from tests.processes import run_processes
from tests.training.gradients import Gradients, assert_equal, gradients_of_fit
from tests.training.tiny import TOWERS, Pairs

DROPPING = replace(
    TOWERS, vision=replace(TOWERS.vision, timm_kwargs={"patch_drop_rate": 0.5, "proj_drop_rate": 0.2, "drop_path_rate": 0.2})
)


def fitted_gradients(run: str, strategy: str, devices: int, micro_batches: int, precision: str = "32-true") -> Gradients:
    torch.manual_seed(0)
    module = ContrastiveModule(TOWERS, optimizer=OptimizerConfig(warmup_steps=1), micro_batches=micro_batches)
    return gradients_of_fit(run, module, strategy, devices, precision)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Gradients:
    return fitted_gradients(str(tmp_path_factory.mktemp("at_once")), "auto", 1, micro_batches=1)


@pytest.mark.parametrize("micro_batches", [2, 4, 16])
def test_one_process(micro_batches: int, at_once: Gradients, tmp_path: Path) -> None:
    assert_equal(fitted_gradients(str(tmp_path), "auto", 1, micro_batches), at_once, 1e-4)


@pytest.mark.parametrize(("strategy", "micro_batches"), [("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("fsdp2", 4)])
def test_two_processes(strategy: str, micro_batches: int, at_once: Gradients, tmp_path: Path) -> None:
    for found in run_processes(fitted_gradients, [(str(tmp_path), strategy, 2, micro_batches)] * 2, join=False):
        assert_equal(found, at_once, 1e-4)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2"])
def test_bf16(strategy: str, at_once: Gradients, tmp_path: Path) -> None:
    """As near to fp32 as bf16 without parts is: within a few of its 8 bits."""
    devices = 1 if strategy == "auto" else 2
    arguments = [(str(tmp_path), strategy, devices, 4, "bf16-mixed")] * devices
    plain = [(str(tmp_path), strategy, devices, 1, "bf16-mixed")] * devices
    for found, need in zip(
        run_processes(fitted_gradients, arguments, join=False), run_processes(fitted_gradients, plain, join=False), strict=True
    ):
        assert_equal(found, need, 0.03)
        assert_equal(found, at_once, 0.2)


def towers_gradients(config: TwoTowerConfig, micro_batches: int, by_hand: bool = False) -> Gradients:
    """Gradients of towers in training mode after the same seed; `by_hand` makes the parts with all activations kept."""
    torch.manual_seed(0)
    towers = TwoTower(config).train()
    batch = Pairs(1, 8, 0, 1).batch(0)
    torch.manual_seed(1)
    if by_hand:
        image_BD = torch.cat([towers.encode_image(part) for part in batch.image.chunk(micro_batches)])
        text_BD, scale = torch.cat([towers.encode_text(part) for part in batch.tokens.chunk(micro_batches)]), towers.logit_scale()
    else:
        image_BD, text_BD, scale, _ = towers(batch.image, batch.tokens, micro_batches)
    ContrastiveLoss()(image_BD, text_BD, scale).backward()
    return {f"towers.{name}": gradient(parameter) for name, parameter in towers.named_parameters()}


def gradient(parameter: nn.Parameter) -> list[float]:
    assert parameter.grad is not None
    return parameter.grad.flatten().tolist()


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_dropout_draws_the_same_in_both_passes(micro_batches: int) -> None:
    need = towers_gradients(DROPPING, micro_batches, by_hand=True)
    assert_equal(towers_gradients(DROPPING, micro_batches), need, 1e-5)
    other = towers_gradients(DROPPING, 1)  # other draws: the towers do drop something
    assert other["towers.vision.projection.weight"] != pytest.approx(need["towers.vision.projection.weight"], rel=1e-2)


def peak_bytes(micro_batches: int) -> int:
    """The most memory that tensors of forward and backward pass have at one time."""
    towers = TwoTower(replace(TOWERS, vision=replace(TOWERS.vision, layers=6), text=replace(TOWERS.text, layers=6)))
    batch = Pairs(1, 256, 0, 1).batch(0)
    with profile(profile_memory=True) as recorded:
        ContrastiveLoss()(*towers(batch.image, batch.tokens, micro_batches)).backward()
    now = peak = 0
    events: Any = recorded.profiler
    for event in events.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def test_activations_of_one_part_of_one_tower_exist_at_a_time() -> None:
    """Weights, gradients and the loss come on top, so that 16 parts do not reach 1/32."""
    at_once, in_parts = peak_bytes(1), peak_bytes(16)
    assert in_parts < at_once / 8


def test_refuses_parts_that_do_not_divide_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.micro_batches: found 0, need at least 1"):
        ContrastiveModule(TOWERS, micro_batches=0)
    with pytest.raises(ValueError, match=r"model.micro_batches: found 3 for a batch of 16 pairs, need a number that divides it"):
        fitted_gradients(str(tmp_path), "auto", 1, micro_batches=3)
