"""Intervals and comparisons: against textbook formulas, against drawing sample by sample, and with what must be refused."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from mc2.benchmarks import metrics
from mc2.benchmarks.bootstrap import BLOCK, FloatArray, all_copies, copies, false_discovery_rates, interval, p_value, replicates
from mc2.benchmarks.compare import compare, write_changes
from mc2.benchmarks.means import Drawn, collection_rows, task_results
from mc2.benchmarks.result_files import Kept, read_outcomes, write_files
from mc2.benchmarks.results import MEAN, Result, Score
from mc2.benchmarks.tasks.scores import Metric, classification_scores, statistic_score
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


def drawn_again(replicate: int, num_samples: int) -> NDArray[np.int64]:
    """The samples of a replicate, each as often as it was drawn."""
    return np.repeat(np.arange(num_samples), copies(1024, replicate // BLOCK)[:num_samples, replicate % BLOCK])


def test_a_statistic_is_computed_from_the_samples_that_were_drawn() -> None:
    """ROC-AUC and macro F1 by scikit-learn, the worst group by a loop, each on the samples of the replicate."""
    sklearn = pytest.importorskip("sklearn.metrics")
    image, classes, label = torch.randn(90, 4), torch.randn(3, 4), RNG.integers(0, 3, 90)
    group = np.array(["", "north", "south", "east"])[RNG.integers(0, 4, 90)]
    pairs = np.stack([np.arange(90), label], axis=1)
    wanted: tuple[Metric, ...] = ("f1_macro", "worst_group_top1")
    found = classification_scores("p", image, classes, pairs, np.arange(90), wanted, {"region": group.tolist()})
    f1, worst = (score for score in found if score.metric in ("f1_macro", "worst_group_top1[region]"))
    two = classification_scores("p", image, classes[:2], np.minimum(pairs, [90, 1]), np.arange(90), ("roc_auc",), {})[0]
    cosine = normalize(image, dim=1) @ normalize(classes, dim=1).T
    guess, margin = cosine.argmax(dim=1).numpy(), (cosine[:, 1] - cosine[:, 0]).numpy()
    for replicate in (0, 1, 249, 250, 999):
        again = drawn_again(replicate, 90)
        truth = np.minimum(label[again], 1)
        need = sklearn.f1_score(label[again], guess[again], average="macro", labels=np.unique(label[again]), zero_division=0.0)
        shares = [np.mean([guess[i] == label[i] for i in again if group[i] == name]) for name in ("north", "south", "east")]
        for score, value in ((f1, need), (worst, min(shares)), (two, sklearn.roc_auc_score(truth, margin[again]))):
            assert score.replicates is not None
            assert score.replicates[replicate] == pytest.approx(value, rel=1e-6)


def test_uniformity_is_drawn_over_pairs_of_different_samples() -> None:
    x = normalize(torch.randn(12, 4), dim=1).double().numpy()
    found = metrics.uniformities(torch.from_numpy(x), torch.from_numpy(all_copies(12)).float()).numpy()
    for replicate in (0, 3, 700):
        again = drawn_again(replicate, 12)
        terms = [np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i in again for j in again if i != j]
        assert found[replicate] == pytest.approx(np.log(np.mean(terms)), rel=1e-5)


def test_data_sets_of_a_collection_share_no_luck() -> None:
    """The interval of the mean over three data sets against drawing from each of them on its own, sample by sample."""
    outcomes = {task: RNG.random(number) < share for task, number, share in (("a", 300, 0.3), ("b", 60, 0.6), ("c", 300, 0.3))}
    outcomes["c"] = outcomes["a"]  # in the same order even: other images, as far as anybody knows
    rows = [Result(task, "slip26", MEAN, "main", float(own.mean()), len(own), 2) for task, own in outcomes.items()]
    found = collection_rows(rows, {task: replicates(score(own)) for task, own in outcomes.items()})[0]
    draws = [np.mean([RNG.choice(own, len(own)).mean() for own in outcomes.values()]) for _ in range(4000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    assert (found.task, found.protocol, found.metric, found.num_samples) == ("slip26", "3-tasks", "mean_of_tasks", 660)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.1 * (high - low))
    assert collection_rows(rows, {"a": None})[0].low is None  # what was published has no samples


def test_a_language_that_is_not_drawn_does_not_empty_the_interval_of_the_mean() -> None:
    """With one image a language is missing in every third draw, and one of twenty nearly always."""
    right = {f"x{index}": [Drawn.of(score([index % 2], clusters=np.array([index])))] for index in range(20)}
    row = task_results("t", right, {})[0]
    assert row.low is not None
    assert row.high is not None
    assert row.low < row.value == 0.5 < row.high


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


def test_what_is_no_mean_of_samples_is_compared_by_its_draws(tmp_path: Path) -> None:
    """ROC-AUC of two data sets and their mean: one was improved, the other is the same."""
    positive = RNG.random(400) < 0.5
    noise = RNG.normal(size=400)

    def evaluated(folder: Path, gain: float) -> Path:
        kept: list[Kept] = []
        rows: list[Result] = []
        mains: dict[str, FloatArray | None] = {}
        for task, own in (("first", gain), ("second", 0.3)):
            auc = partial(metrics.roc_auc, noise + own * positive, positive)
            drawn = Drawn.of(statistic_score("slip26", "main", auc, np.arange(400), 2))
            kept.append(Kept(task, "en", "same", [MEAN], drawn.score))
            rows += task_results(task, {"en": [drawn]}, {})
            mains[task] = drawn.replicates
        write_files(folder, rows + collection_rows(rows, mains), kept)
        return folder

    before, after = evaluated(tmp_path / "a", 0.3), evaluated(tmp_path / "b", 1.3)
    rows = {(row.task, row.language): row for row in compare(before, after).changes}
    assert rows["first", "en"].is_significant
    assert (rows["second", "en"].change, rows["second", "en"].p_value) == (0.0, 1.0)
    mean = rows["slip26", MEAN]
    assert mean.is_significant
    assert mean.change == pytest.approx(rows["first", "en"].change / 2)
    low, high = rows["first", "en"].low, rows["first", "en"].high
    assert low is not None
    assert high is not None
    assert [mean.low, mean.high] == pytest.approx([low / 2, high / 2], abs=1e-4)


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
