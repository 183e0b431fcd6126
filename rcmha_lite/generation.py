"""Text from a model: one character at a time, each computed from cached keys and values."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rcmha_lite.data import CharTokenizer
from rcmha_lite.evaluation import read_window
from rcmha_lite.model import LanguageModel


def next_probabilities(
    logits: Float[Tensor, "*batch vocabulary"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "*batch vocabulary"]:
    """softmax(logits / temperature) over the characters that both filters leave.

    ``temperature`` 0 puts everything on the most probable. ``top_k`` leaves the k most probable; ``top_p`` the fewest
    whose probabilities reach p (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751). ValueError for a negative
    temperature, filters that leave nothing, and logits that are not numbers.
    """
    if not temperature >= 0:
        raise ValueError(
            f"temperature {temperature} is not a number from 0 up: give 0 (always the most probable) or more"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} leaves no character: give 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not a probability above 0")
    if temperature == 0:
        top_k, temperature = 1, 1.0
    if not bool(logits.max(dim=-1).values.isfinite().all()):
        raise ValueError("the largest logit is not a finite number: the model diverged in training")
    exact = logits.double()
    below = exact - exact.max(dim=-1, keepdim=True).values  # 0 at best, however small the temperature
    probabilities = (below / temperature).softmax(dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    keep = before < (math.inf if top_p is None else top_p)
    if top_k is not None:
        keep[..., top_k:] = False
    keep[..., 0] = True
    ordered = ordered * keep
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered / ordered.sum(dim=-1, keepdim=True))
    return kept.to(logits.dtype)


@torch.no_grad()
def generate_ids(
    model: LanguageModel,
    prompt: Int[Tensor, " time"],
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Sample ``length`` ids after ``prompt``, one at a time; the same seed gives the same ids.

    Until the last one is taken the model stays in evaluation mode. ValueError, at the first, for an empty prompt and
    for ids that the model does not know.

    The last ``context + memory`` positions are kept as keys and values. Absolute positions end there: when they
    do, the cache is filled again from the last half of what it held. With ``fresh_queries`` and memory the text is
    read again segment by segment, for such a model depends on where its segments begin; and where an attention of
    one's own takes no cache, the last ``context + memory`` characters are read again for each new one.
    """
    if not len(prompt):
        raise ValueError("the prompt is empty: give at least one character to go on from")
    model.require_known(prompt)
    if length < 1:
        return
    training = model.training
    model.eval()
    try:
        config, device = model.config, model.device
        generator = torch.Generator().manual_seed(seed)
        window = config.context + config.memory
        fresh = bool(config.fresh_queries and config.kernel_size and config.memory)  # read them as training does
        again, seen = fresh or bool(model.without_cache()), prompt.tolist()
        unread, cache = seen[-window:], [] if again else model.new_cache(window - 1)
        for _ in range(length):
            if again:
                segment = config.context if config.memory else 1
                start = -(-max(0, len(seen) - window) // segment) * segment
                out = read_window(model, torch.tensor([seen[start:]], device=device))
            else:
                if model.position and cache[0].seen + len(unread) > window:
                    unread, cache = seen[-max(1, window // 2) :], model.new_cache(window - 1)
                out, _ = model(torch.tensor([unread], device=device), cache=cache)
            logits = out[0, -1].float().cpu()
            choice = next_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            unread = [int(torch.multinomial(choice, 1, generator=generator))]
            seen += unread
            yield unread[0]
    finally:
        model.train(training)


def generate(
    model: LanguageModel,
    prompt: str,
    length: int = 500,
    *,
    stop: str | None = None,
    tokenizer: CharTokenizer | None = None,
    **sampling: float | int | None,
) -> Iterator[str]:
    """Stream the text that follows ``prompt``, without it: at most ``length`` characters, ending before ``stop``.

    ``sampling`` goes to ``generate_ids``. ValueError, when the first piece is asked for, for a character that the
    tokenizer does not know, and for a model of another vocabulary.
    """
    tokenizer, stop = tokenizer or CharTokenizer(), stop or ""
    if len(tokenizer) != model.config.vocabulary:
        theirs = f"a vocabulary of {model.config.vocabulary}"
        raise ValueError(f"the model has {theirs}, the tokenizer {len(tokenizer)} characters: give the model's own")
    held = ""
    for i in generate_ids(model, tokenizer.encode(prompt), length, **sampling):  # type: ignore[arg-type]
        held += tokenizer.characters[i]
        if stop and held.endswith(stop):
            held = held.removesuffix(stop)
            break
        unsure = next((n for n in range(len(stop) - 1, 0, -1) if held.endswith(stop[:n])), 0)
        if len(held) > unsure:
            yield held[: len(held) - unsure]
            held = held[len(held) - unsure :]
    if held:
        yield held
