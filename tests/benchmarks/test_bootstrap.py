"""Intervals and comparisons: against textbook formulas, against drawing sample by sample, and with what must be refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mc2.benchmarks.bootstrap import copies, false_discovery_rates, interval, p_value, replicates
from mc2.benchmarks.compare import compare, write_changes
from mc2.benchmarks.means import Drawn, task_results
from mc2.benchmarks.result_files import Kept, read_outcomes, write_files
from mc2.benchmarks.results import Score
from mc2.cli import main

RNG = np.random.default_rng(1)


def score(outcomes: object, **arrays: object) -> Score:
    values = np.asarray(outcomes, dtype=np.float32)
    return Score("classification", "top1", float(values.mean()), len(values), 10, values, **arrays)  # type: ignore[arg-type]


def test_an_interval_of_a_share_is_the_textbook_s() -> None:
    right = RNG.random(4000) < 0.3
    low, high = interval(replicates(score(right)))
    error = math.sqrt(right.mean() * (1 - right.mean()) / 4000)
    assert low == pytest.approx(right.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(right.mean() + 1.96 * error, abs=0.15 * error)


def test_samples_of_one_cluster_are_drawn_together() -> None:
    """Five equal captions of each image say no more than one of them."""
    right = RNG.random(500) < 0.5
    one = replicates(score(right))
    five = replicates(score(np.repeat(right, 5), clusters=np.repeat(np.arange(500), 5)))
    assert one is not None
    assert five is not None
    np.testing.assert_allclose(five, one, rtol=1e-5)
    shuffled = RNG.permutation(2500)
    mixed = replicates(score(np.repeat(right, 5)[shuffled], clusters=np.repeat(np.arange(500), 5)[shuffled]))
    assert mixed is not None
    np.testing.assert_allclose(mixed, one, rtol=1e-5)


def test_strata_are_means_within_the_draw() -> None:
    """Computed again with plain loops over the copies of each sample."""
    outcome, stratum = (RNG.random(40) < 0.5).astype(np.float32), RNG.integers(0, 4, 40)
    found = replicates(score(outcome, strata=stratum))
    assert found is not None
    drawn = copies(1024, 0)
    for replicate in range(5):
        means = []
        for s in range(4):
            weights = [int(drawn[i, replicate]) for i in range(40) if stratum[i] == s]
            values = [float(outcome[i]) for i in range(40) if stratum[i] == s]
            if sum(weights):
                means.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
        assert found[replicate] == pytest.approx(sum(means) / len(means), rel=1e-5)


def test_copies_are_poisson_and_more_clusters_only_add_rows() -> None:
    np.testing.assert_array_equal(copies(2048, 1)[:1024], copies(1024, 1))
    counts = np.bincount(copies(2048, 0).ravel(), minlength=4)[:4] / (2048 * 250)
    np.testing.assert_allclose(counts, [math.exp(-1) / math.factorial(k) for k in range(4)], atol=2e-3)


def test_languages_that_share_images_share_their_luck() -> None:
    """The mean of two equal languages is as uncertain as one of them; of two that have nothing to do with each other, less."""
    right, other = RNG.random(2000) < 0.5, RNG.random(2000) < 0.5
    same = task_results("t", {"de": [Drawn.of(score(right))], "fr": [Drawn.of(score(right))]}, {})
    different = task_results("t", {"de": [Drawn.of(score(right))], "fr": [Drawn.of(score(other))]}, {})
    width = {name: rows[0].high - rows[0].low for name, rows in (("same", same), ("different", different))}  # type: ignore[operator]
    assert (same[0].low, same[0].high) == (same[1].low, same[1].high)
    assert width["different"] == pytest.approx(width["same"] / math.sqrt(2), rel=0.1)


def test_p_values_and_rates() -> None:
    difference = RNG.normal(0.02, 0.01, 4000)
    assert p_value(0.02, difference, 1000) == pytest.approx(math.erfc(2 / math.sqrt(2)), abs=0.01)
    assert p_value(1.0, np.ones(1000), num_changed=3) == 0.25  # three coins that fell on the same side
    assert p_value(0.0, np.zeros(1000), num_changed=0) == 1.0
    assert false_discovery_rates([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


# --- mc2 compare --------------------------------------------------------------------------------------------------------


def write(folder: Path, right: dict[str, np.ndarray], samples: str = "same") -> Path:
    """An evaluation of one task in some languages."""
    scores = {code: score(values) for code, values in right.items()}
    kept = [Kept("toy", code, samples, ["mean"], each) for code, each in scores.items()]
    write_files(folder, task_results("toy", {code: [Drawn.of(each)] for code, each in scores.items()}, {}), kept)
    return folder


def test_outcomes_read_back(tmp_path: Path) -> None:
    one = replace(score([1, 0, 1]), strata=np.array([0, 0, 1]), clusters=np.array([4, 5, 6]))
    write_files(
        tmp_path, [], [Kept("toy", "de", "s", ["mean"], one), Kept("toy", "de", "s", [], replace(one, outcomes=None, metric="roc"))]
    )
    first, second = read_outcomes(tmp_path / "outcomes.parquet")
    assert (first.name, list(first.groups), first.samples) == (("toy", "classification", "de", "top1"), ["mean"], "s")
    for name in ("outcomes", "strata", "clusters"):
        np.testing.assert_array_equal(getattr(first.score, name), getattr(one, name))
    assert second.score.outcomes is None


def test_a_real_change_is_significant_and_luck_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {code: RNG.random(1000) < 0.5 for code in ("de", "sw", "zh")}
    after = {**base, "sw": base["sw"] | (RNG.random(1000) < 0.1), "zh": base["zh"] ^ (np.arange(1000) % 500 == 0)}
    before, later = write(tmp_path / "a", base), write(tmp_path / "b", after)
    rows = {row.language: row for row in compare(before, later).changes}
    gain = after["sw"].astype(float) - base["sw"]
    assert rows["sw"].change == pytest.approx(gain.mean())
    error = gain.std() / math.sqrt(1000)  # paired: far smaller than of two independent shares
    assert rows["sw"].high == pytest.approx(gain.mean() + 1.96 * error, abs=0.2 * error)
    assert [rows[code].is_significant for code in ("de", "sw", "zh", "mean")] == [False, True, False, True]
    assert rows["de"].p_value == 1.0
    write_changes(tmp_path / "changes.csv", rows.values())
    assert (tmp_path / "changes.csv").read_text().startswith("task,protocol,language,metric,before,after,change,low,high,p_value,rate\n")
    assert main(["compare", str(before), str(later)]) == 0
    output = capsys.readouterr().out
    assert "3 languages: 1 higher, 0 lower, 2 not told apart" in " ".join(output.split())
    assert "sw Swahili" in output
    assert "de German" not in output


def test_a_mean_over_other_languages_is_not_compared(tmp_path: Path) -> None:
    right = {code: RNG.random(50) < 0.5 for code in ("de", "sw")}
    found = compare(write(tmp_path / "a", right), write(tmp_path / "b", {"de": right["de"]}))
    assert [row.language for row in found.changes] == ["de"]
    assert (found.only_before, found.only_after) == (2, 1)


@pytest.mark.parametrize("change", ["samples", "number", "task"])
def test_other_samples_are_refused(tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    right = RNG.random(50) < 0.5
    before = write(tmp_path / "a", {"de": right})
    after = write(tmp_path / "b", {"fr" if change == "task" else "de": right[:49] if change == "number" else right}, samples=change)
    assert main(["compare", str(before), str(after)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mc2 compare: compare: ")
    assert ("have no task, protocol" if change == "task" else "was scored on different samples") in error
    assert len(error.splitlines()) == 1


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 1
    assert "results.parquet: not found; run `mc2 test`" in capsys.readouterr().err
