"""The vision tower: a vision transformer of timm by its name, with a projection into the common space.

Shapes: B images, H and W pixels, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from mc2.model.attention import Attention


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer of timm. None keeps what the name says; `timm_kwargs` go to the model as they are (patch_drop_rate, qk_norm, reg_tokens, ...).

    The default is CLIP's form: class token, norm before the blocks, no bias in the patch embedding.
    """

    name: str = "vit_base_patch16_clip_224"
    image_size: int = 224
    patch_size: int | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    timm_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not timm.models.is_model_in_modules(self.name, ["vision_transformer"]):
            raise ValueError(
                f"vision tower: found {self.name!r}, need a vision transformer that timm knows, such as vit_base_patch16_clip_224; "
                "`python -c \"import timm; print(timm.list_models('vit_*clip*'))\"` lists them"
            )
        if min(size for size in (self.image_size, self.patch_size, self.width, self.layers, self.heads) if size is not None) < 1:
            raise ValueError(f"vision tower: found {self}, need sizes above 0")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise ValueError(f"vision tower: found width {self.width} with {self.heads} heads, need a width that the heads divide")

    def overrides(self) -> dict[str, Any]:
        """What is said otherwise than by the name, under timm's names."""
        sizes = {"patch_size": self.patch_size, "embed_dim": self.width, "depth": self.layers, "num_heads": self.heads}
        return {"img_size": self.image_size, **{key: size for key, size in sizes.items() if size is not None}, **self.timm_kwargs}


def build_trunk(config: VisionConfig) -> VisionTransformer:
    """The transformer without weights of others and without a head. Errors: ValueError if timm refuses the settings."""
    try:
        trunk = timm.create_model(config.name, pretrained=False, num_classes=0, attn_layer=Attention, **config.overrides())
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"vision tower: timm refuses {config.name} with {config.overrides()}: {error}") from error
    assert isinstance(trunk, VisionTransformer)
    return trunk


class VisionTower(nn.Module):
    """Features of images: normalised pixels (B, 3, H, W) -> (B, D), not of unit length."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.trunk = build_trunk(config)
        self.projection = nn.Linear(self.trunk.num_features, embed_dim, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """CLIP's standard deviation, width^-0.5, for class token, positions and projection (RECIPE 2.2); blocks keep timm's."""
        for parameter in (self.trunk.cls_token, self.trunk.pos_embed, self.projection.weight):
            if parameter is not None:
                nn.init.normal_(parameter, std=self.trunk.num_features**-0.5)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        image_BD: Tensor = self.projection(self.trunk(pixels_B3HW))
        return image_BD
