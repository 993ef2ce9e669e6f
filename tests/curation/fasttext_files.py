"""Writes small fastText models with random weights, field by field as the library's own source reads them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DIM, BUCKETS = 6, 97
LOSS = {"tree": 1, "softmax": 3}


def write_model(
    path: Path,
    labels: Sequence[str],
    words: Sequence[str],
    *,
    loss: Literal["tree", "softmax"] = "softmax",
    quantised: bool = False,
    word_ngrams: int = 1,
    minn: int = 2,
    maxn: int = 4,
    seed: int = 0,
) -> Path:
    """A supervised model; a quantised one is pruned to half of its buckets and has norms, as `fasttext quantize -qnorm -qout` makes it."""
    random = np.random.default_rng(seed)
    kept: list[int] = random.permutation(BUCKETS)[: BUCKETS // 2].tolist() if quantised else []
    arguments = (DIM, 5, 5, 1, 5, word_ngrams, LOSS[loss], 3, BUCKETS, minn, maxn, 100)
    data = struct.pack("<ii12id", 793712314, 12, *arguments, 1e-4)
    data += struct.pack("<iiiqq", len(words) + len(labels), len(words), len(labels), 1000, len(kept) if quantised else -1)
    for kind, entries in enumerate([words, [f"__label__{label}" for label in labels]]):
        for rank, entry in enumerate(entries):
            data += entry.encode() + b"\0" + struct.pack("<qb", 1000 // (rank + 1), kind)
    for row, bucket in enumerate(kept):
        data += struct.pack("<ii", bucket, row)
    rows = len(words) + (len(kept) if quantised else BUCKETS)
    matrix = quantised_matrix if quantised else dense_matrix
    data += struct.pack("<?", quantised) + matrix(random, rows) + struct.pack("<?", quantised) + matrix(random, len(labels))
    path.write_bytes(data)
    return path


def dense_matrix(random: np.random.Generator, rows: int) -> bytes:
    return struct.pack("<qq", rows, DIM) + floats(random, (rows, DIM)).tobytes()


def quantised_matrix(random: np.random.Generator, rows: int) -> bytes:
    """Parts of 4 and 2 columns, and norms."""
    codes, norm_codes = random.integers(0, 256, (rows, 2), np.uint8), random.integers(0, 256, rows, np.uint8)
    parts = struct.pack("<4i", DIM, 2, 4, 2) + floats(random, (256, DIM)).tobytes()
    norms = struct.pack("<4i", 1, 1, 1, 1) + floats(random, (256, 1)).tobytes()
    return struct.pack("<?qqi", True, rows, DIM, codes.size) + codes.tobytes() + parts + norm_codes.tobytes() + norms


def floats(random: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    return (2 * random.standard_normal(shape)).astype(np.float32)
