"""CLIP's initialisation of a transformer block (RECIPE 2.2), one rule for both towers."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def init_block(attention: nn.Module, mlp: nn.Module, width: int, layers: int) -> None:
    """Normal weights: qkv width^-0.5, both projections back into the stream width^-0.5 (2 layers)^-0.5, first MLP matrix (2 width)^-0.5; biases 0.

    `attention` has the linear maps qkv and proj, `mlp` has fc1 and fc2, as timm names them; maps of other names (gates, norms) stay as they are.
    """
    deviations = {
        "qkv": width**-0.5,
        "proj": width**-0.5 * (2 * layers) ** -0.5,
        "fc1": (2 * width) ** -0.5,
        "fc2": width**-0.5 * (2 * layers) ** -0.5,
    }
    for name, linear in (*attention.named_children(), *mlp.named_children()):
        if name in deviations and isinstance(linear, nn.Linear):
            nn.init.normal_(linear.weight, std=deviations[name])
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
