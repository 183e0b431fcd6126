"""Every figure of the book: data in, matplotlib figure out. Titles state findings, so the chapters give them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"  # Okabe and Ito 2008
CYCLE = (BLUE, ORANGE, GREEN, PINK)
CELL_COLOURS = {"mha": BLUE, "mdha": ORANGE, "rmha": GREEN, "rcmha": PINK}
"""One colour a cell of the grid, in the whole book."""


def panel(title: str, x: str, y: str, *, size: tuple[float, float] = (7.0, 3.4)) -> tuple[Figure, Axes]:
    """An empty figure with its finding for a title and labelled axes."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", wrap=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def coloured(series: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Names, values and a colour each: a cell's own where every name begins with another cell's, else one after another.

    ValueError for more series than there are colours to tell apart.
    """
    if len(series) > len(CYCLE):
        raise ValueError(f"{len(series)} series have {len(CYCLE)} colours: draw fewer")
    first = [re.split(r"\W", name.lower())[0] for name in series]
    cells = len(set(first)) == len(first) and set(first) <= CELL_COLOURS.keys()
    colours = [CELL_COLOURS[name] for name in first] if cells else CYCLE
    return ((name, values, colour) for (name, values), colour in zip(series.items(), colours, strict=False))


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
    middle = len(curve) // 2
    above = max(("train_loss", "val_loss"), key=lambda key: curve[middle][key])
    for key, name, colour in (("train_loss", "training", BLUE), ("val_loss", "validation", ORANGE)):
        losses = [point[key] for point in curve]
        axes.plot(read, losses, color=colour, marker="o", label=name)
        place: dict[str, Any] = {"xytext": (0, 9), "va": "bottom"} if key == above else {"xytext": (0, -9), "va": "top"}
        axes.annotate(
            name, (read[middle], losses[middle]), textcoords="offset points", color=colour, ha="center", **place
        )
    for (name, level), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color=GREY, linestyle=style, linewidth=1, label=name)
        beside: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
        axes.annotate(name.replace(", ", "\n"), (1, level), (5, 0), fontsize=8, color=GREY, **beside)
    return figure


PARTS = ("attention", "convolution", "distances", "memory", "block", "feed-forward")
"""What ``component_map`` can light."""

_COLOURS = dict(zip(PARTS, (BLUE, ORANGE, GREEN, "#444444", "#444444", "#7A4B9A"), strict=True))
_BOXES: dict[str, tuple[float, float, float, str, str]] = {  # left, middle, width, text, part
    "x": (0.0, 6.0, 2.0, "x", "attention"),
    "memory": (0.0, 7.5, 2.0, "memory", "memory"),
    "norm": (3.3, 6.0, 1.2, "norm", "block"),
    "project": (6.0, 6.0, 2.0, "$W_q, W_k, W_v$\nsplit in heads", "attention"),
    "kernels": (10.8, 6.0, 2.2, "3 taps for each\nchannel of a head", "convolution"),
    "distances": (6.0, 3.2, 2.6, "distances $i - j$\n$W r$, u and v", "distances"),
    "scores": (10.8, 3.2, 2.2, "scores / $\\sqrt{d}$,\nmask, softmax", "attention"),
    "mix": (10.8, 0.4, 2.2, "weights · v", "attention"),
    "out": (7.7, 0.4, 1.9, "merge, $W_o$", "attention"),
    "norm 2": (4.9, 0.4, 1.1, "norm", "block"),
    "feed-forward": (2.0, 0.4, 2.1, "$W_1$, max(·, 0)²,\n$W_2$", "feed-forward"),
}
_ARROWS: tuple[tuple[str, str, str, str, tuple[float, float]], ...] = (  # from, to, part, shape, where it stands
    ("x", "norm", "attention", "[T, D]", (2.65, 6.75)),
    ("norm", "project", "attention", "[C, D]", (5.25, 6.75)),
    ("project", "kernels", "attention", "q, k, v\n[3, h, C, d]", (9.4, 6.85)),
    ("kernels", "scores", "attention", "q [h, T, d]\nk [h, C, d]", (10.75, 4.87)),
    ("distances", "scores", "distances", "[h, T, C]", (9.7, 3.95)),
    ("scores", "mix", "attention", "weights\n[h, T, C]", (10.9, 2.07)),
    ("mix", "out", "attention", "[h, T, d]", (10.2, 1.15)),
    ("norm 2", "feed-forward", "block", "", (0, 0)),
)


def component_map(title: str, lit: Iterable[str] = PARTS) -> Figure:
    """A block of RCMHA as boxes and arrows with the shape of what flows: T positions, C with the memory, D channels, h
    heads of d. Parts that are not ``lit`` are pale and dashed. ValueError names the parts where one is unknown.
    """
    if unknown := set(lit := tuple(lit)) - set(PARTS):
        raise ValueError(f"no part {', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    figure, axes = plt.subplots(figsize=(7.4, 4.5), layout="constrained")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", wrap=True)
    axes.set(xlim=(-0.4, 15.1), ylim=(-1.9, 8.4))
    axes.axis("off")

    def ink(part: str) -> dict[str, Any]:
        on = part in lit
        return {"color": _COLOURS[part] if on else "#999999", "linestyle": "-" if on else "--"}

    def arrow(start: tuple[float, float], end: tuple[float, float], part: str, bend: float = 0.0) -> None:
        style = {"arrowstyle": "-|>", "linewidth": 1.2, "connectionstyle": f"arc3,rad={bend}"} | ink(part)
        axes.annotate("", end, start, arrowprops=style)

    for left, middle, width, text, part in _BOXES.values():
        pen = ink(part)
        box = FancyBboxPatch(
            (left, middle - 0.55), width, 1.1, boxstyle="round,pad=0.06", linewidth=1.4, linestyle=pen["linestyle"],
            facecolor=pen["color"] + "22" if part in lit else "white", edgecolor=pen["color"],
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(left + width / 2, middle, text, ha="center", va="center", fontsize=8.5, color="black")
    for one, other, part, shape, place in _ARROWS:
        a, b = _BOXES[one], _BOXES[other]
        if a[1] == b[1]:
            right = a[0] < b[0]
            ends = (a[0] + (a[2] + 0.08 if right else -0.08), a[1]), (b[0] + (-0.08 if right else b[2] + 0.08), b[1])
        else:
            ends = (a[0] + a[2] / 2, a[1] - 0.63), (b[0] + b[2] / 2, b[1] + 0.63)
        arrow(*ends, part)
        axes.text(
            *place, shape, ha="right" if "[h, C" in shape or "weights" in shape else "center", va="center", fontsize=8
        )
    arrow((2.08, 7.5), (3.7, 6.65), "memory")
    arrow((13.08, 6.0), (13.08, 0.6), "attention", -0.28)
    axes.text(14.15, 3.3, "v\n[h, C, d]", ha="left", va="center", fontsize=8)
    for at in (6.85, 1.0):
        axes.text(at, 0.4, "+", ha="center", va="center", fontsize=13, color=ink("block")["color"])
        axes.add_patch(Circle((at, 0.4), 0.33, fill=False, edgecolor=ink("block")["color"]))
    arrow((7.62, 0.4), (7.22, 0.4), "block")
    arrow((6.48, 0.4), (6.08, 0.4), "block")
    arrow((1.92, 0.4), (1.37, 0.4), "block")
    arrow((0.63, 0.4), (-0.3, 0.4), "block")
    arrow((1.0, 5.36), (6.65, 0.72), "block")  # x to the first sum
    axes.text(3.3, 2.9, "x", fontsize=8, ha="right")
    arrow((6.85, 0.03), (1.1, 0.03), "block", -0.22)  # and on to the second
    axes.text(4.0, -1.45, "[T, D]", fontsize=8, ha="center")
    return figure
