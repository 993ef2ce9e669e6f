"""Batches of this rank, endlessly, with a state for Lightning's checkpoint: resume is exact, inside an epoch and on other ranks too.

A worker sends the positions behind a batch along with it, so the state is always that of the batches which training has seen, whatever was
prefetched.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mc2.data.batch import PairBatch
from mc2.data.samples import Sample, SampleMaker, collate, drop_reasons, nothing_usable
from mc2.data.shard_reader import ShardReader
from mc2.data.shard_stream import Plan, Position, stream_records
from mc2.data.tokenizer import Tokenizer

# Settings of the plan that may be taken over from a checkpoint.
LAYOUT = ("lanes", "streams_per_lane")
# Passes in a row without a sample after which balancing is not taken for bad luck any more.
MOST_BARREN_PASSES = 100


class Delivery(NamedTuple):
    """What a worker sends: a batch, the positions of its streams behind the batch, and the drops since the last one."""

    batch: PairBatch
    positions: dict[int, Position]
    drops: dict[str, int]


@dataclass
class SampleStream:
    """The samples of one canonical stream. `position`: the place behind the last one; `drops`: counts by reason, emptied by the reader."""

    plan: Plan
    stream: int
    position: Position
    maker: SampleMaker
    reader: ShardReader
    drops: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Sample]:
        """Errors: ValueError when nothing survives."""
        barren_from: int | None = None  # pass of the first record since the last sample
        reasons: Counter[str] = Counter()
        for position, record in stream_records(self.plan, self.stream, self.position, self.reader.read):
            self.position, epoch = position, position.epoch
            barren_from = epoch if barren_from is None else barren_from
            # the passes between were whole; balancing alone may be bad luck
            if epoch - barren_from > (MOST_BARREN_PASSES if reasons["balanced_away"] else 1):
                raise nothing_usable(reasons)
            sample = self.maker.train(record, epoch, self.reader)
            dropped = drop_reasons(record, sample)
            self.drops.update(dropped)
            if isinstance(sample, Sample):
                barren_from = None
                reasons.clear()
                yield sample
            else:
                reasons.update(dropped)


@dataclass(frozen=True)
class Share:
    """Which rows of the global batches this rank makes, from which batch on, with the positions of its streams (absent: the beginning)."""

    rank: int
    world_size: int
    batch_size: int
    first_batch: int = 0
    positions: dict[int, Position] = field(default_factory=dict)


class BatchStream(IterableDataset[Delivery | str]):
    """The deliveries of one rank, endlessly: worker i of n makes batches i, i + n, ... from the first on. An error travels as its text."""

    def __init__(self, plan: Plan, share: Share, maker: SampleMaker, tokenizer: Tokenizer, reader: ShardReader) -> None:
        self.plan, self.share, self.maker, self.tokenizer, self.reader = plan, share, maker, tokenizer, reader

    def __iter__(self) -> Iterator[Delivery | str]:
        if get_worker_info() is not None:
            leave_signals_to_the_parent()
        try:
            yield from self._deliveries()
        except ValueError as error:  # DataLoader would wrap it into the worker's trace
            yield str(error)

    def _deliveries(self) -> Iterator[Delivery]:
        worker = get_worker_info()
        index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        streams: dict[int, SampleStream] = {}
        iterators: dict[int, Iterator[Sample]] = {}
        for batch in count(self.share.first_batch + index, num_workers):
            own = self.plan.lane_streams(batch, self.share.rank, self.share.world_size)
            for stream in own:
                if stream not in streams:
                    position = self.share.positions.get(stream, Position())
                    streams[stream] = SampleStream(self.plan, stream, position, self.maker, self.reader)
                    iterators[stream] = iter(streams[stream])
            samples = [next(iterators[stream]) for stream in own for _ in range(self.share.batch_size // len(own))]
            drops = sum((streams[stream].drops for stream in own), Counter())
            for stream in own:
                streams[stream].drops.clear()
            yield Delivery(
                collate(samples, self.tokenizer, self.maker.views), {stream: streams[stream].position for stream in own}, dict(drops)
            )


def leave_signals_to_the_parent() -> None:
    """In a worker: SLURM and a terminal signal all processes of a run, and the rank that reads from this one needs it until its last step is made."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(delivery: Any) -> Any:
    return delivery


class Loader:
    """Batches of this rank; `len` is the virtual epoch, and the next epoch goes on where the last one ended.

    `layout` holds the lanes and streams_per_lane that the user fixed; one that is not fixed is taken over from the checkpoint on a resume.
    `drops` counts by reason what this rank dropped since the start of the process. Errors: ValueError, before the first batch, for numbers
    that do not divide.
    """

    def __init__(self, batches: BatchStream, steps: int, num_workers: int, layout: Mapping[str, int], pin_memory: bool = False) -> None:
        self._batches, self._steps, self._num_workers, self._layout, self._pin_memory = batches, steps, num_workers, layout, pin_memory
        self.drops: Counter[str] = Counter()
        self._iterator: Iterator[Delivery | str] | None = None
        check_layout(batches.plan, batches.share, num_workers)

    @property
    def plan(self) -> Plan:
        """The order of the records."""
        return self._batches.plan

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[PairBatch]:
        """One virtual epoch. Errors: ValueError of a worker, in the words of the worker."""
        if self._iterator is None:
            self._iterator = self._start()
        for _ in range(self._steps):
            delivery = next(self._iterator)
            if isinstance(delivery, str):
                raise ValueError(delivery)
            share = self._batches.share
            self._batches.share = replace(share, first_batch=share.first_batch + 1, positions={**share.positions, **delivery.positions})
            self.drops.update(delivery.drops)
            yield delivery.batch

    def _start(self) -> Iterator[Delivery | str]:
        loader = DataLoader(
            self._batches,
            batch_size=None,
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin_memory,
            generator=torch.Generator().manual_seed(self._batches.plan.seed % 2**63),  # else a number is drawn from the model's generator
        )
        return iter(loader)

    def close(self) -> None:
        """Stop the workers; the next epoch starts them again at the same place."""
        self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """The order's identity, the number of batches and the positions of the streams of all ranks; every rank must call it."""
        share = self._batches.share
        positions = {str(stream): list(position) for stream, position in share.positions.items()}
        if share.world_size > 1:
            parts: list[dict[str, list[int]]] = [{}] * share.world_size
            dist.all_gather_object(parts, positions)
            positions = {stream: position for part in parts for stream, position in part.items()}
        return {"order": self._batches.plan.identity(), "batch": share.first_batch, "positions": positions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batches of a checkpoint. Errors: ValueError if they were of another order."""
        plan, share = self._batches.plan, self._batches.share
        found = dict(state["order"])
        need = {**found, **{k: v for k, v in plan.identity().items() if k not in LAYOUT}, **self._layout}
        different = [f"{key}: found {found[key]!r}, need {need[key]!r}" for key in need if found.get(key) != need[key]]
        if different:
            raise ValueError(
                f"data: the checkpoint belongs to another order of samples ({'; '.join(different)}); set the same, or start a new run"
            )
        plan = replace(plan, **{key: found[key] for key in LAYOUT})
        check_layout(plan, share, self._num_workers)
        # only its own streams: what it was told of the others would overwrite their progress in the next checkpoint
        own = {stream for lane in range(plan.lanes) for stream in plan.lane_streams(lane, share.rank, share.world_size)}
        positions = {int(stream): Position(*position) for stream, position in state["positions"].items() if int(stream) in own}
        share = replace(share, first_batch=state["batch"], positions=positions)
        self.close()
        self._batches.plan, self._batches.share = plan, share


def check_layout(plan: Plan, share: Share, num_workers: int) -> None:
    """Errors: ValueError if ranks, workers or rows do not divide the lanes and streams of the plan."""
    if plan.streams_per_lane % share.world_size:
        raise ValueError(
            f"data: found streams_per_lane {plan.streams_per_lane} for {share.world_size} ranks, need a multiple; change the number of "
            "ranks"
        )
    if plan.lanes % max(num_workers, 1):
        raise ValueError(
            f"data: found lanes {plan.lanes} for {num_workers} workers, need a multiple; set num_workers to a divisor of {plan.lanes}"
        )
    streams = plan.streams_per_lane // share.world_size
    if share.batch_size % streams:
        raise ValueError(f"data: found batch_size {share.batch_size} for {streams} streams on each rank, need a multiple of {streams}")
