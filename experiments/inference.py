"""The rule by which the book calls anything settled. One rule, written down before the runs that it judges.

1. A question is declared in ``questions.py`` before its runs are made: what is compared, on which measures, with which
   seeds. The seeds are fresh: they have suggested neither the question nor a choice in it.
2. A comparison gives one difference a seed. All comparisons of a question, on all its measures, are one family; an
   interval or a verdict allows for all k of them.
3. The interval is Student's, of these differences alone, after Bonferroni:  mean ± t(1 − 0.05 / 2k, n − 1) · s / √n.
4. The check needs no normal distribution: were there no effect, a seed's differences could as well have the other sign,
   all of them together. Among all 2ⁿ ways to choose the signs, p is the share in which the largest |t| of the family
   reaches the |t| found (max-T sign flipping, Westfall and Young 1993; exact, so that p is never below 2 / 2ⁿ).
5. A claim is supported if the interval lies beyond its bound, contradicted if the interval lies on the other side, and
   p ≤ 0.05 either way. Otherwise it is open, and told with the smallest effect that these runs would have shown.

A verdict needs 6 seeds at least (2 / 2⁶ = 0.031), and takes 8 where a run is short.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from experiments.statistics import Interval, interval

LEVEL, POWER = 0.95, 0.8

Verdict = Literal["supported", "contradicted", "open"]
Name = TypeVar("Name", bound=Hashable)
Word = TypeVar("Word", bound=str)


class Finding(NamedTuple):
    """A comparison by the rule: its interval, the sign-flipping p of its distance from the bound, and both of the family.

    ``smallest``: the distance from the bound that the interval of such runs leaves out with a power of 0.8; with 6 seeds
    the signs find it less often (``smallest_effect``).
    """

    interval: Interval
    p: float
    bound: float
    family: int
    smallest: float

    def word(self, below: Word, above: Word) -> Word | Literal["open"]:
        """What the rule says of the effect and its bound, in these words: ``found.word("pays", "costs")``, or "open"."""
        mean, low, high, _ = self.interval
        if self.p > 1 - LEVEL or low <= self.bound <= high:
            return "open"
        return below if mean < self.bound else above

    def verdict(self, side: Literal["below", "above"] = "below") -> Verdict:
        """Of the claim that the effect lies on this ``side`` of the bound."""
        if side == "below":
            return self.word("supported", "contradicted")
        return self.word("contradicted", "supported")

    @property
    def settled(self) -> bool:
        """Whether the rule tells the effect from its bound."""
        return self.word("settled", "settled") == "settled"

    def __str__(self) -> str:
        return f"{self.interval}, p {self.p:.3f} of {self.family}"


def judge(
    differences: Mapping[Name, Sequence[float]], *, bounds: Mapping[Name, float] | None = None, family: int = 0
) -> dict[Name, Finding]:
    """The rule, for every comparison of a family. Each holds one difference a seed, the same seeds in the same order.

    ``bounds`` names the bounds that are not zero. ``family`` is larger than the comparisons given only where others of
    the family have no runs yet. ValueError with fewer than two seeds or with different numbers of them.
    """
    bounds = bounds or {}
    counts = sorted({len(values) for values in differences.values()})
    if len(counts) != 1 or counts[0] < 2:
        raise ValueError(f"comparisons of {counts} seeds: give each the same seeds, two or more")
    table = np.array([[d - bounds.get(name, 0.0) for d in values] for name, values in differences.items()], dtype=float)
    size = max(family, len(differences))
    found = {}
    for (name, values), p in zip(differences.items(), sign_flipping(table), strict=True):
        band = interval(values, comparisons=size, level=LEVEL)
        spread = float(np.std(values, ddof=1))
        found[name] = Finding(
            band, float(p), bounds.get(name, 0.0), size, smallest_effect(spread, band.n, comparisons=size)
        )
    return found


def sign_flipping(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """p of every row of differences ``[comparison, seed]``: max-T over all 2ⁿ signs of the seeds, one sign a seed."""
    n = table.shape[1]
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    largest = np.max(np.abs(_t(table[None] * signs[:, None])), axis=1)
    reached: NDArray[np.float64] = np.mean(largest[:, None] >= np.abs(_t(table)) * (1 - 1e-9), axis=0)
    return reached


def _t(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Student's t of the last axis, up to √n; infinite where nothing varies and there is something, zero if not."""
    mean, spread = table.mean(axis=-1), table.std(axis=-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = np.nan_to_num(mean / spread, nan=0.0, posinf=np.inf, neginf=-np.inf)
    return found


def smallest_effect(spread: float, n: int, *, comparisons: int = 1, power: float = POWER) -> float:
    """The effect whose interval leaves zero out with this ``power``, where n differences vary by ``spread``.

    From the noncentral t distribution: P(t(n − 1, effect·√n / spread) > t(1 − 0.05 / 2k, n − 1)) = power. Infinite where
    n signs can give no verdict. With 8 seeds the signs ask for little more than the interval; with 6 they do, so that such
    an effect is found with a power of about 0.6, more or less as the comparisons of the family go together.
    """
    return math.inf if 2 / 2**n > 1 - LEVEL else _noncentral(n, comparisons, power) * spread / n**0.5


@cache
def _noncentral(n: int, comparisons: int, power: float) -> float:
    limit = stats.t.ppf(1 - (1 - LEVEL) / (2 * comparisons), n - 1)

    def short_of(noncentral: float) -> float:
        return float(stats.nct.sf(limit, n - 1, noncentral)) - power

    return float(optimize.brentq(short_of, 0, 3 * limit))
