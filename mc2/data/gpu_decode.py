"""JPEGs that the GPU decodes, crops and resizes, where torchvision has nvJPEG. A worker only reads them, looks at header and end, and draws the crop.

What may go wrong on the GPU would be known too late to take another pair. So a worker leaves only what its header calls a plain JPEG and what ends as one, and
decodes all else itself (PNG, WebP, CMYK, cut off, very large). A file that the GPU refuses after all is decoded on the CPU; one that is broken for both is
counted as `broken_image`, and its row is a picture of the mean colour: no batch is short.

Shapes: H and W pixels of a file.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torch.nn import functional

from mc2.data.batch import PairBatch
from mc2.data.preprocess import BrokenImage, ImagePreprocess
from mc2.data.views import Views

MOST_PIXELS = 4_000_000  # of a file for the GPU; a worker decodes larger ones faster, at a part of their size
PIXELS_AT_ONCE = 64_000_000  # decoded in the GPU's memory, 3 bytes each


class EncodedCrop(NamedTuple):
    """A JPEG, the number of its pixels, and the crop of it: left, top, right, bottom."""

    data: bytes
    pixels: int
    box: tuple[int, int, int, int]


class Files(NamedTuple):
    """The rows of a batch whose image is still a file. data: uint8, the files one after the other, of `lengths` bytes and `pixels` pixels. boxes: their crops."""

    rows: list[int]
    data: Tensor
    lengths: list[int]
    pixels: list[int]
    boxes: list[tuple[int, int, int, int]]


def left_to_gpu(data: bytes, preprocess: ImagePreprocess, seed: int) -> EncodedCrop | None:
    """A file that can be left to the GPU, with the crop that the seed draws; None for one that a worker should decode or refuse."""
    with suppress(ValueError):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        plain = colours in ("YCbCr", "Gray") and data.rstrip(b"\0").endswith(b"\xff\xd9")
        if plain and width * height <= min(MOST_PIXELS, preprocess.max_pixels):
            return EncodedCrop(data, width * height, preprocess.drawn_crop(width, height, seed))
    return None


def joined(files: Mapping[int, EncodedCrop]) -> Files:
    """The files of a batch by row."""
    data, pixels, boxes = zip(*files.values(), strict=True)
    whole = torch.frombuffer(bytearray().join(data), dtype=torch.uint8)
    return Files(list(files), whole, [len(file) for file in data], list(pixels), list(boxes))


@dataclass(frozen=True)
class GpuDecoder:
    """Puts the pictures of the files into a batch, on a device."""

    preprocess: ImagePreprocess
    device: torch.device

    def completed(self, batch: PairBatch, files: Files, views: Views, drops: Counter[str]) -> PairBatch:
        """The batch with its images on the device, and those of the files in their rows. Counts in `drops` what is broken.

        Errors: ValueError if all of it is.
        """
        images = {None: batch.image} | {views.of[name][0]: view.image for name, view in batch.views.items()}  # by size
        images = {size: image.to(self.device) for size, image in images.items()}
        broken = 0
        for row, box, picture in self._pictures(files):
            broken += picture is None
            for image in images.values():
                image[row] = self._mean_colour() if picture is None else resized_crop(picture, box, image.shape[-1])
        if broken == len(batch.keys):
            raise ValueError(
                f"data.gpu_decode: found no image of a batch that can be decoded ({', '.join(batch.keys[:3])} ...); look at the shards"
            )
        drops.update({"broken_image": broken} if broken else {})
        made = {name: view._replace(image=images[views.of[name][0]]) for name, view in batch.views.items()}
        return batch._replace(image=images[None], views=made)

    def _pictures(self, files: Files) -> Iterator[tuple[int, tuple[int, int, int, int], Tensor | None]]:
        """Row, crop and decoded picture, uint8 (3, H, W), of each file; not more than PIXELS_AT_ONCE are in memory."""
        data = torch.split(files.data, files.lengths)
        start, pixels = 0, 0
        for stop, more in enumerate([*files.pixels, PIXELS_AT_ONCE]):
            if pixels + more > PIXELS_AT_ONCE and start < stop:
                yield from zip(files.rows[start:stop], files.boxes[start:stop], self._decoded(data[start:stop]), strict=True)
                start, pixels = stop, 0
            pixels += more

    def _decoded(self, files: Sequence[Tensor]) -> list[Tensor | None]:
        try:
            return list(decode_jpegs(files, self.device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # says of none which it was
            return [self._one(file) for file in files]

    def _one(self, file: Tensor) -> Tensor | None:
        with suppress(RuntimeError):
            return decode_jpegs([file], self.device)[0]
        with suppress(BrokenImage):
            return self.preprocess.decode(file.numpy().tobytes(), whole=True).permute(2, 0, 1).to(self.device)
        return None

    def _mean_colour(self) -> Tensor:
        return torch.tensor(self.preprocess.mean, device=self.device).mul(255).round().to(torch.uint8)[:, None, None]


def decode_jpegs(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """uint8 (3, H, W) of each file on the device. Errors: RuntimeError if one of them cannot be decoded there."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions refer to torchcodec
        pictures: list[Tensor] = decode_jpeg(list(files), ImageReadMode.RGB, device)
    return pictures


def resized_crop(picture: Tensor, box: tuple[int, int, int, int], size: int) -> Tensor:
    """uint8 (3, size, size) of a box of a picture, as `ImagePreprocess.train` resizes it."""
    left, top, right, bottom = box
    crop = picture[None, :, top:bottom, left:right].float()  # CUDA has no uint8 kernel
    resized = functional.interpolate(crop, (size, size), mode="bicubic", antialias=True)
    return resized[0].round_().clamp_(0, 255).to(torch.uint8)


def can_decode(device: torch.device) -> bool:
    """Whether torchvision decodes JPEGs on this device: a GPU, and built with nvJPEG."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    file = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    try:
        return bool(decode_jpegs([torch.frombuffer(bytearray(file), dtype=torch.uint8)], device))
    except (ImportError, RuntimeError):  # no such function, or built without nvJPEG
        return False
