"""The contrastive loss over the pairs of all ranks, one-sided and tiled: no B x G matrix is ever stored, forward or backward.

Every rank holds the logits of its own images against all captions, a tile of columns at a time. A column's log-sum-exp runs over all ranks and is
completed by an all-reduce of one number a column; the backward pass computes each tile again and sums the gradients of the captions over ranks.
The loss of a rank is the mean over its own pairs. Gradients of the ranks are then *averaged*, as DDP and FSDP do: no factor is missing or left over.

Shapes: B pairs on this rank, G pairs on all ranks, C columns of a tile, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def num_ranks() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(own_BD: Tensor) -> Tensor:
    """The rows of all ranks in the order of ranks, (G, D). No gradient."""
    if num_ranks() == 1:
        return own_BD
    all_GD = own_BD.new_empty(num_ranks() * len(own_BD), own_BD.shape[1])
    dist.all_gather_into_tensor(all_GD, own_BD.contiguous())
    return all_GD


def log_sum_exp_over_ranks(own_G: Tensor) -> Tensor:
    """log of the sum over ranks of exp, element by element."""
    if num_ranks() == 1:
        return own_G
    peak_G = own_G.clone()
    dist.all_reduce(peak_G, op=dist.ReduceOp.MAX)
    sum_G = (own_G - peak_G).exp()
    dist.all_reduce(sum_G)
    return peak_G + sum_G.log()


def sum_of_own_rows(all_GD: Tensor) -> Tensor:
    """The sum over ranks, of which each rank gets its own rows (B, D)."""
    if num_ranks() == 1:
        return all_GD
    own_BD = all_GD.new_empty(len(all_GD) // num_ranks(), all_GD.shape[1])
    dist.reduce_scatter_tensor(own_BD, all_GD)
    return own_BD


class _TiledCrossEntropy(torch.autograd.Function):
    """Half the cross-entropy of rows plus half that of columns, mean over this rank's pairs."""

    @staticmethod
    def forward(ctx: Any, image_BD: Tensor, text_BD: Tensor, scale: Tensor, tile: int) -> Tensor:
        text_GD = gather(text_BD)
        first = dist.get_rank() * len(image_BD) if num_ranks() > 1 else 0
        row_B, column_G = image_BD.new_full((len(image_BD),), -math.inf), image_BD.new_empty(len(text_GD))
        for start in range(0, len(text_GD), tile):
            logits_BC = (image_BD @ text_GD[start : start + tile].T) * scale
            row_B = torch.logaddexp(row_B, logits_BC.logsumexp(1))
            column_G[start : start + tile] = logits_BC.logsumexp(0)
        column_G = log_sum_exp_over_ranks(column_G)
        ctx.save_for_backward(image_BD, text_GD, scale, row_B, column_G)
        ctx.tile, ctx.first = tile, first
        matching_B = scale * (image_BD * text_BD).sum(1)
        return 0.5 * (row_B + column_G[first : first + len(image_BD)]).mean() - matching_B.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        image_BD, text_GD, scale, row_B, column_G = ctx.saved_tensors
        grad_image_BD, grad_text_GD, grad_scale = torch.zeros_like(image_BD), torch.empty_like(text_GD), torch.zeros_like(scale)
        for start in range(0, len(text_GD), ctx.tile):
            columns = slice(start, start + ctx.tile)
            cosine_BC = image_BD @ text_GD[columns].T
            logits_BC = cosine_BC * scale
            grad_BC = (logits_BC - row_B[:, None]).exp_() + (logits_BC - column_G[columns]).exp_()
            grad_BC.diagonal(ctx.first - start).sub_(2.0)  # my pairs' own columns; empty where this tile has none of them
            grad_BC *= grad_outputs[0] / (2 * len(image_BD))
            grad_scale += (grad_BC * cosine_BC).sum()
            grad_BC *= scale
            grad_image_BD += grad_BC @ text_GD[columns]
            grad_text_GD[columns] = grad_BC.T @ image_BD
        return grad_image_BD, sum_of_own_rows(grad_text_GD), grad_scale, None


class ContrastiveLoss(nn.Module):
    """Symmetric softmax cross-entropy in nats per pair: which caption of all ranks belongs to my image, which image to my caption.

    `tile` columns of logits exist at a time; extra memory is O(G D + B tile). Every rank must have the same number of pairs and must average
    (not sum) gradients over ranks. Always fp32, whatever autocast says: between 64 and 128 neighbouring bf16 numbers are 0.5 apart.
    """

    def __init__(self, tile: int = 8192) -> None:
        super().__init__()
        if tile < 1:
            raise ValueError(f"loss.tile: found {tile}, need at least 1 column")
        self.tile = tile

    def forward(self, image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor) -> Tensor:
        """Features of unit length, row i of both a pair; logit scale a scalar. Errors: ValueError if the shapes differ."""
        if image_BD.shape != text_BD.shape:
            raise ValueError(f"loss: found {tuple(image_BD.shape)} image and {tuple(text_BD.shape)} text features, need the same shape")
        with torch.autocast(image_BD.device.type, enabled=False):
            loss: Tensor = _TiledCrossEntropy.apply(image_BD.float(), text_BD.float(), logit_scale.float(), self.tile)
        return loss
