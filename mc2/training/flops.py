"""Floating-point operations of a step: matrix products, two operations for a multiplication with addition, as torch.utils.flop_counter counts.

Norms, activations, softmax and the optimizer are left out. MFU is about the model, not about the way, and leaves out what is computed twice to save memory; HFU,
the use of the hardware, has it in (`PairFlops.recomputed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.training.blocks import ParallelConfig

# Dense bf16 with fp32 sums, in FLOP/s. Names as torch.cuda.get_device_name has them; the first whose words are all there counts. Sources: the vendors' data sheets
# of these names, where a number "with sparsity" (*) is halved.
PEAK_FLOPS = {
    "GB200": 2.5e15,  # GB200 NVL72 and HGX B200: 5 PFLOPS* of each Blackwell GPU
    "B200": 2.25e15,  # the same: 4.5 PFLOPS*
    "B300": 2.25e15,  # HGX B300: 4.5 PFLOPS*
    "GH200": 989.4e12,  # GH200 Grace Hopper Superchip: 1,979 TFLOPS*
    "H200 NVL": 835.5e12,  # H200: 1,671 TFLOPS*
    "H200": 989.4e12,  # H200 SXM: 1,979 TFLOPS*
    "H100 PCIe": 756e12,  # H100 architecture white paper: 756
    "H100 NVL": 835.5e12,  # H100: 1,671 TFLOPS*
    "H100": 989.4e12,  # H100 architecture white paper, SXM5: 989.4
    "A100": 312e12,  # A100: 312, PCIe and SXM
    "MI300X": 1307.4e12,  # AMD Instinct MI300X: 1,307.4
    "L40S": 362e12,  # L40S: 362.05
    "L4": 121e12,  # L4: 242 TFLOPS*
    "A10G": 70e12,  # A10G: 140 TFLOPS*
    "A10": 125e12,  # A10: 125
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
    last_of_blocks: float  # of `per_position`: the last map of each block, which a backward pass can do without
    layers: int

    def forward(self, positions: int) -> float:
        return self.once + positions * (self.per_position + positions * self.per_position_pair)

    def backward(self, positions: int) -> float:
        """Twice the forward pass: gradients of inputs and of weights."""
        return 2 * self.forward(positions) - self.without_input_gradient

    def recomputed_blocks(self, positions: int, checkpoint_every: int) -> float:
        """What a backward pass computes a second time of every n-th block, which kept its input only: all of it but its last map."""
        share = -(-self.layers // checkpoint_every) / self.layers
        return share * positions * (self.per_position - self.last_of_blocks + positions * self.per_position_pair)


def linear_flops(module: nn.Module) -> float:
    """Of all linear maps in it, for one position."""
    return float(sum(2 * part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear)))


def tower_flops(blocks: nn.Module, width: int, projection: nn.Linear, patches: nn.Conv2d | None, num_patches: int) -> TowerFlops:
    """Of a transformer; attention counts every position with every position, causal or not (4 W operations a pair of positions and layer)."""
    layers = len(list(blocks.children()))
    conv = 2.0 * patches.weight.numel() * num_patches if patches is not None else 0.0
    last = float(
        sum(2 * part.weight.numel() for name, part in blocks.named_modules() if name.endswith("fc2") and isinstance(part, nn.Linear))
    )
    return TowerFlops(linear_flops(blocks), 4.0 * width * layers, conv + linear_flops(projection), conv, last, layers)


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

    def recomputed(self, tokens: int, parallel: ParallelConfig, micro_batches: int) -> float:
        """What the backward pass computes again of the towers that are trained: each part of a batch that is made in parts, and checkpointed blocks (selective
        ones keep their matrix products). torch.compile may do with less.
        """
        towers = {"vision": (self.vision, self.image_positions), "text": (self.text, tokens)}
        trained = [tower for name, tower in towers.items() if name not in self.locked]
        again = sum(tower.forward(positions) for tower, positions in trained) if micro_batches > 1 else 0.0
        if parallel.checkpoint_every and not parallel.selective:
            again += sum(tower.recomputed_blocks(positions, parallel.checkpoint_every) for tower, positions in trained)
        return again

    def loss(self, all_pairs: int) -> float:
        """A row of logits forward, the same and the gradients of images and of texts backward."""
        return 8.0 * all_pairs * self.embed_dim

    def step(self, tokens: int, all_pairs: int) -> float:
        """A pair's share of a training step with so many pairs on all ranks."""
        return self.forward(tokens) + self.backward(tokens) + self.loss(all_pairs)
