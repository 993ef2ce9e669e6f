"""Records of training shards: each tar read from its beginning, from any record on, or one record alone.

Two kinds of shards: ours (`<key>.jpg` + `<key>.json` with packed captions) and anybody's plain img2dataset tars (`<key>.jpg` + `<key>.txt`, or a JSON with a list
of strings under "captions").
"""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mc2.curation.pool_tar import IMAGE_EXTENSIONS
from mc2.data.remote import RemotePath
from mc2.data.shard_folder import ShardFolder
from mc2.data.shard_index import index_tar, read_index
from mc2.data.tar_records import DamagedTar, Group, NotATar, groups
from mc2.records import PackedCaption


@dataclass(slots=True)
class Record:
    """A pair of a shard: the usable captions, the image (encoded or, in the cache, decoded), the reasons of what was dropped in it."""

    key: str
    captions: tuple[PackedCaption, ...] = ()
    image: bytes | Tensor | None = None
    drops: tuple[str, ...] = ()
    cached: bool = False


MOST_ENTRY = 2**31 - 1
RECORDS_AT_ONCE = 128  # in memory, where a shard is read from end to end

CUT_OFF, STALE, DAMAGED = (Record("", drops=(reason,)) for reason in ("truncated_tar", "stale_shard", "damaged_record"))
MARKS = {0: CUT_OFF, -1: STALE}  # sizes in an index that stand for no record


class ShardReader:
    """Records of shards, in the order of the tar. A record's number is its place in the index: the unusable ones count too.

    Where a tar has no index, its headers are the index. Up to `cache_bytes` of the records stay in memory, so that later passes neither read nor decode them.
    """

    def __init__(self, folder: ShardFolder, cache_bytes: int = 0) -> None:
        self.folder, self._cache_bytes, self._free_bytes = folder, cache_bytes, cache_bytes
        self._kept: dict[str, list[Record]] = {}
        # of the shards that a resumed run has open: 64 streams of 8, 80 MB where a shard has 10,000 records
        self._rows = lru_cache(maxsize=512)(self._find_rows)

    def __reduce__(self) -> tuple[type[ShardReader], tuple[ShardFolder, int]]:
        """As new: what a worker gets that is no fork of its parent (macOS)."""
        return ShardReader, (self.folder, self._cache_bytes)

    def read(self, name: str, first: int = 0) -> Iterator[Record]:
        """The records of a shard from a number on; the unusable ones too, with the reason. What is before the first is not read.

        A tar of another size than the manifest or the index knows is one record with the drop `stale_shard`.
        """
        return chain.from_iterable(self.blocks(name, first, RECORDS_AT_ONCE))

    def blocks(self, name: str, first: int, size: int) -> Iterator[list[Record]]:
        """What `read` gives, in lists of `size` records, the last one shorter. The file is open only while a list is read: a worker holds thousands of shards."""
        if name in self._kept:
            kept = self._kept[name]
            return (kept[start : start + size] for start in range(first, len(kept), size))
        file, num_bytes = self.folder.path / name, self.folder.num_bytes[name]
        if _num_bytes(file) != num_bytes:
            return iter([] if first else [[STALE]])
        rows = self._rows(name) if first else read_index(self.folder, name)
        if rows is None:
            blocks = _blocks_by_header(file, size)
        else:
            blocks = (_read_rows(file, num_bytes, rows[start : start + size]) for start in range(first, len(rows), size))
        return self._keep(name, blocks) if not first and self._reserve(num_bytes) else blocks

    def num_records(self, name: str) -> int:
        """Number of records that `read` gives of a shard."""
        return len(self._kept[name]) if name in self._kept else len(self._rows(name))

    def record(self, name: str, number: int) -> Record:
        """One of the records that `read` gives, found by its index."""
        if name in self._kept:
            return self._kept[name][number]
        row = self._rows(name)[number : number + 1]
        return _read_rows(self.folder.path / name, self.folder.num_bytes[name], row)[0]

    def keep_decoded(self, record: Record, image: Tensor) -> None:
        """Put the decoded image in the place of the encoded one, if the record stays in memory and there is room."""
        if record.cached and self._reserve(image.nbytes):
            record.image = image

    def _find_rows(self, name: str) -> NDArray[np.int64]:
        """The index of what `read` gives."""
        file = self.folder.path / name
        if _num_bytes(file) != self.folder.num_bytes[name]:
            return np.array([[0, -1]])
        rows = read_index(self.folder, name)
        if rows is None:
            try:
                with _there(file):
                    rows = index_tar(file)
            except NotATar:
                rows = np.array([[0, 0]])
        return rows

    def _keep(self, name: str, blocks: Iterator[list[Record]]) -> Iterator[list[Record]]:
        kept: list[Record] = []
        for block in blocks:
            marked = [replace(record, cached=True) for record in block]
            kept += marked
            yield marked
        self._kept[name] = kept

    def _reserve(self, num_bytes: int) -> bool:
        if num_bytes > self._free_bytes:
            return False
        self._free_bytes -= num_bytes
        return True


def read_shard(file: Path | RemotePath, start: int = 0) -> Iterator[Record]:
    """The records of a tar from a byte on, at which a record must begin, by its headers.

    One that is cut off or damaged ends with a record whose drop is `truncated_tar`. Errors: ValueError if the tar cannot be opened.
    """
    with _open(file) as stream:
        yield from (record for record, _ in _by_header(stream, start))


def _by_header(stream: IO[bytes], start: int) -> Iterator[tuple[Record, int]]:
    """The records of a tar from a byte on, each with the byte behind it."""
    try:
        for group in groups(stream, start):
            yield parse(group.key, _files(stream, group)), group.end
    except DamagedTar:
        yield CUT_OFF, start


def _blocks_by_header(file: Path | RemotePath, size: int) -> Iterator[list[Record]]:
    """The records of a tar without index."""
    start = 0
    while True:
        with _open(file) as stream:
            found = list(islice(_by_header(stream, start), size))
        if found:
            yield [record for record, _ in found]
        if len(found) < size or found[-1][0] is CUT_OFF:
            return
        start = found[-1][1]


def _read_rows(file: Path | RemotePath, num_bytes: int, rows: NDArray[np.int64]) -> list[Record]:
    """The records of a tar at the places (offset, size); one that is not there has the drop `damaged_record`."""
    with _open(file, num_bytes) as stream:
        return [MARKS[size] if size in MARKS else _record_at(stream, offset, offset + size) for offset, size in rows.tolist()]


def _record_at(stream: IO[bytes], start: int, end: int) -> Record:
    try:
        group = next(groups(stream, start, end))
    except (DamagedTar, StopIteration):
        return DAMAGED
    return parse(group.key, _files(stream, group)) if (group.offset, group.end) == (start, end) else DAMAGED


@contextmanager
def _there(file: Path | RemotePath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = "the shards must stay where they are while a run reads them"
        if error.errno == errno.EMFILE:
            cure = f"this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}; raise that with `ulimit -n`"
        raise ValueError(f"{file}: cannot be opened ({error.strerror}); {cure}") from error


def _open(file: Path | RemotePath, num_bytes: int | None = None) -> IO[bytes]:
    with _there(file):
        return file.open("rb", num_bytes) if isinstance(file, RemotePath) else file.open("rb")


def _num_bytes(file: Path | RemotePath) -> int:
    with _there(file):
        return file.num_bytes() if isinstance(file, RemotePath) else file.stat().st_size


def _files(stream: IO[bytes], group: Group) -> dict[str, bytes]:
    files = {}
    for extension, member in group.files.items():
        stream.seek(member.data)
        files[extension] = stream.read(member.size)
    return files


def parse(key: str, sample: Mapping[str, bytes]) -> Record:
    """A record from its files by extension."""
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


def _captions(sample: Mapping[str, bytes]) -> list[PackedCaption]:
    """Errors: ValueError, TypeError or KeyError if the JSON is not what it should be."""
    value = json.loads(sample["json"].decode("utf-8", "surrogateescape")) if "json" in sample else {}
    if "captions" in value:
        if not isinstance(value["captions"], list):
            raise TypeError("the captions are no list")
        return [_caption(caption) for caption in value["captions"]]
    return [PackedCaption(sample["txt"].decode("utf-8", "surrogateescape"))] if "txt" in sample else []


def _caption(value: str | Mapping[str, Any]) -> PackedCaption:
    if isinstance(value, str):
        return PackedCaption(value)
    caption = PackedCaption(value["text"], value["language"], tuple(value["entries"]))
    if (
        not isinstance(caption.text, str)
        or not isinstance(caption.language, str)
        or not isinstance(value["entries"], list)
        or not all(type(e) is int and 0 <= e <= MOST_ENTRY for e in caption.entries)
    ):
        raise TypeError("a caption has values of other types")
    caption.language.encode()
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
