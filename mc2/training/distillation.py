"""A frozen teacher, and the students that are trained on what it makes of each batch (RECIPE 2.4). Shapes: B pairs on this rank, L tokens, E embedding of the teacher.

The module's own towers are the first student. Each student, and the teacher, reads the pairs in its own size and with its own tokenizer (`mc2.data.views`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mc2.data.batch import PairBatch, View
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer
from mc2.data.views import ViewConfig
from mc2.model.distillation_loss import DistillationLoss
from mc2.model.ranks import BatchSizes
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import Features, TwoTower, TwoTowerConfig
from mc2.training.blocks import ParallelConfig, prepare_blocks
from mc2.training.initial_weights import TOWERS, load_initial_weights, read_tower_config
from mc2.training.parallel import FSDP2Strategy, mixed_precision, shard

TEACHER = "teacher"  # its view of a batch


@dataclass(frozen=True)
class TeacherConfig:
    """folder: model folder of the teacher, with its tokenizer. scale: what its cosines are multiplied with; None: its own logit scale. weight: of the distillation
    term; the contrastive one has 1. tile: see DistillationLoss.
    """

    folder: Path
    scale: float | None = 200.0
    weight: float = 1.0
    tile: int = 2048

    def __post_init__(self) -> None:
        if self.weight <= 0 or (self.scale is not None and self.scale <= 0) or self.tile < 1:
            raise ValueError(f"model.teacher: found scale {self.scale}, weight {self.weight}, tile {self.tile}; need all above 0")


@dataclass(frozen=True)
class StudentConfig:
    """A further student. tokenizer: folder with its tokenizer.model; None: that of the data. init_from: model folder to begin from."""

    towers: TwoTowerConfig
    tokenizer: Path | None = None
    init_from: Path | None = None


def complete_students(
    students: Mapping[str, StudentConfig], first: TwoTowerConfig, teacher: TeacherConfig | None
) -> dict[str, StudentConfig]:
    """The further students with what their text towers must know of their tokenizers; `first` are the towers of the first one.

    Errors: ValueError for students without a teacher, or with a name that the log, the checkpoint or the batch cannot use.
    """
    if students and teacher is None:
        raise ValueError(
            f"model.students: found {list(students)} without model.teacher, need one whose features they share; give model.teacher.folder"
        )
    for name in students:
        if not name.isidentifier() or name == TEACHER:
            raise ValueError(
                f"model.students: found the name {name!r}, need a word of letters, digits and _, and not {TEACHER!r}; rename it"
            )
    return {name: replace(student, towers=replace(student.towers, text=student_text(student, first))) for name, student in students.items()}


def student_text(student: StudentConfig, first: TwoTowerConfig) -> TextConfig:
    """The text tower of a student with the sizes of its tokenizer."""
    ids = first.text if student.tokenizer is None else Tokenizer(student.tokenizer, first.text.context_length)
    return replace(student.towers.text, vocab_size=ids.vocab_size, eos_id=ids.eos_id, context_length=first.text.context_length)


class StudentInputs(NamedTuple):
    """What a benchmark asks of a data module."""

    tokenizer: Tokenizer
    preprocess: ImagePreprocess


def student_inputs(student: StudentConfig, tokenizer: Tokenizer, preprocess: ImagePreprocess) -> StudentInputs:
    """How images and texts are prepared for a further student, from what the data module has for the first one."""
    towers = student.towers
    path = tokenizer.path if student.tokenizer is None else student.tokenizer
    images = replace(preprocess, image_size=towers.vision.image_size, mean=towers.mean, std=towers.std)
    return StudentInputs(Tokenizer(path, towers.text.context_length), images)


@dataclass(frozen=True)
class StudentEncoder:
    """A further student as a benchmark sees it. `towers` gives those that are to be evaluated now."""

    towers: Callable[[], TwoTower]

    def encode_image(self, image: Tensor) -> Tensor:
        image_BD: Tensor = self.towers().encode_image(image)
        return image_BD

    def encode_text(self, tokens: Tensor) -> Tensor:
        text_BD: Tensor = self.towers().encode_text(tokens)
        return text_BD


def needed_views(teacher: TeacherConfig | None, students: Mapping[str, StudentConfig]) -> dict[str, ViewConfig]:
    """What the teacher and the further students read of each pair."""
    views = {
        name: ViewConfig(student.towers.vision.image_size, student.tokenizer, student.towers.text.context_length)
        for name, student in students.items()
    }
    if teacher is not None:
        towers = read_tower_config(teacher.folder)
        views[TEACHER] = ViewConfig(towers.vision.image_size, teacher.folder, towers.text.context_length)
    return views


def checked_view(batch: PairBatch, name: str, towers: TwoTowerConfig, first: TwoTowerConfig) -> View:
    """What the model of this name reads. Errors: ValueError for a batch without it, whose own ids would mean something else to the model."""
    found, need = (first.text.vocab_size, first.text.eos_id), (towers.text.vocab_size, towers.text.eos_id)
    if name not in batch.views and found != need:
        raise ValueError(
            f"data: found batches for {found[0]} ids (eos {found[1]}) only, need a view {name!r} for {need[0]} (eos {need[1]}); ShardDataModule makes it"
        )
    return batch.view(name)


def build_teacher(folder: Path, strategy: object, parallel: ParallelConfig, precision: str, device: torch.device) -> TwoTower:
    """The frozen towers of a model folder: compiled as the student's blocks are, and under FSDP2 in parts on all ranks, as the student is."""
    towers = TwoTower(read_tower_config(folder)).eval().requires_grad_(False)
    prepare_blocks(towers, replace(parallel, checkpoint_every=0, selective=False))  # there is no backward pass
    if not isinstance(strategy, FSDP2Strategy):
        load_initial_weights(towers, folder, TOWERS)
        return towers.to(device)
    if strategy.is_global_zero:  # `shard` gives the others what rank 0 has
        load_initial_weights(towers, folder, TOWERS)
    shard(towers, strategy, mixed_precision(precision))
    strategy.buffers_to_device(towers)
    return towers


class TeacherFeatures(NamedTuple):
    """What the students learn: features (B, E) and what their cosines are multiplied with."""

    image_BE: Tensor
    text_BE: Tensor
    scale: Tensor


class Teacher:
    """Two trained towers without gradients. No module: checkpoints and the optimizer know nothing of it."""

    def __init__(self, config: TeacherConfig, towers: TwoTower) -> None:
        self.config, self.towers, self._loss = config, towers, DistillationLoss(config.tile)

    @torch.no_grad()
    def features(self, view: View, micro_batches: int) -> TeacherFeatures:
        """Of a batch, once for all students."""
        image_BE, text_BE, scale, _ = self.towers(view.image, view.tokens, micro_batches)
        return TeacherFeatures(image_BE, text_BE, scale if self.config.scale is None else torch.full_like(scale, self.config.scale))

    def loss(self, student: Features, teacher: TeacherFeatures, sizes: BatchSizes) -> Tensor:
        """The distillation term of this rank, times its weight."""
        term: Tensor = self._loss(student.image_BD, student.text_BD, student.logit_scale, *teacher, sizes)
        return self.config.weight * term
