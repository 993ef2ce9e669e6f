"""The Lightning module: two towers trained to agree on matching pairs. Shapes: B pairs on this rank, N images, M texts, L tokens, D embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from mc2.data.batch import PairBatch, View
from mc2.data.datamodule import ShardDataModule
from mc2.model.loss import ContrastiveLoss, PairLoss, bias_message
from mc2.model.ranks import BatchSizes
from mc2.model.two_tower import Features, TwoTowerConfig
from mc2.training.blocks import ParallelConfig
from mc2.training.distillation import (
    TEACHER,
    StudentConfig,
    Teacher,
    TeacherConfig,
    TeacherFeatures,
    build_teacher,
    checked_view,
    complete_students,
    needed_views,
)
from mc2.training.ema import EmaConfig, decay_at
from mc2.training.initial_weights import TOWERS, Tower
from mc2.training.lazy_rows import LazyRows, check_lazy_rows, hide_from_ddp
from mc2.training.optimizer import OptimizerConfig, build_optimizer, clamp_log_scale
from mc2.training.towers import TowersModule


class Ranking(NamedTuple):
    """Images and the texts to rank for each of them: uint8 (N, 3, H, W) and token ids (M, L)."""

    image: Tensor
    tokens: Tensor


def check_micro_batches(micro_batches: int, batch_size: int) -> None:
    """Errors: ValueError if the parts of a batch would not be equal."""
    if batch_size % micro_batches:
        raise ValueError(
            f"model.micro_batches: found {micro_batches} for a batch of {batch_size} pairs, need a number that divides it; change one of them"
        )


class ContrastiveModule(TowersModule):
    """Two towers trained to agree on matching pairs.

    Logs train/loss and val/loss (nats per pair, mean over ranks; this rank's rows against all columns), train/logit_scale, train/lr, and train/logit_bias where
    there is one. After each step the logit scale is brought back into [1, max_logit_scale].
    micro_batches: the towers run on so many equal parts of this rank's batch, one after the other, and again in the backward pass: memory for activations
    of one part, a third more computation, gradients of the whole batch with all its negatives. Lightning's own accumulation is refused, because it would
    silently leave out the pairs of the other micro-batches.

    init_from: model folder (`mc2 import`, `mc2 export`) whose weights training begins with; position embeddings are fitted to another image_size or a shorter
    context_length. init_towers: only these of it (default: both towers and the logit scale). locked: towers that stay as they are (LiT): evaluation mode,
    no gradient, no optimizer state.

    ema: a moving average of the weights beside them, which validation and benchmarks see; `mc2 export --ema true` takes it.

    teacher: a model folder whose similarities of each batch the student learns beside the pairs (train/distillation; train/loss stays the contrastive term).
    students: further towers by their names, which learn from the same teacher's features what each would learn alone: they share its forward pass, the data, and the
    optimizer's settings. They log students/<name>/loss, distillation, logit_scale and val_loss; `mc2 export --student <name>` writes one.
    """

    def __init__(
        self,
        towers: TwoTowerConfig,
        loss: PairLoss | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008  (frozen)
        max_logit_scale: float = 100.0,
        micro_batches: int = 1,
        init_from: Path | None = None,
        init_towers: Sequence[Tower] = TOWERS,
        locked: Sequence[Tower] = (),
        parallel: ParallelConfig = ParallelConfig(),  # noqa: B008  (frozen)
        teacher: TeacherConfig | None = None,
        students: dict[str, StudentConfig] | None = None,
        ema: EmaConfig | None = None,
    ) -> None:
        super().__init__(towers, complete_students(students or {}, towers, teacher), init_from, init_towers, locked, parallel, ema)
        if max_logit_scale <= 1:
            raise ValueError(f"model.max_logit_scale: found {max_logit_scale}, need a number above 1")
        if micro_batches < 1:
            raise ValueError(f"model.micro_batches: found {micro_batches}, need at least 1")
        self.optimizer_config, self.max_logit_scale, self.micro_batches = optimizer, max_logit_scale, micro_batches
        if optimizer.vocabulary == "lazy" and "text" in locked:
            raise ValueError("optimizer.vocabulary: found lazy with a locked text tower, need dense (its token embedding is not trained)")
        self.loss = loss or ContrastiveLoss()
        if self.loss.needs_bias != (towers.init_logit_bias is not None):
            raise ValueError(f"model.loss: {bias_message(self.loss, towers.init_logit_bias is not None)}")
        for name, student in self.students_config.items():
            if self.loss.needs_bias != (student.towers.init_logit_bias is not None):
                raise ValueError(f"model.students.{name}: {bias_message(self.loss, student.towers.init_logit_bias is not None)}")
        if optimizer.vocabulary == "lazy" and students:
            raise ValueError(
                f"optimizer.vocabulary: found lazy with model.students {list(students)}, need dense; or train one student a run"
            )
        if optimizer.vocabulary == "lazy" and ema is not None:
            raise ValueError("optimizer.vocabulary: found lazy with model.ema, need dense (the average moves with every row in every step)")
        self.teacher_config = teacher
        self._teacher: Teacher | None = None
        self.losses: dict[str | None, PairLoss] = {None: self.loss}
        self.losses |= {name: deepcopy(self.loss) for name in self.students_config}  # each keeps its own pair_losses
        self.lazy_rows: LazyRows | None = None  # makes the steps of the token embedding with vocabulary: lazy

    def configure_model(self) -> None:
        super().configure_model()
        if self.optimizer_config.vocabulary == "lazy":
            hide_from_ddp(self, "towers.text.token_embedding.weight")

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches: found {self.trainer.accumulate_grad_batches}, need 1 (pairs of other micro-batches would be "
                "no negatives); give the whole batch to data and set model.init_args.micro_batches, which computes it in parts"
            )
        if stage == "fit" and self.trainer.max_steps < 1:
            raise ValueError(f"trainer.max_steps: found {self.trainer.max_steps}, need the number of steps, which the schedule ends at")
        if stage == "fit" and self.optimizer_config.vocabulary == "lazy":
            check_lazy_rows(self.trainer)
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer, declared nowhere
        if isinstance(data, ShardDataModule) and self.teacher_config is not None:
            data.show(needed_views(self.teacher_config if stage == "fit" else None, self.students_config))

    def on_fit_start(self) -> None:
        if self.teacher_config is not None and self._teacher is None:
            strategy, precision = self.trainer.strategy, str(self.trainer.precision)
            towers = build_teacher(self.teacher_config.folder, strategy, self.parallel, precision, self.device)
            self._teacher = Teacher(self.teacher_config, towers)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        fused = not self.trainer.gradient_clip_val  # Lightning refuses to clip for a fused optimizer under autocast
        optimizer, schedule = build_optimizer(self, self.optimizer_config, self.trainer.max_steps, fused)
        if self.lazy_rows is not None:
            self.lazy_rows.release()
        if self.optimizer_config.vocabulary == "lazy":
            self.lazy_rows = LazyRows(self.towers.text.token_embedding, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        super().optimizer_zero_grad(epoch, batch_idx, optimizer)
        if self.lazy_rows is not None:
            self.lazy_rows.zero_grad()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if self.lazy_rows is not None:
            if gradient_clip_val:
                self.lazy_rows.clip_gradients(gradient_clip_val)
        elif self.students and gradient_clip_val and gradient_clip_algorithm != "value":
            for towers in self.all_towers():  # each by its own norm, as it would be alone
                nn.utils.clip_grad_norm_(towers.parameters(), gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for towers in self.all_towers():
            clamp_log_scale(towers.logit_scale.log, self.max_logit_scale)
        if self.ema is not None:
            self._follow(decay_at(self.trainer.global_step + 1, self.ema.decay))  # this step counts later

    def forward(self, batch: PairBatch, student: str | None = None, sizes: BatchSizes | None = None) -> tuple[Tensor, Features]:
        """Contrastive loss of this rank and the features it was computed from, of the module's own towers or of a further student."""
        sizes = sizes or BatchSizes(len(batch.image), self.device)
        towers, view = self.active_student(student), View(batch.image, batch.tokens)
        if student is not None:
            view = checked_view(batch, student, towers.config, self.tower_config)
        features: Features = towers(*view, self.micro_batches)
        return self.losses[student](*features, sizes), features

    def training_step(self, batch: PairBatch, batch_index: int) -> Tensor:  # noqa: ARG002  (Lightning's signature)
        check_micro_batches(self.micro_batches, len(batch.image))
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(batch.image))
        sizes, taught = BatchSizes(len(batch.image), self.device), None
        if self._teacher is not None:
            view = checked_view(batch, TEACHER, self._teacher.towers.config, self.tower_config)
            taught = self._teacher.features(view, self.micro_batches)
        losses = [self._learn(batch, student, taught, sizes) for student in (None, *self.students_config)]
        return torch.stack(losses).sum() if self.students else losses[0]

    def _learn(self, batch: PairBatch, student: str | None, taught: TeacherFeatures | None, sizes: BatchSizes) -> Tensor:
        """What one student is trained with, logged."""
        loss: Tensor
        loss, features = self(batch, student, sizes)
        group, log = "train" if student is None else f"students/{student}", partial(self.log, batch_size=len(batch.image))
        log(f"{group}/loss", loss.detach(), sync_dist=True, prog_bar=student is None)
        log(f"{group}/logit_scale", features.logit_scale.detach())
        if features.logit_bias is not None:
            log(f"{group}/logit_bias", features.logit_bias.detach())
        if self._teacher is None or taught is None:
            return loss
        distillation = self._teacher.loss(features, taught, sizes)
        log(f"{group}/distillation", distillation.detach(), sync_dist=True)
        return loss + distillation

    def validation_step(self, batch: PairBatch, batch_index: int) -> None:  # noqa: ARG002
        self._log_losses("val", batch)

    def test_step(self, batch: PairBatch, batch_index: int) -> None:  # noqa: ARG002
        self._log_losses("test", batch)

    def _log_losses(self, stage: str, batch: PairBatch) -> None:
        if not len(batch.image):  # it stands for a data module without a validation set: benchmarks (callbacks) run alone
            return
        for student in (None, *self.students_config):
            name = f"{stage}/loss" if student is None else f"students/{student}/{stage}_loss"
            self.log(name, self(batch, student)[0], sync_dist=True, prog_bar=student is None, batch_size=len(batch.image))

    def predict_step(self, batch: Ranking, batch_index: int) -> Tensor:  # noqa: ARG002
        """Probability of each text for each image, (N, M): softmax over the texts of logit scale x cosine."""
        cosine_NM = self.encode_image(batch.image) @ self.encode_text(batch.tokens).T
        probability_NM: Tensor = (self.active_towers.logit_scale() * cosine_NM).softmax(dim=1)
        return probability_NM
