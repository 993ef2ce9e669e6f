"""Batches of this rank, endlessly, with a state for Lightning's checkpoint: resume is exact, inside an epoch and on other ranks too.

A worker sends the places behind a batch along with it, so the state is always that of the batches which training has seen, whatever was
prefetched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from ctypes import c_bool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from multiprocessing.sharedctypes import RawValue
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mc2.data.batch import PairBatch
from mc2.data.data_sets import LAYOUT, Mixture, Source
from mc2.data.gpu_decode import Files, GpuDecoder, joined
from mc2.data.layout import check_layout
from mc2.data.places import Place, packed, unpacked
from mc2.data.samples import Sample, collate, drop_reasons, nothing_usable
from mc2.data.shard_stream import Plan, Position, stream_records
from mc2.data.stages import Laps
from mc2.data.tokenizer import Tokenizer
from mc2.data.workers import begin

CPU = torch.device("cpu")

# Passes in a row without a sample after which balancing is not taken for bad luck any more.
MOST_BARREN_PASSES = 100
CHANCE = {"balanced_away", "language_share"}  # drops that another pass may not have


@dataclass
class Tally:
    """What happened to the records of some batches: drops by reason, captions by language that balancing rejected and accepted, samples by data set; seconds by
    stage that the making of the batches took, in the process that made them.
    """

    drops: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    data_sets: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.drops.update(other.drops)
        self.rejected.update(other.rejected)
        self.accepted.update(other.accepted)
        self.data_sets.update(other.data_sets)
        self.seconds.update(other.seconds)


class Delivery(NamedTuple):
    """What a worker sends: a batch, the places of its streams behind the batch, what happened to the records since the last one; files for the GPU."""

    batch: PairBatch
    places: dict[int, Place]
    tally: Tally
    files: Files | None = None


class Drought:
    """What a stream has read since its last sample: whether nothing of the data set can be used, or it had bad luck with the shards that it was dealt so far."""

    def __init__(self, plan: Plan, stream: int) -> None:
        self.reasons: Counter[str] = Counter()
        self._plan, self._stream = plan, stream
        self._shards = {name for name in plan.folder.names if plan.folder.num_records.get(name, 1)}
        self.end()

    def end(self) -> None:
        """There is a sample."""
        self.reasons.clear()
        self._window: tuple[int, int] | None = None
        self._left: set[str] = set()
        self._sweeps = self._passes = 0

    def hopeless(self, position: Position) -> bool:
        """Whether to give up at a record: every shard of the data set was read twice (the first time perhaps not from its beginning), and a draw had many tries."""
        window = position[:2]
        if window == self._window:
            return False
        if self._window is not None:
            epoch, number = self._window
            self._left.update(self._plan.windows(self._stream, epoch)[number])
            self._passes += position.epoch - epoch
            if self._left >= self._shards:
                self._sweeps += 1
                self._left.clear()
        self._window = window
        tried = self._passes > MOST_BARREN_PASSES or not CHANCE & self.reasons.keys()
        return (tried and self._sweeps > 1) or self._passes > MOST_BARREN_PASSES * self._plan.num_streams


@dataclass
class SampleStream:
    """The samples of one canonical stream of one data set. `position`: the place behind the last one; `tally`, `laps`: of the batch that is being made."""

    source: Source
    stream: int
    position: Position
    tally: Tally = field(default_factory=Tally)
    laps: Laps = field(default_factory=Laps)

    def __iter__(self) -> Iterator[Sample]:
        """Errors: ValueError when nothing survives."""
        plan, maker, reader = self.source.plan, self.source.maker, self.source.reader
        drought = Drought(plan, self.stream)
        for position, record in stream_records(plan, self.stream, self.position, reader):
            self.position, epoch = position, position.epoch
            if drought.hopeless(position):
                raise nothing_usable(drought.reasons, plan.folder.path)
            sample = maker.train(record, epoch, reader, self.laps)
            dropped = drop_reasons(record, sample)
            self.tally.drops.update(dropped)
            if isinstance(sample, Sample):
                drought.end()
                self.tally.accepted[sample.language] += 1
                self.tally.data_sets[self.source.name] += 1
                yield sample
            else:
                drought.reasons.update(dropped)
                if sample.language is not None:
                    self.tally.rejected[sample.language] += 1


class MixedStream:
    """The samples of one canonical stream of all data sets, endlessly. `place`: behind the last one."""

    def __init__(self, mixture: Mixture, stream: int, place: Place) -> None:
        self._mixture, self._stream, self._samples = mixture, stream, place.samples
        self._parts = [SampleStream(source, stream, position) for source, position in zip(mixture.sources, place.positions, strict=True)]
        self._iterators = [iter(part) for part in self._parts]

    def take(self, number: int, tally: Tally, laps: Laps) -> list[Sample]:
        """The next samples; what happened on the way is counted in `tally`, and its time in `laps`. Errors: ValueError when nothing survives."""
        for part in self._parts:
            part.tally, part.laps = tally, laps
        samples = []
        for _ in range(number):
            samples.append(next(self._iterators[self._mixture.choose(self._stream, self._samples)]))
            self._samples += 1
        return samples

    @property
    def place(self) -> Place:
        return Place(self._samples, tuple(part.position for part in self._parts))


@dataclass(frozen=True)
class Share:
    """Which rows of the global batches this rank makes, from which batch on, with the places of its streams (absent: the beginning)."""

    rank: int
    world_size: int
    batch_size: int
    first_batch: int = 0
    places: dict[int, Place] = field(default_factory=dict)


class BatchStream(IterableDataset[Delivery | str]):
    """The deliveries of one rank, endlessly: worker i of n makes batches i, i + n, ... from the first on. An error travels as its text."""

    def __init__(self, mixture: Mixture, share: Share, tokenizer: Tokenizer) -> None:
        self.mixture, self.share, self.tokenizer = mixture, share, tokenizer

    def __iter__(self) -> Iterator[Delivery | str]:
        try:
            yield from self._deliveries()
        except ValueError as error:  # DataLoader would wrap it into the worker's trace
            yield str(error)

    def _deliveries(self) -> Iterator[Delivery]:
        worker = get_worker_info()
        index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        streams: dict[int, MixedStream] = {}
        for batch in count(self.share.first_batch + index, num_workers):
            tally, laps = Tally(), Laps()
            own = self.mixture.plan.lane_streams(batch, self.share.rank, self.share.world_size)
            for stream in own:
                if stream not in streams:
                    streams[stream] = MixedStream(self.mixture, stream, self.share.places.get(stream, self.mixture.start))
            samples = [sample for stream in own for sample in streams[stream].take(self.share.batch_size // len(own), tally, laps)]
            made = collate(samples, self.tokenizer, self.mixture.views, laps)
            tally.seconds = laps.seconds
            files = {row: sample.file for row, sample in enumerate(samples) if sample.file}
            yield Delivery(made, {stream: streams[stream].place for stream in own}, tally, joined(files) if files else None)


def _as_it_is(delivery: Any) -> Any:
    return delivery


class Running(NamedTuple):
    """The deliveries of a DataLoader, and what tells its workers in shared memory that it is closed."""

    deliveries: Iterator[Delivery | str]
    closed: c_bool


def _stop(running: list[Running]) -> None:
    for each in running:
        each.closed.value = True
    running.clear()


class Loader:
    """Batches of this rank; `len` is the virtual epoch, and the next epoch goes on where the last one ended.

    `layout` holds the lanes and streams_per_lane that the user fixed; one that is not fixed is taken over from the checkpoint on a resume.
    `tally` counts what happened to the records of this rank since it was made. Errors: ValueError, before the first batch, for numbers that do not divide.
    """

    def __init__(
        self,
        batches: BatchStream,
        steps: int,
        num_workers: int,
        layout: Mapping[str, int],
        device: torch.device = CPU,
        decoder: GpuDecoder | None = None,
    ) -> None:
        self._batches, self._steps, self._num_workers, self._layout = batches, steps, num_workers, layout
        self._device, self._decoder = device, decoder
        self.tally = Tally()
        self._before = batches.share  # the last batch
        self._running: list[Running] = []  # the one that runs, if any
        # Workers ignore SIGTERM: the process waits for ever for those that nobody tells to stop. So they are told when it ends and when the loader is collected;
        # held from here, the iterator is no part of the cycle that is collected with it, in which its queues would go first.
        Finalize(self, _stop, (self._running,), exitpriority=100)  # the queues' own is 10
        check_layout(batches.mixture.plan, batches.share.world_size, batches.share.batch_size, num_workers)

    @property
    def mixture(self) -> Mixture:
        """The data sets with the order of their records."""
        return self._batches.mixture

    def passes(self) -> dict[str, float]:
        """How often this rank went through each data set."""
        return self.mixture.passes(self._batches.share.places)

    def origin(self) -> Callable[[], list[str]]:
        """What says, when it is asked, which shards the last batch came from: those that its streams had open."""
        return partial(open_shards, self.mixture, self._before, self._batches.share)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[PairBatch]:
        """One virtual epoch. Errors: ValueError of a worker, in the words of the worker."""
        if not self._running:
            self._running.append(self._start())
        for _ in range(self._steps):
            delivery = next(self._running[0].deliveries)
            if isinstance(delivery, str):
                raise ValueError(delivery)
            self._before = share = self._batches.share
            self._batches.share = replace(share, first_batch=share.first_batch + 1, places={**share.places, **delivery.places})
            batch = delivery.batch
            if delivery.files is not None:
                assert self._decoder is not None
                batch = self._decoder.completed(batch, delivery.files, self.mixture.views, delivery.tally.drops)
            self.tally.add(delivery.tally)
            yield batch

    def _start(self) -> Running:
        closed = RawValue(c_bool)
        loader = DataLoader(
            self._batches,
            batch_size=None,
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=partial(begin, closed),
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator().manual_seed(self.mixture.plan.seed % 2**63),  # else a number is drawn from the model's generator
        )
        try:
            return Running(iter(loader), closed)
        except BaseException:  # Ctrl-C: those that have started already wait for nothing
            closed.value = True
            raise

    def close(self) -> None:
        """Stop the workers, within seconds; the next epoch starts them again at the same place."""
        _stop(self._running)

    def state_dict(self) -> dict[str, Any]:
        """The order's identity, the number of batches and the places of the streams of all ranks; every rank must call it."""
        share, mixture = self._batches.share, self.mixture
        places = share.places
        if share.world_size > 1:
            parts: list[dict[int, Place]] = [{}] * share.world_size
            dist.all_gather_object(parts, places)
            places = {stream: place for part in parts for stream, place in part.items()}
        places_bytes = packed(places, mixture.plan.num_streams, len(mixture.sources))
        return {"order": mixture.identity(), "batch": share.first_batch, "places": places_bytes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batches of a checkpoint. Errors: ValueError if they were of another order."""
        mixture, share = self.mixture, self._batches.share
        if not {"order", "places"} <= state.keys():
            raise ValueError(
                "data: the checkpoint has no places of streams, it is of an older mc2; go on with that one, or start a new run from its weights"
            )
        found = dict(state["order"])
        need = {**found, **{k: v for k, v in mixture.identity().items() if k not in LAYOUT}, **self._layout}
        different = [f"{key}: found {found[key]!r}, need {need[key]!r}" for key in need if found.get(key) != need[key]]
        if different:
            raise ValueError(
                f"data: the checkpoint belongs to another order of samples ({'; '.join(different)}); set the same, or start a new run"
            )
        mixture = mixture.with_layout(**{key: found[key] for key in LAYOUT})
        check_layout(mixture.plan, share.world_size, share.batch_size, self._num_workers)
        # only its own streams: what it was told of the others would overwrite their progress in the next checkpoint
        own = {stream for lane in range(mixture.plan.lanes) for stream in mixture.plan.lane_streams(lane, share.rank, share.world_size)}
        places = unpacked(state["places"], mixture.plan.num_streams, len(mixture.sources), own)
        share = replace(share, first_batch=state["batch"], places=places)
        self.close()
        self._batches.mixture, self._batches.share = mixture, share


def open_shards(mixture: Mixture, before: Share, behind: Share) -> list[str]:
    """Paths of the shards that the streams of a batch had open before it and behind it."""
    found: dict[str, None] = {}
    for stream in mixture.plan.lane_streams(before.first_batch, before.rank, before.world_size):
        for share in (before, behind):
            positions = share.places.get(stream, mixture.start).positions
            for source, position in zip(mixture.sources, positions, strict=True):
                for name in source.plan.windows(stream, position.epoch)[position.window]:
                    found[str(source.plan.folder.path / name)] = None
    return list(found)
