"""Mixtures: the shares of the weights, exact resume, passes of each data set by itself; settings in YAML; how well the order is shuffled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from mc2.data.data_sets import DataSet, numbered
from mc2.data.datamodule import ShardDataModule
from mc2.data.shard_folder import ShardFolder
from mc2.data.shard_stream import Plan
from mc2.data.shuffle import buffer_bytes, shards_in_batch
from tests.data.shards import record, write_folder, write_tar
from tests.data.test_loader import batches, data, keys, saved


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[DataSet]:
    """A packed one, and plain tars a third as often."""
    folder = tmp_path_factory.mktemp("sets")
    for shard in range(3):
        write_tar(folder / "plain" / f"{shard}.tar", [file for pair in range(4) for file in record(f"p{shard}-{pair}", b"a fox")])
    return [DataSet(str(write_folder(folder / "packed", [9, 12, 4, 10])), 3.0), DataSet(str(folder / "plain"), 1.0)]


def mixed(sets: list[DataSet], tokenizer_folder: Path, **settings: Any) -> ShardDataModule:
    return data(sets, tokenizer_folder, **settings)


def test_samples_come_as_the_weights_say_and_passes_are_counted_apart(sets: list[DataSet], tokenizer_folder: Path) -> None:
    module = mixed(sets, tokenizer_folder)
    loader = module.train_dataloader()
    found = Counter("plain" if key.startswith("p") else "packed" for batch in keys(loader, 250) for key in batch)
    assert abs(found["plain"] - 250) < 4 * np.sqrt(1000 * 0.25 * 0.75)
    assert module.tally.data_sets == found
    expected = {"packed": found["packed"] / 35, "plain": found["plain"] / 12}
    assert module.passes == pytest.approx(expected, abs=0.8)  # counted in windows of two shards
    assert expected["plain"] < expected["packed"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mixture_resumes_exactly(sets: list[DataSet], tokenizer_folder: Path, num_workers: int) -> None:
    settings = {"num_workers": num_workers, "lanes": 2}
    whole = keys(mixed(sets, tokenizer_folder, **settings).loader(0, 1), 30)
    first = mixed(sets, tokenizer_folder, **settings).loader(0, 1)
    assert keys(first, 13) == whole[:13]
    state = saved(first)
    second = mixed(sets, tokenizer_folder, **settings).loader(0, 1)
    second.load_state_dict(state)
    assert keys(second, 17) == whole[13:]
    other_weights = mixed([sets[0], DataSet(sets[1].shards, 9.0)], tokenizer_folder, **settings).loader(0, 1)
    other_weights.load_state_dict(state)  # weights may change between runs
    assert sum(key.startswith("p") for batch in keys(other_weights, 17) for key in batch) > 34
    with pytest.raises(ValueError, match="another order of samples \\(shards: found"):
        mixed(sets[:1], tokenizer_folder, **settings).loader(0, 1).load_state_dict(state)


def test_a_data_set_of_which_nothing_survives_is_named(sets: list[DataSet], tokenizer_folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "broken" / "0.tar", record("x", b"fox", image=b"none"))
    with pytest.raises(ValueError, match=r"/broken: no pair of the shards can be used \(broken_image \d+\)"):
        batches(mixed([*sets, DataSet(str(tmp_path / "broken"), 0.5)], tokenizer_folder).loader(0, 1), 30)
    with pytest.raises(ValueError, match=r"/plain: found 3 shards for 4 streams"):
        mixed(sets, tokenizer_folder, lanes=4).loader(0, 1)


def test_settings_in_yaml(sets: list[DataSet], tokenizer_folder: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardDataModule, "data")
    rows = [{"shards": sets[0].shards, "weight": 2}, {"shards": sets[1].shards, "name": "crawl"}]
    config = {"data": {"shards": rows, "tokenizer": str(tokenizer_folder), "language_shares": {"temperature": 1.5, "most": {"en": 0.5}}}}
    module = parser.instantiate_classes(parser.parse_object(config)).data
    assert module.data_sets == [DataSet(sets[0].shards, 2.0), DataSet(sets[1].shards, 1.0, None, "crawl")]
    assert module.language_shares.most == {"en": 0.5}
    for bad, message in (({"shards": []}, "empty list"), ({"shards": sets, "balance": "x"}, "found one beside a list of data sets")):
        with pytest.raises(ValueError, match=message):
            ShardDataModule(**{"tokenizer": str(tokenizer_folder), **bad})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found weight 0 for a, need a number above 0"):
        DataSet("a", 0)


def test_names() -> None:
    assert list(numbered(["a", "b", "a", "a"])) == ["a", "b", "a_2", "a_3"]


def test_shards_that_meet_in_a_batch() -> None:
    """Against the expectation for draws without replacement: 1 - C(N - n, k) / C(N, k) for each shard with n of the N records of a block."""
    names = tuple(f"{number:03d}.tar" for number in range(64))
    folder = ShardFolder(Path("x"), names, "f", dict.fromkeys(names, 10**6), dict.fromkeys(names, 1000))
    for shards, block, streams in ((1, 100, 4), (4, 100, 4), (16, 25, 4), (4, 100, 64)):
        plan = Plan(folder, 0, streams_per_lane=streams, shuffle_shards=shards, shuffle_block=block)
        rows, open_shards = 128 // streams, min(shards, 64 // streams)
        drawn = np.prod([1 - block / (open_shards * block - i) for i in range(rows)]) if open_shards > 1 else 0
        assert shards_in_batch(plan, 128) == pytest.approx(streams * open_shards * (1 - drawn), rel=0.1)
        assert buffer_bytes(plan) == 1000 * block * open_shards


def test_the_run_says_how_it_is_shuffled(sets: list[DataSet], tokenizer_folder: Path) -> None:
    first, second = mixed(sets, tokenizer_folder, num_workers=1).summary(world_size=2)
    assert first.startswith("packed: 35 pairs in 4 shards, 2.0 for each of 1 lanes (workers) of 2 streams (ranks); ")
    assert "shards meet in a batch of 6 (shuffle_shards 2, shuffle_block 3: 0.0 MB a stream)" in first
    assert "a batch of 2 (" in second
