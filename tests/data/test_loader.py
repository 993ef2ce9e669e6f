"""Resume and sharing of the order, by the keys in the batches; on-line balancing; drops."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mc2.curation.balance import keep_probability
from mc2.data.batch import PairBatch
from mc2.data.data_sets import DataSet
from mc2.data.datamodule import ShardDataModule
from mc2.data.loader import Loader
from mc2.data.preprocess import ImagePreprocess
from mc2.data.samples import Drop, SampleMaker
from mc2.data.shard_folder import open_folder
from mc2.data.shard_reader import Record, ShardReader, read_shard
from mc2.records import DROP_REASONS, PackedCaption
from tests.data.shards import jpeg, packed, record, write_folder, write_tar

SMALL = ImagePreprocess(image_size=8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("shards"), [9, 12, 4, 10, 7, 13])


def data(shards: Path | list[DataSet], tokenizer_folder: Path, **settings: Any) -> ShardDataModule:
    defaults: dict[str, Any] = {"batch_size": 4, "steps_per_epoch": 5, "shuffle_shards": 2, "shuffle_block": 3, "preprocess": SMALL}
    return ShardDataModule(str(shards) if isinstance(shards, Path) else shards, str(tokenizer_folder), **{**defaults, **settings})


def batches(loader: Loader, number: int) -> list[PairBatch]:
    """The next batches, over the ends of virtual epochs."""
    found: list[PairBatch] = []
    while len(found) < number:
        found += islice(loader, number - len(found))
    return found


def keys(loader: Loader, number: int) -> list[list[str]]:
    return [batch.keys for batch in batches(loader, number)]


def joined(parts: Iterable[list[str]]) -> list[str]:
    return [key for part in parts for key in part]


def saved(loader: Loader) -> dict[str, Any]:
    """The state as a checkpoint keeps it: nothing but plain values and tensors survives `weights_only`."""
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    state: dict[str, Any] = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    return state


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_goes_on_exactly(shards: Path, tokenizer_folder: Path, num_workers: int) -> None:
    whole = batches(data(shards, tokenizer_folder, num_workers=num_workers).loader(0, 1), 20)
    first = data(shards, tokenizer_folder, num_workers=num_workers).loader(0, 1)
    done = 0
    for stop in (1, 5, 8):
        assert keys(first, stop - done) == [batch.keys for batch in whole[done:stop]]
        done = stop
        second = data(shards, tokenizer_folder, num_workers=num_workers).loader(0, 1)
        second.load_state_dict(saved(first))
        for ours, theirs in zip(batches(second, 20 - stop), whole[stop:], strict=True):
            assert ours.keys == theirs.keys
            assert torch.equal(ours.image, theirs.image)
            assert torch.equal(ours.tokens, theirs.tokens)


def test_the_global_order_is_the_same_on_other_numbers_of_ranks_and_workers(shards: Path, tokenizer_folder: Path) -> None:
    def global_order(world_size: int, num_workers: int) -> list[list[str]]:
        module = data(shards, tokenizer_folder, num_workers=num_workers, batch_size=8 // world_size, lanes=2, streams_per_lane=2)
        ranks = [keys(module.loader(rank, world_size), 12) for rank in range(world_size)]
        return [joined(parts) for parts in zip(*ranks, strict=True)]

    whole = global_order(1, 0)
    assert global_order(2, 0) == whole
    assert global_order(1, 2) == whole
    assert global_order(2, 1) == whole


def test_a_checkpoint_of_two_ranks_goes_on_in_one(shards: Path, tokenizer_folder: Path) -> None:
    two = [data(shards, tokenizer_folder, batch_size=2).loader(rank, 2) for rank in range(2)]
    whole = [joined(parts) for parts in zip(*(keys(loader, 10) for loader in two), strict=True)]
    parts = [data(shards, tokenizer_folder, batch_size=2).loader(rank, 2) for rank in range(2)]
    assert [joined(rows) for rows in zip(*(keys(loader, 4) for loader in parts), strict=True)] == whole[:4]
    places = {
        str(k): place.row() for part in parts for k, place in part._batches.share.places.items()
    }  # what state_dict gathers in a process group, in the form of older checkpoints
    one = data(shards, tokenizer_folder).loader(0, 1)
    one.load_state_dict({"order": parts[0].mixture.identity(), "batch": 4, "places": places})
    assert keys(one, 6) == whole[4:]


@pytest.mark.parametrize(
    "then",
    [
        pytest.param("", id="end"),
        # as an exception does whose traceback is kept: the loader goes with the next collection, its workers' queues at once
        pytest.param("import gc; cycle = [loader, batches]; cycle.append(cycle); del cycle, loader, batches; gc.collect()", id="cycle"),
    ],
)
def test_a_script_that_stops_between_two_batches_ends(shards: Path, tokenizer_folder: Path, then: str) -> None:
    script = f"""
from mc2.data.datamodule import ShardDataModule
loader = ShardDataModule({str(shards)!r}, {str(tokenizer_folder)!r}, batch_size=4, num_workers=2, lanes=2).loader(0, 1)
batches = iter(loader)
print(len(next(batches).keys))
{then}
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_ranks_see_different_records(shards: Path, tokenizer_folder: Path) -> None:
    first, second = (set(joined(keys(data(shards, tokenizer_folder).loader(rank, 2), 5))) for rank in range(2))
    assert not first & second


def test_cache_and_global_generators_change_nothing(shards: Path, tokenizer_folder: Path) -> None:
    whole = batches(data(shards, tokenizer_folder).loader(0, 1), 40)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    cached = batches(data(shards, tokenizer_folder, cache_bytes=10**8).loader(0, 1), 40)
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(cached, whole, strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.image, theirs.image)


def test_the_cache_keeps_what_fits(shards: Path) -> None:
    folder = open_folder(shards)
    reader = ShardReader(folder, cache_bytes=(shards / folder.names[0]).stat().st_size + 24 * 20 * 3)
    first = list(reader.read(folder.names[0]))
    assert list(reader.read(folder.names[0])) == first
    assert not any(record.cached for record in reader.read(folder.names[1]))
    for item in first[:2]:
        assert isinstance(item.image, bytes)
        reader.keep_decoded(item, ImagePreprocess(image_size=20).decode(item.image))
    assert [isinstance(item.image, torch.Tensor) for item in first[:2]] == [True, False]


def test_balancing_keeps_the_share_that_the_rule_says() -> None:
    probabilities = {"en": np.array([0.1, 0.5, 1.0]), "de": np.array([0.2])}
    captions = (PackedCaption("a", "en", (0,)), PackedCaption("b", "en", (0, 1)), PackedCaption("c", "de", (0,)), PackedCaption("d", "de"))
    maker = SampleMaker(SMALL, seed=3, probabilities=probabilities)
    num_pairs = 4000
    drawn = Counter(str(maker.draw(Record(f"{i}", captions, b""), epoch=0)) for i in range(num_pairs))
    for caption in captions:
        kept = keep_probability(np.array(caption.entries, dtype=int), probabilities[caption.language]) / len(captions)
        assert abs(drawn[str(caption)] / num_pairs - kept) < 4 * np.sqrt(kept * (1 - kept) / num_pairs) + 1e-9
    other = Counter(str(maker.draw(Record(f"{i}", captions, b""), epoch=1)) for i in range(num_pairs))
    assert drawn != other


def slow_uniform(seed: int, purpose: str, epoch: int, key: str, number: int | None = None) -> float:
    """The keyed draw of storage.py in Python's integers: blake2b, and splitmix64 with a number (an entry id)."""
    bits = int.from_bytes(hashlib.blake2b(f"{seed}|{purpose}|{epoch}|{key}".encode(), digest_size=8).digest(), "big")
    if number is not None:
        bits = (bits + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        bits ^= bits >> 31
    return (bits >> 11) / 2**53


def test_draws_are_those_of_a_slow_version() -> None:
    generator = np.random.default_rng(0)
    probabilities = {"en": generator.uniform(size=20), "de": generator.uniform(size=5)}
    maker = SampleMaker(SMALL, seed=3, probabilities=probabilities, language_keep={"en": 0.4, "de": 1.0})
    for pair in range(300):
        captions = tuple(
            PackedCaption(f"{i}", code, tuple(generator.choice(len(probabilities[code]), size, replace=False).tolist()))
            for i, (code, size) in enumerate([("en", 3), ("de", 1), ("en", 0), ("de", 4)][: 1 + pair % 4])
        )
        for epoch in range(3):
            caption = captions[int(slow_uniform(3, "caption", epoch, f"{pair}") * len(captions))]
            entry_prob = probabilities[caption.language]
            accepted = any(slow_uniform(3, "balance", epoch, f"{pair}", entry) < entry_prob[entry] for entry in caption.entries)
            kept = caption.language == "de" or slow_uniform(3, "language", epoch, f"{pair}") < 0.4
            expected = caption if accepted and kept else Drop("language_share" if accepted else "balanced_away", caption.language)
            assert maker.draw(Record(f"{pair}", captions, b""), epoch) == expected


def test_passes_draw_different_captions(shards: Path, tokenizer_folder: Path) -> None:
    found = batches(data(shards, tokenizer_folder, batch_size=5).loader(0, 1), 22)  # 55 records: two passes
    languages = [language for batch in found for language in batch.languages]
    assert set(languages) == {"en", "de", "fr"}
    assert languages[:55] != languages[55:]
    images = {key: image for batch in found[:11] for key, image in zip(batch.keys, batch.image, strict=True)}
    assert any(not torch.equal(images[key], image) for batch in found[11:] for key, image in zip(batch.keys, batch.image, strict=True))


def test_language_filter(shards: Path, tokenizer_folder: Path) -> None:
    loader = data(shards, tokenizer_folder, languages=["de", "fr"]).loader(0, 1)
    assert {language for batch in batches(loader, 20) for language in batch.languages} == {"de", "fr"}
    loader = data(shards, tokenizer_folder, without_languages=["fr", "ja"]).loader(0, 1)
    assert {language for batch in batches(loader, 20) for language in batch.languages} == {"de", "en"}
    with pytest.raises(ValueError, match=r"no pair of the shards can be used \(other_language \d+\)"):
        batches(data(shards, tokenizer_folder, languages=["ja"]).loader(0, 1), 1)
    with pytest.raises(ValueError, match="unknown language code 'xx'"):
        data(shards, tokenizer_folder, languages=["xx"])


DIRT: Sequence[tuple[list[tuple[str, bytes]], tuple[str, ...]]] = [
    (record("x", b""), ("empty_caption", "no_captions")),
    (record("x", b" \n"), ("empty_caption", "no_captions")),
    (record("x", b"caf\xe9"), ("not_utf8", "no_captions")),
    (record("x", {"captions": ["", "\udcff"]}), ("empty_caption", "not_utf8", "no_captions")),
    (record("x", {"captions": []}), ("no_captions",)),
    (record("x", {"url": "no caption at all"}), ("no_captions",)),
    (record("x", {"captions": [1]}), ("broken_record",)),
    (record("x", {"captions": [{"text": 1, "language": "en", "entries": []}]}), ("broken_record",)),
    (record("x", {"captions": [{"text": "fox", "language": "en", "entries": [-1]}]}), ("broken_record",)),
    (record("x", {"captions": [{"text": "fox", "language": "en", "entries": [2**40]}]}), ("broken_record",)),
    (record("x", {"captions": [{"text": "fox", "language": "\ud800", "entries": []}]}), ("broken_record",)),
    (record("x", {"captions": [{"text": "fox"}]}), ("broken_record",)),
    (record("x", {"captions": "a red fox"}), ("broken_record",)),
    (record("x", {"captions": {"en": "a fox"}}), ("broken_record",)),
    (record("x", {"captions": [{"text": "fox", "language": "en", "entries": {}}]}), ("broken_record",)),
    ([("x.jpg", jpeg()), ("x.json", b"{broken")], ("broken_record",)),
    ([("x.jpg", jpeg()), ("x.json", b"[1]")], ("no_captions",)),
    ([("x.txt", b"a fox")], ("no_image",)),
    (record("x", b"a fox", image=b""), ("no_image",)),
    (record("x", b"a fox", image=jpeg()[:200]), ("broken_image",)),
    (record("x", b"a fox", image=b"P4 30000 30000\n"), ("huge_image",)),
]


@pytest.mark.parametrize(("members", "reasons"), DIRT)
def test_dirt_is_dropped_counted_and_replaced(
    members: list[tuple[str, bytes]], reasons: tuple[str, ...], tokenizer_folder: Path, tmp_path: Path
) -> None:
    write_tar(tmp_path / "0.tar", [*record("good", b"a fox"), *members, *record("fine", b"a hen")])
    module = data(tmp_path, tokenizer_folder, batch_size=2)
    loader = module.train_dataloader()
    for batch in batches(loader, 3):
        assert batch.image.shape == (2, 3, 8, 8)
        assert sorted(batch.keys) == ["fine", "good"]
    assert set(module.drops) == set(reasons) <= DROP_REASONS.keys()
    assert len(set(module.drops.values())) == 1


def test_nothing_survives_is_an_error_not_a_loop(tokenizer_folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*record("x", b""), *record("y", b"fox", image=b"none")])
    for num_workers in (0, 1):
        with pytest.raises(
            ValueError, match=r"^/.*: no pair of the shards can be used \(empty_caption 2, no_captions 2, broken_image 2\); look at"
        ):
            batches(data(tmp_path, tokenizer_folder, num_workers=num_workers).loader(0, 1), 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_that_is_dealt_unusable_shards_waits_for_better_ones(seed: int, tokenizer_folder: Path, tmp_path: Path) -> None:
    """A stream for each shard: it sees one of them in a pass, and the same one again by chance."""
    for shard in range(4):
        pairs = [record(f"{shard}-{pair}", b"a fox", image=b"none" if shard == 0 else None) for pair in range(8)]
        write_tar(tmp_path / f"{shard}.tar", [file for pair in pairs for file in pair])
    module = data(tmp_path, tokenizer_folder, streams_per_lane=4, batch_size=8, seed=seed)
    assert len(keys(module.loader(0, 1), 200)) == 200


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_that_is_dealt_empty_shards_waits_for_others(seed: int, tokenizer_folder: Path, tmp_path: Path) -> None:
    for shard in range(8):
        write_tar(tmp_path / f"{shard}.tar", [file for pair in range(4 * (shard < 1)) for file in record(f"{shard}-{pair}", b"a fox")])
    module = data(tmp_path, tokenizer_folder, streams_per_lane=8, batch_size=8, seed=seed)
    assert len(keys(module.loader(0, 1), 100)) == 100


def test_a_language_in_one_shard_of_many_is_found_by_every_stream(tokenizer_folder: Path, tmp_path: Path) -> None:
    for shard in range(8):
        caption = packed(("habari", "sw" if shard == 3 else "en", ()))
        write_tar(
            tmp_path / f"{shard}.tar",
            [file for pair in range(4) for file in ((f"{shard}-{pair}.jpg", jpeg()), (f"{shard}-{pair}.json", caption))],
        )
    settings: dict[str, Any] = {"streams_per_lane": 8, "batch_size": 8}
    found = joined(keys(data(tmp_path, tokenizer_folder, languages=["sw"], **settings).loader(0, 1), 20))
    assert {key[0] for key in found} == {"3"}
    with pytest.raises(ValueError, match=r"no pair of the shards can be used \(other_language \d+\)"):
        batches(data(tmp_path, tokenizer_folder, languages=["fr"], **settings).loader(0, 1), 1)


@pytest.mark.parametrize("cut", [300, 700, 1300, 2000])
def test_a_truncated_tar_gives_what_is_before_the_cut(cut: int, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [member for key in "abc" for member in record(key, b"a fox")])
    whole = (tmp_path / "0.tar").read_bytes()
    assert [item.key for item in read_shard(tmp_path / "0.tar")] == ["a", "b", "c"]
    size = 2 * (512 + 1024)  # header and data of image and caption, at most
    (tmp_path / "0.tar").write_bytes(whole[: size + cut])
    *before, last = read_shard(tmp_path / "0.tar")
    assert last.drops == ("truncated_tar",)
    assert [item.key for item in before] == ["a", "b", "c"][: len(before)]


def test_keys_that_are_not_utf8_or_come_twice(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*record("a\udcff", b"fox"), *record("b", b"fox"), *record("b", b"hen"), *record("c", b"owl")])
    records = list(read_shard(tmp_path / "0.tar"))
    assert [item.drops for item in records] == [("broken_record",), (), ()]
    assert [item.captions[0].text for item in records[1:]] == ["fox", "owl"]


def test_another_order_is_refused(shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    loader = data(shards, tokenizer_folder).loader(0, 1)
    keys(loader, 1)
    state = saved(loader)
    with pytest.raises(ValueError, match=r"another order of samples \(seed: found 0, need 1\)"):
        data(shards, tokenizer_folder, seed=1).loader(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"another order of samples \(shards: found"):
        data(write_folder(tmp_path, [5]), tokenizer_folder).loader(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="lanes: found 1, need 2"):
        data(shards, tokenizer_folder, lanes=2).loader(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"found lanes 1 for 2 workers, need a multiple; set num_workers to 1$"):
        data(shards, tokenizer_folder, num_workers=2).loader(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="found streams_per_lane 1 for 2 ranks, need a multiple"):
        data(shards, tokenizer_folder).loader(0, 2).load_state_dict(state)
    with pytest.raises(ValueError, match="the checkpoint has no places of streams, it is of an older mc2"):
        data(shards, tokenizer_folder).loader(0, 1).load_state_dict({"order": {}, "positions": {}})
    with pytest.raises(ValueError, match=r"found streams_per_lane 6 for 4 ranks, need a multiple; use 1, 2, 3 or 6 ranks$"):
        data(shards, tokenizer_folder, streams_per_lane=6).loader(0, 4)
    with pytest.raises(ValueError, match="found batch_size 4 for 3 streams on each rank"):
        data(shards, tokenizer_folder, streams_per_lane=3).loader(0, 1)


def test_packed_json_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("x.jpg", jpeg()), ("x.json", packed(("caf@", "fr", ()), ("ok", "en", (1,))).replace(b"@", b"\xe9"))])
    (item,) = read_shard(tmp_path / "0.tar")
    assert item.drops == ("not_utf8",)
    assert item.captions == (PackedCaption("ok", "en", (1,)),)
