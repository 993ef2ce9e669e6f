"""64 bits that stand for the look of an image (RECIPE 1.5): signs of the embedding's products with 64 random directions.

Two embeddings at an angle a differ in 64 a / pi bits on average: cosine 0.99 in 2.9 bits, 0.95 in 6.5, 0 in 32. Which encoder and which radius were used for
the published models is not known; both are settings here.

Shapes: N images, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mc2 import storage

FloatArray: TypeAlias = NDArray[np.floating[Any]]
HashArray: TypeAlias = NDArray[np.uint64]
NUM_BITS = 64


class ImageEncoder(ABC):
    """Images to embeddings. Named by class_path in YAML or on the command line; each worker process builds its own."""

    edge: int = 0  # pixels: JPEGs may be decoded at a smaller scale as long as both edges keep this many; 0: always at full size

    @property
    @abstractmethod
    def identity(self) -> str:
        """Everything that an embedding depends on, in one line (name, settings, hash of the weights): hashes are compared only where it is equal."""

    @abstractmethod
    def __call__(self, images: Sequence[Image.Image]) -> FloatArray:
        """Decoded images of any size and mode -> float (N, D), finite."""


# --- the encoder without weights ----------------------------------------------------------------------------------------

_THUMBNAIL, _LUMA, _CHROMA = 32, 8, 4
_UNIT = 2.0**15  # of the cosines: two of their sums over 32 pixels of 8 bits have 43 bits, a float64 holds 53


class DctEncoder(ImageEncoder):
    """The lowest frequencies of a small copy of the image: finds re-encoded and resized copies, not pictures of the same thing. Needs no weights.

    The image is squashed to 32 x 32 pixels; of the cosine transform of its brightness the 8 x 8 lowest frequencies are taken without the mean, and 4 x 4 of
    each of its colours. Each is multiplied by its frequency, because the amplitudes of natural images fall with it. D = 95. Copies differ in 0 to
    4 bits, photographs of different things in 16 and more; drawings that differ in a detail only (one emoji in two skin tones) count as copies. It is a stand-in
    that works anywhere, not the unknown model of the published run.
    """

    edge = 2 * _THUMBNAIL

    @property
    def identity(self) -> str:
        return "mc2 dct 2"

    def __call__(self, images: Sequence[Image.Image]) -> FloatArray:
        thumbnails = [image.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX).convert("YCbCr") for image in images]
        pixels = np.array([np.asarray(thumbnail) for thumbnail in thumbnails], np.float64).reshape(-1, _THUMBNAIL, _THUMBNAIL, 3) - 128
        luma = _low_frequencies(pixels[..., 0], _LUMA)[:, 1:]
        return np.concatenate([luma, *(_low_frequencies(pixels[..., channel], _CHROMA) for channel in (1, 2))], axis=1)


def _low_frequencies(pixels: FloatArray, number: int) -> FloatArray:
    """Cosine transform (type II) of whole (N, edge, edge) -> the lowest (N, number * number), each times its frequency (the mean times 1/2).

    The cosines are rounded to whole numbers too, so that sums are exact on every processor, and nothing but zeros is left of an even picture.
    """
    edge, frequency = pixels.shape[-1], np.arange(number)
    cosine = np.cos(np.pi / edge * np.outer(frequency, np.arange(edge) + 0.5))
    basis = np.rint(_UNIT * cosine * np.where(frequency, np.sqrt(2 / edge), np.sqrt(1 / edge))[:, None])
    weight = np.maximum(np.sqrt(np.add.outer(frequency**2, frequency**2)), 0.5)
    transformed: FloatArray = (basis @ pixels @ basis.T * weight).reshape(len(pixels), -1)
    return transformed


# --- embedding -> hash --------------------------------------------------------------------------------------------------

_WORD_BITS, _WORDS = 53, 5


def directions(dim: int, seed: int) -> NDArray[np.float64]:
    """(D, 64) random directions: the same numbers on every machine and with every version of numpy.

    Each is twice the number of ones among 265 keyed random bits, less 265: a binomial, as good as a Gaussian of variance 265, and a whole number.
    """
    numbers = np.arange(dim * NUM_BITS * _WORDS)
    words = (storage.keyed_uniforms(seed, "image hash", 0, str(dim), numbers) * 2.0**_WORD_BITS).astype(np.uint64)
    ones = np.bitwise_count(words).reshape(dim, NUM_BITS, _WORDS).sum(axis=2, dtype=np.int64)
    return np.asarray(2 * ones - _WORD_BITS * _WORDS, np.float64)


def hash_embeddings(embedding_ND: FloatArray, directions: NDArray[np.float64]) -> HashArray:
    """(N,) hashes; bit i is set where the product with direction i is not negative.

    The rows are rounded to whole numbers of 20 bits first, so that sums are exact whatever the order in which a library adds. Errors: ValueError for another
    shape or a number that is not finite.
    """
    embedding_ND = np.asarray(embedding_ND, np.float64)
    if embedding_ND.ndim != 2 or embedding_ND.shape[1] != len(directions):
        raise ValueError(f"image hash: found embeddings of shape {embedding_ND.shape}, need (images, {len(directions)}); mend the encoder")
    if not np.isfinite(embedding_ND).all():
        raise ValueError("image hash: found an embedding with nan or infinity, need finite numbers; mend the encoder")
    largest = np.abs(embedding_ND).max(axis=1, keepdims=True, initial=0.0)
    whole = np.rint(embedding_ND / np.where(largest > 0, largest, 1) * 2.0**20)
    bits = np.packbits(whole @ directions >= 0, axis=1, bitorder="little")
    return bits.view("<u8").astype(np.uint64)[:, 0]
