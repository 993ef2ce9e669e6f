"""Intervals over seeds, against integrals of Student's density and by hand."""

from __future__ import annotations

from math import gamma, inf, pi, sqrt

import numpy as np
import pytest

from mc2.sweep.statistics import _STUDENT, difference, estimate


@pytest.mark.parametrize("freedom", [1, 2, 3, 10, 30])
def test_students_t_holds_95_percent(freedom: int) -> None:
    """1 - 2 x the tail, the tail summed in steps of u = 1 / t, in which it is finite."""
    u = np.linspace(1e-9, 1 / _STUDENT[freedom - 1], 200_001)
    density = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2)) * (1 + 1 / (u**2 * freedom)) ** (-(freedom + 1) / 2)
    assert 1 - 2 * np.trapezoid(density / u**2, u) == pytest.approx(0.95, abs=1e-4)


def test_estimate_by_hand() -> None:
    three = estimate([0.1, 0.2, 0.3])
    assert three.mean == pytest.approx(0.2)
    assert three.half_width == pytest.approx(4.303 * 0.1 / sqrt(3))
    assert three.percent() == "20.0 ± 24.8"
    assert estimate([0.123]).percent() == "12.3"
    assert estimate([0.123]).half_width == inf
    assert estimate([0.1, 0.1]).percent(signed=True) == "+10.0 ± 0.0"


def test_a_difference_pairs_runs_of_the_same_seed() -> None:
    """What seeds have in common falls away: the runs vary by 20 points, their difference by none."""
    both = difference({0: 0.1, 1: 0.3, 7: 0.9}, {0: 0.05, 1: 0.25, 2: 0.4})
    assert both is not None
    assert both.mean == pytest.approx(0.05)
    assert both.half_width == pytest.approx(0, abs=1e-12)
    assert both.num_seeds == 2
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_intervals_hold_the_truth_19_times_of_20() -> None:
    """2,000 sweeps of three seeds with a known mean."""
    draws = np.random.default_rng(0).normal(0.5, 0.1, (2000, 3))
    held = [abs(one.mean - 0.5) <= one.half_width for one in (estimate(row.tolist()) for row in draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)
