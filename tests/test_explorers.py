"""Interactive figures: their data against torch, their page without a kernel, their widgets with one."""

import json
import re

import pytest
import torch
from matplotlib import pyplot as plt

from rcmha_lite import attention, explorers, generation
from rcmha_lite.positions import SinusoidalRelativePosition, sinusoids


def build():
    """One of each."""
    torch.manual_seed(0)
    weights = attention.mha(8, 2).weights(torch.randn(1, 5, 8))[0].detach()
    position = SinusoidalRelativePosition(2, 4, 6)
    torch.nn.init.normal_(position.position_bias)
    return {
        "attention-map": explorers.attention_map(weights, "a b\nc"),
        "kernel-taps": explorers.kernel_taps([1, 0, -2, 3, 0.5]),
        "relative-score": explorers.relative_score(position, torch.randn(3, 4), head=1, distances=9),
        "temperature": explorers.temperature(torch.tensor([2.0, 0.5, -1.0, 0.5]), ["e", " ", "\n", "<"]),
    }


def settings(explorer):
    """The start of the controls, their lower and upper ends, and something between."""
    for share in (None, 0.0, 0.37, 1.0):
        yield {
            c.name: c.start if share is None else c.low + c.step * round(share * (c.high - c.low) / c.step)
            for c in explorer.controls
        }


def test_relative_score_is_the_module_s():
    torch.manual_seed(0)
    module, queries = SinusoidalRelativePosition(2, 4, 6), torch.randn(3, 4)
    bars = explorers.relative_score(module, queries, head=1, distances=9).compute(query=2, pairs=3)
    w = module.projection.unflatten(0, (2, 4))[1].double()
    expected = (queries[2].double() @ w) @ sinusoids(torch.arange(9.0), 6).T
    assert bars == pytest.approx(expected.tolist())


def test_kernel_and_temperature_are_the_package_s():
    built = build()
    bars = built["kernel-taps"].compute(before_last=100, last=10, current=1)
    assert bars == [1, 10, 98, -17, -169.5]
    bars = built["temperature"].compute(temperature=0.5, top_k=2)
    logits = torch.tensor([2.0, 0.5, -1.0, 0.5])
    assert bars == pytest.approx(generation.next_probabilities(logits, temperature=0.5, top_k=2).tolist())


@pytest.mark.parametrize("name", build())
def test_page_holds_labelled_controls_and_readable_data(name):
    page = build()[name]._repr_html_()
    sliders = re.findall(r"<label>(.+?) <input type=\"range\" name=\"(\w+)\"", page)
    assert [c.name for c in build()[name].controls] == [slider for _, slider in sliders]
    data = re.search(r"<script type=\"application/json\">(.*?)</script>", page, re.S)[1]
    assert json.loads(data) == json.loads(json.dumps(build()[name].data))
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert repr(build()[name]) == repr(build()[name])


@pytest.mark.parametrize("name", build())
def test_widgets_redraw_when_moved(name, monkeypatch):
    monkeypatch.delenv("RCMHA_LITE_STATIC", raising=False)
    explorer, drawn = build()[name], []
    monkeypatch.setattr(plt, "show", lambda: drawn.append([bar.get_height() for bar in plt.gca().patches]))
    widget = explorer.live()
    assert len(widget.children) == len(explorer.controls) + 1
    widget.update()
    for slider in widget.children[:-1]:
        slider.value = slider.min if slider.value != slider.min else slider.max
    plt.close("all")
    assert drawn[0] != drawn[-1]
    values = {c.name: slider.value for c, slider in zip(explorer.controls, widget.children, strict=False)}
    assert drawn[-1] == pytest.approx(explorer.compute(**values))


def test_no_widgets_while_the_book_is_executed(monkeypatch, capsys):
    monkeypatch.setenv("RCMHA_LITE_STATIC", "1")
    assert build()["temperature"].live() is None
    assert "Jupyter or Colab" in capsys.readouterr().out
