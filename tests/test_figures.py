"""Figures draw what they are given."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from rcmha_lite import figures


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_lines_hold_the_data_and_the_level():
    axes = figures.lines("finding", "x", "y", [1, 2], {"a": [3, 4], "b": [5, 6]}, level=("bar", 7)).axes[0]
    assert [line.get_ydata()[0] for line in axes.lines] == [3, 5, 7]
    assert axes.get_title(loc="left") == "finding"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "bar"]


@pytest.mark.parametrize(
    ("log", "scales"), [("", ("linear", "linear")), ("y", ("linear", "log")), ("xy", ("log", "log"))]
)
def test_lines_on_logarithmic_axes(log, scales):
    axes = figures.lines("finding", "x", "y", [64, 128], {"a": [3, 4]}, log=log).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == scales
    if "x" in log:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["64", "128"]


def test_matrices_share_one_scale_centred_on_zero():
    figure = figures.matrices("finding", {"a": np.eye(2), "b": -3 * np.eye(2)}, x="x", y="y", ticks="cd")
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert [image.get_clim() for image in images] == [(-3, 3)] * 2
    assert np.array_equal(images[1].get_array(), -3 * np.eye(2))


def test_shares_write_their_values():
    axes = figures.shares("finding", "x", {"a": 1234, "b": 5}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1234, 5]
    assert "1,234" in axes.texts[0].get_text()


def test_compared_bars_stand_in_pairs():
    axes = figures.compared("finding", "x", {"one": {"a": 1, "b": 2}, "two": {"a": 3, "b": 4}}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1, 2, 3, 4]
    assert [round(bar.get_y() + bar.get_height() / 2, 6) for bar in axes.patches] == [-0.2, 0.8, 0.2, 1.2]


def test_intervals_are_hollow_where_nothing_is_settled():
    axes = figures.intervals("finding", "x", {"settled": (2, 1, 3), "open": (0.5, -1, 2)}).axes[0]
    ends, means = axes.lines[1::2], axes.lines[2::2]
    assert [tuple(line.get_xdata()) for line in ends] == [(1, 3), (-1, 2)]
    assert [line.get_xdata()[0] for line in means] == [2, 0.5]
    assert [line.get_markerfacecolor() == "white" for line in means] == [False, True]


def test_prices_stand_under_the_bands():
    measured = {"low": (0.04, 0.02, 0.05), "high": (0.1, 0.1, 0.1)}
    bands = {"a": [(0.0, -1, 1), (0.5, -0.5, 1.5)], "b": [(1, 0, 2), (2, 1, 3)]}
    above, below = figures.at_each_price("finding", "y", [0, 0.15], bands, measured).axes
    assert [list(line.get_ydata()) for line in above.lines[1:3]] == [[0.0, 0.5], [1, 2]]
    assert [line.get_xdata()[0] for line in above.lines[3:]] == [4, 10]
    assert [text.get_text() for text in above.texts] == ["a", "b"]
    assert [tick.get_text() for tick in below.get_yticklabels()] == ["low", "high"]
    assert [list(line.get_xdata()) for line in below.lines[1::3]] == [[2, 5], [10, 10]]
    assert below.get_xlim() == (0, 15)


def test_learning_curve_counts_characters():
    curve = [{"step": s, "train_loss": 3 / s, "val_loss": 4 / s} for s in (10, 20)]
    results = {"curve": curve, "config": {"batch": 100, "context": 1000}}
    axes = figures.learning_curve("finding", results, {"bar": 1.0}).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1.0, 2.0]
    assert list(axes.lines[1].get_ydata()) == [0.4, 0.2]


@pytest.mark.parametrize("lit", [(), ("attention",), ("attention", "convolution"), figures.PARTS])
def test_component_map_dashes_what_is_not_lit(lit):
    """Each part has its boxes, drawn whole and in its colour when lit, dashed and grey when not."""
    boxes = [p for p in figures.component_map("finding", lit).axes[0].patches if hasattr(p, "get_boxstyle")]
    parts = [part for *_, part in figures._BOXES.values()]
    assert [box.get_linestyle() for box in boxes if box.get_boxstyle().pad == 0.06] == [
        "-" if part in lit else "--" for part in parts
    ]
    assert set(parts) == set(figures.PARTS)


def test_an_unknown_part_of_the_map_is_named():
    with pytest.raises(ValueError, match="no part kernels: the parts are attention, convolution, distances"):
        figures.component_map("finding", ["attention", "kernels"])


@pytest.mark.parametrize("names", [("rcmha", "mha"), ("RMHA, dropout 0.1", "MDHA"), ("mha", "mdha", "rmha", "rcmha")])
def test_a_cell_has_one_colour_whatever_stands_beside_it(names):
    figure = figures.lines("finding", "x", "y", [1, 2], {name: [1, 2] for name in names})
    drawn = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    assert drawn == {name: figures.CELL_COLOURS[name.lower().split(",")[0]] for name in names}


def test_what_is_no_cell_or_one_cell_twice_has_colours_in_order():
    for names in (("ReLU", "mha"), ("rcmha, layer 0", "rcmha, layer 3")):
        assert [colour for *_, colour in figures.coloured(dict.fromkeys(names, 0))] == list(figures.CYCLE[:2])


def test_more_series_than_colours_are_refused():
    with pytest.raises(ValueError, match="5 series have 4 colours"):
        figures.lines("too many", "x", "y", [1, 2], {str(n): [n, n] for n in range(5)})


def test_matrices_leave_no_empty_axes():
    figure = figures.matrices("five", {str(n): np.eye(2) for n in range(5)}, x="", y="")
    assert sum(axes.get_visible() for axes in figure.axes) == 5 + 1  # and the scale
