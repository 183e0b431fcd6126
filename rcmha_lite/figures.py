"""Every figure of the book: data in, matplotlib figure out. Titles state findings, so the chapters give them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"  # Okabe and Ito 2008
CYCLE = (BLUE, ORANGE, GREEN, PINK)


def panel(title: str, x: str, y: str, *, size: tuple[float, float] = (7.0, 3.4)) -> tuple[Figure, Axes]:
    """An empty figure with its finding for a title and labelled axes."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", wrap=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def coloured(series: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Names, values and a colour each; ValueError for more series than there are colours to tell apart."""
    if len(series) > len(CYCLE):
        raise ValueError(f"{len(series)} series have {len(CYCLE)} colours: draw fewer")
    return ((name, values, colour) for (name, values), colour in zip(series.items(), CYCLE, strict=False))


def lines(
    title: str,
    x_label: str,
    y_label: str,
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    level: tuple[str, float] | None = None,
    markers: bool = True,
    log: str = "",
) -> Figure:
    """Curves over ``x``, and a dashed line at a reference ``level``; ``log`` names the logarithmic axes, as "xy"."""
    figure, axes = panel(title, x_label, y_label)
    if "x" in log:
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{value:g}" for value in x])
    if "y" in log:
        axes.set_yscale("log")
    for name, y, colour in coloured(curves):
        axes.plot(x, y, color=colour, marker="o" if markers else None, markersize=4, label=name)
    if level:
        axes.axhline(level[1], color=GREY, linestyle="--", linewidth=1, label=level[0])
    axes.legend(frameon=False)
    return figure


def matrices(
    title: str,
    panels: Mapping[str, Float[np.ndarray, "rows columns"]],
    *,
    x: str,
    y: str,
    ticks: Sequence[str] | None = None,
    unit: str = "",
) -> Figure:
    """Matrices side by side on one colour scale, as pictures; ``ticks`` name rows and columns."""
    rows = -(-len(panels) // 3) if len(panels) != 4 else 2
    columns = -(-len(panels) // rows)
    size = (3.0 * columns + 1.2, 3.3 * rows + 0.3)
    figure, all_axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", wrap=True)
    values = np.concatenate([np.ravel(m) for m in panels.values()])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low < 0:
        low, high = -max(-low, high), max(-low, high)
    for axes, (name, matrix) in zip(all_axes.flat, panels.items(), strict=False):
        image = axes.imshow(matrix, cmap="PuOr" if low < 0 else "Blues", vmin=low, vmax=high)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if ticks:
            axes.set_xticks(range(matrix.shape[1]), ticks[: matrix.shape[1]])
            axes.set_yticks(range(matrix.shape[0]), ticks[: matrix.shape[0]])
    for axes in all_axes.flat[len(panels) :]:
        axes.set_visible(False)
    figure.colorbar(image, ax=all_axes, shrink=0.8, label=unit)
    return figure


def shares(title: str, x_label: str, parts: Mapping[str, float], *, form: str = "{:,.0f}") -> Figure:
    """Horizontal bars, one a part, with their values written at the end."""
    figure, axes = panel(title, x_label, "", size=(7.0, 0.5 + 0.36 * len(parts)))
    places = range(len(parts))
    axes.barh(places, list(parts.values()), color=BLUE)
    axes.set_yticks(places, list(parts))
    axes.invert_yaxis()
    for place, value in zip(places, parts.values(), strict=True):
        axes.text(value, place, " " + form.format(value), va="center", fontsize=9)
    axes.margins(x=0.16)
    return figure


def compared(title: str, x_label: str, series: Mapping[str, Mapping[str, float]]) -> Figure:
    """Horizontal bars side by side for each part, one of every series."""
    parts = list(next(iter(series.values())))
    figure, axes = panel(title, x_label, "", size=(7.0, 0.8 + 0.45 * len(parts)))
    height = 0.8 / len(series)
    for n, (name, values, colour) in enumerate(coloured(series)):
        places = [place + (n - (len(series) - 1) / 2) * height for place in range(len(parts))]
        axes.barh(places, [values[part] for part in parts], height, color=colour, label=name)
    axes.set_yticks(range(len(parts)), parts)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


def intervals(title: str, x_label: str, found: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Means with the ends of their intervals, (mean, low, high), around a line at zero; hollow where zero lies inside."""
    figure, axes = panel(title, x_label, "", size=(7.0, 0.9 + 0.36 * len(found)))
    axes.axvline(0, color=GREY, linewidth=1)
    for place, (mean, low, high) in enumerate(found.values()):
        settled = low > 0 or high < 0
        axes.plot([low, high], [place, place], color=BLUE, linewidth=2)
        axes.plot([mean], [place], "o", color=BLUE, markerfacecolor=BLUE if settled else "white")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    return figure


def at_each_price(
    title: str,
    y_label: str,
    prices: Sequence[float],
    bands: Mapping[str, Sequence[tuple[float, float, float]]],
    measured: Mapping[str, tuple[float, float, float]],
) -> Figure:
    """Differences at equal time over the price of a step, (mean, low, high) each, above every measured price and its spread.

    A line and a band for each of ``bands``, named at its end; of a measured price, (price, low, high), a row and a mark up
    through the bands. All prices are shares: 0.1 is a step dearer by 10 %.
    """
    figure, (axes, rows) = plt.subplots(
        2, 1, figsize=(7.0, 3.6 + 0.24 * len(measured)), layout="constrained", sharex=True,
        height_ratios=(3.0, 0.24 * len(measured)),
    )  # fmt: skip
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", wrap=True)
    percent = [100 * price for price in prices]
    axes.axhline(0, color=GREY, linewidth=1)
    for name, values, colour in coloured(bands):
        mean, low, high = zip(*values, strict=True)
        axes.fill_between(percent, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(percent, mean, color=colour)
        axes.annotate(name, (percent[-1], mean[-1]), (4, 0), textcoords="offset points", color=colour, va="center")
    for place, found in enumerate(measured.values()):
        at, *ends = (100 * price for price in found)
        axes.axvline(at, color=GREY, linewidth=0.8, linestyle=":")
        rows.plot([at, at], [-1, place], color=GREY, linewidth=0.8, linestyle=":")
        rows.plot(ends, [place, place], color=GREY, linewidth=2)
        rows.plot([at], [place], "o", color=BLUE, markersize=4)
    rows.set_yticks(range(len(measured)), list(measured), fontsize=8)
    rows.set_ylim(len(measured) - 0.5, -0.7)
    rows.set_xlim(percent[0], percent[-1])
    rows.set_xlabel("price: how much dearer a step is (%)")
    axes.set_ylabel(y_label)
    for one in (axes, rows):
        one.spines[["top", "right"]].set_visible(False)
    return figure


def learning_curve(title: str, results: Mapping[str, Any], levels: Mapping[str, float]) -> Figure:
    """Training and validation loss of a run over the characters it has read, with reference levels."""
    curve, config = results["curve"], results["config"]
    read = [point["step"] * config["batch"] * config["context"] / 1e6 for point in curve]
    figure, axes = panel(title, "characters read (millions)", "loss (nats per character)")
    axes.plot(read, [point["train_loss"] for point in curve], color=BLUE, marker="o", label="training, with dropout")
    axes.plot(read, [point["val_loss"] for point in curve], color=ORANGE, marker="o", label="whole validation split")
    for (name, level), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color=GREY, linestyle=style, linewidth=1, label=name)
    axes.legend(frameon=False)
    return figure


def component_map(title: str, lit: frozenset[str] = frozenset({"position", "convolution"})) -> Figure:
    """The attention module as boxes and arrows; the parts of ``lit`` are the ones that a cell of the grid adds."""
    figure, axes = plt.subplots(figsize=(7.4, 3.1), layout="constrained")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set(xlim=(0, 10.4), ylim=(0.8, 5))
    axes.axis("off")
    boxes = {
        "x": (0.1, 2.1, "memory,\nsegment", None),
        "project": (1.7, 2.1, "W_q, W_k, W_v\none product", None),
        "convolve": (3.7, 2.1, "causal depth-\nwise kernels", "convolution"),
        "score": (5.7, 2.1, "scores,\nsoftmax", None),
        "relative": (5.7, 4.0, "distance\ni − j", "position"),
        "mix": (7.4, 2.1, "weights × V", None),
        "out": (9.0, 2.1, "W_o", None),
    }
    sizes = {"x": 1.2, "project": 1.6, "convolve": 1.6, "score": 1.3, "relative": 1.3, "mix": 1.3, "out": 1.0}
    for name, (x, y, text, part) in boxes.items():
        colour = ORANGE if part in lit else BLUE
        dashed = part is not None and part not in lit
        box = FancyBboxPatch(
            (x, y), sizes[name], 0.9, boxstyle="round,pad=0.05", facecolor="white" if dashed else colour + "22",
            edgecolor=GREY if dashed else colour, linestyle="--" if dashed else "-", linewidth=1.4,
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(x + sizes[name] / 2, y + 0.45, text, ha="center", va="center", fontsize=9)
    arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.2}
    path = ["x", "project", "convolve", "score", "mix", "out"]
    for a, b in itertools.pairwise(path):
        start, stop = boxes[a][0] + sizes[a] + 0.06, boxes[b][0] - 0.06
        axes.annotate("", (stop, 2.55), (start, 2.55), arrowprops=arrow)
    axes.annotate("", (6.35, 3.06), (6.35, 3.94), arrowprops=arrow)
    axes.annotate(
        "", (8.05, 2.04), (4.5, 2.04), arrowprops=arrow | {"connectionstyle": "arc3,rad=0.35", "linestyle": ":"}
    )
    axes.text(6.3, 1.02, "values", ha="center", fontsize=9, color=GREY)
    return figure
