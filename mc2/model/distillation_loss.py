"""Distillation (RECIPE 2.4): the student's similarities of all pairs should be distributed as the teacher's are, one-sided and tiled as in `loss`.

Shapes: B pairs on this rank, G pairs on all ranks, R rows and C columns of a tile, D embedding of the student, E of the teacher.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from mc2.model.loss import Gradients, gradients_of, with_gradients
from mc2.model.ranks import BatchSizes, Gathered
from mc2.model.tiles import GradientSums, Tiling, log_sum_exp


@final
class DistillationLoss(nn.Module):
    """Cross-entropy between the teacher's and the student's distribution over the captions of all ranks for each image, and over all images for each
    caption, halved: nats per pair. The teacher gets no gradient. tile: tile x tile logits exist at a time.
    """

    def __init__(self, tile: int = 2048) -> None:
        super().__init__()
        if tile < 1:
            raise ValueError(f"distillation.tile: found {tile}, need at least 1")
        self.tile = tile

    def forward(
        self,
        image_BD: Tensor,
        text_BD: Tensor,
        logit_scale: Tensor,
        teacher_image_BE: Tensor,
        teacher_text_BE: Tensor,
        teacher_scale: Tensor,
        sizes: BatchSizes | None = None,
    ) -> Tensor:
        """Features of unit length, row i of all four of one pair; sizes: see PairLoss. Errors: ValueError if the numbers of pairs differ, here or between ranks."""
        if not len(image_BD) == len(text_BD) == len(teacher_image_BE) == len(teacher_text_BE):
            found = [len(features) for features in (image_BD, text_BD, teacher_image_BE, teacher_text_BE)]
            raise ValueError(f"distillation: found {found} features, need the same number of each")
        (sizes or BatchSizes(len(image_BD), image_BD.device)).check()
        with torch.autocast(image_BD.device.type, enabled=False):
            inputs = image_BD.float(), text_BD.float(), logit_scale.float()
            with torch.no_grad():
                teacher_BE = teacher_image_BE.float() * teacher_scale.float()
                loss, gradients = self.loss_and_gradients(*inputs, teacher_BE, Gathered(teacher_text_BE.float()))
            return with_gradients(loss, gradients, *inputs)

    def loss_and_gradients(
        self, image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, teacher_BE: Tensor, teacher_text: Gathered
    ) -> tuple[Tensor, Gradients]:
        """The loss of this rank and its gradients, of the captions summed over ranks; `teacher_BE` is scaled."""
        text, student_BD = Gathered(text_BD), image_BD * logit_scale
        tiling = Tiling(image_BD, text, self.tile, num_buffers=2)
        row_B, column_G = log_sum_exp(student_BD, text, tiling)
        teacher_row_B, teacher_column_G = log_sum_exp(teacher_BE, teacher_text, tiling)
        expected, sums = torch.zeros_like(logit_scale), GradientSums(image_BD, text)
        for tile in tiling.tiles(own_first=False):
            logits_RC, work_RC = tiling.buffers(tile)
            torch.mm(teacher_BE[tile.rows], teacher_text[tile.columns].T, out=logits_RC)
            torch.sub(logits_RC, teacher_row_B[tile.rows, None], out=work_RC)
            teacher_RC = logits_RC.sub_(teacher_column_G[tile.columns]).exp_().add_(work_RC.exp_())  # both of its probabilities
            torch.mm(student_BD[tile.rows], text[tile.columns].T, out=work_RC)
            expected += torch.dot(teacher_RC.flatten(), work_RC.flatten())
            teacher_RC.neg_().add_((work_RC - row_B[tile.rows, None]).exp_())
            sums.add(tile, teacher_RC.add_(work_RC.sub_(column_G[tile.columns]).exp_()))
        loss = (0.5 / len(image_BD)) * (row_B.sum() + column_G[text.first : text.last].sum() - expected)
        return loss, gradients_of(sums, logit_scale, 0.5 / len(image_BD))
