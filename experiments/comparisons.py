"""A question put to runs: weighted comparisons, seed by seed, on named measures; and the usual sets of weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from experiments.inference import Finding, judge
from experiments.results import load, seeds, values

MEASURES: dict[str, tuple[str, ...]] = {
    "loss": ("val_loss",),
    "accuracy": ("val_accuracy",),
    "loss on the plays left out": ("measures", "unseen", "loss"),
    "accuracy on the plays left out": ("measures", "unseen", "accuracy"),
    "score": ("score",),
}
"""What is compared, and where a result holds it."""

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """``comparisons``: name → weights of runs (``group/name``, without its seed), which sum to zero.

    A run may have another name with other seeds: "ablation/rcmha-relu2 or starts/identity". ``declared``: before its runs
    were made, or after.
    """

    asks: str
    comparisons: Mapping[str, Weights]
    measures: tuple[str, ...]
    seeds: range
    declared: Literal["before", "after"] = "before"

    @property
    def family(self) -> int:
        """The number of intervals that hold together."""
        return len(self.comparisons) * len(self.measures)

    def differences(self) -> dict[tuple[str, str], list[float]]:
        """(comparison, measure) → one difference a declared seed; only of comparisons whose runs have all the seeds."""
        found = {}
        for name, weights in self.comparisons.items():
            made = {run: _made(run, self.seeds) for run in weights}
            if all(len(names) == len(self.seeds) for names in made.values()):
                _require_one_kind_of_numbers(name, made)
                for measure in self.measures:
                    each = {run: _values(names, measure) for run, names in made.items()}
                    found[name, measure] = [
                        sum(w * each[run][n] for run, w in weights.items()) for n in range(len(self.seeds))
                    ]
        return found

    def findings(self, bounds: Mapping[tuple[str, str], float] | None = None) -> dict[tuple[str, str], Finding]:
        """(comparison, measure) → the rule's answer; nothing of comparisons that have no runs yet."""
        differences = self.differences()
        return judge(differences, bounds=bounds, family=self.family) if differences else {}


def _made(run: str, wanted: range) -> list[tuple[str, int]]:
    """Every wanted seed that the run has results for, with the name that it has there."""
    names = {seed: name for name in run.split(" or ") for seed in seeds(name)}
    return [(names[seed], seed) for seed in wanted if seed in names]


def _require_one_kind_of_numbers(comparison: str, made: Mapping[str, Sequence[tuple[str, int]]]) -> None:
    """ValueError where runs of one seed multiplied in other numbers: their difference would be the rounding's, too."""
    for n, (_, seed) in enumerate(next(iter(made.values()))):
        found = {run: numbers_of(f"{names[n][0]}-{seed}") for run, names in made.items()}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{run} in {numbers}" for run, numbers in found.items())
            raise ValueError(f"{comparison}, seed {seed}: {told}: make these runs again on one kind of machine")


def numbers_of(name: str) -> str:
    """In what a run multiplied: its precision, and that of Muon's iteration where it was not bfloat16."""
    origin = load(name)["manifest"]
    return " and ".join(str(origin[key]) for key in ("precision", "muon") if key in origin)


def _values(made: Sequence[tuple[str, int]], measure: str) -> list[float]:
    return [values(name, *MEASURES[measure], over=[seed])[0] for name, seed in made]


def less(one: str, other: str) -> Weights:
    """``one`` less ``other``."""
    return {one: 1.0, other: -1.0}


def factorial(cells: Mapping[tuple[bool, ...], str], factors: Sequence[str]) -> dict[str, Weights]:
    """Main effects and interactions of two-level factors. ``cells``: presence of each factor → run.

    For a set S of the k factors a run weighs 2^(1 − k) Π_{f ∈ S} ±1: for a single factor, the mean with it less the mean
    without; for two, half of what one changes in the effect of the other.
    """
    subsets = [s for size in range(1, len(factors) + 1) for s in combinations(range(len(factors)), size)]
    return {
        " × ".join(factors[f] for f in subset): {
            run: math.prod(1 if levels[f] else -1 for f in subset) * 2.0 ** (1 - len(factors))
            for levels, run in cells.items()
        }
        for subset in subsets
    }


def pairwise(runs: Mapping[str, str]) -> dict[str, Weights]:
    """Every two of the runs: the one named first less the other."""
    return {f"{a} less {b}": less(runs[a], runs[b]) for a, b in combinations(runs, 2)}
