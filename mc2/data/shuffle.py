"""How well the order of a plan mixes the shards, measured on the order itself: nothing is read but the number of records of each shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from mc2.data.shard_reader import Record
from mc2.data.shard_stream import Plan, Position, stream_records

MEASURED_STREAMS, MEASURED_BATCHES = 16, 8


@dataclass(frozen=True)
class _NameOnly:
    """Records that know nothing but their shard."""

    plan: Plan

    def blocks(self, name: str, first: int, size: int) -> Iterator[list[Record]]:
        total = self.num_records(name)
        return ([Record(name)] * min(size, total - start) for start in range(first, total, size))

    def num_records(self, name: str) -> int:
        return self.plan.folder.num_records[name]

    def record(self, name: str, number: int) -> Record:  # noqa: ARG002
        return Record(name)


def shards_in_batch(plan: Plan, batch_size: int) -> float:
    """How many different shards meet in a global batch of `batch_size` records, on average over the first batches of up to 16 streams, if nothing is dropped.

    Streams of one pass have no shard in common, so the number of a batch is that of a stream times the number of streams.
    """
    rows = max(1, batch_size // plan.streams_per_lane)
    found = []
    for stream in range(0, plan.num_streams, -(-plan.num_streams // MEASURED_STREAMS)):
        records = stream_records(plan, stream, Position(), _NameOnly(plan))
        found += [len({record.key for _, record in islice(records, rows)}) for _ in range(MEASURED_BATCHES)]
    return min(
        sum(found) / len(found) * plan.streams_per_lane, len(plan.folder.names)
    )  # more: a batch that goes through the data more than once


def buffer_bytes(plan: Plan) -> float:
    """Bytes of the blocks that a stream holds in memory, on average: one block of each shard of a window."""
    folder = plan.folder
    record_bytes = sum(folder.num_bytes.values()) / max(1, sum(folder.num_records.values()))
    return record_bytes * plan.shuffle_block * min(plan.shuffle_shards, -(-len(folder.names) // plan.num_streams))


def summary(name: str, plan: Plan, batch_size: int) -> str:
    """One line about the order of a data set."""
    num_records, num_shards = sum(plan.folder.num_records.values()), len(plan.folder.names)
    return (
        f"{name}: {num_records:,} pairs in {num_shards:,} shards, {num_shards / plan.num_streams:,.1f} for each of {plan.lanes} lanes (workers) of "
        f"{plan.streams_per_lane:,} streams (ranks); {shards_in_batch(plan, batch_size):,.1f} shards meet in a batch of {batch_size:,} (shuffle_shards "
        f"{plan.shuffle_shards}, shuffle_block {plan.shuffle_block}: {buffer_bytes(plan) / 1e6:,.1f} MB a stream)"
    )
