"""The benchmark of matching, small: what it measures is right, and what it writes is whole. Never how fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mc2.bench import match_speed
from mc2.bench.clocks import Clock
from mc2.bench.match_baseline import Baseline
from mc2.bench.match_sample import LANGUAGES, sample_captions, write_entries
from mc2.cli import main
from mc2.metadata.entries import Metadata


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Metadata:
    return write_entries(tmp_path_factory.mktemp("bench") / "metadata", 2_800)


def test_the_sample_is_what_the_table_says(small: Metadata) -> None:
    assert sum(small.num_entries.values()) == 2_800
    assert set(small.num_entries) == set(LANGUAGES)
    captions = sample_captions(1_400)
    assert len(captions) == 1_400
    assert 50 < sum(map(len, captions)) / 1_400 < 62
    assert captions == sample_captions(1_400)
    assert captions != sample_captions(1_400, seed=1)


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides in processes of their own; where they name one language, they find the same entries."""
    path = tmp_path / "figures.json"
    arguments = ["--captions", "300", "--entries", "2800", "--processes", "2", "--repeats", "1", "--json", str(path)]
    assert main(["bench", "match", *arguments]) == 0
    figures = json.loads(path.read_text())
    agreement = figures["agreement"]
    assert agreement["captions"] == 300
    assert agreement["same_language"] > 240
    assert agreement["other_entries"] == 0
    assert agreement["matches_ours"] > 1_000
    assert set(figures["processes"]) == {"1", "2"}
    for side in ("ours", "baseline"):
        speed = figures[side]["captions_per_second"]
        assert 1 / speed["all"] == pytest.approx(sum(1 / speed[stage] for stage in match_speed.STAGES))
    assert figures["ratio"] == pytest.approx(
        figures["ours"]["captions_per_second"]["all"] / figures["baseline"]["captions_per_second"]["all"]
    )
    assert {"commit", "machine", "versions", "sample"} <= set(figures)
    shown = capsys.readouterr().out
    assert "300 captions of" in shown
    assert "baseline" in shown


@pytest.mark.parametrize(
    ("option", "message"), [("--captions", "found captions 0, need at least 14"), ("--processes", "found processes 0, need at least 1")]
)
def test_wrong_numbers_are_refused_at_once(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "match", option, "0"]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(small: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ahocorasick", None)
    with pytest.raises(ImportError, match=r"pyahocorasick; pip install 'mc2\[bench\]'"):
        Baseline(small)


def test_a_clock_counts_a_stage_without_those_inside_it() -> None:
    times = iter([0.0, 1.0, 3.0, 10.0])
    clock = Clock(lambda: next(times))
    with clock("write"), clock("match"):
        pass
    assert dict(clock.seconds) == {"match": 2.0, "write": 8.0}


def test_automata_of_all_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert main(["bench", "automata", "--folder", str(tmp_path), "--entries", "3000", "--languages", "4", "--json", str(path)]) == 0
    figures: dict[str, Any] = json.loads(path.read_text())
    files = [file.stat().st_size for file in (tmp_path / "automata").iterdir()]
    assert len(files) == 4
    assert figures["build"]["automata_bytes"] == sum(files)
    assert figures["build"]["peak_bytes"] > sum(files)
    assert "3,000 entries in 4 languages" in capsys.readouterr().out
