"""The questions of the runs made before there was a rule (inference.py), each with all that the book looked at as its
family. What was looked at, and with how many seeds, had been chosen on the way: so all are declared "after".
"""

from functools import partial

from experiments.comparisons import Question, factorial, less, pairwise
from experiments.results import FACTORS, cell_runs

LOSSES = ("loss", "loss on the plays left out")
THREE = ("loss", "accuracy", "loss on the plays left out")

_ABLATION = {cell: f"ablation/{cell}-relu2" for cell in ("rcmha", "rmha", "mdha", "mha")}
_FROM_PYTORCH = {"rcmha": "starts/pytorch", "rmha": "starts/rmha", "mdha": "starts/mdha", "mha": "starts/mha"}
_PLACES = {(False, False, False): "parts/kernel-0", (True, True, True): "parts/rcmha"} | {
    tuple(place in some for place in "qkv"): f"parts/convolve-{some}" for some in ("q", "k", "v", "qk", "qv", "kv")
}
_DESIGNS = (
    *("kernel-0", "kernel-1", "kernel-2", "kernel-5", "kernel-9", "kernels-separate"),
    "init-primer",
    "init-pytorch",
)
_POSITIONS = ("none", "absolute-sinusoidal", "absolute-learned", "relative-learned")
_REGIMES = {
    "one block": ("layers-1", range(16, 24)),
    "two blocks": ("layers-2", range(16, 24)),
    "AdamW": ("adamw", range(16, 20)),
    "125 steps": ("steps-125", range(16, 20)),
}

_after = partial(Question, declared="after")

OLD: dict[str, Question] = {
    "ablation": _after(
        "What does each part earn in 500 equal steps, and do they add up? Eight cells, all seven effects.",
        factorial(cell_runs(), FACTORS),
        THREE,
        range(8),
    ),
    "four cells": _after(
        "How do the paper's four cells, with squared ReLU and kernels from the identity, compare after 500 equal steps?",
        pairwise(_ABLATION),
        ("accuracy", "loss"),
        range(8),
    ),
    "convolution beside RMHA": _after(
        "What does the convolution from the identity add to RMHA, with ReLU and with squared ReLU?",
        {
            "with ReLU": less("ablation/rcmha-relu", "ablation/rmha-relu"),
            "with squared ReLU": less("ablation/rcmha-relu2", "ablation/rmha-relu2"),
        },
        THREE,
        range(8),
    ),
    "sixteen seeds": _after(
        "The same with squared ReLU over all sixteen seeds, those of the ablation and those of ``starts``.",
        {
            "convolution beside RMHA": less(
                "ablation/rcmha-relu2 or starts/identity", "ablation/rmha-relu2 or starts/rmha"
            )
        },
        THREE,
        range(16),
    ),
    "equal time": _after(
        "What is left of it in the time of MHA's 500 steps, at the step times of one quiet thread?",
        {
            **{
                f"{cell} less mha": less(f"equal_time/{cell}-relu2", "ablation/mha-relu2")
                for cell in ("mdha", "rmha", "rcmha")
            },
            "rcmha less rmha": less("equal_time/rcmha-relu2", "equal_time/rmha-relu2"),
            "squared ReLU in rcmha": less("equal_time/rcmha-relu2", "equal_time/rcmha-relu"),
        },
        THREE,
        range(8),
    ),
    "starts": _after(
        "Does the start of the kernels matter, with seeds that did not suggest it?",
        {
            **{
                f"{start}, beside the identity": less(f"starts/{start}", "starts/identity")
                for start in ("primer", "pytorch")
            },
            **{
                f"{start}, beside RMHA": less(f"starts/{start}", "starts/rmha")
                for start in ("identity", "primer", "pytorch")
            },
        },
        THREE,
        range(8, 16),
    ),
    "starts at equal time": _after(
        "What does the convolution from PyTorch's start add to RMHA in equal time, at the step times of one quiet thread?",
        {"pytorch, beside RMHA": less("starts/equal-time-pytorch", "starts/equal-time-rmha")},
        THREE,
        range(8, 16),
    ),
    "four cells from PyTorch's start": _after(
        "How do the paper's four cells compare with kernels that start at random, and do the parts add up?",
        pairwise(_FROM_PYTORCH)
        | {
            "interaction": factorial(
                {(c[0] == "r", c in ("rcmha", "mdha")): run for c, run in _FROM_PYTORCH.items()}, FACTORS[:2]
            )[" × ".join(FACTORS[:2])]
        },
        ("accuracy",),
        range(9, 16),
    ),
    "one tap": _after(
        "Is it the neighbours, or only the random scales and biases of kernels? One tap mixes no neighbours; its biases"
        " spread more than those of three taps (±1 against ±0.577).",
        {
            "three taps less one": less("starts/pytorch", "starts/one-tap"),
            "one tap, beside RMHA": less("starts/one-tap", "starts/rmha"),
        },
        THREE,
        range(9, 16),
    ),
    "longer": _after(
        "What does the convolution from PyTorch's start add to RMHA in 2000 steps with dropout? Seeds 0 to 3: the first two"
        " had picked this start, and one seed became two, then four, as results came in.",
        {"pytorch, beside RMHA": less("longer/rcmha-pytorch-dropout", "longer/rmha-dropout")},
        THREE,
        range(4),
    ),
    **{
        name: _after(
            f"What do convolution and squared ReLU earn in another regime: {name}?",
            {
                "convolution": less(f"regimes/{regime}-rcmha", f"regimes/{regime}-rmha"),
                "squared ReLU": less(f"regimes/{regime}-rcmha", f"regimes/{regime}-relu"),
            }
            | (
                {"convolution from the identity": less(f"regimes/{regime}-identity", f"regimes/{regime}-rmha")}
                if "layers" in regime
                else {}
            ),
            LOSSES,
            over,
        )
        for name, (regime, over) in _REGIMES.items()
    },
    "designs of the convolution": _after(
        "Which design of the convolution from the identity? Eight others beside ours.",
        {f"{design} less rcmha": less(f"parts/{design}", "parts/rcmha") for design in _DESIGNS},
        ("loss",),
        range(4),
    ),
    "places of the convolution": _after(
        "Where does it act: on queries, keys or values? All seven effects.",
        factorial(_PLACES, ("queries", "keys", "values")),
        ("loss",),
        range(4),
    ),
    "encodings of position": _after(
        "Which encoding of position? Four others beside relative sinusoids, and an absolute table beside none.",
        {f"{code} less relative sinusoids": less(f"parts/position-{code}", "parts/rcmha") for code in _POSITIONS}
        | {"absolute-learned less none": less("parts/position-absolute-learned", "parts/position-none")},
        ("loss",),
        range(4),
    ),
    "activation": _after(
        "What does ReLU in place of squared ReLU cost RCMHA?",
        {"relu less relu2": less("parts/activation-relu", "parts/rcmha")},
        ("loss",),
        range(4),
    ),
    "induction": _after(
        "Does one layer learn induction with a convolution, and not without, for either kind of positions?",
        {
            "rcmha less rmha": less("induction/rcmha", "induction/rmha"),
            "mdha less mha": less("induction/mdha", "induction/mha"),
        },
        ("score",),
        range(8),
    ),
}
