"""The order of training records: a function of (shards, seed, pass), dealt out in fixed canonical streams to ranks and workers.

The shards of all passes stand in one endless row, each pass in an order of its own; stream j of S takes every S-th shard of the row, so
that after any number of passes every shard was seen equally often, whatever S is. A stream reads up to `shuffle_shards` shards of a pass at
once, a block of `shuffle_block` records of each, and yields the block in random order. A position is therefore four small numbers, and
going back to it reads only the shards that are open.

Lanes: global batch number t is taken from the streams of lane t mod `lanes`, the same number of records from each. Ranks share the streams
of a lane, workers share the lanes: with any number of ranks that divides the streams of a lane, and of workers that divides the lanes, the
global batches are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np

from mc2 import storage
from mc2.data.shard_folder import ShardFolder
from mc2.data.shard_reader import Record

# Passes for each stream that it may meet nothing but empty shards in, in a row: it is dealt others in each.
MOST_EMPTY_PASSES = 20


class Position(NamedTuple):
    """A place in a stream: pass over the data, window of shards in the pass, block in the window, records of the block that are used up."""

    epoch: int = 0
    window: int = 0
    block: int = 0
    offset: int = 0


class TooFewShards(ValueError):
    """Fewer shards than streams."""


class Records(Protocol):
    """The records of shards by number, the unusable ones too (`ShardReader`)."""

    def blocks(self, name: str, first: int, size: int) -> Iterator[list[Record]]: ...

    def num_records(self, name: str) -> int: ...

    def record(self, name: str, number: int) -> Record: ...


@dataclass(frozen=True)
class Plan:
    """Everything that the order depends on. Errors: TooFewShards."""

    folder: ShardFolder
    seed: int
    lanes: int = 1
    streams_per_lane: int = 1
    shuffle_shards: int = 8
    shuffle_block: int = 128
    _orders: dict[int, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)  # of the passes that streams are in

    def __post_init__(self) -> None:
        for name in ("lanes", "streams_per_lane", "shuffle_shards", "shuffle_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"data: found {name} {getattr(self, name)}, need at least 1")
        if len(self.folder.names) < self.num_streams:
            raise TooFewShards(
                f"{self.folder.path}: found {len(self.folder.names)} shards for {self.num_streams} streams (lanes {self.lanes} x streams_per_lane "
                f"{self.streams_per_lane}), need a shard for each"
            )

    @property
    def num_streams(self) -> int:
        return self.lanes * self.streams_per_lane

    def identity(self) -> dict[str, int | str]:
        """What a checkpoint notes of the order, plain values."""
        return {
            "shards": self.folder.fingerprint,
            "seed": self.seed,
            "shuffle_shards": self.shuffle_shards,
            "shuffle_block": self.shuffle_block,
            "lanes": self.lanes,
            "streams_per_lane": self.streams_per_lane,
        }

    def windows(self, stream: int, epoch: int) -> list[list[str]]:
        """The shards of a stream in one pass, in groups that are read at once, as equal as can be."""
        order = self._order(epoch)
        own = order[(stream - epoch * len(order)) % self.num_streams :: self.num_streams]
        groups = -(-len(own) // self.shuffle_shards)
        return [own[len(own) * i // groups : len(own) * (i + 1) // groups] for i in range(groups)]

    def _order(self, epoch: int) -> list[str]:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(min(self._orders))
            self._orders[epoch] = storage.keyed_order(self.seed, "shards", epoch, self.folder.names)
        return self._orders[epoch]

    def passes(self, stream: int, position: Position) -> float:
        """How often a stream went through its shards, to the window."""
        return position.epoch + position.window / max(1, len(self.windows(stream, position.epoch)))

    def block_order(self, stream: int, position: Position, num_records: int) -> list[int]:
        """The order of the records of a block."""
        place = f"{stream}/{position.window}/{position.block}"
        draws = storage.keyed_uniforms(self.seed, "block", position.epoch, place, np.arange(num_records))
        order: list[int] = np.argsort(draws, kind="stable").tolist()
        return order

    def lane_streams(self, batch: int, rank: int, world_size: int) -> range:
        """The streams that a rank takes its rows of global batch number `batch` from."""
        per_rank = self.streams_per_lane // world_size
        first = batch % self.lanes * self.streams_per_lane + rank * per_rank
        return range(first, first + per_rank)


def stream_records(plan: Plan, stream: int, start: Position, source: Records) -> Iterator[tuple[Position, Record]]:
    """The records of a stream from a position on, endlessly, each with the position behind it. Nothing before the position is read.

    Errors: ValueError if the shards hold no record at all.
    """
    empty_passes = 0
    for epoch in count(start.epoch):
        empty_passes += 1
        for window, shards in enumerate(plan.windows(stream, epoch)):
            if (epoch, window) < start[:2]:
                continue
            here = start if (epoch, window) == start[:2] else Position(epoch, window)
            for step in _window_records(plan, stream, here, shards, source):
                empty_passes = 0
                yield step
        if empty_passes > MOST_EMPTY_PASSES * plan.num_streams:
            raise ValueError(
                f"{plan.folder.path}: the shards hold no record; need `<key>.jpg` with `<key>.json` or `<key>.txt` in the tars"
            )


def _window_records(plan: Plan, stream: int, start: Position, shards: list[str], source: Records) -> Iterator[tuple[Position, Record]]:
    if start.offset:
        yield from _rest_of_block(plan, stream, start, shards, source)
        start = Position(start.epoch, start.window, start.block + 1)
    readers = [source.blocks(shard, start.block * plan.shuffle_block, plan.shuffle_block) for shard in shards]
    for block in count(start.block):
        records = [record for reader in readers for record in next(reader, [])]
        if not records:
            return
        here = start._replace(block=block)
        for offset, number in enumerate(plan.block_order(stream, here, len(records)), start=1):
            yield here._replace(offset=offset), records[number]


def _rest_of_block(plan: Plan, stream: int, start: Position, shards: list[str], source: Records) -> Iterator[tuple[Position, Record]]:
    """The records of a block behind a position in it, one by one."""
    first = start.block * plan.shuffle_block
    places = [(shard, number) for shard in shards for number in range(first, min(first + plan.shuffle_block, source.num_records(shard)))]
    order = plan.block_order(stream, start, len(places))
    for offset in range(start.offset, len(places)):
        yield start._replace(offset=offset + 1), source.record(*places[order[offset]])
