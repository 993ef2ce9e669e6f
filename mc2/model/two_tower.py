"""Two towers and the scale of their logits: images and captions into one space.

Shapes: B pairs on this rank, H and W pixels, L tokens, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mc2.model.text_tower import TextConfig, TextTower
from mc2.model.vision_tower import VisionConfig, VisionTower

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TwoTowerConfig:
    """Everything that decides the shapes of a model. `mean` and `std` are of RGB in [0, 1]; the logit scale starts at `init_logit_scale`.

    init_logit_bias: where the bias of the logits starts, for SigmoidLoss (SigLIP: -10, with init_logit_scale 10); None: no bias, as ContrastiveLoss needs.
    """

    embed_dim: int = 512
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    init_logit_scale: float = 1 / 0.07
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    init_logit_bias: float | None = None

    def __post_init__(self) -> None:
        if self.embed_dim < 1 or self.init_logit_scale <= 0 or min(self.std) <= 0:
            raise ValueError(
                f"two towers: found embed_dim {self.embed_dim}, init_logit_scale {self.init_logit_scale}, std {self.std}, need all above 0"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain types only."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TwoTowerConfig:
        """The inverse of `to_json`. Errors: ValueError for keys or sizes that this version does not know."""
        try:
            plain = {**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])}
            return cls(**{**plain, "vision": VisionConfig(**value["vision"]), "text": TextConfig(**value["text"])})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"two towers: the stored configuration is of another version ({error}); export the model again with this one"
            ) from error


class LogitScale(nn.Module):
    """exp of a learned logarithm: a scalar.

    A module of its own with a parameter of shape [1], because FSDP2 shards no scalars and this one must stay fp32 (in bf16 100 becomes 99).
    """

    def __init__(self, init: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor([math.log(init)]))

    def forward(self) -> Tensor:
        return self.log.squeeze(0).exp()  # in this order: FSDP2 wants no view as output


class LogitBias(nn.Module):
    """A learned number that is added to all logits, a scalar. A module of its own for the same reasons as LogitScale."""

    def __init__(self, init: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([init]))

    def forward(self) -> Tensor:
        return self.bias.sum()  # FSDP2 wants no view as output


class Features(NamedTuple):
    """What a loss needs of a batch: features (B, D) and scalars; the bias is None for towers without one."""

    image_BD: Tensor
    text_BD: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None


def encode_in_parts(encode: Callable[[Tensor], Tensor], batch: Tensor, num_parts: int) -> Tensor:
    """The features of a batch, made in equal parts whose activations are not kept: the backward pass makes one part after the other again.

    The gradient is that of the whole batch at once, random draws (dropout) are repeated, and weights are ready for their gradient's exchange once.
    Without gradients the parts only bound memory. Source: GradCache (arXiv 2101.06983), here as recomputation inside autograd.
    """
    if num_parts == 1:
        return encode(batch)
    parts = torch.split(batch, -(-len(batch) // num_parts))
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])


class TwoTower(nn.Module):
    """CLIP: a vision tower and a text tower that agree on matching pairs. Features are fp32 and of unit length."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision, config.embed_dim)
        self.text = TextTower(config.text, config.embed_dim)
        self.logit_scale = LogitScale(config.init_logit_scale)
        self.logit_bias = None if config.init_logit_bias is None else LogitBias(config.init_logit_bias)
        for name, values in (("pixel_mean", config.mean), ("pixel_std", config.std)):  # of 0 .. 255, as images arrive
            self.register_buffer(name, 255.0 * torch.tensor(values).view(3, 1, 1), persistent=False)
        self.locked: frozenset[str] = frozenset()

    def lock(self, names: Iterable[str]) -> None:
        """Keep "vision" or "text" as it is from now on: no gradient, and evaluation mode (no dropout) whatever `train` says."""
        self.locked = frozenset(names)
        for name in self.locked:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TwoTower:
        super().train(mode)
        for name in self.locked:
            self.get_submodule(name).eval()
        return self

    def _gradient(self, tower: str) -> AbstractContextManager[None]:
        return torch.no_grad() if tower in self.locked else nullcontext()

    def encode_image(self, image_B3HW: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, D). Errors: ValueError for another type or size."""
        size = self.config.vision.image_size
        if image_B3HW.dtype != torch.uint8 or image_B3HW.shape[1:] != (3, size, size):
            raise ValueError(
                f"encode_image: found {image_B3HW.dtype} {tuple(image_B3HW.shape)}, need torch.uint8 (B, 3, {size}, {size}); "
                "give preprocessing and vision tower one image_size"
            )
        with self._gradient("vision"):
            return F.normalize(self.vision((image_B3HW - self.pixel_mean) / self.pixel_std).float(), dim=-1)

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, D)."""
        with self._gradient("text"):
            return F.normalize(self.text(tokens_BL).float(), dim=-1)

    def forward(self, image_B3HW: Tensor, tokens_BL: Tensor, micro_batches: int = 1) -> Features:
        """Of images and captions that belong together. Activations of at most B / micro_batches rows of one tower exist at a time."""
        # by the class, because FSDP2 replaces the instance's encode_* by forms that gather weights, which forward has done already
        encode_image, encode_text = partial(TwoTower.encode_image, self), partial(TwoTower.encode_text, self)
        image_BD = encode_in_parts(encode_image, image_B3HW, micro_batches)
        text_BD = encode_in_parts(encode_text, tokens_BL, micro_batches)
        return Features(image_BD, text_BD, self.logit_scale(), None if self.logit_bias is None else self.logit_bias())
