"""The rule of inference: exact where it says so, holding what it promises on made data, and what it says of ours."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments import comparisons, results
from experiments.comparisons import Question, factorial, less, pairwise
from experiments.inference import Finding, judge, sign_flipping, smallest_effect
from experiments.questions import QUESTIONS, finding
from experiments.registry import RUNS
from experiments.statistics import Interval, interval


def judged(table, **options):
    """The findings of rows of differences, in order."""
    return list(judge({n: row.tolist() for n, row in enumerate(table)}, **options).values())


def test_sign_flipping_by_hand():
    """1, 2, 3: of eight signs, all plus and all minus reach the mean 2 of a spread of 1; −1, 2, 3 has 4/3 of 2.08."""
    assert sign_flipping(np.array([[1.0, 2.0, 3.0]])) == pytest.approx([2 / 8])
    assert sign_flipping(np.array([[-1.0, 2.0, 3.0]])) == pytest.approx([4 / 8])


def test_sign_flipping_is_the_brute_force():
    """All signs by ``itertools``, one sign a seed for the whole family, the largest |t| of the family each time."""
    table = np.random.default_rng(3).standard_normal((3, 6)) + np.array([[0.0], [0.7], [1.5]])

    def t(row):
        return abs(np.mean(row)) / (np.std(row, ddof=1) / len(row) ** 0.5)

    largest = [max(t(row * np.array(signs)) for row in table) for signs in itertools.product((1, -1), repeat=6)]
    by_force = [sum(other >= t(row) * (1 - 1e-12) for other in largest) / 64 for row in table]
    assert sign_flipping(table) == pytest.approx(by_force)
    assert len(set(by_force)) == 3


@given(arrays(float, (2, 5), elements=st.floats(-1, 1)))
@settings(max_examples=50, deadline=None)
def test_p_is_never_below_one_pair_of_signs(table):
    assert np.all(sign_flipping(table) >= 2 / 2**5)


def test_four_seeds_give_no_verdict():
    (found,) = judged(np.array([[1.0, 1.001, 0.999, 1.0]]))
    assert found.interval.low > 0.9
    assert found.p == 2 / 16
    assert found.verdict("above") == found.verdict("below") == "open"
    assert not found.settled
    assert found.smallest == math.inf
    (six,) = judged(np.array([[1.0, 1.001, 0.999, 1.0, 1.0, 1.0]]))
    assert six.verdict("above") == "supported"


def normal(generator, shape):
    return generator.standard_normal(shape)


def skewed(generator, shape):
    """Differences of two skewed losses, alike but for chance."""
    return generator.exponential(size=shape) - generator.exponential(size=shape)


@pytest.mark.parametrize("noise", [normal, skewed])
def test_where_nothing_is_there_nineteen_families_of_twenty_have_no_verdict(noise):
    """Six comparisons that share a run, as those beside RMHA do; p alone keeps its level, and uses it."""
    generator = np.random.default_rng(0)
    verdicts = by_signs = 0
    for _ in range(1000):
        table = noise(generator, (6, 8)) - noise(generator, (1, 8))
        found = judged(table)
        verdicts += any(one.settled for one in found)
        by_signs += min(one.p for one in found) <= 0.05
    assert 0.015 < verdicts / 1000 < 0.065
    assert 0.03 < by_signs / 1000 < 0.065


@pytest.mark.parametrize(("seeds", "family", "power"), [(8, 1, 0.79), (8, 6, 0.79), (6, 6, 0.61)])
def test_the_smallest_effect_is_found_four_times_of_five(seeds, family, power):
    """Noise of one size, the effect in one comparison of the family. Six seeds have too few signs for that."""
    generator = np.random.default_rng(1)
    effect = smallest_effect(1.0, seeds, comparisons=family)
    table = generator.standard_normal((1000, family, seeds))
    table[:, 0] += effect
    found = sum(judged(rows)[0].verdict("above") == "supported" for rows in table) / 1000
    assert abs(found - power) < 0.05
    halved = sum(judged(rows)[0].settled for rows in table - effect / 2) / 1000
    assert halved < 0.5


def test_intervals_are_of_the_family_and_its_size_may_be_larger():
    table = np.random.default_rng(2).standard_normal((2, 8))
    for found, row in zip(judged(table, family=5), table.tolist(), strict=True):
        assert found.interval == interval(row, comparisons=5)
        assert found.family == 5
    with pytest.raises(ValueError, match="two or more"):
        judge({"a": [1.0], "b": [2.0]})
    with pytest.raises(ValueError, match="give each the same seeds"):
        judge({"a": [1.0, 2.0], "b": [2.0]})


def test_a_bound_moves_the_question_and_not_the_interval():
    row = np.array([[1.0, 1.2, 0.9, 1.1, 1.0, 1.3, 0.8, 1.1]])
    (at_zero,), (at_one,), (at_two,) = (judged(row, bounds={0: bound}) for bound in (0.0, 1.0, 2.0))
    assert at_zero.interval == at_one.interval == at_two.interval
    assert at_zero.p == at_two.p == 2 / 256
    assert at_one.p > 0.1
    assert [found.verdict("above") for found in (at_zero, at_one, at_two)] == ["supported", "open", "contradicted"]
    assert [found.verdict("below") for found in (at_zero, at_one, at_two)] == ["contradicted", "open", "supported"]


@pytest.mark.parametrize(
    ("ends", "p", "said"),
    [
        ((-0.3, -0.1), 0.01, "pays"),
        ((0.1, 0.3), 0.01, "costs"),
        ((-0.1, 0.3), 0.01, "open"),
        ((-0.3, -0.1), 0.06, "open"),
        ((0.0, 0.3), 0.01, "open"),
    ],
)
def test_words_want_both_the_interval_and_the_signs(ends, p, said):
    found = Finding(Interval(sum(ends) / 2, *ends, 8), p, 0.0, 1, 0.1)
    assert found.word("pays", "costs") == said
    assert found.settled == (said != "open")


@given(arrays(float, (2, 2, 2), elements=st.floats(-5, 5)))
@settings(max_examples=25, deadline=None)
def test_factorial_weights_recover_what_went_in(table):
    """Main effects are differences of means; an interaction, half the difference of differences."""
    levels = list(itertools.product((False, True), repeat=3))
    weights = factorial({level: str(level) for level in levels}, ("a", "b", "c"))

    def effect(name):
        return sum(weight * table[tuple(map(int, eval(run)))] for run, weight in weights[name].items())

    assert len(weights) == 7
    assert all(sum(some.values()) == 0 for some in weights.values())
    assert effect("a") == pytest.approx(table[1].mean() - table[0].mean(), abs=1e-9)
    change = table[1] - table[0]
    assert effect("a × c") == pytest.approx((change[:, 1].mean() - change[:, 0].mean()) / 2, abs=1e-9)


def test_questions_are_declared_whole():
    """Weights cancel; every run of every declared seed is in the registry; only the old ones are declared after."""
    for question in QUESTIONS.values():
        assert question.family == len(question.comparisons) * len(question.measures)
        assert set(question.measures) <= comparisons.MEASURES.keys()
        for weights in question.comparisons.values():
            assert sum(weights.values()) == pytest.approx(0)
            for run, seed in itertools.product(weights, question.seeds):
                assert any(f"{name}-{seed}" in RUNS for name in run.split(" or ")), (run, seed)
    younger = {"kernel_starts", "position_codes", "lasting"}
    for question in QUESTIONS.values():
        groups = {run.partition("/")[0] for weights in question.comparisons.values() for run in weights}
        assert question.declared == ("before" if groups & younger else "after")


def test_a_question_is_answered_when_all_its_declared_seeds_are_there(monkeypatch):
    made = {"g/a": [0, 1, 2, 3, 4, 5, 6], "g/b": [0, 1, 2, 3, 4, 5, 6, 7], "h/a": [7], "g/late": [0, 1, 2]}
    monkeypatch.setattr(comparisons, "seeds", lambda name: made.get(name, []))
    monkeypatch.setattr(
        comparisons, "values", lambda name, *_, over: [{"g/a": 3.0, "h/a": 5.0}.get(name, 1.0) + seed for seed in over]
    )
    monkeypatch.setattr(comparisons, "numbers_of", lambda run: "bf16")
    asked = {"a": less("g/a or h/a", "g/b"), "short": less("g/a", "g/b"), "later": less("g/late", "g/b")}
    question = Question("?", asked, ("loss",), range(8))
    assert question.differences() == {("a", "loss"): [2.0] * 7 + [4.0]}
    assert question.findings()["a", "loss"].family == 3
    assert Question("?", {"later": less("g/late", "g/b")}, ("loss",), range(8)).findings() == {}


def test_runs_that_multiplied_in_other_numbers_are_not_compared(monkeypatch):
    """Neither bfloat16 with float32, nor Muon's iteration in one with the other's."""
    made = {"a": {"precision": "bf16"}, "b": {"precision": "no"}, "c": {"precision": "no", "muon": "float32"}}
    monkeypatch.setattr(comparisons, "seeds", lambda name: list(range(8)))
    monkeypatch.setattr(comparisons, "values", lambda name, *_, over: [1.0 + seed for seed in over])
    monkeypatch.setattr(comparisons, "load", lambda run: {"manifest": made[run.partition("/")[2].partition("-")[0]]})
    for one, other in itertools.combinations(made, 2):
        question = Question("?", {"x": less(f"g/{one}", f"g/{other}")}, ("loss",), range(8))
        with pytest.raises(ValueError, match=f"x, seed 0: g/{one} in .*, g/{other} in .*make these runs again"):
            question.differences()
    assert Question("?", {"x": less("g/a", "g/a")}, ("loss",), range(8)).differences()


def test_every_two_runs():
    assert pairwise({"x": "g/x", "y": "g/y", "z": "g/z"}) == {
        "x less y": less("g/x", "g/y"), "x less z": less("g/x", "g/z"), "y less z": less("g/y", "g/z"),
    }  # fmt: skip


PARTS = ("relative positions", "convolution", "squared ReLU")


def test_our_findings_are_those_of_a_second_reckoning():
    """Numbers that a reader of the files computed apart from this code."""
    for part, measure in itertools.product(PARTS, QUESTIONS["ablation"].measures):
        found = finding("ablation", part, measure)
        assert (round(found.p, 4), found.family) == (0.0078, 21)
        assert found.settled
    both = finding("ablation", "relative positions × squared ReLU", "loss on the plays left out")
    assert (round(both.p, 3), round(both.interval.mean, 4)) == (0.016, -0.0035)
    ps = {
        ("primer, beside the identity", "accuracy"): 0.047,
        ("primer, beside RMHA", "accuracy"): 0.023,
        ("pytorch, beside RMHA", "loss"): 0.055,
    }
    assert {asked: round(finding("starts", *asked).p, 3) for asked in ps} == ps
    sixteen = finding("sixteen seeds", "convolution beside RMHA", "loss").interval
    assert [round(x, 4) for x in sixteen] == [-0.0011, -0.0043, 0.0021, 16]


def test_the_plays_of_the_ablation_alone():
    """Seven effects on the plays as a family of their own: relative × squared ReLU at 2 of 256."""
    question = QUESTIONS["ablation"]
    plays = Question(question.asks, question.comparisons, ("loss on the plays left out",), question.seeds)
    found = plays.findings()["relative positions × squared ReLU", "loss on the plays left out"]
    assert round(found.p, 4) == 0.0078
    assert [round(x, 4) for x in found.interval[:3]] == [-0.0035, -0.0061, -0.001]


def test_effects_of_the_ablation_from_its_files():
    """The mean of one effect, without weights: four cells with the convolution less four without."""
    with_it, without = (
        np.mean([results.values(run, "val_loss") for levels, run in results.cell_runs().items() if levels[1] == has])
        for has in (True, False)
    )
    assert finding("ablation", "convolution", "loss").interval.mean == pytest.approx(with_it - without)
