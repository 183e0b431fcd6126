"""Every question that runs were made to answer: comparisons, measures, seeds. Its family is all of them together.

Part of the registry: a question stands here before its runs are made, and ``inference.py`` has the rule that judges it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.inference import Finding, judge
from experiments.results import paired_seeds, values

MEASURES: dict[str, tuple[str, ...]] = {
    "loss": ("val_loss",),
    "accuracy": ("val_accuracy",),
    "loss on the plays left out": ("measures", "unseen", "loss"),
    "accuracy on the plays left out": ("measures", "unseen", "accuracy"),
}
"""What is compared, and where a result holds it."""

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """``comparisons``: name → weights of runs (``group/name``, without its seed), which sum to zero."""

    asks: str
    comparisons: Mapping[str, Weights]
    measures: tuple[str, ...]
    seeds: range

    @property
    def family(self) -> int:
        """The number of intervals that hold together."""
        return len(self.comparisons) * len(self.measures)

    def differences(self) -> dict[tuple[str, str], list[float]]:
        """The differences of every comparison on every measure, over the declared seeds that all its runs have."""
        runs = sorted({run for weights in self.comparisons.values() for run in weights})
        seeds = [seed for seed in paired_seeds(*runs) if seed in self.seeds]
        found = {}
        for name, weights in self.comparisons.items():
            for measure in self.measures:
                each = {run: values(run, *MEASURES[measure], over=seeds) for run in weights}
                found[name, measure] = [sum(w * each[run][n] for run, w in weights.items()) for n in range(len(seeds))]
        return found

    def findings(self) -> dict[tuple[str, str], Finding]:
        """The rule's answer to every comparison on every measure."""
        return judge(self.differences())


def less(one: str, other: str) -> Weights:
    """``one`` less ``other``."""
    return {one: 1.0, other: -1.0}


LOSSES = ("loss", "loss on the plays left out")

STARTS = ("primer", "pytorch", "rate-3", "rate-10")

_MAIN_POSITION = {"rmha": 1.0, "rcmha": 1.0, "mha": -1.0, "mdha": -1.0}
_MAIN_CONVOLUTION = {"mdha": 1.0, "rcmha": 1.0, "mha": -1.0, "rmha": -1.0}

QUESTIONS: dict[str, Question] = {
    "default start": Question(
        "Which start of the kernels should be the default: the identity, Primer's, PyTorch's, or the identity with a rate"
        " of the kernels' own? The one of lowest mean loss on the plays left out among those that beat the identity there"
        " or on the validation split; the identity stays where none is told from it.",
        {f"{start}, beside the identity": less(f"kernel_starts/{start}", "kernel_starts/identity") for start in STARTS},
        LOSSES,
        range(24, 32),
    ),
    "convolution by start": Question(
        "What does the convolution earn beside RMHA from each start?",
        {start: less(f"kernel_starts/{start}", "kernel_starts/rmha") for start in ("identity", *STARTS)},
        (*LOSSES, "accuracy"),
        range(24, 32),
    ),
    "codes of position": Question(
        "Is what relative positions earn their own, or any relative code's? Rotary angles, ALiBi's slopes and a learned table"
        " beside Transformer-XL's sinusoids and beside absolute ones, and what the convolution adds to each.",
        {
            **{
                f"{code}, beside {other}": less(f"position_codes/{code}", run)
                for code in ("rope", "alibi", "table")
                for other, run in (("sinusoids", "kernel_starts/rmha"), ("absolute", "position_codes/absolute"))
            },
            "sinusoids, beside absolute": less("kernel_starts/rmha", "position_codes/absolute"),
            **{
                f"convolution with {code}": less(f"position_codes/{code}-convolution", f"position_codes/{code}")
                for code in ("rope", "alibi", "table")
            },
        },
        LOSSES,
        range(24, 32),
    ),
    **{
        f"lasting, {name}": Question(
            f"What is left in 2000 steps, {name}, of what the parts earn in 500?",
            {
                "relative positions": {f"lasting/{cell}-{drop}": w / 2 for cell, w in _MAIN_POSITION.items()},
                "convolution": {f"lasting/{cell}-{drop}": w / 2 for cell, w in _MAIN_CONVOLUTION.items()},
                "convolution from PyTorch's start, beside RMHA": less(
                    f"lasting/pytorch-{drop}", f"lasting/rmha-{drop}"
                ),
            },
            LOSSES,
            range(32, 38),
        )
        for drop, name in (("plain", "without dropout"), ("dropout", "with dropout"))
    },
}
