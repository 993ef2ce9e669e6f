"""Means over seeds with 95 % intervals, of experiments and of differences between them. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev

# Half-width of the 95 % interval of a mean in standard errors, by degrees of freedom 1, 2, ...: Student's t at 0.975. Few seeds: 12.7 for two, 4.3 for three.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.960


@dataclass(frozen=True)
class Estimate:
    """Mean over `num_seeds` runs and the half-width of its 95 % interval: how far other seeds would move it, not what another test set would say."""

    mean: float
    half_width: float
    num_seeds: int

    def percent(self, signed: bool = False) -> str:
        """ "12.3 ± 0.4" of shares; of one seed "12.3"."""
        mean = f"{100 * self.mean:{'+' if signed else ''}.1f}"
        return f"{mean} ± {100 * self.half_width:.1f}" if self.num_seeds > 1 else mean


def estimate(values: Sequence[float]) -> Estimate:
    """Of at least one value; the half-width of one alone is infinite."""
    freedom = len(values) - 1
    if not freedom:
        return Estimate(values[0], inf, 1)
    student = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL
    return Estimate(fmean(values), student * stdev(values) / sqrt(len(values)), len(values))


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """Mean of `one` - `other` over the seeds that both have: the same seed draws the same order of the data. None without such a seed."""
    both = sorted(one.keys() & other.keys())
    return estimate([one[seed] - other[seed] for seed in both]) if both else None
