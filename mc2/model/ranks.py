"""Features, sums and parts of tensors across the processes that train together. Without a process group there is one, and nothing is exchanged.

Shapes: B pairs on this rank, G pairs on all ranks, D embedding.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def num_ranks() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """The number of this process; 0 without a process group."""
    return dist.get_rank() if num_ranks() > 1 else 0


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, of the same memory; a plain tensor as it is."""
    part: Tensor = cast(Any, tensor).to_local() if isinstance(tensor, DTensor) else tensor
    return part


class HostCopy:
    """A few numbers on their way to the host. The copy is queued behind what made them; to read them waits for that, not for what the device got to do since."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._copied = values, None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def values(self) -> Tensor:
        """On the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values

    def tolist(self) -> list[float]:
        values: list[float] = self.values().tolist()
        return values


class BatchSizes:
    """The numbers of pairs of all ranks, on their way since before the towers ran: where the loss reads them they are there, and the device has work queued.

    A collective, also where the batches differ.
    """

    def __init__(self, own: int, device: torch.device) -> None:
        self._sizes: HostCopy | None = None
        if num_ranks() > 1:
            self._on_device = sizes = torch.empty(num_ranks(), dtype=torch.int64, device=device)  # kept: another stream reads it
            work = dist.all_gather_into_tensor(sizes, torch.full((1,), own, device=device), async_op=True)
            assert work is not None  # it would be for a process outside the group
            with torch.cuda.stream(torch.cuda.Stream(device)) if sizes.is_cuda else nullcontext():  # type: ignore[no-untyped-call]
                work.wait()  # only the copy waits, not what the device does meanwhile
                self._sizes = HostCopy(sizes)

    def check(self) -> None:
        """Errors: ValueError on all ranks if they have different numbers of pairs: the collectives that follow would hang or mix rows."""
        found = self._sizes.tolist() if self._sizes is not None else []
        if len(set(found)) > 1:
            raise ValueError(
                f"loss: found batches of {found} pairs on the ranks, need the same number on each; let the loader drop the last, smaller batch (drop_last)"
            )


class Gathered:
    """The rows of all ranks in the order of ranks, on their way: this rank's own are known at once. No gradient."""

    def __init__(self, own_BD: Tensor) -> None:
        self.first, self.last = own_rank() * len(own_BD), (own_rank() + 1) * len(own_BD)
        self.own_BD, self.num_rows = own_BD.contiguous(), num_ranks() * len(own_BD)
        self._all_GD, self._work = self.own_BD, None
        if num_ranks() > 1:
            self._all_GD = own_BD.new_empty(self.num_rows, own_BD.shape[1])
            self._work = dist.all_gather_into_tensor(self._all_GD, self.own_BD, async_op=True)

    def __getitem__(self, rows: slice) -> Tensor:
        """Some rows; waits unless they are this rank's own."""
        if self.first <= rows.start and rows.stop <= self.last:
            return self.own_BD[rows.start - self.first : rows.stop - self.first]
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._all_GD[rows]

    def send_sums(self, all_GD: Tensor) -> SumOfOwnRows:
        """Begin to sum what every rank has for the rows of all."""
        return SumOfOwnRows(all_GD)


def log_sum_exp_over_ranks(own_G: Tensor) -> Tensor:
    """log of the sum over ranks of exp, element by element."""
    if num_ranks() == 1:
        return own_G
    peak_G = own_G.clone()
    dist.all_reduce(peak_G, op=dist.ReduceOp.MAX)
    sum_G = (own_G - peak_G).exp()
    dist.all_reduce(sum_G)
    return peak_G + sum_G.log()


class SumOfOwnRows:
    """The sum over ranks of (G, D), of which each rank gets its own rows (B, D), on its way."""

    def __init__(self, all_GD: Tensor) -> None:
        self._all_GD = all_GD  # kept until it is sent
        self._own_BD = all_GD.new_empty(len(all_GD) // num_ranks(), all_GD.shape[1])
        work = dist.reduce_scatter_tensor(self._own_BD, all_GD, async_op=True)
        assert work is not None  # it would be for a process outside the group
        self._work = work

    def wait(self) -> Tensor:
        """(B, D)."""
        self._work.wait()
        return self._own_BD
