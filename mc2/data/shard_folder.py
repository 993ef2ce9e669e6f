"""A folder of training shards, checked before use: ours (`manifest.json`), or anybody's plain img2dataset tars."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mc2 import storage
from mc2.data.remote import NotThere, RemoteCache, RemotePath, check_protocol, is_url
from mc2.records import ShardManifest

MANIFEST = "manifest.json"
CHECKED_AT_START = 1000  # tars of a manifest whose size is compared at once; of the others it is when they are opened


@dataclass(frozen=True)
class ShardFolder:
    """The tars of a folder by name.

    fingerprint: changes with their names and sizes. num_bytes: of each tar. num_records: of each tar (a pair each, usable or not), empty where there is no
    manifest and no index yet. pairs: number expected of each language where one caption of each is drawn, empty without a manifest.
    balanced: for good, by `mc2 curate pack --balanced offline`. metadata: fingerprint of the entries that captions name, "" without a manifest.
    """

    path: Path | RemotePath
    names: tuple[str, ...]
    fingerprint: str
    num_bytes: Mapping[str, int] = field(default_factory=dict)
    num_records: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, float] = field(default_factory=dict)
    balanced: bool = False
    metadata: str = ""


def open_folder(path: str | Path, remote_cache: RemoteCache | None = None) -> ShardFolder:
    """The shards of a folder, or of a URL, which must have a manifest; what is read of those is kept in the cache.

    With a manifest its tars must be there; the sizes of up to CHECKED_AT_START of them are compared, so that a run of a thousand processes does not ask for a million sizes.
    Errors: ValueError that names the first tar that is not as it should be.
    """
    if is_url(path):
        return _open_remote(RemotePath(str(path), remote_cache or RemoteCache()))
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no folder of shards here; give one with .tar files (`mc2 curate pack` writes them)")
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".tar") and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{path}: found no .tar file, need at least one shard")
    if not (path / MANIFEST).exists():
        sizes = {name: (path / name).stat().st_size for name in names}
        return ShardFolder(path, tuple(names), storage.fingerprint(sizes), sizes)
    manifest = read_manifest(path)
    sizes = {tar_name(shard.name): shard.num_bytes for shard in manifest.shards}
    _check_names(path, names, sizes)
    for name in names[:: -(-len(names) // CHECKED_AT_START)]:
        found = (path / name).stat().st_size
        if found != sizes[name]:
            raise ValueError(
                f"{path / name}: found {found} bytes, need {sizes[name]} by {MANIFEST}; copy it again or run `mc2 curate pack` again"
            )
    return _described(path, tuple(names), manifest)


def _described(path: Path | RemotePath, names: tuple[str, ...], manifest: ShardManifest) -> ShardFolder:
    sizes = {tar_name(shard.name): shard.num_bytes for shard in manifest.shards}
    pairs: defaultdict[str, float] = defaultdict(float)
    for shard in manifest.shards:
        for code, number in shard.pairs.items():
            pairs[code] += number
    num_records = {tar_name(shard.name): shard.num_pairs for shard in manifest.shards}
    metadata = manifest.fingerprints.get("metadata", "")
    return ShardFolder(path, names, storage.fingerprint(sizes), sizes, num_records, pairs, manifest.balanced == "offline", metadata)


def _open_remote(path: RemotePath) -> ShardFolder:
    """What the manifest says: a server is not asked for each of its tars before they are read."""
    check_protocol(path.url)
    try:
        data = (path / MANIFEST).read_bytes()
    except NotThere as error:
        raise ValueError(
            f"{path}: found no {MANIFEST}, need one in a folder behind a URL; `mc2 curate pack` writes it, plain tars must be copied first"
        ) from error
    try:
        manifest = ShardManifest.from_json(json.loads(data))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST}: not a manifest of shards ({error!r}); run `mc2 curate pack` again") from error
    if not manifest.shards:
        raise ValueError(f"{path / MANIFEST}: found no shard, need at least one")
    names = tuple(sorted(tar_name(shard.name) for shard in manifest.shards))
    return _described(RemotePath(path.url, path.cache, storage.fingerprint(data.decode())), names, manifest)


def read_manifest(folder: Path) -> ShardManifest:
    """The manifest of a folder. Errors: ValueError if it is not one."""
    value = storage.read_json(folder / MANIFEST)
    try:
        return ShardManifest.from_json(value)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST}: not a manifest of shards ({error!r}); run `mc2 curate pack` again") from error


def tar_name(shard: str) -> str:
    """File name of a shard that a manifest names with or without its ending."""
    return shard if shard.endswith(".tar") else f"{shard}.tar"


def _check_names(folder: Path, found: Sequence[str], need: Mapping[str, int]) -> None:
    missing, strange = sorted(need.keys() - found), sorted(set(found) - need.keys())
    if missing or strange:
        what = "; ".join(
            f"{word}: {', '.join(names[:3])}" for word, names in (("missing", missing), ("not in the manifest", strange)) if names
        )
        raise ValueError(f"{folder}: the tars are not those of {MANIFEST} ({what}); copy the folder again or run `mc2 curate pack` again")
