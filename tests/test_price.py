"""What a part earns at equal time, over the price of a step."""

import json
import math
import statistics
from itertools import pairwise

import numpy as np
import pytest

from experiments import price, results
from experiments.price import CURVES, Curve, Range, prices, ranges, told, word
from experiments.questions import QUESTIONS, finding
from experiments.statistics import interval

RCMHA = "equal time", "rcmha less rmha"
FOUR_BLOCKS = "rcmha-relu2 / rmha-relu2"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """With the part 100 steps end at 5.0 and 6.0, 200 at 4.0 and 5.4; without it 150 steps at 4.5 and 5.5."""
    losses = {"part": (5.0, 6.0), "long": (4.0, 5.4), "plain": (4.5, 5.5)}
    seconds = {"part": 30.0, "long": 50.0, "plain": 30.0}
    (tmp_path / "made").mkdir()
    for run, ends in losses.items():
        for seed, loss in enumerate(ends):
            found = {"val_loss": loss, "seconds": seconds[run] + seed}
            (tmp_path / f"made/{run}-{seed}.json").write_text(json.dumps(found))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(price, "STEPS", {"made/part": 100, "made/long": 200, "made/plain": 150})
    results.load.cache_clear()
    yield Curve("", "made/part", "made/plain", few="made/part", many="made/long", runs="")
    results.load.cache_clear()


def test_a_curve_by_hand(made):
    """At the given price, 150 / 100 − 1, the runs as they are; at a quarter of it 200 steps fit; free of charge 150 do."""
    assert made.given() == pytest.approx(0.5)
    assert made.inside() == pytest.approx((-0.25, 0.5))
    assert made.differences("loss", range(2), 0.5) == pytest.approx([0.5, 0.5])
    assert made.differences("loss", range(2), -0.25) == pytest.approx([-0.5, -0.1])
    halfway = math.log(150 / 100) / math.log(2)
    assert made.differences("loss", range(2), 0.0) == pytest.approx([0.5 - halfway, 0.5 - 0.6 * halfway])
    assert made.clocks() == pytest.approx([30 / 100 / (30 / 150) - 1, 31 / 100 / (31 / 150) - 1])


def test_a_seed_without_both_lengths_has_the_mean_slope(made):
    (results.RESULTS / "made/long-1.json").unlink()
    results.load.cache_clear()
    assert made.slopes("loss", range(2)) == pytest.approx([1 / math.log(2)] * 2)


def test_the_prices_of_four_blocks_are_those_that_were_measured():
    """Medians of the two, the fit, two threads at equal parameters and at equal widths, in turn, and the runs' own clocks."""
    found = {how: measured for how, measured, *_ in prices(FOUR_BLOCKS)}
    known = {
        "1 thread, medians of the two": 0.144,
        "1 thread, fit to eight cells": 0.126,
        "2 threads, equal parameters": 0.116,
        "2 threads, equal widths": 0.081,
        "1 thread, in turn, other processor": 0.064,
        "own clocks, from the identity": 0.064,
        "own clocks, from a random start": 0.041,
    }
    assert {how: round(found[how], 3) for how in known} == known
    assert found.keys() - known.keys() == {"own clocks, 125 steps, from a random start"}
    assert list(found.values()) == sorted(found.values())
    ends = {"equal time": (0.034, 0.094), "starts at equal time": (0.026, 0.055)}
    for (question, _), curve in CURVES.items():
        if question in ends and curve.step == FOUR_BLOCKS:
            band = interval(curve.clocks())
            assert (round(band.low, 3), round(band.high, 3)) == ends[question]


@pytest.mark.parametrize("name", CURVES, ids=", ".join)
def test_at_the_price_that_was_run_it_is_the_question_as_run(name):
    """In a regime both cells had the same steps: that is the price zero."""
    curve = CURVES[name]
    assert (curve.given() == 0) == (name[0] in price.REGIMES)
    for measure in QUESTIONS[name[0]].measures:
        here, asked = price.finding(*name, measure, curve.given()), finding(*name, measure)
        assert here.interval == pytest.approx(asked.interval)
        assert here[1:] == pytest.approx(asked[1:])


@pytest.mark.parametrize("name", CURVES, ids=", ".join)
def test_every_curve_has_prices_and_rises_with_them(name):
    curve, asked = CURVES[name], QUESTIONS[name[0]]
    assert set(asked.comparisons[name[1]]) == {curve.one, curve.other}
    assert any(found.how.startswith("1 thread") for found in prices(curve.step))
    assert any(found.how.startswith("own clocks") for found in prices(curve.step))
    for measure in asked.measures:
        slopes = curve.slopes(measure, asked.seeds)
        assert np.all(slopes * (-1 if measure == "accuracy" else 1) > 0)


@pytest.mark.parametrize("measure", QUESTIONS["equal time"].measures)
def test_ranges_turn_where_the_word_does(measure):
    found = ranges(*RCMHA, measure)
    assert found[0].low == 0
    assert found[-1].high == 0.15
    assert [one.word for one in found] == ["open", "costs"]
    for one, next_one in pairwise(found):
        assert one.high == next_one.low
        assert word(*RCMHA, measure, one.high - 1e-3) == one.word
        assert word(*RCMHA, measure, next_one.low + 1e-3) == next_one.word


def test_words_follow_the_sign_of_the_measure():
    """Far beyond every measured price the convolution costs, in loss and in accuracy; relative positions pay at them all."""
    assert {word(*RCMHA, measure, 0.3) for measure in ("loss", "accuracy")} == {"costs"}
    pair = "equal time", "rmha less mha"
    for measure in QUESTIONS["equal time"].measures:
        assert {word(*pair, measure, found.price) for found in prices(CURVES[pair].step)} == {"pays"}


def test_four_seeds_cannot_tell_what_pays():
    few = [name for name in CURVES if len(QUESTIONS[name[0]].seeds) < 6]
    assert {name[0] for name in few} == {"AdamW", "125 steps"}
    assert {told(ranges(*name, "loss")) for name in few} == {"open from 0 to 15 %"}


@pytest.mark.parametrize("regime", ["one block", "two blocks"])
def test_slopes_that_are_missing_hardly_matter(regime):
    """Half the seeds have no run in half the steps. Were their slopes as spread as the others', the spread of a difference
    would grow by less than a twentieth, up to the largest price that was measured.
    """
    curve, seeds = CURVES[regime, "convolution"], QUESTIONS[regime].seeds
    highest = max(found.price for found in prices(curve.step))
    for measure in QUESTIONS[regime].measures:
        known = curve.slopes(measure, seeds)[:4]
        assert len(set(curve.slopes(measure, seeds)[4:])) == 1
        own = statistics.stdev(known) * math.log(1 + highest)
        spread = statistics.stdev(curve.differences(measure, seeds, highest))
        assert math.hypot(spread, own) / spread < 1.05


def test_told_by_hand():
    assert told([Range("open", 0, 0.15)]) == "open from 0 to 15 %"
    assert told([Range("pays", 0, 0.0351), Range("open", 0.0351, 0.15)]) == "pays up to 3.5 %, open beyond"
