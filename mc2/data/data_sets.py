"""Several data sets trained on at once: which one the next sample of a stream comes from, and where the stream is in each of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from mc2 import storage
from mc2.data.places import Place
from mc2.data.samples import SampleMaker
from mc2.data.shard_reader import ShardReader
from mc2.data.shard_stream import Plan, Position
from mc2.data.views import Views

# Settings of the order that may be taken over from a checkpoint.
LAYOUT = ("lanes", "streams_per_lane")


@dataclass(frozen=True)
class DataSet:
    """A folder of shards in a mixture.

    weight: its samples stand to those of the others as the weights do, after all drops and balancing. balance: folder of the balance for on-line balancing (None:
    every pair of every pass). name: in logs and errors, by default the folder's.
    """

    shards: str
    weight: float = 1.0
    balance: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(
                f"data.shards: found weight {self.weight} for {self.shards}, need a number above 0; take the data set out instead"
            )

    @property
    def label(self) -> str:
        return self.name or Path(self.shards).name


@dataclass(frozen=True)
class Source:
    """One data set made ready: its order, what makes samples of its records, what reads them."""

    name: str
    weight: float
    plan: Plan
    maker: SampleMaker
    reader: ShardReader


@dataclass(frozen=True)
class Mixture:
    """The data sets of a run, in the same lanes and streams. One data set is a mixture too."""

    sources: tuple[Source, ...]
    _bounds: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        total = sum(source.weight for source in self.sources)
        object.__setattr__(self, "_bounds", tuple(accumulate(source.weight / total for source in self.sources))[:-1])

    @property
    def plan(self) -> Plan:
        """The order of the first data set; seed, lanes and streams are those of all."""
        return self.sources[0].plan

    @property
    def views(self) -> Views:
        """What other models read of a batch, the same for all data sets."""
        return self.sources[0].maker.views

    @property
    def start(self) -> Place:
        return Place(0, (Position(),) * len(self.sources))

    def choose(self, stream: int, sample: int) -> int:
        """The data set of a sample of a stream."""
        return bisect_right(self._bounds, storage.keyed_uniform(self.plan.seed, "data set", 0, f"{stream}/{sample}")) if self._bounds else 0

    def with_layout(self, lanes: int, streams_per_lane: int) -> Mixture:
        """The same data sets in other lanes and streams. Errors: ValueError for fewer shards than streams in any."""
        plans = [replace(source.plan, lanes=lanes, streams_per_lane=streams_per_lane) for source in self.sources]
        return Mixture(tuple(replace(source, plan=plan) for source, plan in zip(self.sources, plans, strict=True)))

    def identity(self) -> dict[str, int | str]:
        """What a checkpoint notes of the order, plain values. Weights and balance may change between runs."""
        return {**self.plan.identity(), "shards": "+".join(source.plan.folder.fingerprint for source in self.sources)}

    def passes(self, places: Mapping[int, Place]) -> dict[str, float]:
        """How often each data set was gone through, on average over these streams; to the window of shards."""
        found: dict[str, float] = {}
        for number, source in enumerate(self.sources):
            done = [source.plan.passes(stream, place.positions[number]) for stream, place in places.items()]
            found[source.name] = sum(done) / max(1, len(done))
        return found


def numbered(names: Sequence[str]) -> Iterator[str]:
    """The names, with a number where one comes again."""
    for index, name in enumerate(names):
        before = names[:index].count(name)
        yield f"{name}_{before + 1}" if before else name
