"""Small pools for the tests, written with nothing of mc2."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = [
    ["a brown fox in the snow", "ein brauner Fuchs im Schnee", "雪の中の茶色いキツネ"],
    ["a house by the sea", "das alte Haus am Meer", "", "image"],
    ["the dog and the cat sleep in the house", "der Hund schläft im Garten"],
    ["a black dog runs over the field", "ein schwarzer Hund läuft über das Feld", "公園で遊ぶ子供たち"],
    ["the moon over the mountains", "qqqq wwww"],
]


def image_file(seed: int = 0, size: tuple[int, int] = (24, 16), kind: str = "JPEG") -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of the members in this order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return file.getvalue()


def record(key: str, captions: Sequence[str], image: bytes) -> list[tuple[str, bytes]]:
    """jpg + txt + json of a pair, as img2dataset orders them."""
    value = json.dumps({"key": key, "captions": list(captions)}).encode()
    return [(f"{key}.jpg", image), (f"{key}.json", value), (f"{key}.txt", captions[0].encode())]


def write_pool(folder: Path, num_shards: int = 3) -> Path:
    """A pool in which the pairs of CAPTIONS stand in every shard under keys of their own; the last image of each shard is broken."""
    folder.mkdir()
    for shard in range(num_shards):
        members: list[tuple[str, bytes]] = []
        for number, captions in enumerate(CAPTIONS):
            image = image_file(10 * shard + number)
            members += record(f"{shard:05d}{number:04d}", captions, image if number < len(CAPTIONS) - 1 else image[: len(image) // 2])
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """All files of a folder but locks and caches, by relative name."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name): (folder / name).read_bytes() for name in names if not any(part.startswith(".") for part in name.parts)}


def picture(seed: int = 0, size: tuple[int, int] = (480, 320)) -> Image.Image:
    """A smooth picture: copies of it at other sizes and qualities look alike."""
    colours = np.random.default_rng(seed).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
