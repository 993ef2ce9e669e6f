"""A language's entries as a trie in two numbers a node, in a file that all processes of a machine share.

All patterns that occur in a text are found by a walk from every place of it: in a spaced script only the places of spaces lead further than the root, elsewhere
a walk ends after two or three letters. That is as fast as an automaton with failure links, a third of its size, and built in one pass over sorted patterns.

File: magic, version, CRC-32, key and lengths (48 bytes), then the nodes (int32, little-endian) and the records.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mc2 import storage

MAGIC, VERSION = b"mc2 trie", 1
COPY, SPACE, SPACES_AROUND = range(3)  # what becomes of a byte of a text before it is searched
_HEADER = struct.Struct("<8s I I 16s q q")  # magic, version, CRC-32 of what follows, key, number of slots, bytes of the records
MAX_BYTES, MAX_PATTERN_BYTES = 2**29, 2**16 - 1


@dataclass(frozen=True)
class Automaton:
    """Finds patterns by position. Its arrays belong to `mc2.curation.automaton_kernels`; the legend is there."""

    nodes: NDArray[np.int32]
    records: NDArray[np.uint8]

    @classmethod
    def build(cls, patterns: Sequence[str]) -> Self:
        """The automaton of patterns in any order, equal ones among them; none is empty. Errors: ValueError for one of 64 KiB, or half a GiB of all."""
        from mc2.curation import automaton_kernels as kernels

        column = pa.array(patterns, pa.large_string())
        order = pc.array_sort_indices(column)
        data, starts = text_buffers(column.take(order))
        if len(data) + 6 * len(patterns) > MAX_BYTES or (len(patterns) and np.diff(starts).max() > MAX_PATTERN_BYTES):
            raise ValueError(
                f"match: found {len(data):,} bytes of entries in one language, need at most {MAX_BYTES:,}, and {MAX_PATTERN_BYTES:,} in one entry; shorten the list"
            )
        equal = kernels.equal_to_next(data, starts)
        nodes, depths = kernels.build_nodes(data, starts, equal)
        nodes = nodes.copy()  # they are a view of more rows and columns
        records = kernels.build_records(data, starts, equal, depths, order.to_numpy().astype(np.int32), nodes)
        nodes.flags.writeable = records.flags.writeable = False  # as those of a file: another type would be compiled for itself
        return cls(nodes, records)

    @property
    def num_bytes(self) -> int:
        return self.nodes.nbytes + self.records.nbytes

    def find(self, texts: pa.Array, rows: NDArray[np.int64], treatment: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(number of patterns in each of the texts `rows`, their positions one after the other; sorted and unique in each text).

        A text gets a space at both ends. treatment (256): what becomes of a byte, one of the three above.
        """
        from mc2.curation import automaton_kernels as kernels

        lengths, found = kernels.find(self.nodes, self.records, treatment, *text_buffers(texts), rows)
        return lengths, found

    # --- the file -------------------------------------------------------------------------------------------------------

    def save(self, path: Path, key: str) -> None:
        """Write the file atomically. key: 16 characters that stand for all that the patterns depend on."""
        with storage.atomic_write(path) as file:
            crc = zlib.crc32(self.records.data, zlib.crc32(self.nodes.data))
            file.write(_HEADER.pack(MAGIC, VERSION, crc, key.encode(), len(self.nodes), len(self.records)))
            file.write(self.nodes.data)
            file.write(self.records.data)

    @classmethod
    def open(cls, path: Path, key: str) -> Self:
        """The automaton of a file, mapped read-only. Errors: FileNotFoundError, and ValueError for a file that is cut, damaged or of another key or version."""
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise ValueError(f"{path}: cut off")
            magic, version, crc, found, slots, num_bytes = _HEADER.unpack(header)
            if (magic, version, found) != (MAGIC, VERSION, key.encode()):
                raise ValueError(f"{path}: not the automaton that is needed")
            if min(slots, num_bytes) < 0 or path.stat().st_size != _HEADER.size + 8 * slots + num_bytes:
                raise ValueError(f"{path}: has another length than it says")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if zlib.crc32(memoryview(data)[_HEADER.size :]) != crc:
            raise ValueError(f"{path}: damaged")
        nodes = np.frombuffer(data, np.dtype("<i4"), 2 * slots, _HEADER.size).reshape(-1, 2)
        return cls(nodes, np.frombuffer(data, np.uint8, num_bytes, _HEADER.size + nodes.nbytes))


def text_buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(bytes, N + 1 offsets) of N strings, not copied where they have 64 bit offsets. Errors: ValueError for nulls."""
    if texts.null_count:
        raise ValueError(f"match: found {texts.null_count} nulls among {len(texts)} texts, need none")
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets or bytes(8), np.int64)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.frombuffer(data or b"", np.uint8)
    starts.flags.writeable = characters.flags.writeable = False  # some are: compiled code is the same for all
    return characters, starts
