"""Schedule against open_clip's, groups by name, the clamp."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from open_clip_train.scheduler import cosine_lr
from torch import nn

from mc2.model.two_tower import TwoTower
from mc2.training.optimizer import OptimizerConfig, build_optimizer, clamp_log_scale, decays, learning_rate_factor
from tests.training.tiny import TOWERS


def test_schedule_equals_open_clips() -> None:
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3.0)
    set_rate: Any = cosine_lr(theirs, 3.0, 7, 50)
    ours, schedule = build_optimizer(nn.Linear(2, 2), OptimizerConfig(learning_rate=3.0, warmup_steps=7), num_steps=50)
    for step in range(50):
        set_rate(step)
        for group in ours.param_groups:
            assert group["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
        ours.step()
        schedule.step()
    assert ours.param_groups[0]["lr"] == 0.0


def test_schedule_by_hand() -> None:
    assert [learning_rate_factor(step, 2, 6) for step in range(2)] == [0.5, 1.0]
    assert learning_rate_factor(4, 2, 6) == pytest.approx(0.5)
    assert learning_rate_factor(0, 0, 6) == 1.0
    assert learning_rate_factor(9, 2, 6) == pytest.approx(0.0)


def test_what_does_not_decay() -> None:
    """Named by hand: vectors, and the class token, which timm keeps as (1, 1, W)."""
    towers = TwoTower(TOWERS)
    vectors = {"norm1", "norm2", "norm", "norm_pre", "ln_final"}
    for name, parameter in towers.named_parameters():
        last = name.split(".")
        plain = last[-1] == "bias" or last[-2] in vectors or name in {"logit_scale.log", "vision.trunk.cls_token"}
        assert decays(parameter) is not plain, name
    optimizer, _ = build_optimizer(towers, OptimizerConfig(weight_decay=0.3, warmup_steps=1), num_steps=2)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(towers.parameters()))
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert {id(towers.text.token_embedding.weight), id(towers.text.position_embedding), id(towers.vision.trunk.pos_embed)} <= decayed


def test_frozen_parameters_are_left_out() -> None:
    towers = TwoTower(TOWERS)
    towers.vision.requires_grad_(False)
    optimizer, _ = build_optimizer(towers, OptimizerConfig(warmup_steps=1), num_steps=2)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(1 for p in towers.parameters() if p.requires_grad)


@pytest.mark.parametrize(("before", "after"), [(-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))])
def test_clamp(before: float, after: float) -> None:
    parameter = nn.Parameter(torch.tensor([before]))
    clamp_log_scale(parameter, 100.0)
    assert parameter.item() == pytest.approx(after)


def test_refuses_settings_without_sense() -> None:
    with pytest.raises(ValueError, match=r"found 9 with trainer.max_steps 9, need fewer"):
        build_optimizer(nn.Linear(2, 2), OptimizerConfig(warmup_steps=9), num_steps=9)
    with pytest.raises(ValueError, match=r"need learning_rate and eps above 0"):
        OptimizerConfig(learning_rate=0)
    with pytest.raises(ValueError, match=r"found betas 0.9 and 1.0"):
        OptimizerConfig(beta2=1.0)
