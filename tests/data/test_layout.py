"""Numbers that are said to work do."""

from __future__ import annotations

import itertools
import re

import pytest

from mc2.data.layout import check_layout, fitting
from mc2.data.shard_folder import ShardFolder
from mc2.data.shard_stream import Plan, TooFewShards


def deal(num_shards: int, layout: dict[str, int], world_size: int, batch_size: int, num_workers: int) -> None:
    folder = ShardFolder("", tuple(f"{number}.tar" for number in range(num_shards)), "")  # type: ignore[arg-type]
    plan = Plan(folder, 0, **{"lanes": max(1, num_workers), "streams_per_lane": world_size, **layout})
    check_layout(plan, world_size, batch_size, num_workers)


FIXED = [{}, {"lanes": 8}, {"streams_per_lane": 8}, {"lanes": 6, "streams_per_lane": 12}]


@pytest.mark.parametrize("fixed", FIXED)
def test_advice_works_as_it_is_said(fixed: dict[str, int]) -> None:
    seen = set()
    for num_shards, world_size, batch_size, num_workers in itertools.product((1, 3, 7, 20, 60), (1, 2, 4), (8, 12), (0, 1, 2, 6)):
        settings = {"num_workers": num_workers, "world_size": world_size, **fixed}
        try:
            deal(num_shards, fixed, world_size, batch_size, num_workers)
        except TooFewShards:
            advice = fitting(num_shards, fixed, world_size, batch_size, num_workers)
        except ValueError:
            continue
        else:
            continue
        assert re.fullmatch(r"(set|use at most) [\w ,]+", advice)
        seen.add(re.sub(r"\d+", "n", advice))
        settings |= {name: int(number) for name, number in re.findall(r"(\w+) (?:to )?(\d+)", advice)}
        settings["world_size"] = int(found[1]) if (found := re.search(r"at most (\d+) ranks", advice)) else world_size
        layout = {name: settings[name] for name in fixed if f"{name} null" not in advice}
        deal(num_shards, layout, settings["world_size"], batch_size, settings["num_workers"])
    assert seen


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((7, {}, 2, 8, 4), "set num_workers to 3"),
        ((7, {}, 8, 8, 4), "use at most 7 ranks with num_workers 1"),
        ((6, {"lanes": 8}, 1, 8, 2), "set lanes to 6"),
        ((20, {"streams_per_lane": 64}, 2, 12, 4), "set streams_per_lane to 4"),
        ((3, {"lanes": 8, "streams_per_lane": 64}, 4, 8, 0), "use at most 3 ranks with num_workers 0, lanes null, streams_per_lane null"),
    ],
)
def test_what_is_advised(arguments: tuple[int, dict[str, int], int, int, int], advice: str) -> None:
    assert fitting(*arguments) == advice
