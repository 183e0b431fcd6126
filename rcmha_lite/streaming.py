"""What an attention layer remembers of a stream of text, so that the next piece can be read alone."""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class AttentionCache:
    """What a layer remembers of a stream: keys and values, and the projections that its kernels still reach.

    Keys and values stand in buffers with room to spare, so that a new one is written and the old ones stay. Channels of
    the keys that tell nothing but the position, such as sinusoids, are the same for every text and head: they are kept
    once. At most
    ``limit`` are kept after each piece, the oldest dropped first, so with a limit the outputs depend on the pieces: a
    query sees its own piece and ``limit`` keys before it. None keeps all. ``seen`` counts every position so far.
    For inference, under ``torch.no_grad()``: no gradient reaches keys or values, kept or new. Kernels go on across
    pieces, whatever ``fresh_queries`` says. ValueError for a negative limit.
    """

    limit: int | None = None
    seen: int = 0
    history: Tensor | None = None
    _keys: Tensor | None = None
    _values: Tensor | None = None
    _common: Tensor | None = None
    _start: int = 0
    _stop: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit {self.limit} is negative: give the number of keys to keep, or None for all")

    def __len__(self) -> int:
        """Keys that the next call may see beside its own."""
        return self._stop - self._start

    def __bool__(self) -> bool:
        """True: an empty cache is a cache."""
        return True

    def require_batch(self, batch: int) -> None:
        """ValueError unless a piece of this batch size can continue the stream."""
        if self._keys is not None and batch != len(self._keys):
            stream = f"a piece of batch {batch} does not continue a stream of batch {len(self._keys)}"
            raise ValueError(f"{stream}: start a new AttentionCache")

    @torch.no_grad()
    def extend(self, keys: Tensor, values: Tensor, common: int | None = None) -> tuple[Tensor, Tensor]:
        """Append keys and values ``[batch, heads, time, width]``, and return all that this call may see.

        The last ``common`` channels of the keys do not depend on text and head; as many as before unless given.
        """
        common = common if common is not None else 0 if self._common is None else self._common.shape[1]
        own = keys.shape[3] - common
        new, seen = self.reserve(keys[..., :own], values, common)
        all_keys, all_values, all_common = self.buffers()
        all_keys[:, :, new], all_values[:, :, new] = keys[..., :own], values
        if not common or not len(keys):
            return all_keys[:, :, seen], all_values[:, :, seen]
        all_common[new] = keys[0, 0, :, own:]
        shared = all_common[seen].expand(*keys.shape[:2], -1, -1)
        return torch.cat((all_keys[:, :, seen], shared), dim=-1), all_values[:, :, seen]

    def reserve(self, keys: Tensor, values: Tensor, common: int = 0) -> tuple[slice, slice]:
        """Places in the buffers for keys and values like these, counted from now on, and all that may be seen with them."""
        if self._keys is not None and keys.dtype != self._keys.dtype:
            stream = f"a piece in {keys.dtype} does not continue a stream in {self._keys.dtype}"
            raise ValueError(f"{stream}: read both under the same autocast, or start a new AttentionCache")
        time = keys.shape[2]
        stop, needed = self._stop + time, len(self) + time
        room = 0 if self._keys is None else self._keys.shape[2]
        wasted = self.limit is not None and room > 8 * (self.limit + needed)  # after one long piece
        if self._keys is None or stop > room or wasted:
            kept = slice(self._start, self._stop)
            self._keys, self._values = _moved(self._keys, kept, keys), _moved(self._values, kept, values)
            old = None if self._common is None else self._common[None, None]
            self._common = _moved(old, kept, keys.new_empty(1, 1, time, common))[0, 0]
            self._start, self._stop, stop = 0, len(self), len(self) + time
        new, seen = slice(self._stop, stop), slice(self._start, stop)
        self.seen, self._stop = self.seen + time, stop
        self._start = self._start if self.limit is None else max(self._start, stop - self.limit)
        return new, seen

    def buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where keys and values stand, ``[batch, heads, room, width]``, and the keys' common channels, ``[room, width]``."""
        assert self._keys is not None
        assert self._values is not None
        assert self._common is not None
        return self._keys, self._values, self._common

    def keep(self, projections: Tensor, past: int) -> None:
        """Remember the last ``past`` rows of the projections so far, ``[batch, time, width]``, for kernels to reach."""
        rows = projections if self.history is None else torch.cat((self.history, projections), dim=1)
        kept = min(past, rows.shape[1])
        self.history = rows[:, rows.shape[1] - kept :].detach().clone()  # a view would hold all of it


def last(x: Tensor, n: int) -> Tensor:
    """The last ``n`` positions of ``[batch, time, width]``. All of them are ``x`` itself: a slice costs a copy backward.

    ValueError unless there are so many.
    """
    if not 0 <= n <= x.shape[1]:
        raise ValueError(f"{n} queries of {x.shape[1]} positions: give a number from 0 to {x.shape[1]}")
    return x if n == x.shape[1] else x[:, x.shape[1] - n :]


def joined(memory: Tensor | None, x: Tensor) -> Tensor:
    """``memory`` followed by ``x`` in time. ValueError unless they fit."""
    if x.ndim != 3:
        raise ValueError(f"the input has shape {tuple(x.shape)}: give [batch, time, d_model]")
    if memory is None:
        return x
    if memory.ndim != 3 or len(memory) != len(x) or memory.shape[2] != x.shape[2]:
        shape = f"the memory has shape {tuple(memory.shape)}, the input {tuple(x.shape)}"
        raise ValueError(f"{shape}: give a memory [batch, past, d_model] of the input's batch and width")
    return torch.cat((memory, x), dim=1)


def takes_cache(attention: nn.Module) -> bool:
    """Whether ``attention`` may be called with a ``cache``: its ``forward`` names one, or hands on whatever keywords it
    is given, as wrappers do, to a module inside that takes one."""
    try:
        parameters = inspect.signature(attention.forward).parameters.values()
    except (TypeError, ValueError):  # compiled code without a signature, such as TorchScript's
        return False
    if any(parameter.name == "cache" for parameter in parameters):
        return True
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return hands_on and any(map(takes_cache, attention.children()))


def kernel_reach(convolution: nn.Module | None) -> int:
    """Earlier rows that the kernels need: kernel_size − 1, or 0 without kernels. ValueError where none says how many."""
    if convolution is None:
        return 0
    taps = getattr(convolution, "kernel_size", None)
    if not isinstance(taps, int) or taps < 1:
        theirs = f"the convolution, {type(convolution).__name__}, has kernel_size {taps}"
        raise ValueError(f"{theirs}: in a stream, give it the number of its taps, the current position included")
    return taps - 1


def _moved(old: Tensor | None, kept: slice, new: Tensor) -> Tensor:
    """A buffer twice as long as what it must hold, with the ``kept`` part of the old one at its beginning."""
    batch, heads, time, width = new.shape
    length = kept.stop - kept.start
    with torch.inference_mode(False):  # it must be writable later, wherever this is called
        buffer = new.new_empty(batch, heads, 2 * (length + time), width)
    if old is not None:
        buffer[:, :, :length] = old[:, :, kept]
    return buffer
