"""Whether lanes and streams (`shard_stream`) fit ranks, workers, rows and shards; and if not, numbers that do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mc2.data.shard_stream import Plan


def check_layout(plan: Plan, world_size: int, batch_size: int, num_workers: int) -> None:
    """Errors: ValueError if ranks, workers or rows do not divide the lanes and streams of the plan."""
    if plan.streams_per_lane % world_size:
        raise ValueError(
            f"data: found streams_per_lane {plan.streams_per_lane} for {world_size} ranks, need a multiple; use {divisors(plan.streams_per_lane)} ranks"
        )
    if plan.lanes % max(num_workers, 1):
        raise ValueError(
            f"data: found lanes {plan.lanes} for {num_workers} workers, need a multiple; set num_workers to {divisors(plan.lanes)}"
        )
    streams = plan.streams_per_lane // world_size
    if batch_size % streams:
        raise ValueError(f"data: found batch_size {batch_size} for {streams} streams on each rank, need a multiple of {streams}")


def divisors(number: int) -> str:
    """In words: "1, 2 or 4"."""
    found = [str(divisor) for divisor in range(1, number + 1) if number % divisor == 0]
    return " or ".join(part for part in (", ".join(found[:-1]), found[-1]) if part)


def fitting(num_shards: int, fixed: Mapping[str, int], world_size: int, batch_size: int, num_workers: int) -> str:
    """What to set where there are fewer shards than streams, in words: as many workers as can be, then as many streams. `fixed`: what the user set of the layout."""
    if num_shards < world_size:
        open_again = "".join(f", {name} null" for name in sorted(fixed))
        return f"use at most {num_shards} ranks with num_workers {min(num_workers, 1)}{open_again}"
    found = max(
        settings
        for streams in _streams(fixed, world_size, batch_size)
        for settings in _settings(num_shards // streams, streams, fixed, max(num_workers, 1))
    )
    settings = dict(zip(("num_workers", "streams_per_lane", "lanes"), found, strict=True))
    have = {"num_workers": max(num_workers, 1), **fixed}
    return "set " + " and ".join(f"{name} to {settings[name]}" for name in have if settings[name] != have[name])


def _streams(fixed: Mapping[str, int], world_size: int, batch_size: int) -> Iterator[int]:
    for each in range(1, max(1, fixed.get("streams_per_lane", 1) // world_size) + 1):
        if batch_size % each == 0:
            yield each * world_size


def _settings(most_lanes: int, streams: int, fixed: Mapping[str, int], num_workers: int) -> Iterator[tuple[int, int, int]]:
    """(num_workers, streams_per_lane, lanes) that fit."""
    for workers in range(1, num_workers + 1):
        for lanes in range(workers, min(most_lanes, fixed.get("lanes", workers)) + 1, workers):
            yield workers, streams, lanes
