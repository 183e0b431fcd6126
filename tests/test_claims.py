"""The claims ledger: no claim without evidence, no evidence that is gone, no verdict that the figures deny."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from benchmarks import public_code
from experiments import price
from experiments.claims import VERDICTS, Claim, ledger, missing_evidence
from experiments.questions import QUESTIONS, finding
from experiments.registry import RUNS
from experiments.results import FACTORS, ROOT, cell_runs, load, running_counter, values
from experiments.statistics import common_deviation
from experiments.yardsticks import NANOGPT, operations, operations_to
from rcmha_lite.config import CELLS, PRESETS
from rcmha_lite.data import split
from tools import claims as page

CLAIMS = ledger()
IDS = [claim.statement[:60] for claim in CLAIMS]


@pytest.fixture(scope="module")
def memory():
    return json.loads((ROOT / "benchmarks/results/memory.json").read_text(encoding="utf-8"))["results"]


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_every_claim_has_its_evidence(claim):
    assert claim.verdict in VERDICTS
    assert missing_evidence(claim) == []
    assert claim.evidence or (claim.verdict == "not testable here" and claim.note)
    if not claim.effect and claim.verdict == "supported":  # a test shows that it holds, or nothing does
        assert any("::" in evidence for evidence in claim.evidence)
    elif not claim.effect:
        assert claim.note, "say why"


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_a_row_can_be_read(claim):
    assert len(claim.statement.split()) <= 45
    assert len(claim.note.split()) <= 60


SAID = {4: "All four seeds say so", 8: "All eight seeds say so"}


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.note.startswith(tuple(SAID.values()))], ids=str)
def test_where_all_seeds_say_so_all_do(claim):
    measures = [claim.effect["measure"]] + ["loss on the plays left out"] * ("plays left out" in claim.note)
    for measure in measures:
        ends = QUESTIONS[claim.effect["question"]].differences()[claim.effect["comparison"], measure]
        assert claim.note.startswith(SAID[len(ends)])
        assert all((end > 0) == (claim.side == "above") for end in ends)


def test_where_the_signs_alone_settle_it_they_do():
    [claim] = [claim for claim in CLAIMS if claim.note.startswith("The signs settle it")]
    found = claim.finding()
    assert found.p <= 0.05
    assert found.interval.low <= 0 <= found.interval.high


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.effect], ids=lambda claim: claim.statement[:60])
def test_verdicts_are_what_the_intervals_say(claim):
    assert claim.verdict == claim.entailed()


def test_statements_are_unique_and_sources_stand_together():
    assert len(set(IDS)) == len(IDS)
    sources = [source for source, _ in itertools.groupby(claim.source for claim in CLAIMS)]
    assert len(set(sources)) == len(sources)


def test_the_page_is_of_this_ledger():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "the ledger changed: run python -m tools.claims"


def test_evidence_that_is_gone_is_found(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("def test_there():\n    pass\n")
    cell = {"cell_type": "code", "source": ["for a in b:\n", "    assert a > 0  # why\n", "print('assert c')"]}
    (tmp_path / "tests/a.ipynb").write_text(json.dumps({"cells": [cell]}))
    (tmp_path / "results/starts").mkdir(parents=True)
    there = ["tests/test_a.py::test_there", "tests/test_a.py", "tests/a.ipynb::assert a > 0"]
    gone = ["tests/test_a.py::test_gone", "results/gone.json", "tests/a.ipynb::assert c", "tests/a.ipynb::print"]
    claim = dataclasses.replace(CLAIMS[0], evidence=[*there, *gone, "results/starts", "results"])
    assert missing_evidence(claim, tmp_path) == [*gone, "results/starts", "results"]
    for run in RUNS.values():
        if run.group == "starts":
            (tmp_path / f"results/starts/{run.name}.json").touch()
    assert missing_evidence(claim, tmp_path) == [*gone, "results"]


@pytest.mark.parametrize(
    ("bound", "entailed"),
    [
        ({"above": 1.0}, "supported"),
        ({"above": 2.0}, "contradicted"),
        ({"below": 2.0}, "supported"),
        ({"below": 1.5}, "contradicted"),
    ],
)
def test_a_verdict_follows_from_its_bound(tmp_path, bound, entailed):
    file = tmp_path / "results.json"
    file.write_text('{"a": {"b": 1.5}}')
    assert Claim("", "", "", effect={"value": [str(file), "a", "b"], **bound}).entailed() == entailed


def test_a_question_is_judged_by_the_rule():
    asked = {"question": "four cells", "comparison": "rcmha less mha", "measure": "accuracy"}
    found = finding("four cells", "rcmha less mha", "accuracy").interval
    for bound, above, below in [
        (0, "supported", "contradicted"),
        (found.mean, "open", "open"),
        (2 * found.mean, "contradicted", "supported"),
    ]:
        assert Claim("", "", "", effect=asked | {"above": bound}).entailed() == above
        assert Claim("", "", "", effect=asked | {"below": bound}).entailed() == below


ROW_5 = {"question": "equal time", "comparison": "rcmha less rmha", "measure": "loss"}


def test_a_price_decides():
    """As run it costs; at the measured prices the rule says two things, so that it is open; the dearest is shown."""
    run, each = (Claim("", "", "", effect=ROW_5 | {"price": price, "above": 0}) for price in ("as run", "each"))
    assert run.finding() == finding(*ROW_5.values())
    assert run.entailed() == "supported"
    said = [found.verdict("above") for found in each.priced()]
    assert said == [*["open"] * 5, *["supported"] * 3]
    assert each.entailed() == "open"
    assert each.finding() == each.priced()[-1]
    assert each.finding().interval.mean == max(found.interval.mean for found in each.priced())
    gone = Claim("", "", "", effect=ROW_5 | {"comparison": "rmha less mha", "price": "each", "above": 0})
    assert gone.entailed() == "contradicted"
    with pytest.raises(ValueError, match="a bound of 0"):
        Claim("", "", "", effect=ROW_5 | {"price": "each", "above": 0.003}).entailed()


def test_every_row_at_equal_time_names_its_price_and_no_margin():
    at_equal_time = [c for c in CLAIMS if c.effect and "equal time" in c.statement + str(c.effect.get("question"))]
    assert len(at_equal_time) >= 10
    for claim in at_equal_time:
        assert claim.effect["price"] in ("as run", "each"), claim.statement
        assert claim.effect[claim.side] == 0
        if claim.effect["price"] == "as run":
            assert claim.curve().given() > 0, "its runs had equal steps"


def test_the_page_tells_the_prices_of_a_row():
    told = page.over_prices(Claim("", "", "", effect=ROW_5 | {"price": "as run", "above": 0}))
    assert told == (
        "; at a price of 12.7 % a step (8 measured, 4.1 to 14.4 %); over prices: open up to 8.8 %, costs beyond"
    )
    assert page.over_prices(Claim("", "", "", effect=ROW_5 | {"above": 0})) == ""


def test_the_median_of_a_timing_decides():
    effect = {"benchmark": ["generation", "1024"]}
    found = Claim("", "", "", effect=effect).measured()
    assert found.low < found.mean < found.high
    assert Claim("", "", "", effect=effect | {"above": found.low}).entailed() == "supported"
    assert Claim("", "", "", effect=effect | {"below": found.low}).entailed() == "contradicted"


def test_rcmha_takes_longest():
    """In the medians, on one thread and on two; the rounds of two threads overlap."""
    cells = json.loads((ROOT / "benchmarks/results/ablation.json").read_text(encoding="utf-8"))["results"]["cells"]
    for activation in ("relu", "relu2"):
        times = {cell: cells[f"{cell}-{activation}"]["milliseconds"] for cell in CELLS}
        assert max(times, key=times.get) == "rcmha"
    two = json.loads((ROOT / "benchmarks/results/cells.json").read_text(encoding="utf-8"))["results"]
    ratio = {cell: two[f"{cell} / mha, equal widths"]["ratio"] for cell in ("mdha", "rmha", "rcmha")}
    assert max(ratio, key=lambda cell: ratio[cell]["median"]) == "rcmha"
    assert all(ratio["rcmha"]["min"] < ratio[cell]["max"] for cell in ("mdha", "rmha"))


def test_operations_to_nanogpts_losses():
    config, _, loss, _ = NANOGPT["gpu"]
    ours = operations_to("speed/to-1.4697", loss)
    assert [round(operations(config, steps) / ours) for steps in (1500, 1750, 2000)] == [24, 28, 32]
    tries = [name for name in RUNS if name.startswith("speed/narrow-")]
    whole = sum(operations(RUNS[name].config, RUNS[name].config.steps) for name in tries)
    assert len(tries) == 3
    assert round(operations(config, 1750) / (whole + ours), 1) == 7.4
    config, steps, loss, _ = NANOGPT["cpu"]
    assert operations(config, steps) >= 20 * operations_to("speed/to-1.88", loss)


def test_ranking_at_the_public_settings():
    after_two = {cell: load(f"paper/{cell}")["curve"][1] for cell in CELLS}
    assert {point["step"] for point in after_two.values()} == {2 * 15_685}
    accuracy = {cell: point["val_accuracy"] for cell, point in after_two.items()}
    assert accuracy["rcmha"] > accuracy["rmha"] > accuracy["mdha"] > accuracy["mha"]


def test_ten_epochs_at_the_public_settings():
    accuracy, loss, passed, sooner = {}, {}, {}, {}
    for cell, reported in (("rmha", 0.555), ("rcmha", 0.572)):
        curve = load(f"paper/{cell}")["curve"]
        assert [point["step"] for point in curve] == [epoch * 15_685 for epoch in range(1, 11)]
        accuracy[cell], loss[cell] = ([point[key] for point in curve] for key in ("val_accuracy", "val_loss"))
        passed[cell] = sum(shown < reported for shown in running_counter(f"paper/{cell}"))
        sooner[cell] = sum(point["train_accuracy"] < reported for point in curve)
    lead = [ours - theirs for ours, theirs in zip(accuracy["rcmha"], accuracy["rmha"], strict=True)]
    assert 0 < lead[-1] < lead[1]
    assert max(accuracy["rcmha"] + accuracy["rmha"]) < 0.54
    for cell in CELLS:
        run = load(f"paper/{cell}")
        assert 0 < run["measures"]["running_memory"]["accuracy"] - run["val_accuracy"] < 0.015
    assert sooner == {"rmha": 2, "rcmha": 2}
    assert all(losses[3:] == sorted(losses[3:]) for losses in loss.values())
    assert passed == {"rmha": 5, "rcmha": 5}


def test_the_lead_of_relative_positions_is_early():
    early, late = ([load(f"{runs}/{cell}-relu2-0") for cell in ("mha", "rmha")] for runs in ("ablation", "longer"))
    assert early[0]["val_loss"] - early[1]["val_loss"] == pytest.approx(0.07, abs=0.005)
    assert abs(late[0]["val_loss"] - late[1]["val_loss"]) < 0.002
    assert late[0]["curve"][-1]["train_loss"] > late[1]["curve"][-1]["train_loss"] + 0.03
    lead = load("longer/mha-dropout-0")["val_loss"] - load("longer/rmha-dropout-0")["val_loss"]
    assert lead == pytest.approx(0.033, abs=0.0005)
    luck = 2**0.5 * np.std(values("longer/rmha-dropout", "val_loss"), ddof=1)
    assert 0.018 < 1.96 * luck < 0.023  # "two single runs may differ by 0.02"


def test_half_an_hour_is_accurate():
    tries = [name for name in RUNS if name.startswith("speed/30-minutes")]
    assert len(tries) == 5
    assert all(load(name)["val_accuracy"] > 0.578 and load(name)["seconds"] < 30 * 60 for name in tries)


def test_more_past_than_in_training_harms():
    for cell in ("rmha", "rcmha"):
        run, seeds = f"equal_time/{cell}-relu2", [0, 1, 2, 3]
        by_past = [values(run, "measures", "contexts", past, over=seeds) for past in ("64", "128", "256", "512")]
        for nearer, farther in itertools.pairwise(by_past):
            assert all(b > a for a, b in zip(nearer, farther, strict=True))


def test_absolute_positions_break_beyond_the_trained_length():
    for cell in ("mha", "mdha"):
        run = f"ablation/{cell}-relu2"
        trained, longer = (values(run, "measures", "lengths", length) for length in ("128", "256"))
        assert len(trained) == 8
        assert all(b > a + 0.2 for a, b in zip(trained, longer, strict=True))


def test_designs_of_the_convolution_are_open():
    designs, places = (QUESTIONS[f"{what} of the convolution"].findings() for what in ("designs", "places"))
    for (name, _), found in designs.items():
        if not name.startswith("init"):
            assert -0.023 < found.interval.low < 0 < found.interval.high < 0.023
    for found in places.values():
        assert -0.013 < found.interval.low < 0 < found.interval.high < 0.013
    assert not any(found.settled for found in (designs | places).values())


def test_one_interaction_is_settled():
    effects = {asked: found for asked, found in QUESTIONS["ablation"].findings().items() if "×" in asked[0]}
    settled = {asked for asked, found in effects.items() if found.settled}
    assert settled == {("relative positions × squared ReLU", "loss on the plays left out")}
    for measure, digits, least, most in (("loss", 3, 0.005, 0.007), ("accuracy", 4, 0.0011, 0.0015)):
        shown = [round(found.smallest, digits) for (_, of), found in effects.items() if of == measure]
        assert (min(shown), max(shown)) == (least, most)


def test_spread_of_seeds():
    runs = cell_runs().values()
    assert 0.0045 < common_deviation(values(run, "val_loss") for run in runs) < 0.0055


def test_other_starts_look_at_their_own_place():
    own = {
        start: np.mean(
            [np.mean(load(f"starts/{start}-{seed}")["measures"]["heads"], axis=(0, 1))[0] for seed in range(8, 16)]
        )
        for start in ("identity", "primer", "pytorch")
    }
    assert all(2 < own[start] / own["identity"] < 3 for start in ("primer", "pytorch"))


PLAYS = "loss on the plays left out"


def of_four_blocks(question, measure):
    """What the rule says of the convolution at every price measured for a step of four blocks, from the lowest."""
    return [
        price.word(question, "convolution", measure, found.price) for found in price.prices("rcmha-relu2 / rmha-relu2")
    ]


def test_one_block_pays_at_every_price():
    own = [found.price for found in price.prices("layers-1, rcmha / rmha")]
    for measure in ("loss", PLAYS):
        assert {price.word("one block", "convolution", measure, p) for p in own} == {"pays"}
        assert set(of_four_blocks("one block", measure)) == {"pays"}


def test_two_blocks_depend_on_the_price():
    assert of_four_blocks("two blocks", "loss") == [*["pays"] * 5, *["open"] * 3]
    assert set(of_four_blocks("two blocks", PLAYS)) == {"pays"}
    steps = json.loads((ROOT / "benchmarks/results/regimes.json").read_text(encoding="utf-8"))["results"]
    turn = {r: steps[f"{r}, rcmha / rmha"]["ratio"]["median"] for r in ("layers-1", "layers-2", "steps-125")}
    assert turn["layers-2"] < min(turn["layers-1"], turn["steps-125"])  # so it is measured with an error


def test_what_each_part_adds_to_a_step():
    adds = json.loads((ROOT / "benchmarks/results/ablation.json").read_text(encoding="utf-8"))["results"]["adds"]
    assert [round(adds[part], 2) for part in FACTORS] == [0.34, 0.18, 0.11]


def test_ten_epochs_of_the_public_settings():
    paper = PRESETS["paper"]
    characters = split(torch.arange(1_115_394))[0].numel()
    assert 10 * characters / (paper.batch * paper.context) == pytest.approx(157_000, rel=0.002)
    assert paper.steps == pytest.approx(157_000, rel=0.002)
    assert [part.numel() for part in split(torch.arange(1_115_394))] == [1_003_854, 111_540]
    assert abs(characters / (paper.batch * paper.context) - 15_685) < 1


def test_most_of_the_public_attention_is_tables():
    attention = public_code.Attention(8, 128)
    tables = sum(p.numel() for name, p in attention.named_parameters() if "pos" in name)  # u among them
    whole = sum(p.numel() for p in attention.parameters())
    kernels = sum(p.numel() for name, p in attention.named_parameters() if "conv" in name)
    assert (whole, tables, kernels) == (1_180_224, 1_114_240, 192)
    assert tables / whole == pytest.approx(0.94, abs=0.005)
    assert len(attention.key_pos) == 8192
    assert not any(table.any() for table in (attention.key_pos, attention.key_pos_bias))


def test_each_part_keeps_more_for_the_backward_pass(memory):
    kept = memory["kept for backward"]
    assert len(kept["rcmha"]) == 5
    for n in kept["rcmha"]:
        assert kept["rcmha"][n] > kept["rmha"][n] > kept["mdha"][n] > kept["mha"][n]


def test_unused_rows_cost_more_than_the_model(memory):
    resident = memory["resident"]
    assert resident["paper preset, transcription of the public code"] > 2 * resident["paper preset, ours"]
