"""The moving average of the weights: a second pair of towers, sharded as the first one is, that follows it slowly and is often better to evaluate.

It is part of the module, so checkpoints hold it, under `ema_towers`, in whatever form they are written, and another number of ranks reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mc2.model.ranks import local


@dataclass(frozen=True)
class EmaConfig:
    """average = decay * average + (1 - decay) * weights, after every step.

    In the first steps the decay is (1 + step) / (10 + step), where that is less: the beginning is soon forgotten. evaluate: validation and benchmarks see the
    average; otherwise the weights themselves.
    """

    decay: float = 0.9999
    evaluate: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"model.ema.decay: found {self.decay}, need a number between 0 and 1, such as 0.9999")


def decay_at(step: int, decay: float) -> float:
    """The decay after so many steps."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def follow(average: nn.Module, weights: nn.Module, decay: float) -> None:
    """Move the average towards the weights, in place; both have the same parameters in the same order, sharded alike. decay 0 copies."""
    pairs = zip(average.parameters(), weights.parameters(), strict=True)
    averages, targets = zip(*((local(mine), local(other)) for mine, other in pairs), strict=True)
    torch._foreach_lerp_(averages, targets, 1.0 - decay)
