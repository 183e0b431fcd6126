"""Texts from a model: one character at a time, each computed from cached keys and values."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rcmha_lite.data import CharTokenizer
from rcmha_lite.evaluation import read_window
from rcmha_lite.model import LanguageModel
from rcmha_lite.stepping import Stepper


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
    _require_sampling(temperature, top_k, top_p)
    if temperature == 0:
        top_k, temperature = 1, 1.0
    if not bool(logits.max(dim=-1).values.isfinite().all()):
        raise ValueError("the largest logit is not a finite number: the model diverged in training")
    exact = logits.double()
    below = exact - exact.max(dim=-1, keepdim=True).values  # 0 at best, however small the temperature
    probabilities = (below / temperature).softmax(dim=-1)
    if top_k is None and top_p is None:
        return probabilities.to(logits.dtype)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    keep = before < (math.inf if top_p is None else top_p)
    if top_k is not None:
        keep[..., top_k:] = False
    keep[..., 0] = True
    ordered = ordered * keep
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered / ordered.sum(dim=-1, keepdim=True))
    return kept.to(logits.dtype)


def _require_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not temperature >= 0:
        raise ValueError(
            f"temperature {temperature} is not a number from 0 up: give 0 (always the most probable) or more"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} leaves no character: give 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not a probability above 0")


class Stream:
    """Texts of one length, read on together: in turn ``logits``, for what follows each, and ``append``, what does.

    The last ``context + memory`` positions are kept as keys and values. Absolute positions end there: when they
    do, the cache is filled again from the last half of what it held. With ``fresh_queries`` and memory the text is
    read again segment by segment, for such a model depends on where its segments begin; and where an attention of
    one's own takes no cache, the last ``context + memory`` characters are read again for each new one.
    """

    def __init__(self, model: LanguageModel, ids: Int[Tensor, "batch time"]) -> None:
        config = model.config
        self.model, self.stepper, self.seen = model, Stepper(model), ids.to(model.device)
        self.window = config.context + config.memory
        segmented = bool(config.fresh_queries and config.kernel_size and config.memory)  # read as in training
        self.again = segmented or bool(model.without_cache())
        self.unread = self.seen[:, -self.window :]
        self.cache = [] if self.again else model.new_cache(self.window - 1)

    @torch.no_grad()
    def logits(self) -> Float[Tensor, "batch vocabulary"]:
        """Of the character after the last one of each text. The model must be in evaluation mode."""
        if self.again:
            segment = self.model.config.context if self.model.config.memory else 1
            start = -(-max(0, self.seen.shape[1] - self.window) // segment) * segment
            return read_window(self.model, self.seen[:, start:])[:, -1]
        if self.model.position and self.cache[0].seen + self.unread.shape[1] > self.window:
            self.unread = self.seen[:, -max(1, self.window // 2) :]
            self.cache = self.model.new_cache(self.window - 1)
        if self.unread.shape[1] == 1:
            return self.stepper(self.unread[:, 0], self.cache)
        return self.model(self.unread, cache=self.cache)[0][:, -1]

    def append(self, ids: Int[Tensor, " batch"]) -> None:
        """The next id of each text."""
        self.unread = ids[:, None].to(self.seen)
        seen = torch.cat((self.seen, self.unread), dim=1)
        self.seen = seen if self.again else seen[:, -self.window :]


def generators(seed: int, number: int) -> list[torch.Generator]:
    """A generator for each of several samples: the first has the seed itself, and every later one has a seed from
    (``seed``, its place), so that none depends on how many there are."""
    seeds = [int(np.random.SeedSequence((seed, k)).generate_state(1, np.uint64)[0] >> 1) for k in range(1, number)]
    return [torch.Generator().manual_seed(s) for s in (seed, *seeds)][:number]


def draw(probabilities: Float[Tensor, "batch vocabulary"], random: list[torch.Generator]) -> Int[Tensor, " batch"]:
    """One id of each row, with a generator of its own: what ``torch.multinomial`` draws, row by row, at once.

    Of exponential times of rates p, the first to end is number i with probability p_i.
    """
    times = torch.empty_like(probabilities)
    for row, generator in zip(times.unbind(), random, strict=True):
        row.exponential_(generator=generator)
    return (probabilities / times).argmax(dim=-1)


def generate_batch_ids(
    model: LanguageModel,
    prompts: Sequence[Int[Tensor, " _"]],
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Sample ``length`` ids after each of the prompts: at each turn the next one of every prompt, in their order.

    Sample k depends on the model, its prompt, ``seed`` and k alone, not on the others, but for rounding: k = 0 is what
    ``generate_ids`` gives. Prompts of one length are read together as one batch, others beside it.

    Until the last ids are taken the model stays in evaluation mode. ValueError, at the first, for sampling that
    ``next_probabilities`` refuses, an empty prompt, and ids that the model does not know.
    """
    _require_sampling(temperature, top_k, top_p)
    for prompt in prompts:
        if not len(prompt):
            raise ValueError("the prompt is empty: give at least one character to go on from")
        model.require_known(prompt)
    if length < 1 or not prompts:
        return
    places: dict[int, list[int]] = {}
    for k, prompt in enumerate(prompts):
        places.setdefault(len(prompt), []).append(k)
    training = model.training
    model.eval()
    try:
        random = generators(seed, len(prompts))
        streams = [(group, Stream(model, torch.stack([prompts[k] for k in group]))) for group in places.values()]
        chosen = [0] * len(prompts)
        for _ in range(length):
            for group, stream in streams:
                logits = stream.logits().float().cpu()
                choice = next_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
                drawn = draw(choice, [random[k] for k in group])
                for k, i in zip(group, drawn.tolist(), strict=True):
                    chosen[k] = i
                stream.append(drawn)
            yield chosen.copy()
    finally:
        model.train(training)


def generate_ids(
    model: LanguageModel, prompt: Int[Tensor, " time"], length: int, **sampling: float | int | None
) -> Iterator[int]:
    """Sample ``length`` ids after one prompt, one at a time; the same seed gives the same ids.

    ``sampling`` and errors as in ``generate_batch_ids``.
    """
    for (i,) in generate_batch_ids(model, [prompt], length, **sampling):  # type: ignore[arg-type]
        yield i


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

    ``tokenizer``: the run's (``texts.load_tokenizer``), Tiny Shakespeare's unless given. ``sampling`` goes to
    ``generate_ids``. ValueError, when the first piece is asked for, for a character that the tokenizer does not know,
    and for a model of another vocabulary.
    """
    tokenizer, stop = _fitting(model, tokenizer), stop or ""
    held = ""
    for i in generate_ids(model, tokenizer.encode(prompt), length, **sampling):
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


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[str],
    length: int = 500,
    *,
    stop: str | None = None,
    tokenizer: CharTokenizer | None = None,
    **sampling: float | int | None,
) -> list[str]:
    """The texts that follow each of the prompts: sample k is what ``generate_batch_ids`` samples after prompt k, at
    most ``length`` characters, ending before ``stop``. Errors as ``generate``."""
    tokenizer = _fitting(model, tokenizer)
    texts, ended = [""] * len(prompts), [False] * len(prompts)
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    for chosen in generate_batch_ids(model, ids, length, **sampling):  # type: ignore[arg-type]
        for k, i in enumerate(chosen):
            if not ended[k]:
                texts[k] += tokenizer.characters[i]
                ended[k] = bool(stop) and texts[k].endswith(stop or "")
        if all(ended):
            break
    return [text.removesuffix(stop) if stop and end else text for text, end in zip(texts, ended, strict=True)]


def _fitting(model: LanguageModel, tokenizer: CharTokenizer | None) -> CharTokenizer:
    tokenizer = tokenizer or CharTokenizer()
    if len(tokenizer) != model.config.vocabulary:
        theirs = f"a vocabulary of {model.config.vocabulary}"
        raise ValueError(f"the model has {theirs}, the tokenizer {len(tokenizer)} characters: give the model's own")
    return tokenizer
