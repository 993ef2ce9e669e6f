"""A model folder as the encoder of `mc2 curate hash`: duplicates are found by the look of things, not by pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mc2 import storage
from mc2.curation.image_hash import ImageEncoder
from mc2.interchange.model_directory import load
from mc2.model.weights import CONFIG, WEIGHTS


@final
class ClipEncoder(ImageEncoder):
    """The image tower of a model folder.

    Its embeddings point into a narrow cone, so pictures of the same thing can be closer than copies are to each other under another encoder: look at what
    a radius finds before using it. Hashes made on different devices or versions of torch may differ in single bits.

    Args:
        folder: Model folder (`mc2 export`).
        device: Where the tower runs.
        threads: Threads of torch in each process.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.clip = load(folder, device)
        self._identity = f"mc2 clip {storage.fingerprint([storage.sha256_file(folder / name) for name in (CONFIG, WEIGHTS)])}"

    @property
    def identity(self) -> str:
        return self._identity

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = self.clip.encode_image(images).cpu().numpy()
        return embedding
