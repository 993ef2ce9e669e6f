"""Where the images of a task lie: files of a folder, a column of parquet files, members of tars, a torchvision data set."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, final

import pyarrow.parquet as pq
from torch.utils.data import Dataset

from mc2 import storage
from mc2.benchmarks.tasks.reading import check_unique
from mc2.benchmarks.tasks.task import ImageSet

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")


@final
class ImageFiles(ImageSet):
    """Files of a folder; a key is the path below it. Errors: ValueError for a path that is given twice, and for files that are not there."""

    def __init__(self, folder: Path, paths: Sequence[str], source: str) -> None:
        check_unique(str(folder), "image", paths)
        if not paths:
            raise ValueError(f"{folder}: found no image; {source}")
        missing = missing_files(folder, paths)
        if missing:
            raise ValueError(f"{folder}: {len(missing)} of {len(paths)} images are not there, the first is {missing[0]!r}; {source}")
        self.folder, self.keys = folder, paths
        self.identity = storage.fingerprint(["files", str(folder.resolve()), list(paths)])

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for key in self.keys[start:stop]:
            yield (self.folder / key).read_bytes()


def missing_files(folder: Path, paths: Iterable[str]) -> list[str]:
    """The paths below a folder where no file is; every folder is listed once, which is kinder to a network file system than a question for each file."""
    listed: dict[str, set[str]] = {}

    def names(parent: str) -> set[str]:
        if parent not in listed:
            listed[parent] = set(os.listdir(folder / parent)) if (folder / parent).is_dir() else set()
        return listed[parent]

    return [path for path in paths if os.path.basename(path) not in names(os.path.dirname(path))]


@final
class ParquetImages(ImageSet):
    """Encoded files in a column of parquet files, keys in the order of their rows. The column is binary, or as `datasets` writes it a struct with `bytes`."""

    def __init__(self, paths: Sequence[Path], keys: Sequence[str], column: str = "image") -> None:
        self.paths, self.keys, self.column = paths, keys, column
        self.identity = storage.fingerprint(["parquet", [[str(path.resolve()), path.stat().st_size] for path in paths], list(keys)])

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Reads only the row groups that hold the images asked for."""
        first = 0
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    last = first + file.metadata.row_group(group).num_rows
                    if first < stop and start < last:
                        part = file.read_row_group(group, columns=[self.column])[self.column]
                        values = part.slice(max(start - first, 0), min(stop, last) - max(start, first))
                        yield from (encoded_file(value.as_py()) for value in values)
                    first = last


def encoded_file(cell: Any) -> bytes:
    """The bytes of a cell; none where it is empty."""
    return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: `tar[offset : offset + size]`."""

    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def read_index(tars: Sequence[Path]) -> dict[str, dict[str, Member]]:
    """key -> {extension: member} of webdataset tars, in their order; only headers are read. A key is the name up to the first dot of its last part.

    Errors: ValueError for a tar that cannot be read or is cut off, and for a member that occurs twice.
    """
    index: dict[str, dict[str, Member]] = {}
    for path in tars:
        try:
            num_bytes = path.stat().st_size
            with tarfile.open(path, "r:") as tar:
                members = [member for member in tar if member.isfile()]
        except (OSError, tarfile.TarError) as error:
            raise ValueError(f"{path}: not a readable tar ({error}); copy it again") from error
        for member in members:
            name = PurePosixPath(member.name)
            stem, _, extension = name.name.partition(".")
            parts = index.setdefault(str(name.with_name(stem)), {})
            if extension.lower() in parts:
                raise ValueError(f"{path}: {member.name!r} occurs twice; every key belongs to one sample")
            if member.offset_data + member.size > num_bytes:
                raise ValueError(f"{path}: cut off inside {member.name!r}; copy it again")
            parts[extension.lower()] = Member(path, member.offset_data, member.size)
    return index


def image_member(key: str, parts: dict[str, Member]) -> Member:
    """The image among a sample's files. Errors: ValueError that names the sample without one."""
    for extension, member in parts.items():
        if f".{extension}" in IMAGE_SUFFIXES:
            return member
    raise ValueError(f"{next(iter(parts.values())).tar}: sample {key!r} has no image, only {', '.join(parts)}")


@final
class TarImages(ImageSet):
    """The images of webdataset samples, by key."""

    def __init__(self, members: dict[str, Member]) -> None:
        self.keys, self.members = list(members), list(members.values())
        tars = sorted({member.tar for member in self.members})
        self.identity = storage.fingerprint(["tars", [[str(tar.resolve()), tar.stat().st_size] for tar in tars], self.keys])

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for tar, members in groupby(self.members[start:stop], key=lambda member: member.tar):
            with open(tar, "rb") as file:
                for member in members:
                    file.seek(member.offset)
                    yield file.read(member.size)


@final
class DatasetImages(ImageSet):
    """The images of a data set of torchvision, handed on as PNG; a key is the number."""

    def __init__(self, dataset: Dataset[Any], num_images: int) -> None:
        self.dataset, self.keys = dataset, [f"{index:07}" for index in range(num_images)]
        self.identity = storage.fingerprint(["dataset", repr(dataset), num_images])

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for index in range(start, min(stop, len(self.keys))):
            file = io.BytesIO()
            self.dataset[index][0].save(file, "PNG", compress_level=1)
            yield file.getvalue()


def class_folders(folder: Path, source: str) -> tuple[list[str], list[str]]:
    """(names of the folders of classes in the order of the alphabet, paths of all images below `folder` in order)."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: not found; {source}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    paths = []
    for name in classes:
        for parent, folders, files in os.walk(folder / name):
            folders.sort()
            below = Path(parent).relative_to(folder)
            paths += [str(below / file) for file in sorted(files) if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")]
    if not paths:
        raise ValueError(f"{folder}: found no image in folders of classes; {source}")
    return classes, paths
