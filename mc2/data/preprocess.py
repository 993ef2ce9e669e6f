"""Encoded images to uint8 tensors (3, H, W): one object for training, evaluation and the model card.

Nothing is normalised here (the model does it).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

# Formats that a pool really holds under its `.jpg` (MPO, several pictures in a JPEG, opens as JPEG). Not all of PIL's: EPS calls a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")


class BrokenImage(ValueError):
    """The bytes are no image that can be decoded: `broken_image` in records.DROP_REASONS."""


class HugeImage(ValueError):
    """The header announces more pixels than allowed: `huge_image` in records.DROP_REASONS."""


@dataclass(frozen=True)
class ImagePreprocess:
    """Settings of the images: uint8 (3, image_size, image_size) out of an encoded file.

    mode: evaluation resizes the shortest edge and crops the centre ("crop"), or resizes both edges ("squash"); both equal open_clip's
    transform.
    mean, std: of the channels in [0, 1]; the model normalises with them and the model card carries them.
    scale, ratio: area and aspect ratio of the random crop of training, as in RandomResizedCrop; bicubic.
    max_pixels: an image whose header says more is refused before it is decoded.
    """

    image_size: int = 224
    mode: Literal["crop", "squash"] = "crop"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"preprocess: found image_size {self.image_size}, need at least 1")
        if self.mode not in ("crop", "squash"):
            raise ValueError(f"preprocess: found mode {self.mode!r}, need 'crop' or 'squash'")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"preprocess: found scale {self.scale}, need 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"preprocess: found ratio {self.ratio}, need 0 < least <= most")
        if min(self.std) <= 0:
            raise ValueError(f"preprocess: found std {self.std}, need three numbers above 0")
        if not 0 < self.max_pixels <= (Image.MAX_IMAGE_PIXELS or self.max_pixels):
            raise ValueError(f"preprocess: found max_pixels {self.max_pixels}, need between 1 and {Image.MAX_IMAGE_PIXELS}")

    def open(self, data: bytes) -> Image.Image:
        """The image with its header read and nothing decoded. Errors: BrokenImage, HugeImage."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of odd but readable files
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise HugeImage(f"image: {error}") from error
        except (
            Exception
        ) as error:  # PIL's readers raise whatever a broken header leads them to (struct.error, IndexError, SyntaxError, ...)
            raise BrokenImage(f"image: cannot be read ({error})") from error
        if image.width * image.height > self.max_pixels:
            raise HugeImage(f"image: found {image.width} x {image.height} pixels, need at most {self.max_pixels}")
        if not image.width * image.height:
            raise BrokenImage("image: has no pixels")
        return image

    def decode(self, data: bytes, whole: bool = False) -> Tensor:
        """The decoded image for training: uint8 (H, W, 3), a JPEG at the smallest scale (1, 1/2, 1/4, 1/8) that still fills every crop; `whole`: at scale 1.

        The pixels are PIL's: what libjpeg-turbo reads without a complaint it reads faster by itself, and PIL decides about all the rest. Errors: BrokenImage,
        HugeImage.
        """
        with suppress(ValueError):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            if width * height <= self.max_pixels:
                shrink = 1 if whole else self._shrink(width, height)
                least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
                return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB", **least, min_factor=shrink))
        image = self.open(data)
        shrink = 1 if whole else self._shrink(image.width, image.height)
        image.draft(None, (max(1, image.width // shrink), max(1, image.height // shrink)))
        return torch.from_numpy(np.array(_rgb(_decoded(image))))

    def train(self, image: bytes | Tensor, seed: int) -> Tensor:
        """A random crop drawn by the seed alone, resized bicubically; `image` is an encoded file or what `decode` made of it.

        Resized by torch, within one level of PIL's result and twice as fast.
        """
        picture = self.decode(image) if isinstance(image, bytes) else image
        left, top, right, bottom = self.drawn_crop(picture.shape[1], picture.shape[0], seed)
        crop = picture[top:bottom, left:right].permute(2, 0, 1)[None]
        resized = functional.interpolate(crop, (self.image_size, self.image_size), mode="bicubic", antialias=True)
        return resized[0].contiguous()

    def drawn_crop(self, width: int, height: int, seed: int) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the crop that the seed draws, in an image of so many pixels."""
        return random_crop(width, height, self.scale, self.ratio, _uniforms(seed))

    def evaluate(self, image: bytes | Image.Image) -> Tensor:
        """The image as open_clip's evaluation transform sees it before it normalises.

        Equal to the last bit, except where the resized image would exceed `max_pixels` on its way to the crop (1 x 60,000, say): there
        within a few levels.
        """
        picture = _decoded(self.open(image) if isinstance(image, bytes) else image)
        size = (self.image_size, self.image_size)
        # resize, crop, then RGB: the order of open_clip (a palette image is resized without interpolation)
        if self.mode == "squash":
            return _tensor(_rgb(picture.resize(size, Image.Resampling.BICUBIC)))
        width, height = shortest_edge(picture.width, picture.height, self.image_size)
        left, top = round((width - self.image_size) / 2.0), round((height - self.image_size) / 2.0)
        right, bottom = left + self.image_size, top + self.image_size
        if width * height <= self.max_pixels:
            return _tensor(_rgb(picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, right, bottom))))
        x, y = picture.width / width, picture.height / height
        return _tensor(_rgb(picture).resize(size, Image.Resampling.BICUBIC, box=(left * x, top * y, right * x, bottom * y)))

    def _shrink(self, width: int, height: int) -> int:
        """The largest divisor 1, 2, 4, 8 of both edges with which no random crop must be enlarged."""
        for shrink in (8, 4, 2):
            if shortest_crop(-(-width // shrink), -(-height // shrink), self.scale[0], self.ratio) >= self.image_size:
                return shrink
        return 1


def shortest_edge(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after the shortest edge became `size`: the other is int(size * long / short), as in torchvision."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def random_crop(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], uniforms: Iterator[float]
) -> tuple[int, int, int, int]:
    """left, top, right, bottom of a crop with area share and aspect ratio drawn uniformly (the ratio in its logarithm).

    RandomResizedCrop of torchvision: ten tries, then the largest centred crop with an allowed ratio.
    """
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * next(uniforms))
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** next(uniforms)
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(next(uniforms) * (width - crop_width + 1)), int(next(uniforms) * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = _largest_crop(width, height, ratio)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _largest_crop(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int]:
    aspect = min(max(width / height, ratio[0]), ratio[1])
    return min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))


def shortest_crop(width: int, height: int, least_scale: float, ratio: tuple[float, float]) -> float:
    """Lower bound of both edges of `random_crop`.

    The area and the ratio bound each edge, and so do the area and the other edge, which ends at the image; half a pixel is lost to rounding.
    """
    area = least_scale * width * height
    crop_width = max(math.sqrt(area * ratio[0]), area / (height + 0.5)) - 0.5
    crop_height = max(math.sqrt(area / ratio[1]), area / (width + 0.5)) - 0.5
    return min(crop_width, crop_height, *_largest_crop(width, height, ratio))


def _uniforms(seed: int) -> Iterator[float]:
    """Endless numbers in [0, 1): splitmix64 from the seed. A Generator of numpy or torch would cost more than the crop."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        yield ((z ^ (z >> 31)) >> 11) * 2.0**-53


def _decoded(image: Image.Image) -> Image.Image:
    """The image with its pixels in memory. Errors: BrokenImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:  # as in `open`: a decoder fails in many ways
        raise BrokenImage(f"image: cannot be decoded ({error})") from error
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return image.convert("RGB")


def _tensor(image: Image.Image) -> Tensor:
    """uint8 (3, H, W), contiguous."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
