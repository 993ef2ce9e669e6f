"""Multi-head self-attention that both towers use: names and calling form of timm's own, so that timm's vision transformers take it as `attn_layer`.

Shapes: B sequences, H heads, L positions, W width, E = W / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(query_BHLE: Tensor, key_BHLE: Tensor, value_BHLE: Tensor, mask: Tensor | None, causal: bool, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention, (B, H, L, E), in the type of its input.

    On the CPU it is computed in fp32 whatever the input: the backward pass of the bf16 kernel is 20 times slower there for short sequences.
    """
    if query_BHLE.device.type != "cpu":
        return F.scaled_dot_product_attention(query_BHLE, key_BHLE, value_BHLE, attn_mask=mask, is_causal=causal, dropout_p=dropout)
    with torch.autocast("cpu", enabled=False):
        query, key, value = query_BHLE.float(), key_BHLE.float(), value_BHLE.float()
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout).to(value_BHLE.dtype)


class Attention(nn.Module):
    """Self-attention with one projection for query, key and value. Parameters are named as timm's are: qkv, q_norm, k_norm, norm, proj."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] = nn.LayerNorm,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"attention: found width {dim} and {num_heads} heads, need a width that the heads divide; change width or heads"
            )
        on = {"device": device, "dtype": dtype}
        self.num_heads, self.head_dim, self.dropout = num_heads, dim // num_heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **on)
        self.q_norm = norm_layer(self.head_dim, **on) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(self.head_dim, **on) if qk_norm else nn.Identity()
        self.norm = norm_layer(dim, **on) if scale_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **on)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}"

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, L, W) -> (B, L, W). With `is_causal` a position sees itself and what is before it."""
        batch, length, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(self.q_norm(query), self.k_norm(key), value, attn_mask, is_causal, self.dropout if self.training else 0.0)
        projected: Tensor = self.proj_drop(self.proj(self.norm(mixed.transpose(1, 2).reshape(batch, length, width))))
        return projected
