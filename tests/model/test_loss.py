"""The loss against open_clip's and against itself on one process: values prove nothing (PEERS.md), so gradients are compared, in real processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

from mc2.model.loss import ContrastiveLoss
from tests.processes import run_processes

PAIRS, DIM = 12, 5


def towers_gradient(first: int, last: int, tile: int) -> tuple[float, list[list[float]]]:
    """Loss and gradients of a linear image tower, a linear text tower and the log of the scale, on pairs first .. last of a fixed batch, averaged over ranks as DDP and FSDP do."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(PAIRS, 7, generator=generator), torch.randn(PAIRS, 7, generator=generator)
    towers = [torch.randn(7, DIM, generator=generator).requires_grad_() for _ in range(2)]
    log_scale = torch.tensor(math.log(20.0), requires_grad=True)
    rows = slice(first, last)
    loss = ContrastiveLoss(tile)(F.normalize(image[rows] @ towers[0], dim=1), F.normalize(text[rows] @ towers[1], dim=1), log_scale.exp())
    loss.backward()
    results = [loss.detach(), *(parameter.grad for parameter in (*towers, log_scale))]
    for result in results if dist.is_initialized() else []:
        assert result is not None
        dist.all_reduce(result)
        result /= dist.get_world_size()
    return float(results[0]), [result.flatten().tolist() for result in results[1:] if result is not None]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("tile", [2, 5, 1000])
def test_gradients_are_those_of_one_big_batch(world_size: int, tile: int) -> None:
    need_loss, need = towers_gradient(0, PAIRS, 1000)
    share = PAIRS // world_size
    for loss, found in run_processes(towers_gradient, [(rank * share, (rank + 1) * share, tile) for rank in range(world_size)]):
        assert loss == pytest.approx(need_loss, rel=1e-6)
        for mine, whole in zip(found, need, strict=True):
            torch.testing.assert_close(
                torch.tensor(mine), torch.tensor(whole), rtol=1e-5, atol=1e-5
            )  # logits of 20 have 2e-6 in the last place


def features(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(PAIRS, DIM, generator=generator), dim=1).requires_grad_() for _ in range(2))
    return image, text, torch.tensor(30.0, requires_grad=True)


@pytest.mark.parametrize("tile", [1, 5, 12, 100])
def test_equals_open_clip(tile: int) -> None:
    mine, theirs = features(1), features(1)
    loss, need = ContrastiveLoss(tile)(*mine), ClipLoss()(*theirs)
    (3.0 * loss).backward()
    (3.0 * need).backward()
    torch.testing.assert_close(loss, need)
    for found, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found.grad, other.grad, rtol=1e-5, atol=1e-5)  # logits of 30 have 2e-6 in the last place


def test_is_by_hand_ln2_for_features_without_information() -> None:
    same = F.normalize(torch.ones(2, 3), dim=1)
    assert ContrastiveLoss()(same, same, torch.tensor(50.0)).item() == pytest.approx(math.log(2), rel=1e-5)


def test_stays_fp32_under_autocast() -> None:
    image, text, scale = features(2)
    need = ContrastiveLoss()(image, text, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ContrastiveLoss()(image, text, scale), need)


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="found 0, need at least 1"):
        ContrastiveLoss(tile=0)
    image, text, scale = features(0)
    with pytest.raises(ValueError, match="need the same shape"):
        ContrastiveLoss()(image, text[:3], scale)
