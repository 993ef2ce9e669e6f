"""Weights out of a training checkpoint: Lightning's single file, or the folder of shards that ModelParallelStrategy writes."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

MODEL_PREFIX = "state_dict."  # of the names in a sharded checkpoint

# What the pickled index of a sharded checkpoint may be made of, besides dtypes and paths.
INDEX_CLASSES = {
    "collections": {"OrderedDict"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
}


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
        entries = read_index(folder / ".metadata").state_dict_metadata
        weights = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if name.startswith(MODEL_PREFIX) and isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # meant
            state_dict_loader.load(weights, storage_reader=FileSystemReader(folder), no_dist=True)
    except (
        Exception
    ) as error:  # a broken shard fails in many ways (UnpicklingError, zip, OSError, CheckpointException, a bare RuntimeError)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder}: sharded checkpoint cannot be read ({reason}); take another one of the run") from error
    return Checkpoint({name.removeprefix(MODEL_PREFIX): tensor for name, tensor in weights.items()}, load_safely(folder / "meta.pt"))


def read_index(path: Path) -> Metadata:
    """The index of a sharded checkpoint. torch unpickles it without looking, so it is read here first with everything refused that an index
    does not need.
    """
    with open(path, "rb") as file:
        index = IndexUnpickler(file).load()
    if not isinstance(index, Metadata):
        raise pickle.UnpicklingError(f"found {type(index).__name__}, need Metadata")
    return index


class IndexUnpickler(pickle.Unpickler):
    """An unpickler that knows INDEX_CLASSES, dtypes and paths."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        is_path = module_name.split(".")[0] == "pathlib" and global_name in ("Path", "PosixPath", "WindowsPath")
        if is_dtype or is_path or global_name in INDEX_CLASSES.get(module_name, ()):
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"refused {module_name}.{global_name} in a pickle")
