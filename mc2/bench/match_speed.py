"""Captions a second of language id, matching, counting and writing, ours and the baseline's, in one run on the same captions and entries.

Each side works through the same shards in turn, in one process on one core, several times; the best time counts. Then several processes share the shards.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2.bench.clocks import Clock, keep_to_one_core, memory_bytes
from mc2.bench.match_baseline import Baseline
from mc2.curation.balance_stage import count_shard
from mc2.curation.balance_sums import EntrySums
from mc2.curation.match_stage import CaptionMatcher, MatchSettings, batches, write_matched
from mc2.curation.matched import MatchedShard
from mc2.metadata.entries import Metadata
from mc2.records import Pair

SHARD_CAPTIONS = 10_000
Item = TypeVar("Item")
Result = TypeVar("Result")
STAGES = ("language id", "match", "count", "write")


@dataclass(frozen=True)
class Job:
    """Where the sample is: entries in `folder`/metadata, captions in `folder`/captions.parquet."""

    folder: Path
    repeats: int

    @property
    def metadata(self) -> Metadata:
        return Metadata.open(self.folder / "metadata")

    def shards(self) -> list[list[Pair]]:
        """The captions in shards, one caption a pair."""
        captions = pq.read_table(self.folder / "captions.parquet")["caption"].to_pylist()
        pairs = [Pair(f"{i:09d}", (caption,)) for i, caption in enumerate(captions)]
        return [pairs[i : i + SHARD_CAPTIONS] for i in range(0, len(pairs), SHARD_CAPTIONS)]


class _Timed(CaptionMatcher):
    """The matcher of the stage, with a clock on two of its steps."""

    clock = Clock()

    def identify(self, *arguments: Any) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.uint8]]:
        with self.clock("language id"):
            return super().identify(*arguments)

    def match(self, *arguments: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        with self.clock("match"):
            return super().match(*arguments)


class Ours:
    """The stages' own functions, shard by shard: what `mc2 curate match` and `balance` do between reading the pool and the sums."""

    def __init__(self, job: Job) -> None:
        self.metadata, self.out = job.metadata, job.folder / "ours"
        self.matcher = _Timed(self.metadata, job.folder / "automata", MatchSettings())

    def open_all(self) -> int:
        """Open the automata of all languages, building those that are not there; their bytes."""
        return sum(self.matcher.matcher(code).automaton.num_bytes for code in self.matcher.identifier.candidates)

    def run(self, shards: Sequence[tuple[int, list[Pair]]], clock: Clock) -> EntrySums:
        self.matcher.clock, counts = clock, EntrySums(self.metadata.num_entries, np.int64)
        for number, pairs in shards:
            path = self.out / f"{number:05d}.parquet"
            with clock("write"):
                write_matched(path, [self.matcher(batch) for batch in batches(pairs)], {})
            with clock("count"):
                count_shard(MatchedShard.read(path), counts)
        return counts


# --- in processes of their own ------------------------------------------------------------------------------------------


def one_core(job: Job) -> dict[str, Any]:
    """Both sides in turn on one core: best seconds by stage, loading, memory, and how far they agree."""
    keep_to_one_core(0)
    shards = job.shards()
    result: dict[str, Any] = {"ours": {}, "baseline": {}}
    ours = Ours(job)
    result["ours"]["cold_seconds"] = _seconds(lambda: ours.run([(0, shards[0][:100])], Clock()))  # compiles, where no earlier process has
    shutil.rmtree(job.folder / "automata")
    result["ours"]["build_seconds"] = _seconds(Ours(job).open_all)
    ours = Ours(job)
    before = memory_bytes()
    result["ours"]["open_seconds"] = _seconds(ours.open_all)
    result["ours"]["automata_bytes"] = ours.open_all()
    result["ours"] |= _memory(before)
    before = memory_bytes()
    start = time.perf_counter()
    baseline = Baseline(job.metadata)
    result["baseline"]["build_seconds"] = result["baseline"]["open_seconds"] = time.perf_counter() - start
    result["baseline"] |= _memory(before)
    result["baseline"]["automata_bytes"] = result["baseline"].get("added_own_bytes")
    totals: dict[str, list[Clock]] = {"ours": [], "baseline": []}
    for _ in range(job.repeats):
        clock = Clock()
        counted = ours.run(list(enumerate(shards)), clock)
        totals["ours"].append(clock)
        clock = Clock()
        expected = _run_baseline(baseline, shards, job.folder / "baseline", clock)
        totals["baseline"].append(clock)
    for side, clocks in totals.items():
        best = min(clocks, key=lambda clock: sum(clock.seconds.values()))
        result[side]["seconds"] = {stage: best.seconds[stage] for stage in STAGES}
    return result | {"agreement": _agreement(job.folder, counted, expected)}


def _seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _memory(before: dict[str, int]) -> dict[str, int]:
    """Memory of this process, and what has come to it."""
    now = memory_bytes()
    return {f"{name}_bytes": value for name, value in now.items()} | {f"added_{name}_bytes": now[name] - before[name] for name in now}


def _run_baseline(baseline: Baseline, shards: Sequence[Sequence[Pair]], out: Path, clock: Clock) -> dict[str, Counter[int]]:
    out.mkdir(exist_ok=True)
    counts = {code: Counter[int]() for code in baseline.automata}
    for number, pairs in enumerate(shards):
        keys, captions = [pair.key for pair in pairs], [pair.captions[0] for pair in pairs]
        for code, part in baseline.run(keys, captions, out / f"{number:05d}.jsonl", clock).items():
            with clock("count"):
                counts[code].update(part)
    return counts


def _agreement(folder: Path, counted: EntrySums, expected: dict[str, Counter[int]]) -> dict[str, int]:
    """Captions, those in which both sides name one language, those of them in which they find other entries; matches on each side."""
    ours = {row["key"]: row for path in sorted((folder / "ours").glob("*.parquet")) for row in pq.read_table(path).to_pylist()}
    lines = [json.loads(line) for path in sorted((folder / "baseline").glob("*.jsonl")) for line in path.read_text().splitlines()]
    same = [(ours[line["key"]]["entries"], line["entries"]) for line in lines if ours[line["key"]]["language"] == line["language"]]
    return {
        "captions": len(lines),
        "same_language": len(same),
        "other_entries": sum(first != second for first, second in same),
        "matches_ours": int(sum(values.sum() for values in counted.of.values())),
        "matches_baseline": sum(part.total() for part in expected.values()),
    }


def _worker(job: Job, number: int, processes: int, barrier: Barrier, answer: Connection) -> None:
    """Sends (start, end) of its share of the shards for each repetition; the clock is the machine's."""
    keep_to_one_core(number)
    ours, shards = Ours(job), list(enumerate(job.shards()))
    ours.open_all()
    ours.run(shards[number : number + 1], Clock())
    for _ in range(job.repeats):
        barrier.wait()
        start = time.perf_counter()
        ours.run(shards[number::processes], Clock())
        answer.send((start, time.perf_counter()))


def shared_seconds(job: Job, processes: int) -> float:
    """Seconds in which the processes work through all shards together, the best of the repetitions."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers = [
        context.Process(target=_worker, args=(job, number, processes, barrier, pipe[1]), daemon=True) for number, pipe in enumerate(pipes)
    ]
    for worker, (_, sending) in zip(workers, pipes, strict=True):
        worker.start()
        sending.close()  # so that the end of a worker is the end of its answers
    try:
        times: list[list[tuple[float, float]]] = [[receiving.recv() for receiving, _ in pipes] for _ in range(job.repeats)]
    except EOFError as error:
        raise ValueError("match: a worker process died (out of memory?); run it again with fewer processes") from error
    for worker in workers:
        worker.join()
    return min(max(end for _, end in parts) - min(start for start, _ in parts) for parts in times)


def in_process(function: Callable[[Item], Result], item: Item) -> Result:
    """The function's result, computed in a fresh process."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, item).result()


def measure(folder: Path, captions: Sequence[str], repeats: int, processes: int) -> dict[str, Any]:
    """All figures, from the sample in `folder` (made by the caller: metadata/) and the captions."""
    job = Job(folder, repeats)
    pq.write_table(pa.table({"caption": list(captions)}), folder / "captions.parquet")
    figures = in_process(one_core, job)
    figures["processes"] = {str(number): len(captions) / shared_seconds(job, number) for number in sorted({1, processes})}
    for side in ("ours", "baseline"):
        seconds = figures[side]["seconds"]
        figures[side]["captions_per_second"] = {stage: len(captions) / seconds[stage] for stage in STAGES}
        figures[side]["captions_per_second"]["all"] = len(captions) / sum(seconds.values())
    figures["ratio"] = figures["ours"]["captions_per_second"]["all"] / figures["baseline"]["captions_per_second"]["all"]
    return figures
