"""AdamW as CLIP uses it: which parameters decay, and the learning rate of each step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mc2.training.skipped_steps import Betas


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to 0 over `trainer.max_steps`. The defaults are those of ViT-H/14 worldwide (RECIPE 2.1).

    layer_decay: each block of a tower learns this many times as fast as the one behind it, for fine-tuning (0.65 - 0.9); 1: all alike.
    vocabulary: "lazy" works only on the rows of the token embedding that a batch touches, with the result of "dense" AdamW (see `lazy_rows`).
    """

    learning_rate: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6
    weight_decay: float = 0.1
    warmup_steps: int = 2000
    layer_decay: float = 1.0
    vocabulary: Literal["dense", "lazy"] = "dense"

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.eps <= 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(f"optimizer: found {self}, need learning_rate and eps above 0, weight_decay and warmup_steps at least 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"optimizer.layer_decay: found {self.layer_decay}, need a number above 0 and at most 1; 1 for equal learning rates"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"optimizer: found betas {self.beta1} and {self.beta2}, need both in [0, 1)")
        if self.vocabulary == "lazy":
            Betas(self.beta1, self.beta2, self.eps)


def learning_rate_factor(step: int, warmup_steps: int, num_steps: int) -> float:
    """What the learning rate is multiplied with in the step of this number (from 0): (step + 1) / warmup, then half a cosine from 1 to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def decays(parameter: nn.Parameter) -> bool:
    """Matrices decay, token and position embeddings among them; vectors do not: biases, norms, the logit scale, the class token (1, 1, W)."""
    return sum(size > 1 for size in parameter.shape) >= 2


BLOCK = re.compile(r"(.*)\.blocks\.(\d+)\.")
BEFORE_BLOCKS = {"cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "token_embedding", "position_embedding"}


def layer_factors(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied with, by its name: block i (from 0) of a tower with L blocks layer_decay^(L - i), what comes
    before the blocks layer_decay^(L + 1), final norm, projection and logit scale 1 (BEiT, arXiv 2106.08254, appendix; timm's rule but for the norms).
    """
    names = list(names)
    found = {name: BLOCK.match(name) for name in names}
    depth: dict[str, int] = {}  # tower -> blocks
    for block in (match for match in found.values() if match):
        depth[block[1]] = max(depth.get(block[1], 0), int(block[2]) + 1)
    exponents = dict.fromkeys(names, 0)
    for name, match in found.items():
        tower = next((tower for tower in depth if name.startswith(f"{tower}.")), None)
        if match:
            exponents[name] = depth[match[1]] - int(match[2])
        elif tower and BEFORE_BLOCKS & set(name.split(".")):
            exponents[name] = depth[tower] + 1
    return {name: layer_decay**exponent for name, exponent in exponents.items()}


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of the parameters that are trained, with and without decay; with layer_decay such a pair for each learning rate, the full one first."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    factors = layer_factors(trained, config.layer_decay)
    return [
        {
            "params": [parameter for name, parameter in trained.items() if factors[name] == factor and decays(parameter) is decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr": config.learning_rate * factor,
        }
        for factor in sorted({1.0, *factors.values()}, reverse=True)
        for decayed in (True, False)
    ]


def build_optimizer(module: nn.Module, config: OptimizerConfig, num_steps: int, fused: bool = True) -> tuple[AdamW, LambdaLR]:
    """The optimizer of a module's parameters, as they are now (sharded or not), and its schedule. `fused` is the same arithmetic, 6 times faster on a CPU.

    Errors: ValueError if the warm-up fills the run.
    """
    if num_steps <= config.warmup_steps:
        raise ValueError(
            f"optimizer.warmup_steps: found {config.warmup_steps} with trainer.max_steps {num_steps}, need fewer warm-up steps than steps; change one of them"
        )
    optimizer = AdamW(
        parameter_groups(module, config), lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused
    )
    return optimizer, LambdaLR(optimizer, partial(learning_rate_factor, warmup_steps=config.warmup_steps, num_steps=num_steps))


def clamp_log_scale(log_scale: nn.Parameter, max_scale: float) -> None:
    """Keep the scale in [1, max_scale], in place; the parameter may be sharded."""
    with torch.no_grad():
        log_scale.clamp_(0.0, math.log(max_scale))
