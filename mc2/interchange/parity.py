"""Is a converted model the same model? Both sides get the same pixels, pictures and texts; the report stands beside the weights.

Shapes: N images, T texts, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mc2.interchange.model_directory import Clip

FEATURE_TOLERANCE = 1e-4  # of features of unit length: fp32 sums in another order
LOGIT_TOLERANCE = 1e-2  # of logits up to 100

TEXTS = (
    "a photo of a red fox", "ein Fuchs im Schnee", "キツネと雪", "лиса в лесу", "雪地里的一只狐狸", "ثعلب أحمر", "สุนัขจิ้งจอก", "여우 한 마리", "लोमड़ी", "una volpe (rossa), davvero!",
    "  two   spaces\tand a tab ", "ﬁne ﬃ ＡＢＣ", "",
    "un très long texte, plus long que ce que le modèle peut lire, " * 12,
)  # fmt: skip


@dataclass(frozen=True)
class OtherSide:
    """A model in another tool, with that tool's own preprocessing and tokenizer; None for what the tool does not have.

    pixels: pictures -> normalised fp32 (N, 3, H, W). encode_pixels: these -> (N, D) of any length. tokens: texts -> ids (T, L), padded to any length.
    encode_tokens: int64 ids -> (T, D) of any length.
    """

    encode_pixels: Callable[[Tensor], Tensor]
    pixels: Callable[[list[Image.Image]], Tensor] | None = None
    encode_tokens: Callable[[Tensor], Tensor] | None = None
    tokens: Callable[[list[str]], Tensor] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None


@dataclass(frozen=True)
class Parity:
    """Largest differences between both sides: of unit features, of logits, of a picture's mean pixel level (0 .. 255); number of texts with other ids.

    Pictures may be a pixel off, because tools round the corner of a crop differently: the pictures here rise by 256 levels from edge to edge, so that a
    pixel is 256 / image_size levels, while crop and squash are 24 apart. None for what the other tool does not have.
    """

    image_features: float
    text_features: float | None
    logits: float | None
    pixel_levels: float | None
    texts_with_other_ids: int | None
    num_images: int
    num_texts: int
    image_size: int

    def check(self, where: str) -> None:
        """Errors: ValueError if the sides are not the same model."""
        limits = {
            "image_features": FEATURE_TOLERANCE, "text_features": FEATURE_TOLERANCE, "logits": LOGIT_TOLERANCE, "pixel_levels": 2 + 1.5 * 256 / self.image_size,
            "texts_with_other_ids": 0,
        }  # fmt: skip
        found = {name: value for name, value in asdict(self).items() if name in limits and value is not None}
        wrong = [f"{name} {value:.3g} (at most {limits[name]})" for name, value in found.items() if not value <= limits[name]]
        if wrong:
            raise ValueError(
                f"{where}: both sides differ: {', '.join(wrong)}; nothing was written. Check activation (size with or without quickgelu), resize mode (crop or "
                "squash) and tokenizer"
            )


@torch.no_grad()
def parity(clip: Clip, other: OtherSide) -> Parity:
    """Compare a model with the same model elsewhere. Errors: ValueError if the other side's pictures have another size."""
    images, texts = pictures(), list(TEXTS)
    levels = torch.stack([clip.preprocess.evaluate(image) for image in images])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.preprocess.mean, clip.preprocess.std))
    image_ND, other_image_ND = clip.towers.encode_image(levels), unit(other.encode_pixels((levels / 255 - mean) / std))
    pixel_levels, text_features, logits, other_ids = None, None, None, None
    if other.pixels is not None:
        pixel_levels = level_difference(levels, (other.pixels(images) * std + mean) * 255)
    ids = full_length(clip.tokenizer(texts), clip)
    if other.tokens is not None:
        other_ids = int((ids != full_length(other.tokens(texts), clip)).any(dim=1).sum())
    if other.encode_tokens is not None:
        text_TD, other_text_TD = clip.towers.encode_text(ids), unit(other.encode_tokens(ids))
        text_features = largest(text_TD - other_text_TD)
        if other.logit_scale is not None:
            difference = clip.logit_scale * image_ND @ text_TD.T - other.logit_scale * other_image_ND @ other_text_TD.T
            logits = largest(difference + (clip.logit_bias or 0.0) - (other.logit_bias or 0.0))
    return Parity(
        largest(image_ND - other_image_ND), text_features, logits, pixel_levels, other_ids, len(images), len(texts), levels.shape[-1]
    )


def level_difference(own_N3HW: Tensor, their_N3HW: Tensor) -> float:
    """Errors: ValueError for pictures of another size."""
    if own_N3HW.shape != their_N3HW.shape:
        raise ValueError(
            f"parity: found pictures {tuple(their_N3HW.shape)} on the other side, need {tuple(own_N3HW.shape)}; give the right size"
        )
    return float((own_N3HW - their_N3HW).abs().flatten(1).mean(1).max())


def largest(difference: Tensor) -> float:
    """The largest absolute value; infinity where one is no number."""
    value = float(difference.abs().max())
    return math.inf if math.isnan(value) else value


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def full_length(tokens_TL: Tensor, clip: Clip) -> Tensor:
    """int64 ids padded to the context length, or cut to it: tools differ in how far they pad."""
    length = clip.towers.config.text.context_length
    padded = torch.full((len(tokens_TL), length), clip.tokenizer.pad_id, dtype=torch.int64)
    padded[:, : tokens_TL.shape[1]] = tokens_TL[:, :length]
    return padded


def pictures() -> list[Image.Image]:
    """Pictures of several shapes, whose red rises from left to right, green from top to bottom and blue from right to left."""
    sizes = ((640, 400), (300, 520), (256, 256), (90, 60))
    return [Image.fromarray(gradients(width, height)) for width, height in sizes]


def gradients(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = x * 255 // (width - 1), y * 255 // (height - 1)
    return np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
