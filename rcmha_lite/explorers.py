"""Figures that move: driven by inline script in a page, by ipywidgets where a kernel runs, from the same numbers."""

import html
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rcmha_lite.convolution import causal_depthwise_convolution
from rcmha_lite.generation import next_probabilities
from rcmha_lite.positions import SinusoidalRelativePosition, sinusoids

Bars = list[float]


@dataclass(frozen=True)
class Control:
    """A slider: its name, what it says, its range and where it starts."""

    name: str
    label: str
    low: float
    high: float
    step: float
    start: float


@dataclass(frozen=True, repr=False)
class Explorer:
    """An interactive bar chart. ``compute`` gives the bars in Python; ``explorers.js`` the same, in the page."""

    name: str
    title: str
    controls: tuple[Control, ...]
    data: dict[str, Any]
    labels: list[str]
    compute: Callable[..., Bars]

    def __repr__(self) -> str:
        return f"<interactive figure: {self.title}>"

    def _repr_html_(self) -> str:
        """The figure with its script and data, whole: it needs no kernel and no network."""
        sliders = "".join(
            f'<div><label>{html.escape(c.label)} <input type="range" name="{c.name}" min="{c.low:g}" max="{c.high:g}" '
            f'step="{c.step:g}" value="{c.start:g}"> <output>{c.start:g}</output></label></div>'
            for c in self.controls
        )
        data = json.dumps(self.data, ensure_ascii=False).replace("</", "<\\/")
        script = files("rcmha_lite").joinpath("explorers.js").read_text(encoding="utf-8")
        return (
            f'<figure class="explorer" data-name="{self.name}"><div><strong>{html.escape(self.title)}</strong></div>'
            f'{sliders}<svg viewBox="0 0 640 240" role="img" aria-label=""></svg>'
            f'<output class="summary" aria-live="polite"></output>'
            f'<script type="application/json">{data}</script>'
            f"<script>{script}</script></figure>"
        )

    def live(self) -> Any:
        """The same figure by ipywidgets, computed in the kernel. A line of text where the book is being executed."""
        if os.environ.get("RCMHA_LITE_STATIC"):
            print("Run this cell in Jupyter or Colab: there it shows sliders (ipywidgets).")
            return None
        import ipywidgets

        style = {"description_width": "initial"}
        sliders = {
            c.name: (ipywidgets.IntSlider if isinstance(c.step, int) else ipywidgets.FloatSlider)(
                value=c.start, min=c.low, max=c.high, step=c.step, description=c.label, style=style
            )
            for c in self.controls
        }
        return ipywidgets.interactive(self.plot, **sliders)

    def plot(self, **values: float) -> None:
        """Draw the bars for these values of the controls with matplotlib."""
        from matplotlib import pyplot as plt

        bars = self.compute(**values)
        _, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
        axes.bar(range(len(bars)), bars, color="#0072B2")
        every = -(-len(bars) // 32)
        axes.set_xticks(range(0, len(bars), every), self.labels[::every])
        axes.set_title(self.title)
        plt.show()


def attention_map(weights: Float[Tensor, "heads time time2"], text: str) -> Explorer:
    """Where each query of each head looks, as the query moves along ``text``."""
    heads, time, _ = weights.shape
    rounded = [[[round(w, 4) for w in row] for row in head] for head in weights.tolist()]
    tokens = [{" ": "␣", "\n": "↵"}.get(c, c) for c in text]
    controls = (
        Control("head", "Head", 0, heads - 1, 1, 0),
        Control("query", "Query position", 0, time - 1, 1, time - 1),
    )
    return Explorer(
        "attention-map", "Where a query looks", controls, {"weights": rounded, "tokens": tokens}, tokens,
        lambda head, query: rounded[int(head)][int(query)],
    )  # fmt: skip


def kernel_taps(signal: list[float]) -> Explorer:
    """A three-tap causal kernel over ``signal`` (the pale bars), its taps under the reader's fingers."""
    controls = tuple(
        Control(name, label, -2.0, 2.0, 0.1, start)
        for name, label, start in (
            ("before_last", "Tap on x[t−2]", 0.0),
            ("last", "Tap on x[t−1]", 0.0),
            ("current", "Tap on x[t]", 1.0),
        )
    )

    def compute(before_last: float, last: float, current: float) -> Bars:
        x = torch.tensor(signal, dtype=torch.float64)[None, :, None]
        taps = torch.tensor([[before_last, last, current]], dtype=torch.float64)
        return causal_depthwise_convolution(x, taps).flatten().tolist()

    labels = [str(t) for t in range(len(signal))]
    return Explorer("kernel-taps", "What a three-tap kernel does", controls, {"signal": signal}, labels, compute)


def relative_score(
    module: SinusoidalRelativePosition, queries: Float[Tensor, "n d_head"], head: int, distances: int = 48
) -> Explorer:
    """(q + v)·W r_δ over the distance δ, for several queries, from the first few pairs of sinusoids only."""
    d = module.projection.shape[1]
    with torch.no_grad():
        w = module.projection.unflatten(0, module.position_bias.shape)[head].double()
        sine, cosine = ((queries.double() + module.position_bias[head].double()) @ w).chunk(2, dim=-1)
    frequencies = [10_000.0 ** (-2 * m / d) for m in range(d // 2)]
    data = {
        "distances": list(range(distances)), "frequencies": frequencies,
        "sine": sine.tolist(), "cosine": cosine.tolist(),
    }  # fmt: skip
    controls = (
        Control("query", "Query", 0, len(queries) - 1, 1, 0),
        Control("pairs", "Pairs of sinusoids in use", 1, d // 2, 1, d // 2),
    )

    def compute(query: float, pairs: float) -> Bars:
        waves = sinusoids(torch.arange(distances).double(), d).unflatten(1, (2, d // 2))[:, :, : int(pairs)]
        parts = torch.stack((sine[int(query)], cosine[int(query)]))[:, : int(pairs)]
        return (waves * parts).sum(dim=(1, 2)).tolist()

    labels = [str(n) for n in range(distances)]
    return Explorer("relative-score", "Score by distance", controls, data, labels, compute)


def temperature(logits: Float[Tensor, " n"], characters: list[str]) -> Explorer:
    """The next character's probabilities as temperature and top-k change."""
    shown = [{" ": "␣", "\n": "↵"}.get(c, c) for c in characters]
    controls = (
        Control("temperature", "Temperature", 0.1, 3.0, 0.1, 1.0),
        Control("top_k", "Top k", 1, len(characters), 1, len(characters)),
    )

    def compute(temperature: float, top_k: float) -> Bars:
        return next_probabilities(logits.double(), temperature=temperature, top_k=int(top_k)).tolist()

    data = {"logits": logits.tolist(), "characters": shown}
    return Explorer("temperature", "What temperature does to a prediction", controls, data, shown, compute)
