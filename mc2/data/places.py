"""Where the streams of a run are, and how a checkpoint keeps that: exactly, in a byte or two for each stream and data set.

Streams are consumed nearly evenly: they give the same number of samples, and their positions differ only by the records that each had to drop.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mc2.data.shard_stream import Position

NUMBER_BYTES = 8


class Place(NamedTuple):
    """Where a stream is: how many samples it gave, and its position in each data set."""

    samples: int
    positions: tuple[Position, ...]

    def row(self) -> list[int]:
        """All numbers, one after the other."""
        return [self.samples, *(number for position in self.positions for number in position)]

    @classmethod
    def from_row(cls, row: Sequence[int]) -> Place:
        size = len(Position._fields)
        return cls(row[0], tuple(Position(*row[start : start + size]) for start in range(1, len(row), size)))


def packed(places: Mapping[int, Place], num_streams: int, num_sets: int) -> Tensor:
    """The places of all streams as bytes, uint8 (number of bytes,); a stream that has none is at its beginning.

    Each number less the smallest of its column, column after column, first all lowest bytes, then all second ones ..., each such plane with a code of its own (zlib).
    """
    rows = np.zeros((num_streams, 1 + num_sets * len(Position._fields)), dtype="<i8")
    for stream, place in places.items():
        rows[stream] = place.row()
    least = rows.min(axis=0)
    columns = np.ascontiguousarray((rows - least).T)
    planes = columns.view(np.uint8).reshape(*columns.shape, NUMBER_BYTES).transpose(0, 2, 1).reshape(-1, num_streams)
    deflate = zlib.compressobj(9, strategy=zlib.Z_RLE)
    parts = [deflate.compress(least.tobytes())]
    for plane in planes:
        parts.append(deflate.compress(plane.tobytes()))
        if plane.any():  # else it costs nothing anyway
            parts.append(deflate.flush(zlib.Z_FULL_FLUSH))
    return torch.frombuffer(bytearray(b"".join([*parts, deflate.flush()])), dtype=torch.uint8)


def unpacked(saved: Tensor | Mapping[str, Sequence[int]], num_streams: int, num_sets: int, streams: Collection[int]) -> dict[int, Place]:
    """The places of these streams, from what `packed` returned or from a table of numbers, as checkpoints had it before. Errors: ValueError for other bytes."""
    if not isinstance(saved, Tensor):
        return {int(stream): Place.from_row(row) for stream, row in saved.items() if int(stream) in streams}
    num_columns = 1 + num_sets * len(Position._fields)
    try:
        data = np.frombuffer(zlib.decompress(saved.cpu().numpy().tobytes()), np.uint8)
        planes = data[num_columns * NUMBER_BYTES :].reshape(num_columns, NUMBER_BYTES, num_streams)
    except (zlib.error, ValueError) as error:
        raise ValueError(
            f"data: the places of {num_streams} streams in the checkpoint cannot be read ({error}); go on from an older one"
        ) from error
    columns = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<i8")[..., 0]
    rows = columns.T + data[: num_columns * NUMBER_BYTES].view("<i8")
    return {stream: Place.from_row(rows[stream].tolist()) for stream in streams}
