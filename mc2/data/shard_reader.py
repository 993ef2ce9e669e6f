"""Training shards as records: a folder of tars checked before use, and each tar read with webdataset.

Two kinds of folders: ours (`manifest.json`; records `<key>.jpg` + `<key>.json` with packed captions) and anybody's plain img2dataset tars
(`<key>.jpg` + `<key>.txt`, or a JSON with a list of strings under "captions").
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from mc2 import storage
from mc2.curation.pool_tar import IMAGE_EXTENSIONS
from mc2.records import PackedCaption, ShardManifest

MANIFEST = "manifest.json"


@dataclass(slots=True)
class Record:
    """A pair of a shard: the usable captions, the image (encoded or, in the cache, decoded), the reasons of what was dropped in it."""

    key: str
    captions: tuple[PackedCaption, ...] = ()
    image: bytes | Tensor | None = None
    drops: tuple[str, ...] = ()
    cached: bool = False


@dataclass(frozen=True)
class ShardFolder:
    """The tars of a folder by name. `fingerprint` changes with their names and sizes."""

    path: Path
    names: tuple[str, ...]
    fingerprint: str


def open_folder(path: str | Path) -> ShardFolder:
    """The shards of a folder, each as long as the manifest says or, without one, each with a readable header.

    Errors: ValueError that names the first that is not.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no folder of shards here; give one with .tar files (`mc2 curate pack` writes them)")
    sizes = {file.name: file.stat().st_size for file in sorted(path.glob("*.tar"))}
    if not sizes:
        raise ValueError(f"{path}: found no .tar file, need at least one shard")
    if (path / MANIFEST).exists():
        _check_manifest(path, read_manifest(path), sizes)
    else:
        for name in sizes:
            _check_header(path / name)
    return ShardFolder(path, tuple(sizes), storage.fingerprint(sizes))


def read_manifest(folder: Path) -> ShardManifest:
    """The manifest of a folder. Errors: ValueError if it is not one."""
    value = storage.read_json(folder / MANIFEST)
    try:
        return ShardManifest.from_json(value)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST}: not a manifest of shards ({error!r}); run `mc2 curate pack` again") from error


def _check_manifest(folder: Path, manifest: ShardManifest, sizes: Mapping[str, int]) -> None:
    need = {tar_name(shard.name): shard.num_bytes for shard in manifest.shards}
    missing, strange = sorted(need.keys() - sizes.keys()), sorted(sizes.keys() - need.keys())
    if missing or strange:
        what = "; ".join(
            f"{word}: {', '.join(names[:3])}" for word, names in (("missing", missing), ("not in the manifest", strange)) if names
        )
        raise ValueError(f"{folder}: the tars are not those of {MANIFEST} ({what}); copy the folder again or run `mc2 curate pack` again")
    for name, num_bytes in need.items():
        if sizes[name] != num_bytes:
            raise ValueError(
                f"{folder / name}: found {sizes[name]} bytes, need {num_bytes} by {MANIFEST}; copy it again or run `mc2 curate pack` again"
            )


def tar_name(shard: str) -> str:
    """File name of a shard that a manifest names with or without its ending."""
    return shard if shard.endswith(".tar") else f"{shard}.tar"


def _check_header(file: Path) -> None:
    try:
        with tarfile.open(file, "r:") as tar:
            tar.next()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file}: not a readable tar ({error}); copy it again or take it out of the folder") from error


class ShardReader:
    """Records of shards, in the order of the tar.

    Up to `cache_bytes` of them stay in memory, so that later passes neither read nor decode them.
    """

    def __init__(self, folder: ShardFolder, cache_bytes: int = 0) -> None:
        self.folder, self._free_bytes = folder, cache_bytes
        self._kept: dict[str, list[Record]] = {}

    def read(self, name: str) -> Iterator[Record]:
        """Every record of a shard; the unusable ones too, with the reason, so that a record's place is fixed."""
        if name in self._kept:
            return iter(self._kept[name])
        file = self.folder.path / name
        return self._keep(name) if self._reserve(file.stat().st_size) else read_shard(file)

    def keep_decoded(self, record: Record, image: Tensor) -> None:
        """Put the decoded image in the place of the encoded one, if the record stays in memory and there is room."""
        if record.cached and self._reserve(image.nbytes):
            record.image = image

    def _keep(self, name: str) -> Iterator[Record]:
        records = []
        for record in read_shard(self.folder.path / name):
            record.cached = True
            records.append(record)
            yield record
        self._kept[name] = records

    def _reserve(self, num_bytes: int) -> bool:
        if num_bytes > self._free_bytes:
            return False
        self._free_bytes -= num_bytes
        return True


def read_shard(file: Path) -> Iterator[Record]:
    """The records of a tar.

    One that breaks off ends with a record whose drop is `truncated_tar`. Errors: ValueError if the tar cannot be opened.
    """
    failures: list[Exception] = []

    def stop(error: Exception) -> bool:
        failures.append(error)
        return False

    try:
        stream = open(file, "rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise ValueError(
            f"{file}: cannot be opened ({error.strerror}); the shards must stay where they are while a run reads them"
        ) from error
    with stream:
        whole = _has_end(stream)
        files = tar_file_expander([{"url": file.name, "stream": stream}], handler=stop)
        samples = group_by_keys(files, handler=lambda _: True)
        yield from map(parse, samples)
    if failures or not whole:
        yield Record("", drops=("truncated_tar",))


def _has_end(stream: Any) -> bool:
    """Whether the file ends with a tar's block of zeros: tarfile takes any cut between two members for the end."""
    stream.seek(0, os.SEEK_END)
    size = stream.tell()
    stream.seek(max(size - 512, 0))
    end: bytes = stream.read()
    stream.seek(0)
    return size % 512 == 0 and not any(end)


def parse(sample: Mapping[str, Any]) -> Record:
    """A record from webdataset's sample: bytes by extension, `__key__`."""
    key = sample["__key__"]
    image = next((sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample), None)
    if not image:
        return Record(key, drops=("no_image",))
    try:
        key.encode()
        captions = _captions(sample)
    except (ValueError, TypeError, KeyError, RecursionError):
        return Record(key, drops=("broken_record",))
    reasons = [_reason(caption.text) for caption in captions]
    usable = tuple(caption for caption, reason in zip(captions, reasons, strict=True) if not reason)
    drops = tuple(reason for reason in reasons if reason)
    return Record(key, usable, image, drops) if usable else Record(key, drops=(*drops, "no_captions"))


def _captions(sample: Mapping[str, Any]) -> list[PackedCaption]:
    """Errors: ValueError, TypeError or KeyError if the JSON is not what it should be."""
    value = json.loads(sample["json"].decode("utf-8", "surrogateescape")) if "json" in sample else {}
    if "captions" in value:
        return [_caption(caption) for caption in value["captions"]]
    return [PackedCaption(sample["txt"].decode("utf-8", "surrogateescape"))] if "txt" in sample else []


def _caption(value: str | Mapping[str, Any]) -> PackedCaption:
    if isinstance(value, str):
        return PackedCaption(value)
    caption = PackedCaption(value["text"], value["language"], tuple(value["entries"]))
    if (
        not isinstance(caption.text, str)
        or not isinstance(caption.language, str)
        or not all(type(e) is int and e >= 0 for e in caption.entries)
    ):
        raise TypeError("a caption has values of other types")
    return caption


def _reason(text: str) -> str | None:
    """Why a caption cannot be used; None if it can."""
    if not text.strip():
        return "empty_caption"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "not_utf8"
    return None
