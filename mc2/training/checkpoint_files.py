"""The two forms of a checkpoint: one file, or a folder into which each rank writes its part. Written and synced whole; read without running what is in them.

A folder holds torch's distributed checkpoint (.metadata, the index, and *.distcp) with the tensors, and meta.pt with everything else.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

INDEX = ".metadata"
METADATA = "meta.pt"  # Lightning's name

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


# --- writing ------------------------------------------------------------------------------------------------------------


def snapshot(value: Any) -> Any:
    """A copy of nested dictionaries and lists, tensors in the memory of the host, that training does not change any more."""
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value] if isinstance(value, list) else tuple(snapshot(item) for item in value)
    if isinstance(value, DTensor):  # FSDP2Strategy has brought it to the host; of a CPU's it has made no copy
        return value.detach().clone()
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def write_file(checkpoint: dict[str, Any], path: Path) -> None:
    """One file, on the disk when this returns."""
    with open(path, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def write_parts(checkpoint: dict[str, Any], folder: Path, group: dist.ProcessGroup | None) -> None:
    """This rank's part; rank 0 also writes the index, when all parts are on the disk, and meta.pt. A collective of the group, which must not be NCCL's."""
    rest = {**checkpoint}
    tensors = {"state_dict": rest.pop("state_dict")}
    tensors |= {f"optimizer_{index}": state for index, state in enumerate(rest.pop("optimizer_states", []))}
    state_dict_saver.save(tensors, checkpoint_id=folder, process_group=group)
    if dist.get_rank() == 0:
        write_file(rest, folder / METADATA)


# --- reading ------------------------------------------------------------------------------------------------------------


def read_index(path: Path) -> Metadata:
    """The index of a sharded checkpoint. torch unpickles it without looking; here everything is refused that an index does not need.

    Errors: pickle.UnpicklingError.
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


def check_parts(folder: Path) -> None:
    """Errors: ValueError if a part that the index names is missing or shorter than the index says."""
    try:
        places = read_index(folder / INDEX).storage_data
    except (OSError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{folder}: no sharded checkpoint that can be read safely ({error}); take the one before it") from error
    for place in places.values():
        part = folder / place.relative_path
        found = part.stat().st_size if part.is_file() else 0
        if found < place.offset + place.length:
            raise ValueError(
                f"{part}: found {found} bytes, need at least {place.offset + place.length}: cut short; take the checkpoint before it"
            )


class SafeReader(FileSystemReader):
    """Reads the index with `read_index`."""

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        metadata = read_index(Path(self.path) / INDEX)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class SafePlanner(DefaultLoadPlanner):
    """Refuses values that are neither tensors nor plain; torch's own planner would run them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


def load_parts(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of `state`, sharded in any way, from a folder that any number of ranks wrote. Errors: ValueError in one line."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # meant
            state_dict_loader.load(state, storage_reader=SafeReader(folder), planner=SafePlanner())
    except (Exception, CheckpointException) as error:  # a broken part fails in many ways
        raise ValueError(f"{folder}: sharded checkpoint cannot be read ({reason(error)}); take the one before it") from error


def read_parts(folder: Path, module: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    """Fill a sharded module and its optimizers; returns the rest of the checkpoint, meta.pt."""
    weights = {"state_dict": get_model_state_dict(module)}
    load_parts(weights, folder)
    module.load_state_dict(weights["state_dict"])
    for index, optimizer in enumerate(optimizers):
        state = {f"optimizer_{index}": get_optimizer_state_dict(module, optimizer)}
        load_parts(state, folder)
        set_optimizer_state_dict(module, optimizer, optim_state_dict=state[f"optimizer_{index}"])
    rest: dict[str, Any] = torch.load(folder / METADATA, map_location="cpu", weights_only=True)
    return rest


def reason(error: BaseException) -> str:
    """Why it failed, in one line; of a distributed failure that of the first rank."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return (str(error) or type(error).__name__).splitlines()[0]
