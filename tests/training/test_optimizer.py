"""Schedule against open_clip's, groups by name, the clamp."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip_train.scheduler import cosine_lr
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn
from torch.distributed.tensor import DTensor

from mc2.model.two_tower import TwoTower
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig, build_optimizer, clamp_log_scale, decays, learning_rate_factor
from mc2.training.parallel import FSDP2Strategy
from tests.processes import run_processes
from tests.training.tiny import TOWERS, TinyData, tiny_trainer


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


def rates(module: nn.Module, layer_decay: float, learning_rate: float = 1.0) -> dict[str, float]:
    """Name -> learning rate before the schedule."""
    optimizer, _ = build_optimizer(module, OptimizerConfig(learning_rate, warmup_steps=1, layer_decay=layer_decay), num_steps=2)
    by_id = {id(parameter): group["initial_lr"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in module.named_parameters() if parameter.requires_grad}


# prefix of a name -> exponent of the decay, by hand: two blocks in each tower
EXPONENTS = {
    **dict.fromkeys(("vision.trunk.cls_token", "vision.trunk.pos_embed", "vision.trunk.patch_embed.", "vision.trunk.norm_pre."), 3),
    **dict.fromkeys(("text.token_embedding.", "text.position_embedding"), 3),
    **dict.fromkeys(("vision.trunk.blocks.0.", "text.blocks.0."), 2),
    **dict.fromkeys(("vision.trunk.blocks.1.", "text.blocks.1."), 1),
    **dict.fromkeys(("vision.trunk.norm.", "vision.projection.", "text.ln_final.", "text.projection.", "logit_scale."), 0),
}


def test_layer_decay_by_hand() -> None:
    holder = nn.Module()
    holder.towers = TwoTower(TOWERS)  # as the Lightning module holds them
    found = rates(holder, 0.5, 0.1)
    assert len(found) == len(list(holder.parameters()))
    for name, rate in found.items():
        exponents = [exponent for prefix, exponent in EXPONENTS.items() if name.startswith(f"towers.{prefix}")]
        assert [rate] == pytest.approx([0.1 * 0.5**exponent for exponent in exponents]), name
    optimizer, _ = build_optimizer(holder, OptimizerConfig(0.1, warmup_steps=1, layer_decay=0.5), num_steps=2)
    assert optimizer.param_groups[0]["lr"] == 0.1  # what is logged as train/lr


def test_layer_decay_is_timms_but_for_the_norms() -> None:
    """timm gives the final norm to the last block; BEiT, and we, to the head."""
    towers = TwoTower(replace(TOWERS, vision=replace(TOWERS.vision, layers=4)))
    theirs = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(towers.vision.trunk, layer_decay=0.7)
        for parameter in group["params"]
    }
    ours = rates(towers.vision, 0.7)
    for name, parameter in towers.vision.trunk.named_parameters():
        if "norm." not in name.removeprefix("blocks.") and "norm_pre" not in name:
            # without a head timm counts one layer less
            assert ours[f"trunk.{name}"] == pytest.approx(0.7 * theirs[id(parameter)]), name


def test_layer_decay_does_not_count_a_locked_tower() -> None:
    towers = TwoTower(TOWERS)
    free = rates(towers, 0.5)
    towers.lock(["vision"])
    assert rates(towers, 0.5) == {name: rate for name, rate in free.items() if not name.startswith("vision.")}


def train_with_layer_decay(run: str, strategy: str, devices: int) -> dict[str, list[float]]:
    module = ContrastiveModule(TOWERS, optimizer=OptimizerConfig(1e-3, warmup_steps=1, layer_decay=0.5))
    torch.manual_seed(0)
    chosen = FSDP2Strategy(timeout_minutes=0.5) if strategy == "fsdp2" else strategy
    tiny_trainer(run, strategy=chosen, devices=devices, max_steps=3, val_check_interval=2).fit(module, TinyData())
    wholes = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in module.named_parameters()}
    return {name: parameter.detach().flatten().tolist() for name, parameter in wholes.items()}


def test_layer_decay_under_fsdp2(tmp_path: Path) -> None:
    alone = train_with_layer_decay(str(tmp_path), "auto", 1)
    for found in run_processes(train_with_layer_decay, [(str(tmp_path), "fsdp2", 2)] * 2, join=False):
        assert found.keys() == alone.keys()
        for name, values in found.items():
            torch.testing.assert_close(torch.tensor(values), torch.tensor(alone[name]), rtol=1e-3, atol=1e-4, msg=name)


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
    with pytest.raises(ValueError, match=r"optimizer.layer_decay: found 1.5"):
        OptimizerConfig(layer_decay=1.5)
    with pytest.raises(ValueError, match=r"found betas 0.9 and 1.0"):
        OptimizerConfig(beta2=1.0)
