"""The claims ledger: no claim without evidence, no evidence that is gone, no verdict that the figures deny."""

import dataclasses
import itertools
import json
import math

import pytest
import torch

from benchmarks import public_code
from experiments.claims import VERDICTS, Claim, ledger, missing_evidence
from experiments.registry import RUNS
from experiments.results import ROOT, choices, load, running_counter, values
from experiments.statistics import contrasts, interval
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
    if not claim.effect and claim.verdict != "not testable here":  # a test shows that it holds, or nothing does
        assert claim.verdict == "supported"
        assert any("::" in evidence for evidence in claim.evidence)


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


def test_an_interval_around_the_bound_is_open():
    effect = {"difference": ["ablation/rcmha-relu2", "ablation/mha-relu2", "val_accuracy"]}
    found = Claim("", "", "", effect=effect).measured()
    assert found.low < found.mean < found.high
    assert Claim("", "", "", effect=effect | {"above": found.mean}).entailed() == "open"
    assert Claim("", "", "", effect=effect | {"below": found.mean}).entailed() == "open"


def test_the_median_of_a_timing_decides():
    effect = {"benchmark": ["generation", "1024"]}
    found = Claim("", "", "", effect=effect).measured()
    assert found.low < found.mean < found.high
    assert Claim("", "", "", effect=effect | {"above": found.low}).entailed() == "supported"
    assert Claim("", "", "", effect=effect | {"below": found.low}).entailed() == "contradicted"


def test_rcmha_takes_longest():
    cells = json.loads((ROOT / "benchmarks/results/ablation.json").read_text(encoding="utf-8"))["results"]["cells"]
    for activation in ("relu", "relu2"):
        times = {cell: cells[f"{cell}-{activation}"]["milliseconds"] for cell in CELLS}
        assert max(times, key=times.get) == "rcmha"


def test_operations_to_nanogpts_losses():
    for kind, least in (("gpu", 28), ("cpu", 20)):
        config, steps, loss, _ = NANOGPT[kind]
        assert operations(config, steps) >= least * operations_to(f"speed/to-{loss}", loss)


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
    assert early[0]["val_loss"] > early[1]["val_loss"] + 0.05
    assert abs(late[0]["val_loss"] - late[1]["val_loss"]) < 0.01
    assert late[0]["curve"][-1]["train_loss"] > late[1]["curve"][-1]["train_loss"] + 0.03
    assert load("longer/mha-dropout-0")["val_loss"] > load("longer/rmha-dropout-0")["val_loss"] + 0.02


def test_half_an_hour_is_accurate():
    tries = [name for name in RUNS if name.startswith("speed/30-minutes")]
    assert len(tries) == 5
    assert all(load(name)["val_accuracy"] > 0.578 and load(name)["seconds"] < 30 * 60 for name in tries)


def test_more_past_than_in_training_harms():
    for cell in ("rmha", "rcmha"):
        run, seeds = f"equal_time/{cell}-relu2", [0, 1, 2, 3]
        near, far = (values(run, "measures", "contexts", past, over=seeds) for past in ("64", "128"))
        found = interval([longer - trained for longer, trained in zip(far, near, strict=True)], comparisons=6)
        assert found.low > 0


def test_absolute_positions_break_beyond_the_trained_length():
    for cell in ("mha", "mdha"):
        run = f"ablation/{cell}-relu2"
        trained, longer = (values(run, "measures", "lengths", length) for length in ("128", "256"))
        assert len(trained) == 8
        assert all(b > a + 0.2 for a, b in zip(trained, longer, strict=True))


def test_most_designs_of_the_convolution_are_not_told_apart():
    kernels = choices("kernels")
    others = {name: {name: 1, "rcmha": -1} for name in kernels if name != "rcmha" and "convolve" not in name}
    found = contrasts(kernels, others)
    assert {name for name, effect in found.items() if effect.excludes_zero} == {"init-primer", "init-pytorch"}
    places = {"kernel-0": "", "rcmha": "qkv"} | {f"convolve-{p}": p for p in ("q", "k", "v", "qk", "qv", "kv")}
    subsets = [s for size in (1, 2, 3) for s in itertools.combinations("qkv", size)]
    signs = {
        s: {c: math.prod(1 if p in placed else -1 for p in s) / 4 for c, placed in places.items()} for s in subsets
    }
    for effect in contrasts(kernels, signs).values():
        assert -0.01 < effect.low < 0 < effect.high < 0.01


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
