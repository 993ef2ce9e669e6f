"""Memory and seconds of retrieval in many languages above a model's own: the whole evaluation of a task of XM3600's size, with random features for the towers.

Imports torch: only `mc2 bench evaluate` imports this. A fresh process measures its peak from the moment when the task is there and no feature is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mc2 import storage
from mc2.bench.clocks import extra_peak_bytes
from mc2.benchmarks.evaluate import Engine
from mc2.benchmarks.tasks import ImageSet
from mc2.benchmarks.tasks.retrieval import Retrieval

IMAGES, CAPTIONS = 3600, 7250  # of XM3600; captions in each of its 36 languages


@dataclass(frozen=True)
class Size:
    """Of the task: `captions` in each language; and of the features."""

    codes: Sequence[str]
    images: int
    captions: int
    embed_dim: int


class NoImages(ImageSet):
    """Names of images that nobody looks at."""

    def __init__(self, number: int) -> None:
        self.keys = [f"{index:016x}" for index in range(number)]
        self.identity = storage.fingerprint(["no images", number])

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        yield from (b"" for _ in self.keys[start:stop])


class RandomFeatures:
    """What the engine asks of a model and a data module: everything is a random vector."""

    pad_id, eos_id = 0, 1

    def __init__(self, embed_dim: int) -> None:
        self.embed_dim = embed_dim
        self.tokenizer = self.preprocess = self

    def encode_image(self, image: Tensor, /) -> Tensor:
        return torch.randn(len(image), self.embed_dim)

    encode_text = encode_image

    def evaluate(self, _: bytes, /) -> Tensor:
        return torch.zeros(3, 1, 1, dtype=torch.uint8)

    def __call__(self, texts: Sequence[str], /) -> Tensor:
        return torch.ones(len(texts), 8, dtype=torch.int32)


def build(size: Size) -> Retrieval:
    """Every image has a caption, the first ones have more, as many as there are; two protocols, as XM3600 has."""

    def captions(code: str) -> list[list[str]]:
        return [[f"{code} {number}" for number in range(image, size.captions, size.images)] for image in range(size.images)]

    protocols = {"all-captions": None, "first-caption": 1}
    return Retrieval("retrieval", NoImages(size.images), {code: captions(code) for code in size.codes}, protocols)


def evaluate(size: Size) -> dict[str, Any]:
    """Figures of this process, which should be a fresh one."""
    small, features, device = build(Size(size.codes[:1], 20, 50, size.embed_dim)), RandomFeatures(size.embed_dim), torch.device("cpu")
    next(Engine(features, features, device).evaluate([small], [small.languages]))  # libraries, threads
    task = build(size)
    start = time.perf_counter()
    with torch.no_grad():
        extra = extra_peak_bytes(lambda: next(Engine(features, features, device).evaluate([task], [task.languages])))
    return {"extra_bytes": extra, "seconds": time.perf_counter() - start}


def measure(codes: Sequence[str], embed_dim: int) -> dict[str, Any]:
    """Figures of a fresh process. Errors: ValueError with what it said."""
    size = Size(list(codes), IMAGES, CAPTIONS, embed_dim)
    command = [sys.executable, "-m", "mc2.bench.retrieval_memory", json.dumps(asdict(size))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"evaluate: retrieval ended with status {done.returncode}: {done.stderr[-300:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**asdict(size), **figures}


if __name__ == "__main__":
    print(json.dumps(evaluate(Size(**json.loads(sys.argv[1])))))
