"""Floating-point operations of a step: matrix products, two operations for a multiplication with addition, as torch.utils.flop_counter counts.

Norms, activations, softmax and the optimizer are left out, and so is what is computed twice to save memory: MFU is about the model, not about the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mc2.model.two_tower import TwoTower, TwoTowerConfig

# Dense bf16 with fp32 sums, in FLOP/s: from the vendors' data sheets, without sparsity. Names as torch.cuda.get_device_name begins or contains them; the first hit counts.
PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989.4e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "MI300X": 1307.4e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}


def peak_flops(device_name: str) -> float | None:
    """Of a device by its name; None for one that is not in the table: no number rather than a wrong one."""
    words = device_name.replace("-", " ").split()
    return next((peak for name, peak in PEAK_FLOPS.items() if set(name.split()) <= set(words)), None)


@dataclass(frozen=True)
class TowerFlops:
    """Forward pass of one sequence: what each position costs, what each pair of positions costs, and what it costs once."""

    per_position: float
    per_position_pair: float
    once: float
    without_input_gradient: float  # of `once`: the patch embedding, whose input is pixels

    def forward(self, positions: int) -> float:
        return self.once + positions * (self.per_position + positions * self.per_position_pair)

    def backward(self, positions: int) -> float:
        """Twice the forward pass: gradients of inputs and of weights."""
        return 2 * self.forward(positions) - self.without_input_gradient


def linear_flops(module: nn.Module) -> float:
    """Of all linear maps in it, for one position."""
    return float(sum(2 * part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear)))


def tower_flops(blocks: nn.Module, width: int, projection: nn.Linear, patches: nn.Conv2d | None, num_patches: int) -> TowerFlops:
    """Of a transformer; attention counts every position with every position, causal or not (4 W operations a pair of positions and layer)."""
    layers = len(list(blocks.children()))
    conv = 2.0 * patches.weight.numel() * num_patches if patches is not None else 0.0
    return TowerFlops(linear_flops(blocks), 4.0 * width * layers, conv + linear_flops(projection), conv)


def training_positions(towers: TwoTower) -> int:
    """Positions of the vision tower in training: prefix tokens and the patches that patch dropout leaves."""
    trunk = towers.vision.trunk
    rate = float(getattr(trunk.patch_drop, "prob", 0.0))
    kept = max(1, int(trunk.patch_embed.num_patches * (1 - rate))) if rate else int(trunk.patch_embed.num_patches)
    return int(trunk.num_prefix_tokens) + kept


def meta_towers(config: TwoTowerConfig) -> TwoTower:
    """The towers without memory for their weights."""
    with torch.device("meta"):
        return TwoTower(config)


@dataclass(frozen=True)
class PairFlops:
    """Of both towers, for one pair."""

    vision: TowerFlops
    text: TowerFlops
    image_positions: int
    embed_dim: int
    locked: frozenset[str] = frozenset()

    @classmethod
    def of(cls, towers: TwoTower, locked: frozenset[str] = frozenset()) -> PairFlops:
        trunk, text = towers.vision.trunk, towers.text
        conv = trunk.patch_embed.proj
        assert isinstance(conv, nn.Conv2d)
        vision = tower_flops(trunk.blocks, trunk.embed_dim, towers.vision.projection, conv, trunk.patch_embed.num_patches)
        words = tower_flops(text.blocks, text.config.width, text.projection, None, 0)
        return cls(vision, words, training_positions(towers), towers.config.embed_dim, locked)

    def forward(self, tokens: int) -> float:
        return self.vision.forward(self.image_positions) + self.text.forward(tokens)

    def backward(self, tokens: int) -> float:
        """Of the towers that are trained."""
        vision = 0.0 if "vision" in self.locked else self.vision.backward(self.image_positions)
        return vision + (0.0 if "text" in self.locked else self.text.backward(tokens))

    def loss(self, all_pairs: int) -> float:
        """A row of logits forward, the same and the gradients of images and of texts backward."""
        return 8.0 * all_pairs * self.embed_dim

    def step(self, tokens: int, all_pairs: int) -> float:
        """A pair's share of a training step with so many pairs on all ranks."""
        return self.forward(tokens) + self.backward(tokens) + self.loss(all_pairs)
