"""The stage `balance` on made-up matched captions in 14 languages, against RECIPE 1.1 in plain Python: whole numbers, fractions, and hashes by hand."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from math import prod, sqrt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc2 import storage
from mc2.curation import balance_sums
from mc2.curation.balance import EnglishRule
from mc2.curation.balance_stage import Draws, run_balance
from mc2.curation.balance_sums import group_names
from mc2.engines.local import LocalEngine
from mc2.metadata.build import build_metadata
from mc2.metadata.entries import Metadata
from mc2.records import MATCHED_SCHEMA
from tests.curation.pools import folder_bytes

HERE = LocalEngine(1, progress=False)
LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
NUM_ENTRIES = 30  # words of a language; the numbers "0" to "99" come on top
Row = dict[str, Any]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Metadata:
    folder = tmp_path_factory.mktemp("balance") / "metadata"
    return build_metadata(folder, [], {code: [f"{code}{n:02d}" for n in range(NUM_ENTRIES)] for code in LANGUAGES}, progress=False)


def made_up(seed: int, num_shards: int, pairs_per_shard: int, languages: tuple[str, ...] = LANGUAGES) -> list[list[Row]]:
    """Rows of matched shards: entries as in life, a few of them in most captions; captions without an entry and of no language too."""
    rng = random.Random(seed)
    shards = []
    for shard in range(num_shards):
        rows: list[Row] = []
        for pair in range(pairs_per_shard):
            for index in range(rng.randrange(1, 5)):
                code = rng.choice(languages[: rng.randrange(1, len(languages) + 1)])
                ids = sorted({min(int(rng.paretovariate(0.7)) - 1, NUM_ENTRIES - 1) for _ in range(rng.randrange(4))})
                drop = rng.choice([None, None, None, "empty_caption"]) if ids else "no_entry"
                language = "" if drop == "empty_caption" else code
                key = f"{shard}-{pair}"
                rows.append(
                    {"key": key, "caption_index": index, "language": language, "score": 1.0, "entries": [] if drop else ids, "drop": drop}
                )
        shards.append(rows)
    return shards


def write_matched(folder: Path, shards: list[list[Row]], metadata: Metadata) -> Path:
    """The folder that `mc2 curate match` would leave."""
    with storage.Stage(folder, "match", {"metadata": metadata.fingerprint, "pool": "made up"}) as stage:
        for number, rows in enumerate(shards):
            pq.write_table(pa.Table.from_pylist(rows, MATCHED_SCHEMA), folder / f"{number:05d}.parquet")
        drops = Counter(row["drop"] for rows in shards for row in rows if row["drop"])
        stage.finish({"shards": len(shards), "drops": dict(sorted(drops.items()))})
    return folder


# --- the recipe, slowly -------------------------------------------------------------------------------------------------


def slow_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def slow_uniform(seed: int, epoch: int, key: str, entry: int) -> float:
    """splitmix64 in Python's whole numbers."""
    modulus = 2**64
    z = (slow_hash(f"{seed}|balance|{epoch}|{key}") + (entry + 1) * 0x9E3779B97F4A7C15) % modulus
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % modulus
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % modulus
    return ((z ^ (z >> 31)) >> 11) / 2**53


def slow_balance(shards: list[list[Row]], threshold: int, rule: str, share: float | None, draws: Draws) -> dict[str, Any]:
    """Everything that balance.json says of the languages, and of the entries."""
    matched = [row for rows in shards for row in rows if row["drop"] is None]
    counts: dict[str, Counter[int]] = {}
    for row in matched:
        counts.setdefault(row["language"], Counter()).update(row["entries"])
    if share is None:
        english = list(counts["en"].values())
        share = float(Fraction(sum(c for c in english if c < threshold), sum(english)))
    thresholds = {}
    for code, count in counts.items():
        total, running, best = sum(count.values()), 0, (float("inf"), 1)
        for c in sorted(count.values()):
            running += c
            best = min(best, (abs(running - share * total), c))
        thresholds[code] = threshold if code == "en" and rule == "published_code" else best[1]
    q = {code: {e: Fraction(thresholds[code], max(c, thresholds[code])) for e, c in count.items()} for code, count in counts.items()}
    result: dict[str, Any] = {"share": share, "counts": counts, "thresholds": thresholds, "q": q, "expected_counts": {}}
    for name in ("captions", "pairs", "variance", "drawn_captions", "drawn_pairs"):
        result[name] = Counter()
    for key in sorted({row["key"] for row in matched}):
        rows = [row for row in matched if row["key"] == key]
        chosen = int((slow_hash(f"{draws.seed}|caption|{draws.epoch}|{key}") >> 11) / 2**53 * len(rows))
        shown: Counter[str] = Counter()
        for number, row in enumerate(rows):
            code = row["language"]
            keep = 1 - prod(1 - q[code][e] for e in row["entries"])
            result["captions"][code] += keep
            result["pairs"][code] += keep / len(rows)
            shown[code] += keep / len(rows)  # type: ignore[assignment]
            for e in row["entries"]:
                expected = result["expected_counts"].setdefault(code, Counter())
                expected[e] += keep
            accepted = any(slow_uniform(draws.seed, draws.epoch, key, e) < q[code][e] for e in row["entries"])
            result["drawn_captions"][code] += accepted
            result["drawn_pairs"][code] += accepted and number == chosen
        for code, p in shown.items():
            result["variance"][code] += p * (1 - p)
    return result


def check(out: Path, value: Mapping[str, Any], shards: list[list[Row]], slow: Mapping[str, Any]) -> None:
    assert value["tail_share"] == pytest.approx(slow["share"], rel=1e-15)
    for code, row in value["languages"].items():
        count = slow["counts"].get(code, Counter())
        t = slow["thresholds"].get(code, 1)
        assert row["captions"] == sum(r["language"] == code and r["drop"] in (None, "no_entry") for rows in shards for r in rows)
        assert row["matched"] == sum(r["language"] == code and r["drop"] is None for rows in shards for r in rows)
        assert (row["threshold"], row["matches"], row["entries_seen"]) == (t, count.total(), len(count))
        assert (row["head_entries"], row["head_matches"]) == (sum(c > t for c in count.values()), sum(c for c in count.values() if c > t))
        assert (row["tail_entries"], row["tail_matches"]) == (sum(c <= t for c in count.values()), sum(c for c in count.values() if c <= t))
        assert row["expected_captions"] == pytest.approx(float(slow["captions"][code]))
        assert row["expected_pairs"] == pytest.approx(float(slow["pairs"][code]))
        assert row["pairs_deviation"] == pytest.approx(sqrt(slow["variance"][code]), abs=1e-6)
        assert (row["drawn_captions"], row["drawn_pairs"]) == (slow["drawn_captions"][code], slow["drawn_pairs"][code])
        written = {e["id"]: e for e in pq.read_table(out / f"{code}.parquet").to_pylist()}
        assert {e: r["count"] for e, r in written.items()} == count
        for e, r in written.items():
            assert r["probability"] == pytest.approx(float(slow["q"][code][e]), rel=1e-15)
            assert r["expected_count"] == pytest.approx(float(slow["expected_counts"][code][e]))


@pytest.mark.parametrize("rule", ["paper", "published_code"])
def test_fourteen_languages(entries: Metadata, tmp_path: Path, rule: EnglishRule) -> None:
    shards, draws = made_up(1, 4, 150), Draws(3, 2)
    write_matched(tmp_path / "matched", shards, entries)
    value = run_balance(tmp_path / "matched", entries.folder, tmp_path / "balance", 40, rule, None, HERE, draws)
    assert set(value["languages"]) == set(LANGUAGES)
    assert 0 < value["tail_share"] < 1
    check(tmp_path / "balance", value, shards, slow_balance(shards, 40, rule, None, draws))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 14),
    st.sampled_from([None, 0.0, 0.06, 0.5, 1.0]),
    st.integers(1, 9),
)
def test_small_pools(  # few counts, ties, shards without a match, pools without English
    entries: Metadata,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    num_shards: int,
    pairs: int,
    languages: int,
    share: float | None,
    threshold: int,
) -> None:
    shards, out, draws = made_up(seed, num_shards, pairs, LANGUAGES[:languages]), tmp_path_factory.mktemp("small"), Draws(seed)
    write_matched(out / "matched", shards, entries)
    if share is None and not any(row["language"] == "en" and row["drop"] is None for rows in shards for row in rows):
        with pytest.raises(ValueError, match="no English caption matched"):
            run_balance(out / "matched", entries.folder, out / "balance", threshold, engine=HERE)
        return
    value = run_balance(out / "matched", entries.folder, out / "balance", threshold if share is None else None, "paper", share, HERE, draws)
    check(out / "balance", value, shards, slow_balance(shards, threshold, "paper", share, draws))


def test_sums_add_up(entries: Metadata, tmp_path: Path) -> None:
    shards = made_up(2, 3, 60)
    write_matched(tmp_path / "matched", shards, entries)
    value = run_balance(tmp_path / "matched", entries.folder, tmp_path / "balance", 15, engine=HERE)
    total, rows = value["total"], value["languages"].values()
    for name in ("captions", "matched", "expected_captions", "drawn_captions", "expected_pairs", "drawn_pairs"):
        assert total[name] == pytest.approx(sum(row[name] for row in rows), rel=1e-12)
    assert total["pool_captions"] == sum(map(len, shards)) == total["captions"] + value["drops"]["empty_caption"]
    assert total["captions"] == total["matched"] + value["drops"]["no_entry"]
    assert (total["shards"], total["pairs"]) == (3, 180)
    assert total["pairs_matched"] == len({row["key"] for rows_of in shards for row in rows_of if row["drop"] is None})
    assert total["drawn_pairs"] <= total["pairs_matched"] <= total["pairs"]


def test_what_is_drawn_agrees_with_what_is_expected(entries: Metadata, tmp_path: Path) -> None:
    """Pairs are independent: within 4.5 standard deviations (1 of 150,000). Captions of a pair are not, at worst all of a pair (here 4) fall together."""
    write_matched(tmp_path / "matched", made_up(3, 2, 5000), entries)
    value = run_balance(tmp_path / "matched", entries.folder, tmp_path / "balance", 400, engine=HERE)
    for row in (value["total"], *value["languages"].values()):
        assert row["drawn_pairs"] != row["expected_pairs"]
        assert abs(row["drawn_pairs"] - row["expected_pairs"]) < 4.5 * row["pairs_deviation"]
        caption_deviation = sqrt(4 * row["expected_captions"] * (1 - row["expected_captions"] / row["matched"]))
        assert abs(row["drawn_captions"] - row["expected_captions"]) < 4.5 * caption_deviation
    assert value["total"]["pairs_deviation"] < 0.02 * value["total"]["expected_pairs"]  # the bound says something


# --- groups -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5000))
def test_groups_deal_all_shards(num_shards: int) -> None:
    bounds = [tuple(map(int, name.split("-"))) for name in group_names(num_shards)]
    assert [number for first, last in bounds for number in range(first, last + 1)] == list(range(num_shards))
    assert len(bounds) <= 1000


def test_groups_do_not_change_the_result(entries: Metadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_matched(tmp_path / "matched", made_up(4, 7, 20), entries)
    value = run_balance(tmp_path / "matched", entries.folder, tmp_path / "single", 10, engine=HERE)
    monkeypatch.setattr(balance_sums, "MOST_GROUPS", 3)
    assert group_names(7) == ["0-2", "3-5", "6-6"]
    grouped = run_balance(tmp_path / "matched", entries.folder, tmp_path / "grouped", 10, engine=HERE)
    flat = [json.loads(json.dumps(numbers), parse_float=lambda number: f"{float(number):.9g}") for numbers in (value, grouped)]
    assert flat[0] == flat[1]


def test_the_same_bytes_with_two_processes_and_after_a_break(entries: Metadata, tmp_path: Path) -> None:
    write_matched(tmp_path / "matched", made_up(5, 5, 20), entries)
    run_balance(tmp_path / "matched", entries.folder, tmp_path / "one", 10, engine=HERE)

    class Stop(LocalEngine):
        def map(self, name: str, function: Any, items: Any) -> Any:
            result = super().map(name, function, items[:3] if name == "keep" else items)
            if name == "keep":
                raise KeyboardInterrupt
            return result

    with pytest.raises(KeyboardInterrupt):
        run_balance(tmp_path / "matched", entries.folder, tmp_path / "two", 10, engine=Stop(1, progress=False))
    assert len(list((tmp_path / "two" / ".sums").iterdir())) == 5 + 3
    run_balance(tmp_path / "matched", entries.folder, tmp_path / "two", 10, engine=LocalEngine(2, progress=False))
    assert folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "one")
    assert not (tmp_path / "two" / ".sums").exists()


def test_a_matched_shard_that_cannot_be_read_is_named(entries: Metadata, tmp_path: Path) -> None:
    write_matched(tmp_path / "matched", made_up(6, 3, 5), entries)
    (tmp_path / "matched" / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"count: 1 of 3 failed \(1-1; .*00001\.parquet: cannot be read .* delete it and done\.json"):
        run_balance(tmp_path / "matched", entries.folder, tmp_path / "balance", 10, engine=HERE)


def test_matched_shards_that_are_missing_or_strange_are_refused(entries: Metadata, tmp_path: Path) -> None:
    matched = write_matched(tmp_path / "matched", made_up(6, 3, 5), entries)
    shutil.copy(matched / "00001.parquet", matched / "stray.parquet")
    with pytest.raises(ValueError, match=r"matched: found 4 parquet files, need the 3 of this match"):
        run_balance(matched, entries.folder, tmp_path / "balance", 10, engine=HERE)
    (matched / "stray.parquet").unlink()
    (matched / "00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"matched: found 2 parquet files, need the 3 of this match"):
        run_balance(matched, entries.folder, tmp_path / "balance", 10, engine=HERE)


def test_other_folders_are_refused_in_one_line(entries: Metadata, tmp_path: Path) -> None:
    matched = write_matched(tmp_path / "matched", made_up(6, 3, 5), entries)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text('{"shards": []}')
    with pytest.raises(
        ValueError, match=r"shards: manifest\.json is not one of metadata \(KeyError\('languages'\)\); give a folder of `mc2 metadata"
    ):
        run_balance(matched, tmp_path / "shards", tmp_path / "balance", 10, engine=HERE)
    (matched / "done.json").write_text("[]")
    with pytest.raises(ValueError, match=r"done\.json: is no mark of a finished stage; delete it and run `mc2 curate match` again"):
        run_balance(matched, entries.folder, tmp_path / "balance", 10, engine=HERE)
