"""Small shards for the tests, written by hand with tarfile."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mc2.data.tokenizer import train_tokenizer

TEXTS = [
    "a red fox",
    "ein roter Fuchs",
    "un renard roux",
    "赤いキツネ",
    "рыжая лиса",
    "여우",
    "สุนัขจิ้งจอก",
    "ثعلب أحمر",
    "κόκκινη αλεπού",
    "एक लाल लोमड़ी",
]


def jpeg(seed: int = 0, width: int = 24, height: int = 20) -> bytes:
    """A JPEG of smooth random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar with these files in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def packed(*captions: tuple[str, str, Sequence[int]]) -> bytes:
    """The JSON of a packed record from (text, language, entries)."""
    return json.dumps(
        {"captions": [{"text": text, "language": language, "entries": list(entries)} for text, language, entries in captions]}
    ).encode()


def record(key: str, text: bytes | Mapping[str, Any], image: bytes | None = None) -> list[tuple[str, bytes]]:
    """The files of a pair: a caption as .txt, or a JSON."""
    caption = (f"{key}.json", json.dumps(text).encode()) if isinstance(text, Mapping) else (f"{key}.txt", text)
    return [(f"{key}.jpg", jpeg(len(key)) if image is None else image), caption]


def write_folder(folder: Path, pairs_per_shard: Sequence[int]) -> Path:
    """Packed shards with keys like "2-0007" (shard, pair) and three captions each."""
    image = jpeg()
    for shard, num_pairs in enumerate(pairs_per_shard):
        members: list[tuple[str, bytes]] = []
        for pair in range(num_pairs):
            key = f"{shard}-{pair:04d}"
            captions = [(TEXTS[0], "en", (0, 1)), (TEXTS[1], "de", (pair % 3,)), (TEXTS[2], "fr", ())]
            members += [(f"{key}.jpg", image), (f"{key}.json", packed(*captions))]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def small_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer trained on TEXTS."""
    train_tokenizer(TEXTS * 20, folder, 400)
    return folder
