"""Where the records of a tar begin: `<shard>.index.parquet` beside it, as `mc2 curate pack` writes it, or for plain tars built on first use and kept.

Columns offset and size: the bytes of the record in the tar, headers included, in the order of the tar. The index of a plain tar that is cut off or damaged ends
with a row of size 0. It lies in `.mc2_index` beside the tars, or in the user's cache where nothing can be written there, together with sizes.json: of each tar
its bytes, its time of change, and the number of rows. A tar that has changed is indexed again.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.data.remote import RemotePath
from mc2.data.shard_folder import ShardFolder
from mc2.data.tar_records import DamagedTar, NotATar, groups
from mc2.engines.local import LocalEngine

TARS_PER_WORKER = 16  # below that a process of its own does not pay


def read_index(folder: ShardFolder, name: str) -> NDArray[np.int64] | None:
    """(offset, size) of each record of a tar, shape (records, 2); None where there is no index, or one that is not of this tar."""
    stem = name.removesuffix(".tar")
    paths = [folder.path / f"{stem}.index.parquet"]
    if isinstance(folder.path, Path):
        paths.append(plain_index_folder(folder.path) / f"{stem}.index.parquet")
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    try:
        rows = np.stack(storage.read_columns(io.BytesIO(path.read_bytes()), "offset", "size"), axis=1)
    except (OSError, KeyError, pa.ArrowException):
        return None
    num_records, num_bytes = folder.num_records.get(name, len(rows)), folder.num_bytes[name]
    if len(rows) != num_records or not np.issubdtype(rows.dtype, np.integer) or ((rows < 0) | (rows > num_bytes)).any():
        return None
    return rows if (rows.sum(axis=1) <= num_bytes).all() else None


def index_tar(file: Path | RemotePath) -> NDArray[np.int64]:
    """(offset, size) of each record, from the tar's headers. Errors: NotATar if not even the first header can be read."""
    rows: list[tuple[int, int]] = []
    with file.open("rb") as stream:
        try:
            rows.extend((group.offset, group.end - group.offset) for group in groups(stream))
        except NotATar as error:
            raise NotATar(f"{file}: not a readable tar ({error}); copy it again or take it out of the folder") from error
        except DamagedTar:
            rows.append((rows[-1][0] + rows[-1][1] if rows else 0, 0))
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


# --- plain tars ---------------------------------------------------------------------------------------------------------


def plain_index_folder(folder: Path) -> Path:
    """Where the indexes of a folder without a manifest are kept."""
    beside = folder / ".mc2_index"
    if os.access(beside if beside.exists() else folder, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "mc2" / "indexes" / storage.fingerprint(str(folder.resolve()))


@dataclass(frozen=True)
class _IndexTar:
    """Writes the index of a tar. Returns the number of its rows."""

    out: Path

    def __call__(self, tar: Path) -> int:
        rows = index_tar(tar)
        with storage.atomic_write(self.out / f"{tar.stem}.index.parquet") as file:
            pq.write_table(pa.table({"offset": rows[:, 0], "size": rows[:, 1]}), file, compression="zstd")
        return len(rows)


def _known_sizes(path: Path) -> dict[str, list[int]]:
    """[bytes, time of change, rows] of each tar that was indexed; nothing where the file is none of ours."""
    try:
        found: dict[str, list[int]] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    is_ours = isinstance(found, dict) and all(isinstance(row, list) and [type(n) for n in row] == [int] * 3 for row in found.values())
    return found if is_ours else {}


def indexed(folder: ShardFolder) -> ShardFolder:
    """The folder with the number of records of each tar. Without a manifest all tars are indexed that have no index or have changed since, by all cores.

    Of several processes one does it, and the others wait. Errors: ValueError that names the tars that cannot be read.
    """
    if folder.num_records:
        return folder
    assert isinstance(folder.path, Path)  # behind a URL there is a manifest
    out = plain_index_folder(folder.path)
    stats = {name: Path(folder.path, name).stat() for name in folder.names}
    found = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    with storage.alone(out):
        known = _known_sizes(out / "sizes.json")
        todo = [name for name in folder.names if known.get(name, [])[:2] != found[name]]
        if todo:
            engine = LocalEngine(min(os.cpu_count() or 1, -(-len(todo) // TARS_PER_WORKER)), progress=len(todo) > TARS_PER_WORKER)
            counts = dict(zip(todo, engine.map("index", _IndexTar(out), [Path(folder.path, name) for name in todo]), strict=True))
            known = {name: [*found[name], counts[name] if name in counts else known[name][2]] for name in folder.names}
            storage.write_json(out / "sizes.json", known)
    return replace(folder, num_records={name: known[name][2] for name in folder.names})
