"""What paired runs say: differences with intervals, and the effects of a factorial design."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean of ``n`` paired differences, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

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


def factorial_effects(
    values: Mapping[tuple[bool, ...], Sequence[float]], factors: Sequence[str]
) -> dict[tuple[str, ...], Interval]:
    """Main effects and interactions of two-level factors, from runs paired by their place in each sequence.

    ``values`` holds a sequence for each combination of levels. For a set S of factors the effect in one pair is
    2^(1 − k) Σ_cells (Π_{f ∈ S} ±1) · value, k factors in all: for a single factor, the mean with it less the mean
    without; for two, half of what one changes in the effect of the other. Intervals hold for all effects together.
    """
    lengths = {len(sequence) for sequence in values.values()}
    if len(values) != 2 ** len(factors) or len(lengths) != 1:
        raise ValueError(
            f"{len(values)} cells with {sorted(lengths)} runs: give {2 ** len(factors)} cells with as many runs in each"
        )
    subsets = [s for size in range(1, len(factors) + 1) for s in combinations(range(len(factors)), size)]
    found = {}
    for subset in subsets:
        signed = [
            np.prod([1 if levels[f] else -1 for f in subset]) * np.asarray(sequence)
            for levels, sequence in values.items()
        ]
        effect = np.sum(signed, axis=0) * 2.0 ** (1 - len(factors))
        found[tuple(factors[f] for f in subset)] = interval(effect.tolist(), comparisons=len(subsets))
    return found
