"""Counted operations against torch's own counter, and peak speeds by device name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mc2.model.loss import ContrastiveLoss
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.training.blocks import ParallelConfig, prepare_blocks
from mc2.training.flops import PairFlops, meta_towers, peak_flops
from tests.model.test_zoo import towers_of
from tests.training.tiny import TOWERS

MODELS: dict[str, TwoTowerConfig] = {
    "tiny": TOWERS,
    "patch dropout": replace(TOWERS, vision=replace(TOWERS.vision, image_size=32, timm_kwargs={"patch_drop_rate": 0.5, "reg_tokens": 2})),
    "concat": replace(TOWERS, vision=replace(TOWERS.vision, readout="concat", layers=3)),
    "no class token": replace(TOWERS, vision=replace(TOWERS.vision, timm_kwargs={"class_token": False, "global_pool": "avg"})),
    "unequal": replace(TOWERS, embed_dim=24, text=replace(TOWERS.text, width=48, layers=1, mlp_ratio=3.0), vision=replace(TOWERS.vision, image_size=48)),
}  # fmt: skip
PAIRS, TOKENS = 4, 6


def addmm_in_place(_total: Any, one: Any, other: Any, *_: Any, **__: Any) -> int:
    """Of shapes; torch counts addmm, and not the one in place, which the loss uses."""
    return int(2 * one[0] * one[1] * other[1])


def counted(function: Any) -> float:
    """What torch counts; attention as plain matrix products, because its counter knows no fused kernel of the CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_in_place}) as counter:
        function()
    return float(counter.get_total_flops())


def batch(config: TwoTowerConfig) -> tuple[torch.Tensor, torch.Tensor]:
    size = config.vision.image_size
    return torch.zeros(PAIRS, 3, size, size, dtype=torch.uint8), torch.full((PAIRS, TOKENS), 2)


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward_are_what_torch_counts(name: str) -> None:
    towers, found = TwoTower(MODELS[name]).train(), PairFlops.of(meta_towers(MODELS[name]))
    image, tokens = batch(MODELS[name])
    assert counted(lambda: towers(image, tokens)) == PAIRS * found.forward(TOKENS)

    def both() -> None:
        features = towers(image, tokens)
        (features[0].sum() + features[1].sum()).backward()

    assert counted(both) == PAIRS * (found.forward(TOKENS) + found.backward(TOKENS))


def test_a_locked_tower_costs_its_forward_pass_only() -> None:
    towers = TwoTower(TOWERS).train()
    towers.lock(["vision"])
    found = PairFlops.of(towers, frozenset({"vision"}))
    image, tokens = batch(TOWERS)

    def both() -> None:
        towers(image, tokens)[1].sum().backward()

    assert counted(both) == PAIRS * (found.forward(TOKENS) + found.backward(TOKENS))


@pytest.mark.parametrize("name", ["tiny", "unequal"])
@pytest.mark.parametrize(
    ("micro_batches", "checkpoint_every", "selective"),
    [(2, 0, False), (1, 1, False), (1, 2, False), (1, 1, True), (2, 1, False), (2, 1, True)],
)
def test_what_is_computed_twice_is_what_torch_counts(name: str, micro_batches: int, checkpoint_every: int, selective: bool) -> None:
    towers, found = TwoTower(MODELS[name]).train(), PairFlops.of(meta_towers(MODELS[name]))
    parallel = ParallelConfig(checkpoint_every=checkpoint_every, selective=selective)
    prepare_blocks(towers, parallel)
    image, tokens = batch(MODELS[name])

    def both() -> None:
        features = towers(image, tokens, micro_batches)
        (features[0].sum() + features[1].sum()).backward()

    useful, again = found.forward(TOKENS) + found.backward(TOKENS), found.recomputed(TOKENS, parallel, micro_batches)
    assert counted(both) == PAIRS * (useful + again)
    assert (again > 0) is not (selective and micro_batches == 1)


def test_the_loss_is_what_torch_counts() -> None:
    image_BD, text_BD = torch.randn(PAIRS, 8, requires_grad=True), torch.randn(PAIRS, 8, requires_grad=True)
    loss = ContrastiveLoss(tile=2)
    need = PAIRS * PairFlops.of(meta_towers(TOWERS)).loss(all_pairs=PAIRS)
    assert counted(lambda: loss(image_BD, text_BD, torch.tensor(3.0)).backward()) == need


def test_vit_h14_is_near_the_published_number() -> None:
    """timm and open_clip state 167 GMACs of the vision tower at 224 px, 336 GFLOPs."""
    found = PairFlops.of(meta_towers(towers_of("ViT-H-14-quickgelu", 901_629)))
    assert found.vision.forward(257) == pytest.approx(2 * 167.4e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA B300 SXM6 AC", 2.25e15),
        ("AMD Instinct MI300X", 1307.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 9090", None),
        ("cpu", None),
        ("NVIDIA A1000", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
