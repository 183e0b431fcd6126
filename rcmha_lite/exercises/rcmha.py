"""The check of chapter 6: your own RCMHA, part by part beside the package's."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rcmha_lite import attention
from rcmha_lite.exercises._edits import (
    base,
    exchange,
    flip,
    heads_interleaved,
    interleaved,
    kernel,
    later,
    no_output_projection,
    scale,
    waves,
    zero,
)
from rcmha_lite.exercises._manners import (
    made,
    only_the_readers,
    require_independence,
    require_manners,
    require_names,
    undisturbed,
)
from rcmha_lite.exercises._stages import Inputs, Slip, Stage, compare
from rcmha_lite.exercises._telling import asked, random, require, telling

PLAIN = ("convolution", "position")


_U, _V, _W = "position.content_bias", "position.position_bias", "position.projection"
_ROOT = "By what are the scores divided, and why by that?"
_PLACES = "Where do u and v stand in the four terms? Which of them meets the keys, which the waves?"
_ORDER = "In which order do the waves stand, and which column of W meets which?"

# Cases: d_model, n_heads, batch, time, past.
RCMHA_STAGES = (
    Stage(
        "the values and the output projection",
        "One position alone sees itself, with a weight of 1: its output is its value, through the output projection.",
        ("query", "key", *PLAIN),
        ((8, 1, 3, 1, 0),),
        (
            Slip(
                "A kernel with 1 on the present and 0 before must change nothing. Which of its taps stands on the present?"
                " On which side are the zeros?",
                zero("convolution.weight"),
                "the kernels of the values",
            ),
            Slip("Has every projection its bias?", zero("output.bias")),
            Slip("Has every projection its bias?", zero("value.bias")),
            Slip("Does the last projection come at the end?", no_output_projection),
        ),
        of_one_position=True,
    ),
    Stage(
        "the mask",
        "All scores are equal here, so an output is the mean of the values that its query sees. Which are they? Do their"
        " weights sum to 1?",
        ("query", "key", *PLAIN),
        ((8, 1, 1, 2, 0), (8, 1, 3, 9, 0)),
    ),
    Stage(
        "the scores",
        "There is one head, without kernels and distances: query by key, divided, masked, softmax over the keys.",
        PLAIN,
        ((8, 1, 2, 2, 0), (8, 1, 3, 9, 0)),
        (
            Slip(_ROOT, scale("query", lambda m: m.d_head**0.5)),
            Slip(_ROOT, scale("query", lambda m: m.d_head**-0.5)),
            Slip("Which side asks, and which is asked?", exchange("query.weight", "key.weight")),
        ),
    ),
    Stage(
        "the heads",
        "One head is right, several are not: follow one channel of d_model through the split, and back through the merge.",
        PLAIN,
        ((12, 3, 1, 2, 0), (16, 2, 3, 9, 0), (8, 8, 2, 5, 0)),
        (
            Slip(f"{_ROOT} How wide is what is multiplied?", scale("query", lambda m: m.n_heads**-0.5)),
            Slip("In which order are the heads' outputs laid side by side?", heads_interleaved),
        ),
    ),
    Stage(
        "the kernels of the values",
        "All scores are equal here. Over which axis does a kernel run, and on which side stand the zeros?",
        ("query", "key", "convolution.bias", "position"),
        ((8, 1, 2, 1, 0), (8, 1, 2, 9, 0), (16, 2, 3, 9, 0)),
        (
            Slip("Which tap belongs to the present?", flip),
            Slip("Are the values convolved?", kernel(2)),
            Slip("Which of the three kernels belongs to the values?", kernel(2, 0)),
            Slip("Which of the three kernels belongs to the values?", kernel(2, 1)),
        ),
    ),
    Stage(
        "the kernels of the queries and keys",
        "The values' kernels are right. What is convolved before the scores are formed?",
        ("convolution.bias", "position"),
        ((16, 2, 3, 9, 0), (12, 3, 1, 3, 0)),
        (
            Slip("Are the queries convolved?", kernel(0)),
            Slip("Are the keys convolved?", kernel(1)),
            Slip("Which of the three kernels belongs to the queries?", kernel(0, 2)),
            Slip("Which of the three kernels belongs to the keys?", kernel(1, 2)),
        ),
    ),
    Stage(
        "the kernels' biases",
        "The taps are right. Where is a kernel's bias added, and what happens to it then?",
        ("position",),
        ((16, 2, 3, 9, 0),),
        (Slip("Is a bias added after the taps?", zero("convolution.bias")),),
    ),
    Stage(
        "the waves of the distances",
        "u, v and kernels are silent: what is added to q·k is q·W r. Which distance stands under which key, and which"
        " head's rows of W does a head use?",
        ("convolution", "content_bias", "position_bias"),
        ((8, 1, 2, 9, 0), (8, 1, 1, 1, 0), (8, 1, 2, 2, 0), (16, 2, 3, 9, 0), (12, 3, 2, 5, 0)),
        (
            Slip("Is q·W r added at all?", zero(_W)),
            Slip(_ORDER, waves(lambda sin, cos: (cos, sin))),
            Slip(_ORDER, interleaved),
            Slip("Is the distance i − j or j − i?", waves(lambda sin, cos: (-sin, cos))),
            Slip("Which distance has a query from itself?", later(1)),
            Slip("Which distance has a query from itself?", later(-1)),
            Slip("How long are the waves? Look at the base.", base(1000.0)),
            Slip("What is divided by the root: one term, or the sum?", scale("position", lambda m: m.d_head**0.5)),
            Slip("What is divided by the root, and how often?", scale("position", lambda m: m.d_head**-0.5)),
            Slip(
                "Which rows of W belong to which head?",
                lambda m: m.position.projection.copy_(m.position.projection.roll(m.d_head, 0)),
            ),
        ),
    ),
    Stage(
        "v",
        f"q·W r is right, with v it is not. {_PLACES}",
        ("convolution", "content_bias"),
        ((8, 1, 2, 5, 0), (16, 2, 3, 9, 0)),
        (Slip("Is there a v·W r?", zero(_V)), Slip(_PLACES, exchange(_U, _V), part="u and v")),
    ),
    Stage(
        "u",
        f"q·W r is right, with u it is not. {_PLACES}",
        ("convolution", "position_bias"),
        ((8, 1, 2, 5, 0), (16, 2, 3, 9, 0)),
        (Slip("Is there a u·k?", zero(_U)), Slip(_PLACES, exchange(_U, _V), part="u and v")),
    ),
    Stage(
        "all parts together",
        "Each part alone is right: in which order do they work? What is added before, and what after the kernels?",
        (),
        ((8, 1, 1, 1, 0), (16, 2, 3, 9, 0), (12, 3, 1, 40, 0), (24, 4, 1, 2, 0)),
    ),
    Stage(
        "memory",
        "Kernels and distances are silent. Memory stands before x: it gives keys and values, in that order, all of them"
        " to be seen, and asks nothing.",
        PLAIN,
        ((8, 1, 1, 1, 1), (8, 1, 2, 4, 1), (16, 2, 3, 4, 9), (16, 2, 2, 9, 3)),
    ),
    Stage(
        "memory and the kernels",
        "With silent kernels memory is right. What stands to the left of the first query, key and value of x?",
        ("position",),
        ((8, 1, 2, 1, 1), (16, 2, 3, 4, 9), (16, 2, 2, 5, 2)),
    ),
    Stage(
        "memory and the distances",
        "With silent positions memory is right. How far is the first query of x from the first key of memory?",
        ("convolution",),
        ((8, 1, 2, 1, 1), (16, 2, 3, 4, 9), (16, 2, 2, 9, 3)),
    ),
    Stage(
        "all parts together, with memory",
        "Each part alone is right with memory, and all are without it.",
        (),
        ((8, 1, 1, 1, 6), (16, 2, 3, 9, 5), (12, 3, 1, 3, 40)),
    ),
)


UNTIL: dict[str, tuple[str, tuple[str, ...]]] = {
    "heads": ("the heads", ("query", "key", "value", "output")),
    "kernels": ("the kernels' biases", ("query", "key", "value", "output", "convolution")),
    "distances": ("all parts together", ("",)),
    "memory": ("all parts together, with memory", ("",)),
}
"""How far a class has come: the last stage that it must pass, and the beginnings of the names of its parameters."""


@telling
def check_rcmha(RCMHA: Callable[[int, int], nn.Module], *, until: str = "memory") -> str:
    """Your class, made as ``RCMHA(d_model, n_heads)`` and called as ``module(x)`` or ``module(x, memory)``, beside
    ``attention.rcmha``.

    ``x`` is ``[batch, time, d_model]``, ``memory`` ``[batch, past, d_model]``, and the answer has the shape of x. The
    parameters are named and shaped as in ``attention.rcmha(d_model, n_heads).state_dict()``, so that weights can be
    carried over: kernels of 3 taps, 32 waves of base 10 000. Parts are switched on one after another, in float64;
    outputs and gradients must agree in all of them, then in float32.

    A class that is not finished is checked ``until`` one of four: "heads", where it has four projections and no more;
    "kernels"; "distances"; "memory", which is the whole.
    """
    require(until in UNTIL, f"until: expected one of {', '.join(UNTIL)}, found {until!r}")
    with undisturbed():
        return _check_rcmha(RCMHA, until)


def _attend(module: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    found = (
        module(*inputs.values())
        if isinstance(module, attention.MultiHeadAttention)
        else asked(module, inputs, "your module")
    )
    require(isinstance(found, Tensor), f"your module: expected a tensor, found {type(found).__name__}")
    return found, found


def _check_rcmha(RCMHA: Any, until: str) -> str:
    last, parameters = UNTIL[until]
    pairs: dict[tuple[int, int], tuple[nn.Module, nn.Module]] = {}

    def pair(d_model: int, n_heads: int) -> tuple[nn.Module, nn.Module]:
        if (d_model, n_heads) not in pairs:
            yours = made(RCMHA, {"d_model": d_model, "n_heads": n_heads}, "RCMHA")
            theirs = attention.rcmha(d_model, n_heads).double()
            shapes = {n: tuple(p.shape) for n, p in theirs.named_parameters() if n.startswith(parameters)}
            require_names(yours, shapes, f"RCMHA({d_model}, {n_heads})")
            pairs[d_model, n_heads] = yours, theirs
        return pairs[d_model, n_heads]

    past = 2 if until == "memory" else 0
    only_the_readers(lambda: made(RCMHA, {"d_model": 8, "n_heads": 2}, "RCMHA"), _arrays((8, 2, 2, 3, past)), "RCMHA")
    before: list[str] = []
    for stage in RCMHA_STAGES:
        for case in stage.cases:
            inputs, heads = _arrays(case), case[1]
            given = ", ".join(f"{name} {list(x.shape)}" for name, x in inputs.items())
            where = f"{given}, {heads} head{'s' * (heads > 1)}"
            compare(stage, *pair(*case[:2]), inputs, _attend, before, where)
        before.append(stage.part)
        if stage.part == last and until != "memory":
            return f"Right, until the {until}: {', '.join(before)}. Outputs and gradients are the package's."
    yours, theirs = pair(16, 2)
    require_manners(yours, theirs, _arrays((16, 2, 2, 6, 3)), _attend)
    require_independence(
        lambda: made(RCMHA, {"d_model": 16, "n_heads": 2}, "RCMHA"), yours, _arrays((16, 2, 2, 6, 3)), _attend
    )
    return "Right: you have written RCMHA. Outputs and gradients are the package's, part by part and all together."


def _arrays(case: tuple[int, ...]) -> Inputs:
    d_model, _, batch, time, past = case
    inputs = {"x": random(batch, time, d_model, seed=101).requires_grad_()}
    if past:
        inputs["memory"] = random(batch, past, d_model, seed=102).requires_grad_()
    return inputs
