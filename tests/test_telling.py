"""How findings are printed."""

import pytest

from experiments.inference import judge
from experiments.questions import QUESTIONS, finding
from experiments.telling import answers, seen_by, tell, told

FAR = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 1.0]
AROUND = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.1, -0.1]


def test_open_ones_say_what_would_have_been_seen(capsys):
    found = judge({"far": FAR, "around": AROUND})
    tell(found)
    far, around = capsys.readouterr().out.splitlines()
    assert far == f"far     {found['far'].interval}"
    assert around == f"around  {found['around'].interval}  open, sees {found['around'].smallest:.4f}"


def test_of_enough_seeds_it_is_their_own_smallest_effect():
    found = judge({"far": FAR, "around": AROUND})["around"]
    assert seen_by(found, 8) == pytest.approx(found.smallest)
    assert seen_by(found, 16) < found.smallest


def test_four_seeds_say_what_eight_would_see():
    found = judge({"far": FAR[:4]}, family=3)["far"]
    assert not found.settled
    assert told(found) == f"{found.interval}  4 seeds; 8 see {seen_by(found, 8):.4f}"


def test_answers_are_those_of_one_measure():
    found = answers("ablation", "accuracy")
    assert list(found) == list(QUESTIONS["ablation"].comparisons)
    assert all(one == finding("ablation", name, "accuracy") for name, one in found.items())
