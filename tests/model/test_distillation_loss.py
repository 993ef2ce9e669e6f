"""The distillation term against a plain cross-entropy with soft targets, in one and two processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mc2.model.distillation_loss import DistillationLoss
from tests.processes import run_processes

PAIRS, DIM, TEACHER_DIM = 12, 5, 9


def features() -> list[Tensor]:
    """Student's images, texts, scale (with gradient), teacher's images, texts, scale."""
    generator = torch.Generator().manual_seed(0)
    student = [F.normalize(torch.randn(PAIRS, DIM, generator=generator), dim=1).requires_grad_() for _ in range(2)]
    teacher = [F.normalize(torch.randn(PAIRS, TEACHER_DIM, generator=generator), dim=1) for _ in range(2)]
    return [*student, torch.tensor(20.0, requires_grad=True), *teacher, torch.tensor(15.0)]


def plain() -> tuple[float, list[list[float]]]:
    image, text, scale, teacher_image, teacher_text, teacher_scale = features()
    logits, teacher = scale * image @ text.T, teacher_scale * teacher_image @ teacher_text.T
    loss = (F.cross_entropy(logits, teacher.softmax(1)) + F.cross_entropy(logits.T, teacher.T.softmax(1))) / 2
    torch.autograd.backward(loss)
    return loss.item(), [part.grad.flatten().tolist() for part in (image, text, scale) if part.grad is not None]


def tiled(rank: int, world_size: int, tile: int) -> tuple[float, list[list[float]]]:
    """Loss and gradients of the whole features, averaged over ranks as DDP and FSDP do."""
    image, text, scale, teacher_image, teacher_text, teacher_scale = features()
    rows = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    loss = DistillationLoss(tile)(image[rows], text[rows], scale, teacher_image[rows], teacher_text[rows], teacher_scale)
    loss.backward()
    results = [loss.detach(), *(part.grad for part in (image, text, scale) if part.grad is not None)]
    for result in results if dist.is_initialized() else []:
        dist.all_reduce(result)
        result /= world_size
    return results[0].item(), [result.flatten().tolist() for result in results[1:]]


@pytest.mark.parametrize(("world_size", "tile"), [(1, 1), (1, 5), (1, 100), (2, 4), (2, 100), (4, 2)])
def test_equals_a_plain_cross_entropy(world_size: int, tile: int) -> None:
    need_loss, need = plain()
    arguments = [(rank, world_size, tile) for rank in range(world_size)]
    for loss, found in run_processes(tiled, arguments) if world_size > 1 else [tiled(0, 1, tile)]:
        assert loss == pytest.approx(need_loss, rel=1e-5)
        for mine, whole in zip(found, need, strict=True):
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(whole), rtol=1e-5, atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    image, text, scale, *_ = features()
    DistillationLoss()(image, text, scale, image.detach(), text.detach(), scale.detach()).backward()
    for part in (image, text, scale):
        torch.testing.assert_close(part.grad, torch.zeros_like(part), rtol=0, atol=1e-5)


def test_refuses_other_numbers() -> None:
    image, text, scale, teacher_image, teacher_text, teacher_scale = features()
    with pytest.raises(ValueError, match=r"distillation: found \[12, 12, 12, 11\] features"):
        DistillationLoss()(image, text, scale, teacher_image, teacher_text[1:], teacher_scale)
    with pytest.raises(ValueError, match="found 0, need at least 1"):
        DistillationLoss(0)
