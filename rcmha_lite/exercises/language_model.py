"""The second check of chapter 6: your own language model around RCMHA, part by part beside the package's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcmha_lite.config import Config
from rcmha_lite.exercises._edits import zero
from rcmha_lite.exercises._manners import (
    made,
    only_the_readers,
    require_independence,
    require_manners,
    require_names,
    undisturbed,
)
from rcmha_lite.exercises._stages import Inputs, Slip, Stage, compare
from rcmha_lite.exercises._telling import asked, require, telling
from rcmha_lite.model import LanguageModel


class _Norms(nn.Module):
    """A block that normalises the stream itself: what post-norm makes of silent sublayers."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first, self.second = block.attention_norm, block.feed_forward_norm

    def forward(self, context: Tensor, queries: int, cache: None = None) -> Tensor:
        found: Tensor = self.second(self.first(context))
        return found


class _Beside(nn.Module):
    """A block whose feed-forward layer reads what attention reads."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, queries: int, cache: None = None) -> Tensor:
        block = self.block
        found: Tensor = x + block.attention(block.attention_norm(x)) + block.feed_forward(block.feed_forward_norm(x))
        return found


class _FeedForwardFirst(_Beside):
    def forward(self, x: Tensor, queries: int, cache: None = None) -> Tensor:
        block = self.block
        x = x + block.feed_forward(block.feed_forward_norm(x))
        found: Tensor = x + block.attention(block.attention_norm(x))
        return found


class _MemoryAsItIs(_Beside):
    def forward(self, context: Tensor, queries: int, cache: None = None) -> Tensor:
        block, past = self.block, context.shape[1] - queries
        x = context[:, past:]
        x = x + block.attention(block.attention_norm(x), context[:, :past])
        found: Tensor = x + block.feed_forward(block.feed_forward_norm(x))
        return found


def _keeping(positions: Callable[[int], int]) -> Callable[[Any], None]:
    """A model that keeps another number of positions."""

    def edit(model: Any) -> None:
        model.config = model.config.replace(memory=positions(model.config.memory))

    return edit


def _blocks(kind: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        model.blocks = nn.ModuleList(map(kind, model.blocks))

    return edit


def _part(name: str, part: Callable[[], nn.Module]) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        for block in model.blocks:
            setattr(block, name, part())

    return edit


def _activation(function: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        for block in model.blocks:
            block.feed_forward.activation = function

    return edit


def _tied(model: Any) -> None:
    model.output.weight.copy_(model.embedding.weight)


_SILENT_BLOCKS = ("attention.output", "feed_forward.output")
_NORMS = "Of what is the norm taken: of the stream, or of a copy that a sublayer reads?"

# Cases: d_model, n_heads, d_ff, layers, memory, batch, segments, time.
MODEL_STAGES = (
    Stage(
        "the embedding, the last norm and the output layer",
        "The blocks' two last matrices are silent here, so what enters a block leaves it.",
        _SILENT_BLOCKS,
        ((8, 1, 12, 1, 0, 2, 1, 1), (16, 2, 20, 1, 0, 3, 1, 7)),
        (
            Slip("To what does a block add?", zero("embedding.weight"), "the residual stream"),
            Slip("Is the embedding scaled?", lambda m: m.embedding.weight.mul_(m.config.d_model**0.5), "the embedding"),
            Slip(_NORMS, _blocks(_Norms), "the norms of a block"),
            Slip(
                "What stands between the last block and the output layer?", lambda m: setattr(m, "norm", nn.Identity())
            ),
            Slip("Has the output layer a bias?", zero("output.bias")),
            Slip("Whose weights does the output layer use? It has its own.", _tied),
        ),
    ),
    Stage(
        "the feed-forward layer",
        "Attention is silent here. What does the feed-forward layer read, what stands between its matrices, and to what"
        " is it added?",
        ("attention.output",),
        ((16, 2, 20, 1, 0, 3, 1, 7),),
        (
            Slip("Which activation stands between the two matrices?", _activation(F.relu)),
            Slip("Which activation stands between the two matrices?", _activation(F.gelu)),
            Slip("Which activation stands between the two matrices?", _activation(torch.square)),
            Slip(
                "Does the feed-forward layer read the norm?",
                _part("feed_forward_norm", nn.Identity),
                "the norms of a block",
            ),
        ),
    ),
    Stage(
        "attention in the block",
        "The feed-forward layer is silent here. Does exercises.check_rcmha accept your attention? Then: what does it read,"
        " and to what is it added?",
        ("feed_forward.output",),
        ((16, 2, 20, 1, 0, 3, 1, 7), (8, 1, 12, 1, 0, 1, 1, 1)),
        (Slip("Does attention read the norm?", _part("attention_norm", nn.Identity), "the norms of a block"),),
    ),
    Stage(
        "the block",
        "Each of its two sublayers alone is right. Which comes first, and what does the second read?",
        (),
        ((16, 2, 20, 1, 0, 3, 1, 7),),
        (
            Slip("What does the second sublayer read?", _blocks(_Beside)),
            Slip("Which of the two sublayers comes first?", _blocks(_FeedForwardFirst)),
        ),
    ),
    Stage(
        "several blocks",
        "One block is right. What does the second read? Has each block weights of its own?",
        (),
        ((16, 2, 20, 3, 0, 2, 1, 7), (12, 3, 48, 2, 0, 1, 1, 20)),
        (
            Slip(
                "In which order do the blocks work?", lambda m: setattr(m, "blocks", nn.ModuleList(reversed(m.blocks)))
            ),
        ),
    ),
    Stage(
        "memory of one block",
        "Without memory all is right. What does a memory hold: what enters the block, or what leaves it, before the norm"
        " or after? How many positions, cut off from which gradient? And what happens to it when it is used?",
        (),
        ((16, 2, 20, 1, 4, 2, 2, 4), (8, 1, 12, 1, 1, 1, 3, 1), (16, 2, 20, 1, 6, 2, 3, 4), (16, 2, 20, 1, 3, 2, 3, 5)),
        (
            Slip("What happens to a memory before attention reads it?", _blocks(_MemoryAsItIs)),
            Slip("How many positions are kept? Not all.", _keeping(lambda memory: 1000)),
            Slip("How many positions are kept? More.", _keeping(lambda memory: max(memory - 1, 1))),
            Slip("How many positions are kept? May they be from more than one segment?", _keeping(lambda memory: 4)),
            Slip("Is the memory used?", _keeping(lambda memory: 0)),
        ),
    ),
    Stage(
        "memory of several blocks",
        "With one block memory is right. Whose memory does the second block get?",
        (),
        ((16, 2, 20, 3, 5, 2, 3, 3),),
    ),
)
VOCABULARY = 11


@telling
def check_language_model(Model: Callable[..., nn.Module]) -> str:
    """Your class, made as ``Model(vocabulary, d_model, n_heads, d_ff, layers, memory)``, beside the package's.

    Called as ``logits, memory = model(ids)``, or ``model(ids, memory)`` with what it gave for the segment before, of ids
    ``[batch, time]`` it makes logits ``[batch, time, vocabulary]``. The number ``memory`` says how many positions are
    kept for each block; in what form is your affair, and where it is 0, logits alone are answer enough. Attention is
    RCMHA, the activation squared ReLU, norms stand before the sublayers, and parameters are named and shaped as in
    the ``state_dict()`` of the package's ``LanguageModel``. Gradients are those of the last segment's logits alone.
    """
    with undisturbed():
        return _check_language_model(Model)


def _read(model: Any, inputs: Inputs, segments: int = 1, memory: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of all segments of the text, and of the last."""
    given: dict[str, Any] = dict(inputs)
    logits = []
    for ids in inputs["ids"].chunk(segments, dim=1):
        given["ids"] = ids
        found = model(*given.values()) if isinstance(model, LanguageModel) else asked(model, given, "your model")
        if isinstance(found, Tensor) and not memory:
            found = found, None
        pair = isinstance(found, tuple | list) and len(found) == 2
        require(pair, f"your model: expected logits and memory, found {type(found).__name__}")
        require(isinstance(found[0], Tensor), f"your model: expected logits first, found {type(found[0]).__name__}")
        given |= {"memory": found[1]} if memory else {}
        logits.append(found[0])
    shapes = {tuple(x.shape) for x in logits}
    require(len(shapes) == 1, f"your model: segments of one length give logits of shapes {sorted(shapes)}")
    require(
        logits[0].ndim == 3, f"your model: expected logits [batch, time, vocabulary], found {list(logits[0].shape)}"
    )
    return torch.cat(logits, dim=1), logits[-1]


def _numbers(case: tuple[int, ...]) -> dict[str, int]:
    return dict(
        zip(("vocabulary", "d_model", "n_heads", "d_ff", "layers", "memory"), (VOCABULARY, *case), strict=False)
    )


def _ids(case: tuple[int, ...]) -> Inputs:
    batch, segments, time = case[5:]
    generator = torch.Generator().manual_seed(5)
    return {"ids": torch.randint(VOCABULARY, (batch, segments * time), generator=generator)}


def _check_language_model(Model: Any) -> str:
    name = "LanguageModel"
    first = (8, 2, 12, 2, 2, 2, 1, 3)
    only_the_readers(lambda: made(Model, _numbers(first), name), _ids(first), name)
    before: list[str] = []
    for stage in MODEL_STAGES:
        for case in stage.cases:
            yours, theirs = _models(Model, case)
            _, segments, time = case[5:]
            memory = f", memory of {case[4]}" if case[4] else ""
            pieces = f"{segments} segments of ids [{case[5]}, {time}]" if segments > 1 else f"ids [{case[5]}, {time}]"
            where = f"{pieces}, {case[3]} block{'s' * (case[3] > 1)}{memory}"
            call, more = partial(_read, segments=segments, memory=case[4]), partial(_memory_unused, yours, case)
            compare(stage, yours, theirs, _ids(case), call, before, where, more)
        before.append(stage.part)
    case = (16, 2, 20, 2, 0, 2, 1, 6)
    yours, theirs = _models(Model, case)
    require_manners(yours, theirs, _ids(case), _read)
    require_independence(lambda: made(Model, _numbers(case), name), yours, _ids(case), _read)
    return "Right: you have written the whole model. Logits and gradients are the package's, with memory and without."


def _models(Model: Any, case: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    numbers = _numbers(case)
    yours, theirs = made(Model, numbers, "LanguageModel"), LanguageModel(Config(**numbers)).double()  # type: ignore[arg-type]
    shapes = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    require_names(yours, shapes, f"LanguageModel({', '.join(map(str, numbers.values()))})")
    return yours, theirs


def _memory_unused(yours: nn.Module, case: tuple[int, ...]) -> str:
    """A sentence where the second segment is answered as if there had been none before."""
    if not case[4]:
        return ""
    segments, ids = case[6], _ids(case)["ids"]
    last = ids.chunk(segments, dim=1)[-1]
    found = _read(yours, {"ids": ids}, segments, case[4])[1]
    fresh = _read(yours, {"ids": last}, 1, case[4])[1]
    return "\n  The last segment is answered as if nothing stood before it." if torch.equal(found, fresh) else ""
