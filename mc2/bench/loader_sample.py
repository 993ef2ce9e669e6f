"""Shards for measurements of the loader: pictures with the spectrum of photographs, captions in 14 languages, as plain img2dataset tars that both sides read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mc2.bench.match_sample import sample_captions

PICTURES = 32  # different ones; decoding does not get faster by repetition


def write_sample(folder: Path, pairs: int, shards: int, pixels: int, image_bytes: int) -> list[str]:
    """Write square JPEGs of that many pixels and about as many bytes, with captions of about 56 characters. Returns the captions."""
    pictures = [jpeg_of_size(picture(seed, pixels), image_bytes) for seed in range(min(PICTURES, pairs))]
    captions = sample_captions(pairs)
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for pair in range(pairs * shard // shards, pairs * (shard + 1) // shards):
                key, caption = f"{pair:09d}", captions[pair]
                _add(tar, f"{key}.jpg", pictures[pair % len(pictures)])
                _add(tar, f"{key}.json", json.dumps({"key": key, "caption": caption, "status": "success"}).encode())
                _add(tar, f"{key}.txt", caption.encode())
    return captions


def picture(seed: int, pixels: int) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as in photographs (exponent 1.25), its channels alike."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(pixels)[:, None], np.fft.rfftfreq(pixels)[None])
    frequency[0, 0] = 1

    def layer() -> NDArray[np.float64]:
        return np.fft.irfft2(np.fft.rfft2(rng.standard_normal((pixels, pixels))) / frequency**1.25, (pixels, pixels))

    grey = layer()
    channels = np.stack([grey + 0.4 * layer() for _ in range(3)], axis=-1)
    normal = (channels - channels.mean((0, 1))) / channels.std((0, 1))
    return Image.fromarray(np.clip(128 + 55 * normal, 0, 255).astype(np.uint8))


def jpeg_of_size(image: Image.Image, num_bytes: int) -> bytes:
    """The JPEG of the least quality that is not smaller; the best one if all are."""
    low, high = 1, 95
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if len(_jpeg(image, middle)) < num_bytes else (low, middle)
    return _jpeg(image, low)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
