"""Every question that runs were made to answer: comparisons, measures, seeds. Its family is all of them together.

Part of the registry: a question stands here before its runs are made, and ``inference.py`` has the rule that judges it.
"default start" says how its answer is chosen. The others choose nothing: that rule answers each of their comparisons on
each of their measures, and none counts for more than another.

The two questions "lasting" have six seeds, as a run of theirs is long. Six give few signs (only the least p, 2 / 2⁶, is
below 0.05), so that what the interval alone would show with a power of 0.8 is settled with one of about 0.6
(``inference.smallest_effect``): there, "open" says less than with eight. Their third comparison had PyTorch's start until
``kernel_starts`` made that the default; then it went to the identity. No run of theirs had been committed.
"""

from experiments.comparisons import Question, less
from experiments.earlier import LOSSES, OLD
from experiments.inference import Finding

STARTS = ("primer", "pytorch", "rate-3", "rate-10")

_MAIN_POSITION = {"rmha": 1.0, "rcmha": 1.0, "mha": -1.0, "mdha": -1.0}
_MAIN_CONVOLUTION = {"mdha": 1.0, "rcmha": 1.0, "mha": -1.0, "rmha": -1.0}

NEW: dict[str, Question] = {
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
                "convolution from the identity, beside RMHA": less(f"lasting/identity-{drop}", f"lasting/rmha-{drop}"),
            },
            LOSSES,
            range(32, 38),
        )
        for drop, name in (("plain", "without dropout"), ("dropout", "with dropout"))
    },
}

QUESTIONS: dict[str, Question] = NEW | OLD


def finding(question: str, comparison: str, measure: str, bound: float = 0.0) -> Finding:
    """The rule's answer to one comparison of a question: does it differ from ``bound``? KeyError without its runs."""
    return QUESTIONS[question].findings({(comparison, measure): bound})[comparison, measure]


def default_start() -> str:
    """What the question "default start" decides, by its own rule."""
    found = QUESTIONS["default start"].findings()
    names = {start: f"{start}, beside the identity" for start in STARTS}
    beat = [start for start in STARTS if any(found[names[start], m].verdict("below") == "supported" for m in LOSSES)]
    return min(beat, key=lambda start: found[names[start], LOSSES[1]].interval.mean, default="identity")
