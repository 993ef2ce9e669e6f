"""The vision tower: a vision transformer of timm by its name, with a projection into the common space.

Shapes: B images, H and W pixels, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from mc2.model.attention import Attention
from mc2.model.initialisation import init_block


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer of timm. None keeps what the name says; `timm_kwargs` go to the model as they are (patch_drop_rate, qk_norm, reg_tokens, ...).

    The default is CLIP's form: class token, norm before the blocks, no bias in the patch embedding.

    readout: "pool" takes what timm pools (the class token, say); "concat" puts the final states of all positions side by side. The second keeps where things
    are, and learns several times faster on small pictures; its projection grows with the grid.
    """

    name: str = "vit_base_patch16_clip_224"
    image_size: int = 224
    patch_size: int | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    readout: Literal["pool", "concat"] = "pool"
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
        width, positions = self.trunk.num_features, self.trunk.patch_embed.num_patches + self.trunk.num_prefix_tokens
        self.projection = nn.Linear(width * positions if config.readout == "concat" else width, embed_dim, bias=False)
        if config.readout == "concat":
            self.trunk.fc_norm = nn.Identity()  # the norm of timm's pooling would get no gradient, which DDP refuses
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """CLIP's standard deviations: of class token, positions and projection (RECIPE 2.2), and of its blocks, which for the text tower are published.

        timm's own 0.02 for every matrix starts narrow blocks near zero: all images begin with nearly the same feature (experiments/LOG.md).
        """
        width = self.trunk.num_features
        for parameter in (self.trunk.cls_token, self.trunk.pos_embed):
            if parameter is not None:
                nn.init.normal_(parameter, std=width**-0.5)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        for block in self.trunk.blocks:
            init_block(block.get_submodule("attn"), block.get_submodule("mlp"), width, len(self.trunk.blocks))

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        features = self.trunk.forward_features(pixels_B3HW)
        features = features.flatten(1) if self.config.readout == "concat" else self.trunk.forward_head(features)
        image_BD: Tensor = self.projection(features)
        return image_BD
