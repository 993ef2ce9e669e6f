"""A student beside its teacher: what reaches the student, on one and two ranks; what is kept and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.training.distillation import TeacherConfig, check_teacher, resized
from mc2.training.initial_weights import load_initial_weights
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from tests.processes import run_processes
from tests.training.gradients import Gradients, assert_equal, gradients_of_fit
from tests.training.test_initial_weights import model_folder
from tests.training.tiny import TOWERS, Pairs

TEACHER = replace(TOWERS, embed_dim=12, vision=replace(TOWERS.vision, image_size=24, layers=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "teacher", TEACHER)


def student_gradients(run: str, folder: str, strategy: str, devices: int, micro_batches: int) -> Gradients:
    torch.manual_seed(0)
    teacher = TeacherConfig(Path(folder), scale=10.0, weight=2.0, tile=5)
    module = ContrastiveModule(TOWERS, optimizer=OptimizerConfig(warmup_steps=1), micro_batches=micro_batches, teacher=teacher)
    gradients = gradients_of_fit(run, module, strategy, devices)
    assert not any("teacher" in name for name in module.state_dict())
    return gradients


def gradients_by_hand(folder: Path) -> Gradients:
    """Contrastive loss + 2 x cross-entropy with soft targets, of the first batch."""
    torch.manual_seed(0)
    student, teacher = TwoTower(TOWERS), TwoTower(TEACHER)
    load_initial_weights(teacher, folder, ("vision", "text"))
    batch = Pairs(1, 16, 0, 1).batch(0)
    image_BD, text_BD, scale, _ = student(batch.image, batch.tokens)
    with torch.no_grad():
        image_BE, text_BE, _, _ = teacher(resized(batch.image, 24), batch.tokens)
    logits, need, own = scale * image_BD @ text_BD.T, 10.0 * image_BE @ text_BE.T, torch.arange(16)
    contrastive = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
    distillation = F.cross_entropy(logits, need.softmax(1)) + F.cross_entropy(logits.T, need.T.softmax(1))
    torch.autograd.backward(contrastive / 2 + 2.0 * distillation / 2)
    return {f"towers.{name}": weight.grad.flatten().tolist() for name, weight in student.named_parameters() if weight.grad is not None}


def test_one_process(folder: Path, tmp_path: Path) -> None:
    assert_equal(student_gradients(str(tmp_path), str(folder), "auto", 1, 2), gradients_by_hand(folder), 1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes(strategy: str, folder: Path, tmp_path: Path) -> None:
    for found in run_processes(student_gradients, [(str(tmp_path), str(folder), strategy, 2, 1)] * 2, join=False):
        assert_equal(found, gradients_by_hand(folder), 1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(TOWERS, text=replace(TOWERS.text, vocab_size=50)),
            r"has a vocabulary of 40 ids .*, need 50 .* as the student; give data.tokenizer",
        ),
        (
            replace(TOWERS, text=replace(TOWERS.text, context_length=20)),
            "reads 8 tokens, need the student's 20; give data.context_length at most 8",
        ),
    ],
)
def test_a_teacher_that_cannot_read_the_batches(config: TwoTowerConfig, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check_teacher(TeacherConfig(folder), config)


def test_refuses_numbers_without_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.teacher: found scale 200.0, weight 0, tile 2048; need all above 0"):
        TeacherConfig(tmp_path, weight=0)
    with pytest.raises(ValueError, match=r"found no config.json"):
        check_teacher(TeacherConfig(tmp_path), TOWERS)
