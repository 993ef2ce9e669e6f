"""The steps of the published curation ablation (RECIPE 3), from the YAMLs of experiments/curation, on a pool whose counts are done by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from mc2 import storage
from mc2.curation.balance import balance_languages
from mc2.curation.commands import main
from mc2.curation.language_id import LanguageSettings
from mc2.curation.one_language import OneLanguage, open_identifier
from mc2.metadata.commands import main as metadata_main
from mc2.metadata.entries import Metadata
from mc2.metadata.join import join_languages

CURATION = Path(__file__).parents[2] / "experiments/curation"
STEPS = ("english_metadata", "one_set", "one_threshold")


@pytest.fixture(scope="module")
def one_set(metadata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ablations") / "one_set"
    assert metadata_main(["metadata", "join", "--folder", str(metadata), "--out", str(out)]) == 0
    return out


def test_one_set_holds_every_entry_once_with_its_first_source(metadata: Path, one_set: Path, tmp_path: Path) -> None:
    several, one = Metadata.open(metadata), Metadata.open(one_set)
    entries = one.entries("mul")
    assert entries == sorted({entry for code in several.sha256 for entry in several.entries(code)})
    sources = pq.read_table(one_set / "mul.sources.parquet")["source"].to_pylist()
    assert {entry for entry, source in zip(entries, sources, strict=True) if source == "numbers"} == {str(n) for n in range(100)}
    assert join_languages(metadata, one_set).fingerprint == one.fingerprint  # again: nothing to do
    with pytest.raises(ValueError, match=r"one_set: belongs to another run \(joined: found .*, need"):
        join_languages(one_set, one_set)
    bent = Path(shutil.copytree(metadata, tmp_path / "bent"))
    (bent / "de.sources.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"de\.sources\.parquet: not the sources of the \d+ entries .*; build the metadata again"):
        join_languages(bent, tmp_path / "of_bent")


@pytest.fixture(scope="module")
def curated(pool: Path, metadata: Path, one_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the three steps, each from its YAML on top of its parent's, with the folders of this test and a threshold for three shards."""
    folder = tmp_path_factory.mktemp("curated")
    for step in STEPS:
        argv = [word for name in ("worldwide", step) for word in ("--config", str(CURATION / f"{name}.yaml"))]
        own = {"pool": pool, "metadata": one_set if step == "one_set" else metadata, "out": folder / step, "english_threshold": 4}
        given = [word for key, value in own.items() for word in (f"--{key}", str(value))]
        assert main(["curate", "run", *argv, *given, "--workers", "1", "--progress", "false"]) == 0
    return {step: folder / step for step in STEPS}


def entries_of(folder: Path, metadata: Path, text_key: str) -> list[str]:
    """The entries that matched in the first caption of a pair."""
    rows = pq.read_table(sorted((folder / "matched").glob("*.parquet"))).to_pylist()
    row = next(row for row in rows if row["key"] == text_key)
    entries = Metadata.open(metadata).entries(row["language"])
    return [entries[i] for i in row["entries"]]


def test_thresholds_are_those_given_whatever_the_counts(curated: dict[str, Path]) -> None:
    thresholds = {
        step: {code: row["threshold"] for code, row in storage.read_json(folder / "balance/balance.json")["languages"].items()}
        for step, folder in curated.items()
    }
    assert thresholds == {"english_metadata": {"en": 4}, "one_set": {"mul": 4}, "one_threshold": {"de": 4, "en": 4, "ja": 4}}


def test_without_languages_captions_match_what_they_hold(curated: dict[str, Path], one_set: Path) -> None:
    """Step 2: a German caption has only the English words in it ("die" none); step 3: every language's words match in every caption."""
    key = "000000000"  # "a brown fox in the snow", then German and Japanese
    english = pq.read_table(sorted((curated["english_metadata"] / "matched").glob("*.parquet"))).to_pylist()
    kept = {(row["key"], row["caption_index"]) for row in english if row["drop"] is None}
    assert (key, 0) in kept
    assert (key, 1) not in kept  # "ein brauner Fuchs im Schnee" holds no English entry
    assert {row["language"] for row in english if row["drop"] is None} == {"en"}
    assert entries_of(curated["one_set"], one_set, key) == ["a", "brown fox", "fox", "snow", "the"]
    one = pq.read_table(sorted((curated["one_set"] / "matched").glob("*.parquet"))).to_pylist()
    found = {(row["key"], row["caption_index"]): row["entries"] for row in one}
    names = Metadata.open(one_set).entries("mul")
    assert [names[i] for i in found[key, 1]] == ["Fuchs", "Schnee", "im"]
    assert [names[i] for i in found[key, 2]] == ["の", "キツネ", "雪"]


def test_one_threshold_needs_no_english_and_no_tail_share() -> None:
    counts = {"mul": np.array([1, 2, 7, 10])}
    result = balance_languages(counts, 5, "one_threshold")
    assert result.tail_share == 3 / 20
    assert result.languages["mul"].entry_prob.tolist() == [1, 1, 5 / 7, 0.5]
    with pytest.raises(ValueError, match=r"balance: found the tail share 0\.1, but under the English rule .* leave it out"):
        balance_languages(counts, 5, "one_threshold", share=0.1)


def test_an_assumed_language_must_have_metadata() -> None:
    assert isinstance(open_identifier(["de", "en"], LanguageSettings(assume="de")), OneLanguage)
    with pytest.raises(ValueError, match=r"language id: found assume 'sw', need a language of the metadata \(de, en ...\)"):
        open_identifier(["de", "en"], LanguageSettings(assume="sw"))


@pytest.mark.parametrize("step", STEPS)
def test_a_step_changes_nothing_but_what_it_ablates(step: str) -> None:
    parent, child = (yaml.safe_load((CURATION / f"{name}.yaml").read_text()) for name in ("worldwide", step))
    allowed = {"english_metadata": {"english_rule", "language"}, "one_set": {"english_rule", "language", "metadata"}}
    assert set(child) - {"out"} == allowed.get(step, {"english_rule"})
    assert all(parent.get(key) != value for key, value in child.items())
    trained = yaml.safe_load((CURATION.parent / f"vit_b32_mt5_{step}.yaml").read_text())["data"]["init_args"]
    assert trained == {"shards": f"{child['out']}/shards", "balance": f"{child['out']}/balance"}
