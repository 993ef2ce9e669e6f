"""The token embedding, whose rows may lie on many ranks: a rank asks the owners for the rows of its batch and sends their gradients back.

As one of FSDP2's groups the table would be gathered whole and get a dense gradient in every step; of 901,629 rows a batch needs at most 1.7 %.
On a mesh of two axes (HSDP) the last one shards and the first one replicates.

Shapes: V rows of the vocabulary, P of them on this rank, W width, U different ids of this rank's captions, N rows that ranks want of this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from mc2.model.ranks import local


@dataclass(frozen=True)
class Route:
    """Who wants which rows of whom. Without a group all rows are here and both ways are the identity.

    wanted_N: places in this rank's part, in the order of the ranks that want them; what two ranks want stands there twice.
    """

    wanted_N: Tensor
    group: dist.ProcessGroup | None = None
    asks: tuple[int, ...] = ()  # rows that this rank wants of each rank
    asked: tuple[int, ...] = ()  # rows that each rank wants of this one

    def to_askers(self, rows_NW: Tensor) -> Tensor:
        """What this rank wanted, (U, W), in the order of its ids."""
        return self._exchange(rows_NW, self.asked, self.asks)

    def to_owners(self, rows_UW: Tensor) -> Tensor:
        """What all ranks send for the rows of this one, (N, W)."""
        return self._exchange(rows_UW, self.asks, self.asked)

    def _exchange(self, rows: Tensor, sent: tuple[int, ...], received: tuple[int, ...]) -> Tensor:
        if self.group is None:
            return rows
        arrived = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows.contiguous(), list(received), list(sent), group=self.group)
        return arrived


def find_route(ids_U: Tensor, num_rows: int, group: dist.ProcessGroup | None) -> Route:
    """The way from different ids in rising order to the parts they lie in. A collective of the group; a rank may come without ids."""
    ranks = group_size(group)
    if group is None or ranks == 1:
        return Route(ids_U)
    part = -(-num_rows // ranks)  # as DTensor cuts: the last parts may be shorter or empty
    asks = torch.bincount(ids_U // part, minlength=ranks)
    asked = torch.empty_like(asks)
    dist.all_to_all_single(asked, asks, group=group)
    route = Route(ids_U, group, tuple(asks.tolist()), tuple(asked.tolist()))
    return Route(route.to_owners(ids_U) - dist.get_rank(group) * part, group, route.asks, route.asked)


@dataclass(frozen=True)
class Use:
    """The rows that a forward pass took when no dense gradient is wanted. After the backward pass `rows_UW.grad` is theirs; a pass that is made again has none."""

    route: Route
    rows_UW: Tensor


class _Fetch(torch.autograd.Function):
    """Rows of a sharded table by their route, which travel in `dtype`; the gradient of this rank's part is averaged over all ranks, as FSDP2 does."""

    @staticmethod
    def forward(ctx: Any, part_PW: Tensor, route: Route, replicas: dist.ProcessGroup | None, dtype: torch.dtype) -> Tensor:
        ctx.route, ctx.replicas, ctx.shape = route, replicas, part_PW.shape
        return route.to_askers(part_PW.index_select(0, route.wanted_N).to(dtype)).to(part_PW.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        grad_NW = ctx.route.to_owners(grad_outputs[0])
        grad_PW = grad_NW.new_zeros(ctx.shape).index_add_(0, ctx.route.wanted_N, grad_NW)
        if ctx.replicas is not None:
            dist.all_reduce(grad_PW, group=ctx.replicas)
        return grad_PW.div_(group_size(ctx.route.group) * group_size(ctx.replicas)), None, None, None


def group_size(group: dist.ProcessGroup | None) -> int:
    """Ranks of a group; 1 without one."""
    return dist.get_world_size(group) if group is not None else 1


class TokenEmbedding(nn.Module):
    """Rows of a table by their ids: (B, L) -> (B, L, W). After `shard` every rank of the mesh must call it equally often.

    `read`, if set, gives the values of rows, (N, W), by their places in this rank's part instead of the table, and the table gets no gradient: forward passes
    of training are kept in `uses`, whose owner empties them.
    """

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.weight = nn.Parameter(torch.empty(num_rows, width))
        self.shards: dist.ProcessGroup | None = None
        self.replicas: dist.ProcessGroup | None = None
        self.dtype: torch.dtype | None = None
        self.read: Callable[[Tensor], Tensor] | None = None
        self.uses: list[Use] = []

    def shard(self, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
        """Keep only this rank's rows, as a DTensor. All ranks must have the same weights. Rows travel, and come out, in `dtype`; None keeps theirs."""
        trained, placements = self.weight.requires_grad, [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
        self.weight = nn.Parameter(distribute_tensor(self.weight.detach(), mesh, placements), requires_grad=trained)
        self.shards, self.dtype = mesh.get_group(mesh.ndim - 1), dtype
        self.replicas = mesh.get_group(0) if mesh.ndim == 2 else None

    def forward(self, ids_BL: Tensor) -> Tensor:
        if self.read is None and not isinstance(self.weight, DTensor):
            return F.embedding(ids_BL, self.weight)
        dtype = self.dtype or self.weight.dtype
        ids_U, place_BL = torch.unique(ids_BL, return_inverse=True)
        route = find_route(ids_U, self.num_rows, self.shards)
        if self.read is None:
            rows_UW: Tensor = _Fetch.apply(local(self.weight), route, self.replicas, dtype)
        else:
            rows_UW = route.to_askers(self.read(route.wanted_N).to(dtype)).to(self.weight.dtype)
            if self.training and torch.is_grad_enabled():
                self.uses.append(Use(route, rows_UW.requires_grad_()))
        return F.embedding(place_BL, rows_UW).to(dtype)  # in the weights' type up to here: gradients of equal ids are summed in it
