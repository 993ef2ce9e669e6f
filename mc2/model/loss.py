"""The losses over the pairs of all ranks, one-sided and tiled: extra memory is O(G D + tile^2), forward and backward.

Every rank holds the logits of its own images against all captions, a tile at a time. The gradients with respect to the features are computed along with the
loss, where each tile is at hand, and the backward pass only multiplies them. The loss of a rank is the mean over its own pairs. Gradients of the ranks
are then *averaged*, as DDP and FSDP do: no factor is missing or left over.

Shapes: B pairs on this rank, G pairs on all ranks, R rows and C columns of a tile, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mc2.model.ranks import BatchSizes, Gathered
from mc2.model.tiles import GradientSums, Tiling, log_sum_exp


class Gradients(NamedTuple):
    """Of a loss with respect to its inputs."""

    image_BD: Tensor
    text_BD: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None = None


class _WithGradients(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Gradients, *inputs: Tensor | None) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        known = (None if gradient is None else grad_outputs[0] * gradient for gradient in ctx.saved_tensors)
        return None, None, *known


def with_gradients(loss: Tensor, gradients: Gradients | None, *inputs: Tensor | None) -> Tensor:
    """The loss, whose backward pass gives the inputs these gradients times that of the loss."""
    result: Tensor = loss if gradients is None else _WithGradients.apply(loss, gradients, *inputs)
    return result


class PairLoss(nn.Module, ABC):
    """What the features of matching pairs are trained with: `model.init_args.loss.class_path` in YAML names a subclass.

    pair_losses: loss of each of this rank's pairs in the last call, (B,), for telemetry.
    tile: tile x tile logits exist at a time. Every rank must have the same number of pairs and must average (not sum) gradients over
    ranks. Always fp32, whatever autocast says: between 64 and 128 neighbouring bf16 numbers are 0.5 apart.
    """

    needs_bias: ClassVar[bool]

    def __init__(self, tile: int = 2048) -> None:
        super().__init__()
        if tile < 1:
            raise ValueError(f"loss.tile: found {tile}, need at least 1")
        self.tile = tile
        self.pair_losses: Tensor | None = None

    def forward(
        self, image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None, sizes: BatchSizes | None = None
    ) -> Tensor:
        """Features of unit length, row i of both a pair; logit scale and bias are scalars, the bias None for a loss without one. sizes: those of the ranks'
        batches, asked for before the features were made; None asks here, and waits.

        Errors: ValueError, on all ranks, if the shapes differ or the ranks' batches do.
        """
        if image_BD.shape != text_BD.shape:
            raise ValueError(f"loss: found {tuple(image_BD.shape)} image and {tuple(text_BD.shape)} text features, need the same shape")
        if (logit_bias is not None) != self.needs_bias:
            raise ValueError(f"loss: {bias_message(self, logit_bias is not None)}")
        (sizes or BatchSizes(len(image_BD), image_BD.device)).check()
        with torch.autocast(image_BD.device.type, enabled=False):
            bias = None if logit_bias is None else logit_bias.float()
            inputs = (image_BD.float(), text_BD.float(), logit_scale.float(), bias)
            needed = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
            with torch.no_grad():
                self.pair_losses, gradients = self.loss_and_gradients(inputs[0], Gathered(inputs[1]), *inputs[2:], needed)
            return with_gradients(self.pair_losses.mean(), gradients, *inputs)

    @abstractmethod
    def loss_and_gradients(
        self, image_BD: Tensor, text: Gathered, logit_scale: Tensor, logit_bias: Tensor | None, needed: bool
    ) -> tuple[Tensor, Gradients | None]:
        """The loss of each pair of this rank, (B,), and the gradients of their mean (of the captions: summed over ranks), None if they are not needed.
        Everything is fp32.
        """


def bias_message(loss: PairLoss, has_bias: bool) -> str:
    """What is wrong with towers that have or lack a logit bias."""
    name = type(loss).__name__
    if has_bias:
        return f"found towers with a logit bias for {name}, need none (it would have no effect); remove init_logit_bias"
    return f"found towers without a logit bias for {name}, need one; set towers.init_logit_bias (-10 in SigLIP, with init_logit_scale 10)"


def gradients_of(sums: GradientSums, logit_scale: Tensor, factor: float, grad_bias: Tensor | None = None) -> Gradients:
    """What was summed over the tiles, times `factor`."""
    image_BD, text_BD, scale = sums.total()
    bias = None if grad_bias is None else factor * grad_bias
    return Gradients(image_BD.mul_(factor * logit_scale), text_BD.mul_(factor * logit_scale), scale.mul_(factor), bias)


@final
class ContrastiveLoss(PairLoss):
    """Symmetric softmax cross-entropy in nats per pair (CLIP, arXiv 2103.00020): which caption of all ranks belongs to my image, which image to my caption.

    A column's log-sum-exp runs over all ranks and is completed by an all-reduce of one number a column; then each tile is computed a second time.
    """

    needs_bias = False

    def loss_and_gradients(
        self, image_BD: Tensor, text: Gathered, logit_scale: Tensor, logit_bias: Tensor | None, needed: bool
    ) -> tuple[Tensor, Gradients | None]:
        del logit_bias
        scaled_BD = image_BD * logit_scale
        tiling = Tiling(image_BD, text, self.tile, num_buffers=2)
        row_B, column_G = log_sum_exp(scaled_BD, text, tiling)
        loss_B = 0.5 * (row_B + column_G[text.first : text.last]) - (scaled_BD * text.own_BD).sum(1)
        if not needed:
            return loss_B, None
        sums = GradientSums(image_BD, text)
        for tile in tiling.tiles(own_first=False):
            grad_RC, work_RC = tiling.buffers(tile)
            torch.mm(scaled_BD[tile.rows], text[tile.columns].T, out=grad_RC)
            torch.sub(grad_RC, row_B[tile.rows, None], out=work_RC)
            grad_RC.sub_(column_G[tile.columns]).exp_().add_(work_RC.exp_())
            if tile.diagonal is not None:
                grad_RC.diagonal(tile.diagonal).sub_(2.0)
            sums.add(tile, grad_RC)
        return loss_B, gradients_of(sums, logit_scale, 0.5 / len(image_BD))


@final
class SigmoidLoss(PairLoss):
    """Every image with every caption is a yes-or-no question (SigLIP, arXiv 2303.15343): -log sigmoid(+-(scale * cosine + bias)) summed over the captions of
    all ranks, nats per image of this rank. The bias makes up for the few matches among many pairs.
    """

    needs_bias = True

    def loss_and_gradients(
        self, image_BD: Tensor, text: Gathered, logit_scale: Tensor, logit_bias: Tensor | None, needed: bool
    ) -> tuple[Tensor, Gradients | None]:
        assert logit_bias is not None
        scaled_BD = image_BD * logit_scale
        loss_B, grad_bias = -((scaled_BD * text.own_BD).sum(1) + logit_bias), torch.zeros_like(logit_bias)
        sums = GradientSums(image_BD, text)
        tiling = Tiling(image_BD, text, self.tile, num_buffers=1)
        for tile in tiling.tiles(own_first=False):
            (grad_RC,) = tiling.buffers(tile)
            torch.mm(scaled_BD[tile.rows], text[tile.columns].T, out=grad_RC)
            grad_RC.add_(logit_bias)
            loss_B[tile.rows] += F.softplus(grad_RC).sum(1)
            if not needed:
                continue
            grad_RC.sigmoid_()
            if tile.diagonal is not None:
                grad_RC.diagonal(tile.diagonal).sub_(1.0)
            grad_bias += grad_RC.sum()
            sums.add(tile, grad_RC)
        gradients = gradients_of(sums, logit_scale, 1 / len(image_BD), grad_bias) if needed else None
        return loss_B, gradients
