"""Attention against the formula in float64, in both types."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mc2.model.attention import Attention, attend


def formula(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """One query at a time, in float64."""
    rows = []
    for position in range(query.shape[2]):
        seen = position + 1 if causal else query.shape[2]
        scores = (query[:, :, position : position + 1].double() * key[:, :, :seen].double()).sum(-1) / query.shape[-1] ** 0.5
        rows.append((scores.softmax(-1)[..., None] * value[:, :, :seen].double()).sum(2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 7, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_equals_the_formula(dtype: torch.dtype, tolerance: float, length: int, causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, length, 4, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    found, need = attend(query, key, value, None, causal), formula(query, key, value, causal)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), need, rtol=tolerance, atol=tolerance)
    weights = torch.randn(need.shape, generator=generator, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad((found.double() * weights).sum(), (query, key, value)),
        torch.autograd.grad((need * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=2 * tolerance, atol=2 * tolerance)


def test_autocast_does_not_change_the_type_that_comes_back() -> None:
    attention = Attention(8, 2)
    x = torch.randn(2, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(x).dtype == torch.bfloat16
    torch.testing.assert_close(attention(x), attention(x, attn_mask=torch.zeros(5, 5)))


def test_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="found width 8 and 3 heads"):
        Attention(8, 3)
