"""What tasks keep of their texts (class embeddings), on the disk under everything that it was made from. So it is never stale; a folder may be deleted at any time.

<folder>/<fingerprint of the model>/<fingerprint of the texts and of what is kept of them>.safetensors

The model: the weights, settings and precision of its text tower, its tokenizer, the version of mc2. What is kept is known by its effect: the task condenses
random vectors in the place of embeddings. Another task with the same texts and classes (ImageNet and ImageNet v2) finds the same file. Files appear whole,
whoever writes them; a file that cannot be read is as none.

Shapes: T texts, C rows that are kept of them, D embedding.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.distributed.tensor import DTensor

from mc2 import __version__, storage
from mc2.benchmarks.encode import gather, this_rank
from mc2.benchmarks.tasks import Task

KEPT_MODELS = 8  # folders of other weights are removed, the least recently used first
PROBES = 8  # columns of the random vectors that stand for embeddings


@runtime_checkable
class CacheableEncoder(Protocol):
    """What the cache asks of a module, besides its encoding."""

    def text_state(self) -> tuple[str, Mapping[str, Tensor]]:
        """All that decides `encode_text`: its settings in words, and its weights, sharded as they are."""


@runtime_checkable
class CacheableTokenizer(Protocol):
    """What the cache asks of a tokenizer, besides its ids."""

    @property
    def fingerprint(self) -> str: ...


def model_fingerprint(encoder: CacheableEncoder, tokenizer: CacheableTokenizer) -> str:
    """Of everything that decides the embedding of a text; the same on all ranks. Collective. Under FSDP2 it depends on the number of ranks too."""
    settings, weights = encoder.text_state()
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name]
        local = (weight.to_local() if isinstance(weight, DTensor) else weight).detach().cpu().contiguous()
        digest.update(f"{name} {local.dtype} {tuple(local.shape)}".encode())
        if local.numel():
            digest.update(local.view(-1).view(torch.uint8).numpy().data)
    shards = sorted(gather({digest.hexdigest(): 0}))  # replicas have one digest, shards one each
    return storage.fingerprint([__version__, settings, tokenizer.fingerprint, shards])


@final
class TextCache:
    """Read and written by each rank alone. `folder`: shared by all ranks, or at least the same on each node."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder / model
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.touch()  # most recently used
        if this_rank()[0] == 0:
            others = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
            for path in others[:-KEPT_MODELS]:
                shutil.rmtree(path, ignore_errors=True)

    def path(self, task: Task, language: str) -> Path:
        """The file of a language of a task."""
        texts = task.texts(language)
        probe_TD = torch.randn(len(texts), PROBES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        effect_CD = task.condense(language, probe_TD)
        rounded = (effect_CD * 1e6).round().to(torch.int64).contiguous()  # far above the noise of sums in another order
        digest = hashlib.sha256("\0".join(texts).encode(errors="surrogatepass"))
        digest.update(str(tuple(rounded.shape)).encode() + rounded.numpy().tobytes())
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"

    @staticmethod
    def read(path: Path, device: torch.device) -> Tensor | None:
        """(C, D) fp32, or None if nobody wrote it or it cannot be read."""
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                kept: Tensor = file.get_tensor("kept")
                return kept
        except (SafetensorError, OSError):
            return None

    @staticmethod
    def write(path: Path, kept_CD: Tensor) -> None:
        """Keep it, atomically."""
        storage.write_bytes(path, save({"kept": kept_CD.detach().cpu().contiguous()}))
