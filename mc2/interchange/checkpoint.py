"""Weights out of a training checkpoint: Lightning's single file, or the folder of shards that ModelParallelStrategy writes."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mc2.training.checkpoint_files import SafeReader

MODEL_PREFIX = "state_dict."  # of the names in a sharded checkpoint


class Checkpoint(NamedTuple):
    """What a model is made of: the module's weights, whole and on the CPU, and the plain values that the module stored beside them."""

    weights: dict[str, Tensor]
    values: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that any number of ranks wrote. Only tensors and plain types are read, never code; optimizer states are left out.

    Errors: ValueError for a path that is missing, no checkpoint, cut short, or that holds anything else.
    """
    checkpoint = read_shards(path) if path.is_dir() else Checkpoint({}, load_safely(path))
    weights = checkpoint.weights or checkpoint.values.get("state_dict")
    if not isinstance(weights, dict) or not weights or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path}: has no state_dict of tensors; need a checkpoint that `mc2 fit` wrote")
    return Checkpoint(weights, {name: value for name, value in checkpoint.values.items() if name not in ("state_dict", "optimizer_states")})


def load_safely(path: Path) -> dict[str, Any]:
    """The dictionary in a file of torch.save, tensors mapped from the disk."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: checkpoint not found") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: no checkpoint that can be read safely, or cut short ({reason}); take another one of the run") from error
    return value if isinstance(value, dict) else {}


def read_shards(folder: Path) -> Checkpoint:
    """A sharded checkpoint, read without a process group: shards of all ranks, and meta.pt with everything that is no tensor."""
    if not (folder / ".metadata").is_file():
        raise ValueError(f"{folder}: no sharded checkpoint (.metadata is missing); need a file or folder that `mc2 fit` wrote")
    try:
        entries = SafeReader(folder).read_metadata().state_dict_metadata
        weights = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if name.startswith(MODEL_PREFIX) and isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # meant
            state_dict_loader.load(weights, storage_reader=SafeReader(folder), no_dist=True)
    except (
        Exception
    ) as error:  # a broken shard fails in many ways (UnpicklingError, zip, OSError, CheckpointException, a bare RuntimeError)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder}: sharded checkpoint cannot be read ({reason}); take another one of the run") from error
    return Checkpoint({name.removeprefix(MODEL_PREFIX): tensor for name, tensor in weights.items()}, load_safely(folder / "meta.pt"))
