"""Intervals and differences by the bootstrap, over clusters of samples that belong together.

A replicate gives every cluster (an image with its captions, say) a Poisson(1) number of copies, which is what drawing with replacement tends to, and computes
the score again. The number depends on seed, replicate and cluster alone. So languages that share images share their luck, as they do in truth, and the mean of
their replicates is a replicate of their mean; and two models on the same samples are compared pair by pair, by the difference of their replicates.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals, clusters); Hanley and MacGibbon 2006 (Poisson numbers).
Shapes: N samples, C cells (samples of one cluster in one stratum), K clusters, S strata, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mc2.benchmarks.results import Score

FloatArray = NDArray[np.float64]

SEED = 0
NUM_REPLICATES = 1000
BLOCK = 250  # replicates of one draw
CLUSTERS_DRAWN = 1024  # so many more are drawn at a time, so that languages of nearly the same size share a draw
# 16 random bits -> a Poisson(1) number, its probabilities rounded to 2^-16
POISSON = np.searchsorted(np.cumsum([math.exp(-1) / math.factorial(k) for k in range(8)]) * 2**16, np.arange(2**16), side="right")


@lru_cache(maxsize=NUM_REPLICATES // BLOCK)
def copies(num_clusters: int, block: int) -> NDArray[np.uint8]:
    """(K, BLOCK) copies of each cluster; a larger K only adds rows."""
    bits = np.random.default_rng([SEED, block]).integers(0, 2**16, (num_clusters, BLOCK), dtype=np.uint16)
    return POISSON.astype(np.uint8)[bits]


def replicates_of(statistic: Callable[[FloatArray], float], clusters: NDArray[np.int64]) -> FloatArray:
    """(R,) a statistic in each replicate, as a function of how often each sample counts, (N,); for what is no mean of samples."""
    if not len(clusters):
        return np.full(NUM_REPLICATES, np.nan)
    num_clusters = rounded(int(clusters.max()) + 1)
    blocks = (copies(num_clusters, block) for block in range(NUM_REPLICATES // BLOCK))
    return np.array([statistic(drawn[clusters, column].astype(np.float64)) for drawn in blocks for column in range(BLOCK)])


def all_copies(num_clusters: int) -> NDArray[np.uint8]:
    """(K, R) copies of each cluster in each replicate."""
    return np.concatenate([copies(rounded(num_clusters), block)[:num_clusters] for block in range(NUM_REPLICATES // BLOCK)], axis=1)


def rounded(num_clusters: int) -> int:
    """So many are drawn."""
    return -(-num_clusters // CLUSTERS_DRAWN) * CLUSTERS_DRAWN


def replicates(score: Score) -> FloatArray | None:
    """(R,) the value in each replicate, NaN where nothing was drawn; None for a score with neither outcomes nor replicates of its own."""
    if score.outcomes is None or not len(score.outcomes):
        return score.replicates
    num_samples = len(score.outcomes)
    cluster_N = np.arange(num_samples) if score.clusters is None else np.asarray(score.clusters)
    stratum_N = np.zeros(num_samples, np.int64) if score.strata is None else np.asarray(score.strata)
    order_N = np.lexsort((cluster_N, stratum_N))
    cluster_N, stratum_N = cluster_N[order_N], stratum_N[order_N]
    is_first_N = np.r_[True, (np.diff(cluster_N) != 0) | (np.diff(stratum_N) != 0)]
    first_C = np.flatnonzero(is_first_N)
    sum_C = np.add.reduceat(score.outcomes[order_N].astype(np.float32), first_C)
    count_C = np.diff(np.r_[first_C, num_samples]).astype(np.float32)
    cluster_C, stratum_C = cluster_N[first_C], stratum_N[first_C]
    first_S = np.flatnonzero(np.r_[True, np.diff(stratum_C) != 0])
    num_clusters = rounded(int(cluster_N.max()) + 1)
    blocks = []
    for block in range(NUM_REPLICATES // BLOCK):
        copies_CR = copies(num_clusters, block)[cluster_C].astype(np.float32)
        total_SR, weight_SR = per_stratum(sum_C, copies_CR, first_S), per_stratum(count_C, copies_CR, first_S)
        num_drawn_R = (weight_SR > 0).sum(axis=0)
        mean_SR = np.divide(total_SR, weight_SR, out=np.zeros_like(total_SR), where=weight_SR > 0)
        blocks.append(np.where(num_drawn_R > 0, mean_SR.sum(axis=0) / np.maximum(num_drawn_R, 1), np.nan))
    return np.concatenate(blocks)


def per_stratum(value_C: NDArray[np.float32], copies_CR: NDArray[np.float32], first_S: NDArray[np.int64]) -> FloatArray:
    """(S, R) sums over the cells of each stratum, by the copies of their clusters."""
    if len(first_S) == 1:
        return (value_C @ copies_CR)[None].astype(np.float64)
    sums: FloatArray = np.add.reduceat(value_C[:, None] * copies_CR, first_S, axis=0).astype(np.float64)
    return sums


def mean_of(parts: Sequence[FloatArray]) -> FloatArray:
    """(R,) the mean, in each replicate, of those that have a value there (a language of three images may not be drawn); NaN where none has."""
    part_PR = np.stack(parts)
    known_PR = ~np.isnan(part_PR)
    count_R = known_PR.sum(axis=0)
    total_R = np.where(known_PR, part_PR, 0.0).sum(axis=0)
    mean_R: FloatArray = np.divide(total_R, count_R, out=np.full(len(count_R), np.nan), where=count_R > 0)
    return mean_R


def mean_of_tasks(by_task: Mapping[str, FloatArray]) -> FloatArray:
    """(R,) replicates of the mean of several data sets, from those of each. They share no samples and so no luck: each data set's come in an order of its own."""
    orders = {task: np.random.default_rng([SEED, *task.encode()]).permutation(len(own)) for task, own in by_task.items()}
    return mean_of([own[orders[task]] for task, own in by_task.items()])


def interval(replicate_R: FloatArray | None) -> tuple[float | None, float | None]:
    """The 2.5 and 97.5 percentiles; (None, None) without replicates."""
    if replicate_R is None or np.isnan(replicate_R).all():
        return None, None
    low, high = np.nanpercentile(replicate_R, [2.5, 97.5])
    return float(low), float(high)


def p_value(difference: float, difference_R: FloatArray, num_changed: int) -> float:
    """Two-sided, of a difference of nothing: normal, with the standard error of the replicates; at least what `num_changed` fair coins could say."""
    error = float(np.nanstd(difference_R))
    tail = math.erfc(abs(difference) / error / math.sqrt(2)) if error > 0 else float(difference == 0)
    return max(tail, min(1.0, 2.0 ** (1 - num_changed)))


def false_discovery_rates(p_values: list[float]) -> list[float]:
    """For each the smallest share of false discoveries at which it counts as one (Benjamini and Hochberg 1995)."""
    order = np.argsort(p_values, kind="stable")[::-1]
    rates, smallest = [0.0] * len(p_values), 1.0
    for place, index in enumerate(order):
        smallest = min(smallest, p_values[index] * len(p_values) / (len(p_values) - place))
        rates[index] = smallest
    return rates
