"""The records of a tar: neighbouring files with the same key, and where each begins, so that reading can begin at any of them.

Headers are read here and not by tarfile because a training shard has thirty thousand of them and tarfile takes 60 microseconds for each; what is not a plain header
(long names, PAX, sparse files) is left to it.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK_BYTES = 512
_ZEROS = bytes(BLOCK_BYTES)
_REGULAR = (tarfile.REGTYPE[0], tarfile.AREGTYPE[0])


class Member(NamedTuple):
    """A regular file of a tar: header and padded data are the bytes [offset, end) of the tar, the data alone [data, data + size)."""

    name: str
    offset: int
    data: int
    size: int
    end: int


class Group(NamedTuple):
    """The files of one record by extension in small letters, within the bytes [offset, end) of the tar."""

    key: str
    files: dict[str, Member]
    offset: int
    end: int


class DamagedTar(ValueError):
    """The tar is cut off or damaged."""


class NotATar(DamagedTar):
    """Not even the first header can be read."""


def groups(file: IO[bytes], start: int = 0, end: int | None = None) -> Iterator[Group]:
    """The records from a byte of the tar on, which must be the beginning of a header, to its end mark or to another byte; their data is not read.

    The key is the name up to the first dot behind the last slash; of two files with the same key and extension the first counts. Errors: DamagedTar; the record
    that it breaks off in is not given, because nobody knows what it lacks.
    """
    group: Group | None = None
    for member in members(file, start, end):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not stem or not dot:
            continue
        key = folder + slash + stem
        if group is None or group.key != key:
            if group is not None:
                yield group
            group = Group(key, {}, member.offset, member.end)
        group.files.setdefault(extension.lower(), member)
        group = group._replace(end=member.end)
    if group is not None:
        yield group


def members(file: IO[bytes], start: int = 0, end: int | None = None) -> Iterator[Member]:
    """The regular files from a byte to the end mark, or to another byte. Errors: DamagedTar."""
    offset, num_bytes = start, file.seek(0, os.SEEK_END) if end is None else end
    while offset != end:
        file.seek(offset)
        header = file.read(BLOCK_BYTES)
        if header == _ZEROS:
            return
        if len(header) < BLOCK_BYTES:
            raise DamagedTar("no end mark")
        member, regular = _plain(header, offset) or _by_tarfile(file, offset)
        if member.size < 0 or member.end <= offset:  # a damaged header can say so, and would lead back for ever
            raise DamagedTar(f"a file of {member.size} bytes")
        if member.data + member.size > num_bytes:
            raise DamagedTar("unexpected end of data")
        if regular:
            yield member
        offset = member.end
        if offset > num_bytes:  # what is no regular file may claim to end behind any file
            raise DamagedTar("no end mark")


def _plain(header: bytes, offset: int) -> tuple[Member, bool] | None:
    """A member whose header says everything in the oldest way; None if it does not."""
    if header[156] not in _REGULAR or header[345] or header[124] & 0x80:  # 345: the first part of a long name
        return None
    name, size, checksum = header[:100].partition(b"\0")[0], header[124:136].strip(b" \0"), header[148:156].strip(b" \0")
    try:
        num_bytes = int(size or b"0", 8)
        if int(checksum or b"0", 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
    except ValueError:
        return None
    data = offset + BLOCK_BYTES
    return Member(name.decode("utf-8", "surrogateescape"), offset, data, num_bytes, data + _padded(num_bytes)), not name.endswith(b"/")


def _by_tarfile(file: IO[bytes], offset: int) -> tuple[Member, bool]:
    """The member at a byte of the tar as tarfile reads it, and whether it is a regular file."""
    file.seek(offset)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            found = tar.next()
            if found is None:
                raise DamagedTar("no header")
            return Member(found.name, offset, found.offset_data, found.size, tar.offset), found.isreg()
    except OSError:  # of the disk
        raise
    except Exception as error:  # tarfile raises nearly everything on a damaged header: IndexError, RecursionError, MemoryError, ...
        raise (DamagedTar if offset else NotATar)(str(error)) from error


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
