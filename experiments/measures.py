"""What is measured of a trained model beside its validation loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcmha_lite.convolution import HeadConvolution
from rcmha_lite.data import CharTokenizer, load_unseen_plays, split
from rcmha_lite.evaluation import evaluate
from rcmha_lite.model import Block, LanguageModel

UNSEEN_CHARACTERS = 10_000  # of each play that Tiny Shakespeare leaves out, from its beginning
LENGTHS = (64, 128, 256, 512, 1024)
DISTANCES = 16


def unseen(model: LanguageModel, text: str) -> dict[str, Any]:
    """Loss and accuracy on the first characters of every play that Tiny Shakespeare leaves out, together and by play."""
    tokenizer = CharTokenizer()
    loss = right = positions = 0.0
    plays = {}
    for title, play in load_unseen_plays().items():
        ids = tokenizer.encode(play[:UNSEEN_CHARACTERS])
        found = evaluate(model, ids, window=model.config.window)
        positions += found.positions
        loss, right = loss + found.loss * found.positions, right + found.accuracy * found.positions
        plays[title] = {"loss": found.loss, "accuracy": found.accuracy, "characters": found.positions}
    return {"loss": loss / positions, "accuracy": right / positions, "characters": positions, "plays": plays}


def lengths(model: LanguageModel, text: str) -> dict[str, float]:
    """Validation loss in windows of other lengths than the trained one."""
    ids = split(CharTokenizer().encode(text))[1]
    return {str(length): evaluate(model, ids, window=length).loss for length in LENGTHS}


def contexts(model: LanguageModel, text: str) -> dict[str, float]:
    """Validation loss of characters that have c … 2c − 1 others before them, for c from half the shortest length.

    Windows of 2c overlap by half and the second half is scored, so that every c scores the same characters (but for
    the first c). Side by side, a longer window also leaves fewer characters with a short past.
    """
    ids = split(CharTokenizer().encode(text))[1]
    return {str(length // 2): evaluate(model, ids, window=length, sliding=True).loss for length in LENGTHS}


def running_memory(model: LanguageModel, text: str) -> dict[str, float]:
    """Loss and accuracy on the validation split read as one stream: the memory runs on, as it does in training."""
    ids = split(CharTokenizer().encode(text))[1]
    found = evaluate(model, ids, window=len(ids) - 1)
    return {"loss": found.loss, "accuracy": found.accuracy}


def taps(model: LanguageModel, text: str) -> dict[str, Any] | None:
    """Mean and standard deviation of every tap over a layer's kernels: [layer][q, k, v][tap]."""
    found = [module for module in model.modules() if isinstance(module, HeadConvolution)]
    if not found:
        return None
    weights = torch.stack([convolution.weight.detach().flatten(1, 2) for convolution in found])
    return {"mean": rounded(weights.mean(2)), "std": rounded(weights.std(2))}


@torch.no_grad()
def heads(model: LanguageModel, text: str) -> list[list[list[float]]]:
    """Mean attention weight at each distance 0 … 15, over queries that have as many keys: [layer][head][distance]."""
    ids = split(CharTokenizer().encode(text))[1][: 32 * 128].view(32, 128)
    x = model.embedding(ids)
    x = model.position(x) if model.position else x
    profiles = []
    for block in model.blocks:
        assert isinstance(block, Block)
        weights = block.attention.weights(block.attention_norm(x))
        seen = [weights.diagonal(-d, 2, 3)[..., DISTANCES - d :].mean(dim=(0, 2)) for d in range(DISTANCES)]
        profiles.append(torch.stack(seen, dim=-1))
        x = block(x)
    return rounded(torch.stack(profiles))


def rounded(x: Tensor) -> Any:
    return [rounded(part) for part in x] if x.ndim else round(x.item(), 5)


MEASURES: dict[str, Callable[[LanguageModel, str], Any]] = {
    f.__name__: f for f in (unseen, lengths, contexts, running_memory, taps, heads)
}
