"""Students beside their teacher, each with a size and a vocabulary of its own: what reaches them, on one and two ranks; what is kept and refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from mc2.data.batch import PairBatch, View
from mc2.model.ranks import local
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.training.distillation import StudentConfig, TeacherConfig
from mc2.training.ema import EmaConfig
from mc2.training.initial_weights import load_initial_weights
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from tests.processes import run_processes
from tests.training.gradients import Gradients, assert_equal, gradients_of_fit
from tests.training.test_initial_weights import model_folder
from tests.training.tiny import TOWERS, Pairs, TinyData, tiny_trainer


def other(size: int, vocab_size: int, **changes: Any) -> TwoTowerConfig:
    """Towers of another resolution and vocabulary."""
    vision, text = replace(TOWERS.vision, image_size=size, layers=1), replace(TOWERS.text, vocab_size=vocab_size)
    return replace(TOWERS, vision=vision, text=text, **changes)


TEACHER, SMALL = other(24, 50, embed_dim=12), other(32, 30)


class PairsInViews(Pairs):
    """Smaller and larger images, other ids, of the same pairs."""

    def batch(self, index: int) -> PairBatch:
        batch, rows = super().batch(index), slice(self.rank, None, self.world_size)
        generator = torch.Generator().manual_seed(100 + index)
        views = {}
        for name, config in (("teacher", TEACHER), ("small", SMALL)):
            size, ids = config.vision.image_size, config.text.vocab_size
            image = torch.randint(0, 256, (self.batch_size, 3, size, size), generator=generator, dtype=torch.uint8)
            tokens = torch.randint(3, ids, (self.batch_size, 6), generator=generator, dtype=torch.int32)
            tokens[:, 0], tokens[:, -1] = 0, 2
            views[name] = View(image[rows], tokens[rows])
        return batch._replace(views=views)


class ViewsData(TinyData):
    def _loader(self, num_batches: int) -> Pairs:
        assert self.trainer is not None
        return PairsInViews(num_batches, self.batch_size, self.trainer.global_rank, self.trainer.world_size)


def distilled(folder: str, init_from: Path | None = None, **settings: Any) -> ContrastiveModule:
    torch.manual_seed(0)
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=1)
    teacher = TeacherConfig(Path(folder) / "teacher", scale=10.0, weight=2.0, tile=5)
    students = {"small": StudentConfig(SMALL, init_from=init_from)}
    module = ContrastiveModule(TOWERS, optimizer=optimizer, teacher=teacher, students=students, **settings)
    module.students_config = {"small": replace(students["small"], towers=SMALL)}  # its ids are no tokenizer's here
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders")
    model_folder(path / "teacher", TEACHER)
    model_folder(path / "small", SMALL)
    return path


class TeacherParts(Callback):
    """How many of the teacher's weights this rank holds, and that none of them is trained."""

    share = 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        assert pl_module._teacher is not None
        weights = list(pl_module._teacher.towers.parameters())
        assert not any(weight.requires_grad for weight in weights)
        assert {isinstance(weight, DTensor) for weight in weights} == {"FSDP2" in type(trainer.strategy).__name__}
        self.share = sum(local(weight).numel() for weight in weights) / sum(weight.numel() for weight in weights)


def gradients(run: str, folder: str, strategy: str, devices: int, micro_batches: int) -> tuple[Gradients, float]:
    """Of the first step of both students, and the teacher's share on this rank."""
    module, parts = distilled(folder, micro_batches=micro_batches), TeacherParts()
    found = gradients_of_fit(run, module, strategy, devices, data=ViewsData(batch_size=16), callbacks=[parts])
    assert not any("teacher" in name for name in module.state_dict())
    return found, parts.share


def gradients_by_hand(folder: Path) -> Gradients:
    """Contrastive loss + 2 x cross-entropy with soft targets, of the first batch, for each student."""
    torch.manual_seed(0)
    batch = PairsInViews(1, 16, 0, 1).batch(0)
    students = {"towers": TwoTower(TOWERS), "students.small": TwoTower(SMALL)}
    teacher = TwoTower(TEACHER)
    load_initial_weights(teacher, folder / "teacher", ("vision", "text"))
    views = {"towers": View(batch.image, batch.tokens), "students.small": batch.views["small"]}
    with torch.no_grad():
        image_BE, text_BE, _, _ = teacher(*batch.views["teacher"])
    need, own = 10.0 * image_BE @ text_BE.T, torch.arange(16)
    for name, student in students.items():
        image_BD, text_BD, scale, _ = student(*views[name])
        logits = scale * image_BD @ text_BD.T
        contrastive = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        distillation = F.cross_entropy(logits, need.softmax(1)) + F.cross_entropy(logits.T, need.T.softmax(1))
        torch.autograd.backward(contrastive / 2 + 2.0 * distillation / 2)
    pairs = ((f"{name}.{key}", weight) for name, student in students.items() for key, weight in student.named_parameters())
    return {key: weight.grad.flatten().tolist() for key, weight in pairs if weight.grad is not None}


def test_one_process(folder: Path, tmp_path: Path) -> None:
    found, share = gradients(str(tmp_path), str(folder), "auto", 1, 2)
    assert_equal(found, gradients_by_hand(folder), 1e-4)
    assert share == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes(strategy: str, folder: Path, tmp_path: Path) -> None:
    need = gradients_by_hand(folder)
    for found, share in run_processes(gradients, [(str(tmp_path), str(folder), strategy, 2, 1)] * 2, join=False):
        assert_equal(found, need, 1e-4)
        assert share == 1 if strategy == "ddp" else 0.4 < share < 0.6


def weights_after(run: Path, module: ContrastiveModule, data: TinyData, **settings: Any) -> dict[str, torch.Tensor]:
    settings = {"max_steps": 4, "val_check_interval": 4, "check_val_every_n_epoch": None, **settings}
    tiny_trainer(str(run), **settings).fit(module, data)
    return module.state_dict()


class SmallAlone(ViewsData):
    """The views of the second student as the batches themselves."""

    def _loader(self, num_batches: int) -> Pairs:
        return Renamed(num_batches, self.batch_size, 0, 1)


class Renamed(PairsInViews):
    def __iter__(self) -> Iterator[PairBatch]:
        for batch in super().__iter__():
            yield batch._replace(image=batch.views["small"].image, tokens=batch.views["small"].tokens)


@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 0.1}], ids=["plain", "clipped"])
def test_a_second_student_learns_what_it_would_learn_alone(settings: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    together = weights_after(tmp_path, distilled(str(folder), folder / "small", ema=EmaConfig()), ViewsData(), **settings)
    teacher = TeacherConfig(folder / "teacher", scale=10.0, weight=2.0, tile=5)
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=1)
    alone = ContrastiveModule(SMALL, optimizer=optimizer, teacher=teacher, init_from=folder / "small", ema=EmaConfig())
    for name, weight in weights_after(tmp_path, alone, SmallAlone(), **settings).items():
        same = name.replace("ema_towers.", "ema_students.small.").replace("towers.", "students.small.")
        torch.testing.assert_close(together[same.replace("ema_students.small.students.small.", "ema_students.small.")], weight)


def test_refuses_settings_without_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.teacher: found scale 200.0, weight 0, tile 2048; need all above 0"):
        TeacherConfig(tmp_path, weight=0)
    students, teacher = {"small": StudentConfig(SMALL)}, TeacherConfig(tmp_path)
    with pytest.raises(ValueError, match=r"model.students: found \['small'\] without model.teacher"):
        ContrastiveModule(TOWERS, students=students)
    with pytest.raises(ValueError, match=r"model.students: found the name 'a.b', need a word"):
        ContrastiveModule(TOWERS, teacher=teacher, students={"a.b": StudentConfig(SMALL)})
    with pytest.raises(ValueError, match=r"found lazy with model.students \['small'\]"):
        ContrastiveModule(TOWERS, teacher=teacher, students=students, optimizer=OptimizerConfig(vocabulary="lazy"))
    biased = {"small": StudentConfig(replace(SMALL, init_logit_bias=-10.0))}
    with pytest.raises(ValueError, match=r"model.students.small: found towers with a logit bias"):
        ContrastiveModule(TOWERS, teacher=teacher, students=biased)


def test_batches_without_the_view_that_a_model_needs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: found batches for 40 ids \(eos 2\) only, need a view 'teacher' for 50"):
        weights_after(tmp_path, distilled(str(folder)), TinyData())
