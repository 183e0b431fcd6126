"""Equal time as a price: what a part earns, by how much dearer it makes a step, beside every price that was measured.

"Equal time" takes a price for granted. If a step with the part takes 1 + p times one without it, then in the time of n
steps without it n / (1 + p) fit; and p has been measured in many ways, which do not agree. So no price is chosen here:
the difference is a function of p, with the rule's interval at each, and the measured prices are places on its axis.

Interpolated: a run's loss between two lengths that were trained, each with a schedule that ends there. In one seed

    loss(n) = loss(m) − slope · log(n / m),    slope = (loss(few) − loss(many)) / log(many / few),

so a seed gives one difference at every price, and the interval holds the spread of the slopes, too. Assumed: that the
loss falls like the logarithm of the steps between the two lengths, and a little beyond them (``Curve.inside`` says up to
which price); in a regime, where only RMHA was trained in half the steps, that a part leaves its slope alone, and that
seeds without such a run have the mean slope of those with one. A price is taken as known: how far off it may be is its
spread, on the axis.

A part pays at a price where the rule finds that it gains, costs where it finds that it loses, and is open in between.
What it gains falls with the price, so the prices at which it is open are one interval for the one price at which the
part neither pays nor costs (Fieller 1954): looking at many prices needs no further allowance.
"""

import json
import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.comparisons import MEASURES
from experiments.inference import Finding, judge
from experiments.questions import QUESTIONS
from experiments.registry import RUNS
from experiments.results import FACTORS, ROOT, cell_runs, paired_seeds, values

Word = Literal["pays", "costs", "open"]

STEPS = {str(run).rpartition("-")[0]: run.config.steps for run in RUNS.values()}
"""The steps of ``group/name``, whatever its seed."""


@dataclass(frozen=True)
class Curve:
    """``one`` less ``other`` at equal time; the lengths ``few`` and ``many`` give the slope. Runs are named without seed.

    ``step`` names the two steps whose prices are its prices; ``runs`` says which of their runs these are.
    """

    step: str
    one: str
    other: str
    few: str
    many: str
    runs: str

    def given(self) -> float:
        """The price at which the two runs, as they were made, take the same time."""
        return STEPS[self.other] / STEPS[self.one] - 1

    def inside(self) -> tuple[float, float]:
        """The prices at which the steps that fit lie between the two lengths."""
        return STEPS[self.other] / STEPS[self.many] - 1, STEPS[self.other] / STEPS[self.few] - 1

    def slopes(self, measure: str, over: range) -> NDArray[np.float64]:
        """What each seed's loss falls by in e times the steps; the others' mean where it has no run of both lengths."""
        there = [seed for seed in over if seed in paired_seeds(self.few, self.many)]
        few, many = (np.array(values(run, *MEASURES[measure], over=there)) for run in (self.few, self.many))
        each = dict(zip(there, (few - many) / math.log(STEPS[self.many] / STEPS[self.few]), strict=True))
        mean = statistics.fmean(each.values())
        return np.array([each.get(seed, mean) for seed in over])

    def differences(self, measure: str, over: range, price: float) -> list[float]:
        """One difference a seed, were a step of ``one`` dearer by this ``price``."""
        one, other = (np.array(values(run, *MEASURES[measure], over=list(over))) for run in (self.one, self.other))
        lost = self.slopes(measure, over) * math.log((1 + price) / (1 + self.given()))
        found: list[float] = (one + lost - other).tolist()
        return found

    def clocks(self) -> list[float]:
        """The price by the seconds of the runs themselves, validation included, in every seed that both have."""
        both = paired_seeds(self.one, self.other)
        one, other = (np.array(values(run, "seconds", over=both)) / STEPS[run] for run in (self.one, self.other))
        found: list[float] = (one / other - 1).tolist()
        return found


def _curves() -> dict[tuple[str, str], Curve]:
    found = {}
    for comparison, one, other in (
        ("mdha less mha", "mdha-relu2", "mha-relu2"),
        ("rmha less mha", "rmha-relu2", "mha-relu2"),
        ("rcmha less mha", "rcmha-relu2", "mha-relu2"),
        ("rcmha less rmha", "rcmha-relu2", "rmha-relu2"),
        ("squared ReLU in rcmha", "rcmha-relu2", "rcmha-relu"),
    ):
        found["equal time", comparison] = Curve(
            step=f"{one} / {other}",
            one=f"equal_time/{one}",
            other="ablation/mha-relu2" if other == "mha-relu2" else f"equal_time/{other}",
            few=f"equal_time/{one}",
            many=f"ablation/{one}",
            runs="from the identity",
        )
    found["starts at equal time", "pytorch, beside RMHA"] = Curve(
        step="rcmha-relu2 / rmha-relu2",
        one="starts/equal-time-pytorch",
        other="starts/equal-time-rmha",
        few="starts/equal-time-pytorch",
        many="starts/pytorch",
        runs="from a random start",
    )
    for regime, name in REGIMES.items():
        for comparison, one, other in (
            ("convolution", "rcmha", "rmha"),
            ("convolution from the identity", "identity", "rmha"),
            ("squared ReLU", "rcmha", "relu"),
        ):
            if comparison in QUESTIONS[regime].comparisons:
                found[regime, comparison] = Curve(
                    step=f"rcmha-relu2 / {FOUR_BLOCKS[other]}" if regime == "125 steps" else f"{name}, rcmha / {other}",
                    one=f"regimes/{name}-{one}",
                    other=f"regimes/{name}-{other}",
                    few=f"regimes/{name}-half",
                    many=f"regimes/{name}-rmha",
                    runs=f"{regime}, from {'the identity' if one == 'identity' else 'a random start'}",
                )
    return found


REGIMES = {"one block": "layers-1", "two blocks": "layers-2", "AdamW": "adamw", "125 steps": "steps-125"}

FOUR_BLOCKS = {"rmha": "rmha-relu2", "relu": "rcmha-relu"}
"""A step of four blocks is the same in 125 steps and in 500."""

CURVES: dict[tuple[str, str], Curve] = _curves()
"""(question, comparison) → its curve. Where the question was asked at equal steps, that is the price zero."""


def finding(question: str, comparison: str, measure: str, price: float) -> Finding:
    """The rule's answer to a comparison at a price; the rest of its question's family stands as it was run."""
    asked = QUESTIONS[question]
    here = CURVES[question, comparison].differences(measure, asked.seeds, price)
    return judge(asked.differences() | {(comparison, measure): here}, family=asked.family)[comparison, measure]


def word(question: str, comparison: str, measure: str, price: float) -> Word:
    """What the rule says of the part at a price."""
    found = finding(question, comparison, measure, price)
    return found.word("costs", "pays") if measure.startswith("accuracy") else found.word("pays", "costs")


class Range(NamedTuple):
    """Prices at which the rule says the same."""

    word: Word
    low: float
    high: float


def ranges(question: str, comparison: str, measure: str, top: float = 0.15) -> list[Range]:
    """The prices from 0 to ``top``, in order, by what the rule says there; it turns within a hundredth of a percent."""
    grid = [float(price) for price in np.linspace(0, top, 16)]
    words = [word(question, comparison, measure, price) for price in grid]
    found, low = [], 0.0
    for (a, here), (b, there) in pairwise(zip(words, grid, strict=True)):
        if a != b:
            while there - here > 1e-4:
                middle = (here + there) / 2
                same = word(question, comparison, measure, middle) == a
                here, there = (middle, there) if same else (here, middle)
            found.append(Range(a, low, here))
            low = here
    return [*found, Range(words[-1], low, top)]


def told(found: list[Range]) -> str:
    """The ranges in words: "pays up to 3.5 %, open beyond"."""
    *before, last = found
    parts = [f"{one.word} up to {100 * one.high:.1f} %" for one in before]
    return ", ".join([*parts, f"{last.word} {'beyond' if before else f'from 0 to {100 * last.high:.0f} %'}"])


class Price(NamedTuple):
    """A measured price of a step: how, the price, and the smallest and the largest of its rounds or runs, where known."""

    how: str
    price: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = f"({100 * self.low:+.1f} to {100 * self.high:+.1f} %)" if self.low < self.high else ""
        return f"{100 * self.price:+5.1f} %  {self.how} {spread}".rstrip()


def prices(step: str) -> list[Price]:
    """Every measured price of a ``step``, from the lowest: timings, and the clocks of the runs that are compared."""
    clocked = [
        Price(f"own clocks, {curve.runs}", statistics.fmean(each), min(each), max(each))
        for curve in CURVES.values()
        if curve.step == step
        for each in [curve.clocks()]
    ]
    return sorted((*_timed(step), *clocked), key=lambda found: found.price)


def _timed(step: str) -> list[Price]:
    """benchmarks/results: on one thread the fit to eight cells and the medians of the two; on two threads; in turn."""
    found = []
    cells = step.split(" / ")
    if all(cell in PARTS for cell in cells):
        measured = _benchmark("ablation")
        fits = (sum(measured["adds"][part] for part in PARTS[cell]) for cell in cells)
        medians = (measured["cells"][cell]["milliseconds"] for cell in cells)
        found += [_known("1 thread, fit to eight cells", *fits), _known("1 thread, medians of the two", *medians)]
        names = [cell.partition("-")[0] for cell in cells]
        if names[0] != names[1]:
            on_two = _benchmark("cells")
            for widths in ("equal parameters", "equal widths"):
                ratios = (
                    1.0 if name == "mha" else on_two[f"{name} / mha, {widths}"]["ratio"]["median"] for name in names
                )
                found.append(_known(f"2 threads, {widths}", *ratios))
    if turns := _benchmark("regimes").get(IN_TURN.get(step, step)):
        median, low, high = (turns["ratio"][key] - 1 for key in ("median", "min", "max"))
        found.append(Price("1 thread, in turn, other processor", median, low, high))
    return found


def _known(how: str, one: float, other: float) -> Price:
    return Price(how, one / other - 1, one / other - 1, one / other - 1)


def _benchmark(name: str) -> dict[str, Any]:
    file = ROOT / f"benchmarks/results/{name}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["results"]
    return found


PARTS = {
    run.partition("/")[2]: ("nothing", *(part for part, there in zip(FACTORS, levels, strict=True) if there))
    for levels, run in cell_runs().items()
}
"""What a step of each cell of the ablation is made of, as the fit takes it."""

IN_TURN = {f"rcmha-relu2 / {cell}": f"steps-125, rcmha / {other}" for other, cell in FOUR_BLOCKS.items()}
