"""The loss against open_clip's and against itself on one process: values prove nothing (PEERS.md), so gradients are compared, in real processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from mc2.model.loss import ContrastiveLoss, PairLoss, SigmoidLoss
from tests.processes import run_processes

PAIRS, DIM = 12, 5
LOSSES: list[type[PairLoss]] = [ContrastiveLoss, SigmoidLoss]


def towers_gradient(first: int, last: int, kind: type[PairLoss], tile: int) -> tuple[float, list[list[float]]]:
    """Loss and gradients of a linear image tower, a linear text tower, the log of the scale and the bias, on pairs first .. last of a fixed batch, averaged
    over ranks as DDP and FSDP do.
    """
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(PAIRS, 7, generator=generator), torch.randn(PAIRS, 7, generator=generator)
    towers = [torch.randn(7, DIM, generator=generator).requires_grad_() for _ in range(2)]
    log_scale = torch.tensor(math.log(20.0), requires_grad=True)
    bias = torch.tensor(-3.0, requires_grad=True) if kind.needs_bias else None
    rows = slice(first, last)
    image_BD, text_BD = F.normalize(image[rows] @ towers[0], dim=1), F.normalize(text[rows] @ towers[1], dim=1)
    loss = kind(tile)(image_BD, text_BD, log_scale.exp(), bias)
    loss.backward()
    parameters = (*towers, log_scale) if bias is None else (*towers, log_scale, bias)
    results = [loss.detach(), *(parameter.grad for parameter in parameters)]
    for result in results if dist.is_initialized() else []:
        assert result is not None
        dist.all_reduce(result)
        result /= dist.get_world_size()
    return float(results[0]), [result.flatten().tolist() for result in results[1:] if result is not None]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("world_size", "tile"), [(2, 1), (2, 4), (2, 1000), (4, 2), (4, 3), (4, 1000)])
def test_gradients_are_those_of_one_big_batch(kind: type[PairLoss], world_size: int, tile: int) -> None:
    need_loss, need = towers_gradient(0, PAIRS, kind, 1000)
    share = PAIRS // world_size
    arguments = [(rank * share, (rank + 1) * share, kind, tile) for rank in range(world_size)]
    for loss, found in run_processes(towers_gradient, arguments):
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
@pytest.mark.parametrize(("kind", "other"), [(ContrastiveLoss, ClipLoss), (SigmoidLoss, SigLipLoss)])
def test_equals_open_clip(kind: type[PairLoss], other: type[torch.nn.Module], tile: int) -> None:
    mine, theirs = list(features(1)), list(features(1))
    for inputs in (mine, theirs) if kind.needs_bias else ():
        inputs.append(torch.tensor(-7.0, requires_grad=True))
    loss, need = kind(tile)(*mine), other()(*theirs)
    (3.0 * loss).backward()
    (3.0 * need).backward()
    torch.testing.assert_close(loss, need)
    for found, gradient in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found.grad, gradient.grad, rtol=1e-5, atol=1e-5)  # logits of 30 have 2e-6 in the last place
    with torch.no_grad():
        assert torch.equal(kind(tile)(*mine), loss)


@pytest.mark.parametrize("tile", [1, 3, 8])
def test_scale_of_100_neither_overflows_nor_vanishes(tile: int) -> None:
    """Rows and columns whose largest logits lie 200 apart, in one tile and in different ones, against fp64."""
    image = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]), dim=1).requires_grad_()
    text = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.01], [1.0, -0.1]]), dim=1).requires_grad_()
    ContrastiveLoss(tile)(image, text, torch.tensor(100.0)).backward()
    double = [tensor.detach().double().requires_grad_() for tensor in (image, text)]
    logits = 100.0 * double[0] @ double[1].T
    torch.autograd.backward((-logits.log_softmax(0) - logits.log_softmax(1)).diagonal().mean() / 2)
    for found, need in zip((image, text), double, strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found.grad.double(), need.grad, rtol=1e-4, atol=1e-4)


def test_is_by_hand_ln2_for_features_without_information() -> None:
    same = F.normalize(torch.ones(2, 3), dim=1)
    assert ContrastiveLoss()(same, same, torch.tensor(50.0)).item() == pytest.approx(math.log(2), rel=1e-5)


def test_stays_fp32_under_autocast() -> None:
    image, text, scale = features(2)
    need = ContrastiveLoss()(image, text, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ContrastiveLoss()(image, text, scale), need)


def test_sigmoid_is_by_hand_of_two_pairs() -> None:
    """Cosines 1 on and 0 off the diagonal, scale 2, bias -1: matches have logit 1, the others -1, and all four lose log(1 + e^-1)."""
    loss = SigmoidLoss()(torch.eye(2), torch.eye(2), torch.tensor(2.0), torch.tensor(-1.0))
    assert loss.item() == pytest.approx(4 * math.log1p(math.exp(-1)) / 2, rel=1e-6)


def unequal_batches(num_pairs: int) -> str:
    image, text, scale = features(0)
    with pytest.raises(ValueError, match="loss: ") as caught:
        ContrastiveLoss()(image[:num_pairs], text[:num_pairs], scale)
    return str(caught.value)


def test_batches_that_differ_between_ranks_are_refused_on_all() -> None:
    for message in run_processes(unequal_batches, [(4,), (4,), (3,)]):
        assert message.startswith("loss: found batches of [4, 4, 3] pairs on the ranks, need the same number on each; let the loader drop")


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="found 0, need at least 1"):
        ContrastiveLoss(tile=0)
    image, text, scale = features(0)
    with pytest.raises(ValueError, match="need the same shape"):
        ContrastiveLoss()(image, text[:3], scale)
    with pytest.raises(ValueError, match="found towers with a logit bias for ContrastiveLoss, need none"):
        ContrastiveLoss()(image, text, scale, scale)
    with pytest.raises(ValueError, match=r"found towers without a logit bias for SigmoidLoss, need one; set towers.init_logit_bias"):
        SigmoidLoss()(image, text, scale)


@pytest.mark.parametrize("tile", [1, 5, 1000])
def test_the_loss_of_each_pair(tile: int) -> None:
    """Against cross-entropies and yes-or-no questions written out; their mean is the loss."""
    image, text, scale = (tensor.detach() for tensor in features(3))
    logits = scale * image @ text.T
    rows, columns = (F.cross_entropy(each, torch.arange(PAIRS), reduction="none") for each in (logits, logits.T))
    loss = ContrastiveLoss(tile)
    assert float(loss(image, text, scale)) == pytest.approx(float((rows + columns).mean() / 2), rel=1e-5)
    torch.testing.assert_close(loss.pair_losses, (rows + columns) / 2, rtol=1e-4, atol=1e-5)
    bias = torch.tensor(-3.0)
    questions = F.binary_cross_entropy_with_logits(logits + bias, torch.eye(PAIRS), reduction="none").sum(1)
    sigmoid = SigmoidLoss(tile)
    assert float(sigmoid(image, text, scale, bias)) == pytest.approx(float(questions.mean()), rel=1e-5)
    torch.testing.assert_close(sigmoid.pair_losses, questions, rtol=1e-4, atol=1e-5)
