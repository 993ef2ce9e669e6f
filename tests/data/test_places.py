"""The state of thousands of streams: small at any position, and exact."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mc2 import storage
from mc2.data.data_sets import Mixture, Source
from mc2.data.loader import BatchStream, Loader, Share
from mc2.data.places import Place, packed, unpacked
from mc2.data.samples import Drop, Sample
from mc2.data.shard_folder import ShardFolder
from mc2.data.shard_reader import Record
from mc2.data.shard_stream import Plan, Position
from mc2.data.views import Views

LANES, STREAMS_PER_LANE = 32, 256
STREAMS = LANES * STREAMS_PER_LANE
PIXEL = torch.zeros(3, 1, 1, dtype=torch.uint8)


class Numbered:
    """Shards of records that are nothing but their key."""

    def __init__(self, folder: ShardFolder) -> None:
        self.folder = folder

    def blocks(self, name: str, first: int, size: int) -> Iterator[list[Record]]:
        total = self.num_records(name)
        starts = range(first, total, size)
        return ([self.record(name, number) for number in range(start, min(start + size, total))] for start in starts)

    def num_records(self, name: str) -> int:
        return self.folder.num_records[name]

    def record(self, name: str, number: int) -> Record:
        return Record(f"{name}/{number}")


class Half:
    """Accepts every second record by a draw."""

    views = Views()

    def train(self, record: Record, epoch: int, _reader: Any, _laps: Any) -> Sample | Drop:
        accepted = storage.keyed_uniform(0, "balance", epoch, record.key) < 0.5
        return Sample(PIXEL, "a fox", "en", record.key) if accepted else Drop("balanced_away", "en")


def no_tokens(texts: list[str]) -> Tensor:
    return torch.zeros(len(texts), 1, dtype=torch.int32)


def source(name: str, weight: float, shards: int) -> Source:
    names = tuple(f"{name}-{number:05d}.tar" for number in range(shards))
    records = {each: 14 + number % 7 for number, each in enumerate(names)}
    folder = ShardFolder(Path(name), names, name, dict.fromkeys(names, 1), records)
    reader: Any = Numbered(folder)
    maker: Any = Half()
    return Source(name, weight, Plan(folder, 0, LANES, STREAMS_PER_LANE, shuffle_shards=2, shuffle_block=4), maker, reader)


def test_8192_streams_of_a_mixture_go_on_exactly_from_16_kilobytes() -> None:
    mixture = Mixture((source("large", 3.0, 2 * STREAMS), source("small", 1.0, STREAMS)))
    tokenizer: Any = no_tokens

    def loader(rank: int, world_size: int, first_batch: int = 0, places: dict[int, Place] | None = None) -> Loader:
        share = Share(rank, world_size, STREAMS_PER_LANE // world_size, first_batch, places or {})
        return Loader(BatchStream(mixture, share, tokenizer), 10**6, 0, {"lanes": LANES, "streams_per_lane": STREAMS_PER_LANE})

    samples = 3_500_000  # of each stream: 29 billion pairs in all
    begin = Place(samples, (Position(epoch=5), Position(epoch=17)))
    whole = loader(0, 1, samples * LANES, dict.fromkeys(range(STREAMS), begin))
    batches = iter(whole)
    for _ in islice(batches, 2 * LANES + 5):
        pass
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    assert file.tell() < 16 * 1024
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    ranks = [loader(rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    for whole_batch, first, second in islice(zip(batches, *ranks, strict=False), 8):
        assert first.keys + second.keys == whole_batch.keys


def late_places(drift: float, num_sets: int) -> dict[int, Place]:
    """After 3.5 million samples of each stream, positions `drift` records (standard deviation) around what is expected."""
    rng = np.random.default_rng(0)
    block, window, epoch = 1024, 79 * 1024, 3 * 79 * 1024  # records of each, with 8 shards of 10,000 pairs in a window
    places = {}
    for stream in range(STREAMS):
        records = 11_666_667 + rng.normal(scale=drift, size=num_sets).round().astype(int)
        positions = tuple(Position(n // epoch, n % epoch // window, n % window // block, n % block) for n in records.tolist())
        places[stream] = Place(3_500_000 + (stream // STREAMS_PER_LANE < 7), positions)
    return places


@pytest.mark.parametrize("num_sets", [1, 3])
@pytest.mark.parametrize("drift", [5000, 60, 0])  # 5000: 3.5 million samples, of which 30 % were accepted
def test_a_state_is_hardly_larger_than_what_is_in_it(drift: float, num_sets: int) -> None:
    places = late_places(drift, num_sets)
    data = packed(places, STREAMS, num_sets)
    assert unpacked(data, STREAMS, num_sets, range(STREAMS)) == places
    bits = np.log2(drift * np.sqrt(2 * np.pi * np.e)) if drift else 0  # entropy of a normal distribution
    assert len(data) < 1.3 * STREAMS * num_sets * bits / 8 + 1000


def test_places_of_some_streams_and_of_older_checkpoints() -> None:
    places = {1: Place(7, (Position(1, 2, 3, 4), Position())), 3: Place(2**40, (Position(), Position(300, 1, 70_000, 0)))}
    start = Place(0, (Position(), Position()))
    assert unpacked(packed(places, 4, 2), 4, 2, range(4)) == {0: start, 2: start, **places}
    older = {str(stream): place.row() for stream, place in places.items()}
    assert unpacked(older, 4, 2, [3, 2]) == {3: places[3]}
    for data in (torch.zeros(10, dtype=torch.uint8), packed(places, 5, 2), packed(places, 4, 2)[:-30]):
        with pytest.raises(ValueError, match=r"^data: the places of 4 streams in the checkpoint cannot be read"):
            unpacked(data, 4, 2, range(4))
