"""A frozen teacher that a student is trained beside (RECIPE 2.4). Shapes: B pairs on this rank, H and W pixels, L tokens, E embedding of the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mc2.model.distillation_loss import DistillationLoss
from mc2.model.two_tower import Features, TwoTower, TwoTowerConfig
from mc2.training.initial_weights import TOWERS, load_initial_weights, read_tower_config


@dataclass(frozen=True)
class TeacherConfig:
    """folder: model folder of the teacher. scale: what its cosines are multiplied with; None: its own logit scale. weight: of the distillation term; the
    contrastive one has 1. tile: see DistillationLoss.
    """

    folder: Path
    scale: float | None = 200.0
    weight: float = 1.0
    tile: int = 2048

    def __post_init__(self) -> None:
        if self.weight <= 0 or (self.scale is not None and self.scale <= 0) or self.tile < 1:
            raise ValueError(f"model.teacher: found scale {self.scale}, weight {self.weight}, tile {self.tile}; need all above 0")


def check_teacher(config: TeacherConfig, student: TwoTowerConfig) -> TwoTowerConfig:
    """The teacher's towers. Errors: ValueError if it cannot read the student's batches: it gets the same token ids and the same image in its own size."""
    found = read_tower_config(config.folder)
    if (found.text.vocab_size, found.text.eos_id) != (student.text.vocab_size, student.text.eos_id):
        raise ValueError(
            f"model.teacher: {config.folder} has a vocabulary of {found.text.vocab_size} ids (eos {found.text.eos_id}), need {student.text.vocab_size} "
            f"(eos {student.text.eos_id}) as the student; give data.tokenizer: {config.folder}"
        )
    if found.text.context_length < student.text.context_length:
        raise ValueError(
            f"model.teacher: {config.folder} reads {found.text.context_length} tokens, need the student's {student.text.context_length}; give "
            f"data.context_length at most {found.text.context_length}"
        )
    return found


def resized(image_B3HW: Tensor, size: int) -> Tensor:
    """uint8 images of another size: bicubic with antialias, on their device."""
    if image_B3HW.shape[-1] == size:
        return image_B3HW
    return F.interpolate(image_B3HW.float(), (size, size), mode="bicubic", antialias=True).round_().clamp_(0, 255).to(torch.uint8)


class Teacher:
    """Two trained towers without gradients. No module: a student's checkpoints and optimizer know nothing of it, and every rank has all of its weights."""

    def __init__(self, config: TeacherConfig, towers: TwoTowerConfig, device: torch.device) -> None:
        self.config, self._loss = config, DistillationLoss(config.tile)
        self.towers = TwoTower(towers)
        load_initial_weights(self.towers, config.folder, TOWERS)
        self.towers.eval().requires_grad_(False).to(device)

    def loss(self, image_B3HW: Tensor, tokens_BL: Tensor, student: Features, micro_batches: int) -> Tensor:
        """The distillation term of this rank, times its weight."""
        with torch.no_grad():
            own = resized(image_B3HW, self.towers.config.vision.image_size)
            image_BE, text_BE, scale, _ = self.towers(own, tokens_BL, micro_batches)
        if self.config.scale is not None:
            scale = torch.full_like(scale, self.config.scale)
        term: Tensor = self._loss(student.image_BD, student.text_BD, student.logit_scale, image_BE, text_BE, scale)
        return self.config.weight * term
