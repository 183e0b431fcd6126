"""Checks for chapter 9: operations and bytes of a product, the slower of two clocks, and what a cache holds."""

from collections.abc import Callable, Sequence

import torch

from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.exercises._telling import asked, number, numbers, refuse, telling
from rcmha_lite.model import LanguageModel


def _equal(found: float, expected: float) -> bool:
    return abs(found - expected) <= 1e-9 * abs(expected)


def _refuse_number(found: float, expected: float, what: str, slips: dict[str, float]) -> None:
    """AssertionError unless both are equal but for rounding, with the slip that would have given what was found."""
    if _equal(found, expected):
        return
    said = [s for s, value in slips.items() if value != expected and _equal(found, value)]
    reason = said[0] if said else f"That is {found / expected:.4g} times as much."
    refuse(f"{what}: expected {expected:,.10g}, found {found:,.10g}.\n  {reason}")


@telling
def check_product_cost(cost: Callable[[int, int, int], Sequence[float]]) -> str:
    """``cost(n, a, b)``: FLOPs of an n × a matrix times an a × b matrix, and the bytes read and written in float32."""
    for n, a, b in ((2, 3, 4), (7, 5, 11), (1, 128, 65)):
        what = f"a {n} × {a} matrix times a {a} × {b} matrix"
        flops, moved = numbers(
            asked(cost, {"n": n, "a": a, "b": b}), 2, f"{what}: FLOPs and bytes"
        ).tolist()  # as float64, exact here
        expected = 2.0 * n * a * b
        slips = {
            "A multiplication and an addition are two operations.": expected / 2,
            "FLOPs and bytes stand in each other's place: FLOPs come first.": 4.0 * (n * a + a * b + n * b),
            "The first product needs no addition, but an addition to zero is counted here.": n * b * (2.0 * a - 1),
            "Each of the n · b entries is a sum of a products.": 2.0 * n * b,
            "These are the operations of a gradient for each factor, the backward pass.": 2 * expected,
        }
        _refuse_number(flops, expected, f"{what}: FLOPs", slips)
        read, written = n * a + a * b, n * b
        slips = {
            "These are numbers; each has 4 bytes.": float(read + written),
            "The result is written, too.": 4.0 * read,
            "The second matrix is read, too.": 4.0 * (n * a + written),
            "The first matrix is read, too.": 4.0 * (a * b + written),
            "That is the result alone; two matrices are read.": 4.0 * written,
            "In float32 a number has 4 bytes, not 8.": 8.0 * (read + written),
            "In float32 a number has 4 bytes, not 2.": 2.0 * (read + written),
        }
        _refuse_number(moved, 4.0 * (read + written), f"{what}: bytes", slips)
    return "Right: operations grow with the volume, bytes with the faces."


@telling
def check_roofline(at_least: Callable[[float, float, float, float], float]) -> str:
    """``at_least(flops, moved, flop_rate, byte_rate)``: the seconds that the slower of the two clocks says."""
    slips: dict[str, Callable[[float, float, float, float], float]] = {
        "That is the faster clock: both pieces of work must be done.": lambda f, m, fr, br: min(f / fr, m / br),
        "That adds both times: the two run side by side.": lambda f, m, fr, br: f / fr + m / br,
        "That is the mean of both times.": lambda f, m, fr, br: (f / fr + m / br) / 2,
        "That is in milliseconds.": lambda f, m, fr, br: 1000 * max(f / fr, m / br),
        "That is the time of the operations alone.": lambda f, m, fr, br: f / fr,
        "That is the time of the bytes alone.": lambda f, m, fr, br: m / br,
        "A rate divides; you multiply.": lambda f, m, fr, br: max(f * fr, m * br),
        "The rates are exchanged.": lambda f, m, fr, br: max(f / br, m / fr),
    }
    asks = ((6e9, 1e9, 3e11, 2e10), (6e9, 1e8, 3e11, 2e10), (0.0, 5e6, 3e11, 2e10), (4.0, 2.0, 2.0, 4.0))
    named = [dict(zip(("flops", "moved", "flop_rate", "byte_rate"), ask, strict=True)) for ask in asks]
    whats = [f"{f:g} FLOPs at {fr:g} a second, {m:g} bytes at {br:g} a second" for f, m, fr, br in asks]
    found = [number(asked(at_least, given), what) for given, what in zip(named, whats, strict=True)]
    said = [s for s, slip in slips.items() if all(map(_equal, found, (slip(*ask) for ask in asks)))]
    for (f, m, fr, br), seconds, what in zip(asks, found, whats, strict=True):
        expected = max(f / fr, m / br)
        if not _equal(seconds, expected):
            reason = said[0] if said else f"That is {seconds / expected:.4g} times as much."
            refuse(f"{what}: expected {expected:.4g} s, found {seconds:.4g}.\n  {reason}")
    return "Right: the slower of the two clocks decides."


@telling
def check_cache_bytes(count: Callable[[Config], float]) -> str:
    """``count(config)``: bytes that the caches of all layers keep for one position of one text, in float32."""
    cases = []
    for cell, changes in CELLS.items():
        for config in (PRESETS["laptop"], PRESETS["tiny"]):
            config = config.replace(**changes, window=config.context)
            d, p, layers, heads = config.d_model, config.d_position, config.layers, config.n_heads
            what = f"{cell}, {layers} layers of {d} channels, {heads} heads, {p} sinusoids where it is relative"
            found = number(asked(count, {"config": config}), what)
            waves = p * (config.position == "relative-sinusoidal")
            slips = {
                "The sinusoids of a position are the same for all heads: they are kept once.": 2 * d + heads * waves,
                "Keys are stored with their sinusoids.": 2 * d,
                "Only keys that are relative have sinusoids.": 2 * d + p,
                "Values have no sinusoids.": 2 * (d + waves),
                "That is of one layer.": (2 * d + waves) / layers,
                "These are numbers; each has 4 bytes.": (2 * d + waves) / 4,
                "Values are kept, too.": d + waves,
                "In float32 a number has 4 bytes, not 2.": (2 * d + waves) / 2,
                "d_model holds all heads: do not multiply by their number.": 2 * d * heads + waves,
            }
            cases.append((found, _kept(config), {s: 4.0 * layers * value for s, value in slips.items()}, what))
    said = [s for s in slips if all(_equal(found, each[s]) for found, _, each, _ in cases)]
    for found, expected, _, what in cases:
        _refuse_number(found, expected, what, dict.fromkeys(said[:1], found))
    return "Right: keys, values, and their sinusoids once."


def _kept(config: Config) -> float:
    """Measured in the buffers of a cache that has read something."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = LanguageModel(config).eval()
        cache = model.new_cache()
        model(torch.zeros(1, 2, dtype=torch.long), cache=cache)
    total = 0
    for layer in cache:
        keys, values, common = layer.buffers()
        total += keys[0, :, 0].nbytes + values[0, :, 0].nbytes + common[0].nbytes
    return float(total)
