"""The logits of this rank's images and the captions of all ranks, a tile at a time: no B x G matrix is ever stored.

Shapes: B pairs on this rank, G pairs on all ranks, R rows and C columns of a tile, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mc2.model.ranks import Gathered, SumOfOwnRows, log_sum_exp_over_ranks


class Tile(NamedTuple):
    """Some images of this rank against some captions of all ranks. `diagonal` is the offset of the diagonal with the pairs if the captions are this rank's,
    None if they are others'.
    """

    rows: slice
    columns: slice
    diagonal: int | None


class Tiling:
    """The tiles of at most `side` ** 2 logits, at most `side` rows each, and memory that every tile uses again (fresh memory would cost more time than what is
    computed in it).
    """

    def __init__(self, image_BD: Tensor, text: Gathered, side: int, num_buffers: int) -> None:
        self._text, self._num_rows, self._height = text, len(image_BD), min(side, len(image_BD))
        self._width = min(text.num_rows, side * side // self._height)
        self._flat = [image_BD.new_empty(self._height * self._width) for _ in range(num_buffers)]

    def tiles(self, own_first: bool) -> Iterator[Tile]:
        """This rank's own captions come first, while those of others are on their way, or last, while what was computed for those of others is."""
        text = self._text
        own, others = (text.first, text.last), ((0, text.first), (text.last, text.num_rows))
        for first, last in (own, *others) if own_first else (*others, own):
            for column in range(first, last, self._width):
                for row in range(0, self._num_rows, self._height):
                    diagonal = row - (column - text.first) if first == text.first else None
                    rows, columns = min(row + self._height, self._num_rows), min(column + self._width, last)
                    yield Tile(slice(row, rows), slice(column, columns), diagonal)

    def buffers(self, tile: Tile) -> list[Tensor]:
        """Tensors (R, C) with whatever is in them."""
        rows, columns = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        return [flat[: rows * columns].view(rows, columns) for flat in self._flat]


def log_sum_exp(image_BD: Tensor, text: Gathered, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Of the logits of `image_BD` (times the scale) and `text`: over all captions for each image of this rank, (B,), and over all images of all ranks for
    each caption, (G,). Needs two buffers.
    """
    row_B, column_G = image_BD.new_full((len(image_BD),), -math.inf), image_BD.new_full((text.num_rows,), -math.inf)
    for tile in tiling.tiles(own_first=True):
        logits_RC, work_RC = tiling.buffers(tile)
        torch.mm(image_BD[tile.rows], text[tile.columns].T, out=logits_RC)
        for total, dim in ((row_B[tile.rows], 1), (column_G[tile.columns], 0)):
            peak = logits_RC.amax(dim, keepdim=True)
            torch.sub(logits_RC, peak, out=work_RC)
            torch.logaddexp(total, work_RC.exp_().sum(dim).log_().add_(peak.squeeze(dim)), out=total)
    return row_B, log_sum_exp_over_ranks(column_G)


class GradientSums:
    """Gradients of the features, from those of the logits tile by tile; the tiles with this rank's own captions must come last."""

    def __init__(self, image_BD: Tensor, text: Gathered) -> None:
        self._image_BD, self._text = image_BD, text
        self._grad_image_BD, self._grad_own_text_BD = torch.zeros_like(image_BD), torch.zeros_like(image_BD)
        self._grad_others_GD = image_BD.new_zeros(text.num_rows, image_BD.shape[1]) if text.num_rows > len(image_BD) else None
        self._sum: SumOfOwnRows | None = None

    def add(self, tile: Tile, grad_RC: Tensor) -> None:
        """Take the gradient of a tile's logits."""
        self._grad_image_BD[tile.rows].addmm_(grad_RC, self._text[tile.columns])
        if tile.diagonal is None:
            assert self._grad_others_GD is not None
            self._grad_others_GD[tile.columns].addmm_(grad_RC.T, self._image_BD[tile.rows])
            return
        if self._grad_others_GD is not None and self._sum is None:
            self._sum = self._text.send_sums(self._grad_others_GD)
        own = slice(tile.columns.start - self._text.first, tile.columns.stop - self._text.first)
        self._grad_own_text_BD[own].addmm_(grad_RC.T, self._image_BD[tile.rows])

    def total(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the tiles of gradient x caption for each image, (B, D), of gradient x image for each caption of this rank over all ranks, (B, D), and of
        gradient x cosine, a scalar.
        """
        if self._sum is not None:
            self._grad_own_text_BD += self._sum.wait()
        return self._grad_image_BD, self._grad_own_text_BD, (self._grad_image_BD * self._image_BD).sum()
