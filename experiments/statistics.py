"""The interval of paired differences, and the spread of several samples."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean of ``n`` paired differences, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    def shifted(self, by: float) -> "Interval":
        return Interval(self.mean + by, self.low + by, self.high + by, self.n)

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def interval(differences: Sequence[float], *, comparisons: int = 1, level: float = 0.95) -> Interval:
    """Student's t interval of the mean; Bonferroni: all ``comparisons`` hold together at ``level``.

        mean ± t(1 − (1 − level) / (2 · comparisons), n − 1) · s / √n

    ValueError with fewer than two differences.
    """
    if len(differences) < 2:
        raise ValueError(f"{len(differences)} differences have no spread: give two paired runs or more")
    mean, n = float(np.mean(differences)), len(differences)
    quantile = stats.t.ppf(1 - (1 - level) / (2 * comparisons), n - 1)
    half = float(quantile * stats.sem(differences))
    return Interval(mean, mean - half, mean + half, n)


def common_deviation(samples: Iterable[Sequence[float]]) -> float:
    """One standard deviation for several samples, each about its own mean: √ of the mean of their variances."""
    return float(np.sqrt(np.mean([np.var(sample, ddof=1) for sample in samples])))
