"""The order of records: which shard when, in which stream, and that a position brings it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from mc2.data.shard_folder import ShardFolder
from mc2.data.shard_reader import Record
from mc2.data.shard_stream import Plan, Position, TooFewShards, stream_records

LENGTHS = {"a.tar": 7, "b.tar": 3, "c.tar": 11, "d.tar": 5, "e.tar": 0, "f.tar": 6, "g.tar": 8}
FOLDER = ShardFolder(Path("shards"), tuple(LENGTHS), "f")
PLAN = Plan(FOLDER, seed=1, shuffle_shards=3, shuffle_block=4)


class Numbered:
    """Shards of records that are nothing but their key; notes what was read of them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def blocks(self, name: str, first: int, size: int) -> Iterator[list[Record]]:
        total = self.num_records(name)
        starts = range(first, total, size)
        return ([self.record(name, number) for number in range(start, min(start + size, total))] for start in starts)

    def num_records(self, name: str) -> int:
        return LENGTHS[name]

    def record(self, name: str, number: int) -> Record:
        self.seen.append(f"{name}/{number}")
        return Record(f"{name}/{number}")


SHARDS = Numbered()


def keys(plan: Plan, stream: int, number: int, start: Position = Position()) -> list[str]:  # noqa: B008  (immutable)
    return [record.key for _, record in islice(stream_records(plan, stream, start, SHARDS), number)]


@pytest.mark.parametrize("streams", [1, 2, 3, 7])
def test_every_pass_of_all_streams_has_every_record_once(streams: int) -> None:
    plan = replace(PLAN, streams_per_lane=streams)
    everything = Counter(f"{name}/{i}" for name, length in LENGTHS.items() for i in range(length))
    for epoch in range(3):
        windows = [window for stream in range(streams) for window in plan.windows(stream, epoch)]
        assert Counter(name for window in windows for name in window) == Counter(LENGTHS.keys())
        assert max(map(len, windows)) <= 3
        seen: Counter[str] = Counter()
        for stream in range(streams):
            for position, record in stream_records(plan, stream, Position(epoch), SHARDS):
                if position.epoch > epoch:
                    break
                seen[record.key] += 1
        assert seen == everything


def test_shards_are_shared_equally_over_passes_that_do_not_divide() -> None:
    plan = replace(PLAN, streams_per_lane=3)
    for stream in range(3):
        shares = [sum(map(len, plan.windows(stream, epoch))) for epoch in range(3)]
        assert sum(shares) == len(LENGTHS)  # 7 shards on 3 streams: 3 + 2 + 2 in turns


def test_the_order_depends_on_seed_and_pass() -> None:
    first = keys(PLAN, 0, 40)
    assert first == keys(PLAN, 0, 40)
    assert sorted(first) == sorted(keys(PLAN, 0, 40, Position(epoch=1)))
    assert first != keys(PLAN, 0, 40, Position(epoch=1))
    assert first != keys(replace(PLAN, seed=2), 0, 40)


def test_a_block_mixes_all_shards_of_its_window() -> None:
    window = PLAN.windows(0, 0)[0]
    block = keys(PLAN, 0, sum(min(LENGTHS[name], 4) for name in window))
    assert {key.split("/")[0] for key in block} == {name for name in window if LENGTHS[name]}
    assert block != sorted(block)


@pytest.mark.parametrize("stream", [0, 1])
def test_every_position_brings_back_the_rest(stream: int) -> None:
    plan = replace(PLAN, lanes=2)
    whole = list(islice(stream_records(plan, stream, Position(), SHARDS), 100))
    for number, (position, _) in enumerate(whole[:60], start=1):
        assert keys(plan, stream, 40, Position(*map(int, position))) == [record.key for _, record in whole[number : number + 40]]


def test_nothing_before_a_position_is_read() -> None:
    whole = list(islice(stream_records(PLAN, 0, Position(), SHARDS), 38))
    for number in (5, 12, 13, 30):
        (position, _), shards = whole[number - 1], Numbered()
        rest = [record.key for _, record in islice(stream_records(PLAN, 0, position, shards), 38 - number)]
        assert rest == [record.key for _, record in whole[number:]]
        same_window = {record.key for earlier, record in whole[:number] if earlier[:2] == position[:2]}
        assert not same_window & set(shards.seen)


def test_lanes_and_ranks_share_the_streams() -> None:
    plan = replace(PLAN, lanes=2, streams_per_lane=3)
    assert [list(plan.lane_streams(batch, 0, 1)) for batch in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert [list(plan.lane_streams(1, rank, 3)) for rank in range(3)] == [[3], [4], [5]]


def test_too_few_shards_are_refused() -> None:
    with pytest.raises(TooFewShards, match=r"found 7 shards for 8 streams \(lanes 4 x streams_per_lane 2\), need a shard for each$"):
        replace(PLAN, lanes=4, streams_per_lane=2)
    with pytest.raises(ValueError, match="shuffle_block 0, need at least 1"):
        replace(PLAN, shuffle_block=0)


def test_shards_without_any_record_are_an_error() -> None:
    with pytest.raises(ValueError, match="the shards hold no record"):
        next(stream_records(replace(PLAN, folder=replace(FOLDER, names=("e.tar",))), 0, Position(), SHARDS))
