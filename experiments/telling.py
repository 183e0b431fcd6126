"""How the chapters print what the rule says: an interval, and where nothing is settled, which effect would have been."""

from collections.abc import Mapping

from scipy import stats

from experiments.inference import LEVEL, Finding, smallest_effect
from experiments.questions import QUESTIONS

ENOUGH = 8
"""Seeds that a verdict takes where a run is short."""


def told(found: Finding) -> str:
    """One line: the interval; where the rule leaves it open, the smallest effect that such runs would have seen, four times
    of five (six seeds three times of five).

    Too few seeds to settle anything see no effect of any size: then it is what eight seeds, as far apart, would see.
    """
    if found.settled:
        return str(found.interval)
    if found.smallest < float("inf"):
        return f"{found.interval}  open, sees {found.smallest:.4f}"
    return f"{found.interval}  {found.interval.n} seeds; {ENOUGH} see {seen_by(found, ENOUGH):.4f}"


def seen_by(found: Finding, n: int) -> float:
    """The effect that ``n`` seeds would see, were they as far apart as those found."""
    mean, _, high, seeds = found.interval
    quantile = stats.t.ppf(1 - (1 - LEVEL) / (2 * found.family), seeds - 1)
    return smallest_effect((high - mean) * seeds**0.5 / float(quantile), n, comparisons=found.family)


def tell(found: Mapping[str, Finding]) -> None:
    """Print named findings, a line each."""
    width = max(map(len, found))
    for name, one in found.items():
        print(f"{name:{width}}  {told(one)}")


def answers(question: str, measure: str) -> dict[str, Finding]:
    """The rule's answers to a question on one measure, by comparison."""
    return {name: found for (name, of), found in QUESTIONS[question].findings().items() if of == measure}
