"""Rows on many ranks give what one table gives: values, gradients and steps of AdamW, in real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from mc2.model.token_embedding import TokenEmbedding
from tests.processes import run_processes

ROWS, WIDTH, STEPS = 11, 3, 5  # 11 rows: no even cut on 2, 3 or 4 ranks
CAPTIONS = 12


def ids_of_step(step: int, scale: int = ROWS) -> Tensor:
    """Token ids of all ranks' captions, (12, 4); most of them small, as in a language."""
    draws = torch.rand(CAPTIONS, 4, generator=torch.Generator().manual_seed(step))
    return (draws**3 * scale).to(torch.int32)


def embedding() -> TokenEmbedding:
    found = TokenEmbedding(ROWS, WIDTH)
    nn.init.normal_(found.weight, generator=torch.Generator().manual_seed(7))
    return found


def loss_of(rows_BLW: Tensor) -> Any:
    """A mean over captions of something that is not linear in the rows."""
    return (rows_BLW.float().cumsum(1).sin() * torch.arange(1, WIDTH + 1)).sum((1, 2)).mean()


def reference() -> dict[str, Any]:
    """torch's own embedding and AdamW in one process."""
    weight = nn.Parameter(embedding().weight.detach().clone())
    optimizer = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    gradients = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(nn.functional.embedding(ids_of_step(step), weight)).backward()
        assert weight.grad is not None
        gradients.append(weight.grad.tolist())
        optimizer.step()
    return {"gradients": gradients, "weight": weight.tolist()}


def trained(shape: tuple[int, ...], rank: int, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The same on a mesh, each rank with its part of the captions."""
    ranks = torch.Size(shape).numel()
    rows = embedding()
    rows.shard(init_device_mesh("cpu", shape), dtype)
    optimizer = torch.optim.AdamW(rows.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    gradients = []
    for step in range(STEPS):
        optimizer.zero_grad()
        out = rows(ids_of_step(step)[rank::ranks])
        assert out.dtype == (dtype or torch.float32)
        loss_of(out).backward()
        assert isinstance(rows.weight.grad, DTensor)
        gradients.append(rows.weight.grad.full_tensor().tolist())
        optimizer.step()
    assert isinstance(rows.weight, DTensor)
    none = rows(torch.zeros((2 if rank == 0 else 0, 1), dtype=torch.int32))  # a rank may come without captions
    torch.testing.assert_close(none, rows.weight.full_tensor()[torch.zeros_like(none[..., 0], dtype=torch.int32)].to(none.dtype))
    return {"gradients": gradients, "weight": rows.weight.full_tensor().tolist()}


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (4,), (2, 2), (2, 1)])
def test_equals_one_table(shape: tuple[int, ...]) -> None:
    need = reference()
    for found in run_processes(trained, [(shape, rank) for rank in range(torch.Size(shape).numel())]):
        for key in need:
            torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(need[key]), rtol=1e-5, atol=1e-6)


def test_rows_travel_in_bf16_and_gradients_are_summed_in_fp32() -> None:
    need = reference()
    for found in run_processes(trained, [((2,), rank, torch.bfloat16) for rank in range(2)]):
        torch.testing.assert_close(torch.tensor(found["weight"]), torch.tensor(need["weight"]), rtol=0.02, atol=0.02)


def more_ranks_than_rows(rank: int) -> list[float]:
    few = TokenEmbedding(2, 1)
    nn.init.ones_(few.weight)
    few.shard(init_device_mesh("cpu", (3,)))
    few(torch.tensor([[rank % 2]])).sum().backward()
    assert isinstance(few.weight.grad, DTensor)
    found: list[float] = few.weight.grad.full_tensor().flatten().tolist()
    return found


def test_a_rank_may_own_no_row() -> None:
    assert run_processes(more_ranks_than_rows, [(rank,) for rank in range(3)]) == [pytest.approx([2 / 3, 1 / 3])] * 3
