"""Shares of languages: the rule against a search by bisection, the mix of a data set that it leaves, and what balancing accepted and rejected of each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mc2.curation.balance import Balance, LanguageBalance
from mc2.data.datamodule import ShardDataModule
from mc2.data.language_shares import LanguageShares
from mc2.data.preprocess import ImagePreprocess
from mc2.data.samples import Drop, SampleMaker
from mc2.data.shard_reader import Record
from mc2.data.shard_stream import Position, stream_records
from mc2.records import PackedCaption
from tests.data.shards import jpeg, packed, write_folder, write_tar
from tests.data.test_datamodule import manifest
from tests.data.test_loader import batches, data, slow_uniform

CURATED = {"en": 5000.0, "de": 1200.0, "fr": 900.0, "sw": 40.0}


def slow_shares(expected: dict[str, float], temperature: float, most: dict[str, float]) -> dict[str, float]:
    """Shares min(bound, c * power) with the c that makes them add up to 1, found by bisection."""
    powers = np.array([number ** (1 / temperature) for number in expected.values()])
    bounds = np.array([most.get(code, 1.0) for code in expected])
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(bounds, middle * powers).sum() < 1 else (low, middle)
    return dict(zip(expected, np.minimum(bounds, high * powers).tolist(), strict=True))


@pytest.mark.parametrize(
    ("temperature", "most"),
    [(1.0, {}), (2.0, {}), (0.5, {}), (1.0, {"en": 0.4}), (3.0, {"en": 0.3, "de": 0.25}), (1.0, {"en": 0.2, "de": 0.3, "fr": 0.3})],
)
def test_shares_are_those_of_a_slow_search(temperature: float, most: dict[str, float]) -> None:
    shares = LanguageShares(temperature, most)
    found = shares.shares(CURATED)
    assert found == pytest.approx(slow_shares(CURATED, temperature, most), abs=1e-9)
    keep = shares.keep_probabilities(CURATED)
    left = {code: keep[code] * number for code, number in CURATED.items()}
    assert max(keep.values()) == 1
    assert {code: number / sum(left.values()) for code, number in left.items()} == pytest.approx(found)


def test_the_mix_that_is_drawn_has_the_shares() -> None:
    """After balancing, which changes the curated shares first; within 4 standard deviations, and out of them without the setting."""
    entry_prob = {"en": np.array([0.3]), "de": np.array([1.0]), "fr": np.array([0.5]), "sw": np.array([1.0])}
    expected = {code: number * entry_prob[code][0] for code, number in CURATED.items()}
    shares = LanguageShares(1.7, {"en": 0.35})
    records = [Record(f"{code}{i}", (PackedCaption("x", code, (0,)),), b"") for code, number in CURATED.items() for i in range(int(number))]

    def deviation(keep: dict[str, float] | None, epoch: int) -> float:
        maker = SampleMaker(ImagePreprocess(image_size=8), 1, entry_prob, language_keep=keep)
        drawn = [maker.draw(record, epoch) for record in records]
        mix = Counter(caption.language for caption in drawn if isinstance(caption, PackedCaption))
        reasons = Counter(drop.reason for drop in drawn if isinstance(drop, Drop))
        assert reasons.keys() == ({"balanced_away", "language_share"} if keep else {"balanced_away"})
        total = mix.total()
        return max(
            float(abs(mix[code] - total * share) / np.sqrt(total * share * (1 - share))) for code, share in shares.shares(expected).items()
        )

    keep = shares.keep_probabilities(expected)
    assert all(deviation(keep, epoch) < 4 for epoch in range(3))
    assert deviation(None, 0) > 10


def test_what_is_refused() -> None:
    for settings, message in (
        ({"temperature": 0}, "temperature: found 0, need a number above 0"),
        ({"most": {"en": 0.0}}, "found 0.0 for en, need a share above 0"),
        ({"most": {"xx": 0.5}}, "unknown language code 'xx'"),
    ):
        with pytest.raises(ValueError, match=message):
            LanguageShares(**settings)
    with pytest.raises(ValueError, match="the bounds of all 2 languages add up to less than 1"):
        LanguageShares(most={"en": 0.5, "de": 0.4}).shares({"en": 1, "de": 1})
    most = {"en": 0.6, "de": 0.3, "fr": 0.1}  # their sum is less than 1 in binary
    assert LanguageShares(most=most).shares(dict.fromkeys(most, 100)) == pytest.approx(most)
    with pytest.raises(ValueError, match=r"settings that use 0\.\d+% of what is read, because sw would need"):
        LanguageShares(100).keep_probabilities({"en": 1e6, "sw": 10})
    with pytest.raises(ValueError, match="found shards without languages"):
        LanguageShares(2).keep_probabilities({})


def test_shares_from_a_manifest(tmp_path: Path, tokenizer_folder: Path) -> None:
    """The shards say en, de and fr equally often; what was accepted and rejected is counted for each."""
    shards = manifest(write_folder(tmp_path, [40, 40]), pairs={"en": 40, "de": 40, "fr": 40})
    module = data(shards, tokenizer_folder, language_shares=LanguageShares(most={"en": 0.1}))
    languages = Counter(language for batch in batches(module.train_dataloader(), 150) for language in batch.languages)
    assert 0.05 < languages["en"] / languages.total() < 0.16
    assert module.tally.accepted == languages
    assert module.tally.rejected.keys() == {"en"}
    assert module.drops["language_share"] == module.tally.rejected["en"] > 100
    with pytest.raises(ValueError, match="found shards without languages"):
        data(write_folder(tmp_path / "plain", [2]), tokenizer_folder, language_shares=LanguageShares(2)).train_dataloader()


def test_a_bound_holds_where_pairs_have_several_captions(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Half of the pairs have an English caption, the others nine French ones: half of the pairs are English, a tenth of the captions."""
    image = jpeg()
    for shard in range(2):
        captions = [packed(("a fox", "en", ())), packed(*[("un renard", "fr", ())] * 9)] * 50
        members = [((f"{shard}-{i}.jpg", image), (f"{shard}-{i}.json", text)) for i, text in enumerate(captions)]
        write_tar(tmp_path / f"{shard}.tar", [file for pair in members for file in pair])
    shares = LanguageShares(most={"en": 0.3})
    module = data(manifest(tmp_path, pairs={"en": 50, "fr": 50}), tokenizer_folder, language_shares=shares)
    assert module.expected_shares() == pytest.approx({"en": 0.3, "fr": 0.7})
    batches(module.train_dataloader(), 150)
    assert 0.2 < module.tally.accepted["en"] / module.tally.accepted.total() < 0.4
    with pytest.raises(ValueError, match="found shards without languages, need those of `mc2 curate pack`; pack them again, or"):
        data(manifest(tmp_path), tokenizer_folder, language_shares=shares).train_dataloader()


ENTRY_PROB = {"en": [0.3, 0.2], "de": [0.1, 0.5, 0.9], "fr": list[float]()}


def slow_counts(module: ShardDataModule) -> tuple[Counter[str], Counter[str]]:
    """Captions accepted and rejected by language, drawn one by one for every record up to where the streams of the loader are."""
    accepted, rejected, loader = Counter[str](), Counter[str](), module.train_dataloader()
    (source,) = loader.mixture.sources
    for stream, place in loader._batches.share.places.items():
        for position, record in stream_records(source.plan, stream, Position(), source.reader):
            caption = record.captions[int(slow_uniform(0, "caption", position.epoch, record.key) * len(record.captions))]
            draws = (slow_uniform(0, "balance", position.epoch, record.key, entry) for entry in caption.entries)
            kept = any(draw < ENTRY_PROB[caption.language][entry] for draw, entry in zip(draws, caption.entries, strict=True))
            (accepted if kept else rejected)[caption.language] += 1
            if position == place.positions[0]:
                break
    return accepted, rejected


def test_accepted_and_rejected_captions_are_counted_whoever_draws_them(tmp_path: Path, tokenizer_folder: Path) -> None:
    shards = write_folder(tmp_path / "shards", [9, 12, 4, 10])
    languages = {code: LanguageBalance(np.full(len(prob), 5), 5, np.array(prob)) for code, prob in ENTRY_PROB.items()}
    Balance(0.06, None, "paper", languages).save(tmp_path / "balance", entries=lambda _: ["a", "b", "c"])
    for num_workers in (0, 1, 2):
        module = data(shards, tokenizer_folder, balance=str(tmp_path / "balance"), num_workers=num_workers, lanes=2)
        found = batches(module.train_dataloader(), 31)
        accepted, rejected = slow_counts(module)
        assert accepted == Counter(language for batch in found for language in batch.languages)
        assert module.tally.accepted == accepted
        assert module.tally.rejected == rejected
        assert rejected.total() == module.drops["balanced_away"]
        assert rejected["fr"] > 100  # matched nothing
        module.teardown("fit")
