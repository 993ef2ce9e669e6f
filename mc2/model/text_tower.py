"""The text tower: a causal transformer whose hidden state at the first end-of-sequence token is the caption's feature (CLIP; RECIPE 2.2).

Shapes: B captions, L tokens, V vocabulary, W width, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mc2.model.attention import Attention
from mc2.model.initialisation import init_block
from mc2.model.token_embedding import TokenEmbedding

Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True)
class TextConfig:
    """Size of the text tower. Vocabulary, context and eos id are the tokenizer's."""

    vocab_size: int = 8000
    context_length: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    eos_id: int = 2

    def __post_init__(self) -> None:
        if min(self.context_length, self.width, self.layers, self.heads) < 1 or self.mlp_ratio <= 0:
            raise ValueError(f"text tower: found {self}, need sizes above 0")
        if self.width % self.heads:
            raise ValueError(f"text tower: found width {self.width} with {self.heads} heads, need a width that the heads divide")
        if not 0 <= self.eos_id < self.vocab_size:
            raise ValueError(f"text tower: found eos_id {self.eos_id} with vocab_size {self.vocab_size}, need an id inside the vocabulary")


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the activation of CLIP's first models and of ViT-H/14 worldwide at 224 px."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class MLP(nn.Module):
    """Two linear maps with the activation between them, position by position."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class TextBlock(nn.Module):
    """Pre-norm transformer block; every position sees itself and the ones before it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, int(config.mlp_ratio * config.width), config.activation)

    def forward(self, x_BLW: Tensor) -> Tensor:
        x_BLW = x_BLW + self.attn(self.norm1(x_BLW), is_causal=True)
        x_BLW = x_BLW + self.mlp(self.norm2(x_BLW))
        return x_BLW


class TextTower(nn.Module):
    """Features of captions: (B, L) token ids, L at most `context_length` -> (B, D), not normalised.

    What follows the first eos cannot change the result, so batches are trimmed to their longest caption at no loss. Every row needs an eos.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = TokenEmbedding(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.Sequential(*(TextBlock(config) for _ in range(config.layers)))
        self.ln_final = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Standard deviations of CLIP's initialisation (RECIPE 2.2)."""
        width, layers = self.config.width, self.config.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)
        for block in self.blocks.children():
            assert isinstance(block, TextBlock)
            init_block(block.attn, block.mlp, width, layers)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        length = tokens_BL.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"text tower: found {length} tokens, need at most {self.config.context_length}; give tokenizer and model one context_length"
            )
        x_BLW = self.token_embedding(tokens_BL) + self.position_embedding[:length]
        x_BLW = self.blocks(x_BLW)
        first_eos_B = (tokens_BL == self.config.eos_id).int().argmax(dim=1)  # argmax gives the first of equal values
        x_BW = x_BLW[torch.arange(x_BLW.shape[0], device=x_BLW.device), first_eos_B]
        text_BD: Tensor = self.projection(self.ln_final(x_BW))
        return text_BD
