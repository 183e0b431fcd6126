"""What paired runs say: differences with intervals, and the effects of a factorial design."""

from collections.abc import Iterable, Mapping, Sequence
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


def contrasts(
    values: Mapping[str, Sequence[float]], asked: Mapping[str, Mapping[str, float]], *, comparisons: int = 0
) -> dict[str, Interval]:
    """Weighted sums of the choices' means, from runs paired by their place in each sequence: a randomised block design.

    Blocks (seeds) and choices shift a run's value, what is left is noise of one size for all, so that m choices with
    n runs each estimate it together. ``asked`` gives each contrast its weights c, which sum to zero:

        x_ij = μ + choice_i + block_j + ε_ij,   s² = Σ ε̂_ij² / ((m − 1)(n − 1)),
        Σ_i c_i x̄_i ± t(1 − 0.05 / (2k), (m − 1)(n − 1)) · s · √(Σ_i c_i² / n)

    Bonferroni: k intervals hold together at 95 %, as many as are asked or, if more are looked at, ``comparisons``.
    ValueError with fewer than two choices or two runs, sequences of different lengths, or weights that do not cancel.
    """
    lengths = {len(sequence) for sequence in values.values()}
    if len(lengths) != 1 or min(lengths) < 2 or len(values) < 2:
        raise ValueError(
            f"{len(values)} choices with {sorted(lengths)} runs: give two choices or more, each with the same two seeds or more"
        )
    table = np.array(list(values.values()))
    m, n = table.shape
    left = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    freedom = (m - 1) * (n - 1)
    s = np.sqrt(np.sum(left**2) / freedom)
    quantile = stats.t.ppf(1 - 0.05 / (2 * max(comparisons, len(asked))), freedom)
    found = {}
    for name, weights in asked.items():
        if abs(sum(weights.values())) > 1e-9:
            raise ValueError(
                f"{name}: the weights {dict(weights)} sum to {sum(weights.values())}, give some that cancel"
            )
        mean = float(sum(weight * np.mean(values[choice]) for choice, weight in weights.items()))
        half = float(quantile * s * np.sqrt(sum(weight**2 for weight in weights.values()) / n))
        found[name] = Interval(mean, mean - half, mean + half, n)
    return found
