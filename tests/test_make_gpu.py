"""`make gpu`, tried in small: every stage, what it leaves, what it does not do twice, what it takes up again."""

import json
import types

import pytest
import torch

from benchmarks import gpu
from rcmha_lite import checkpoint, training
from rcmha_lite.config import PRESETS
from rcmha_lite.training import Trainer
from tools import readme


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "in_turn", lambda a, b, rounds: (a(), b(), timed())[2])
    return gpu.dry(tmp_path)


def timed():
    return {"milliseconds": [2.0, 3.0], "ratio": {"median": 1.5, "min": 1.0, "max": 2.0}, "rounds": 1}


@pytest.fixture
def without_tests(monkeypatch):
    """They are run by themselves, beside this file."""
    monkeypatch.setitem(gpu.STAGES, "tests", lambda plan: {"pytest": "passed"})


@pytest.mark.usefixtures("without_tests")
def test_every_stage_leaves_its_file_and_is_done_once(plan, tmp_path, monkeypatch, capsys):
    before = {path: path.stat().st_mtime for path in gpu.ROOT.glob("*results/**/*")}
    assert gpu.carry_out(plan) == list(gpu.STAGES)
    assert "so it does" in capsys.readouterr().out, "the run was cut off and went on"
    found = json.loads((plan.timings / "gpu.json").read_text())
    assert found["benchmark"] == "gpu"
    assert found["results"].keys() == gpu.MEASURED.keys()
    assert "rcmha, eager / rcmha" in found["results"]["steps"]
    run = json.loads((plan.results / "gpu.json").read_text())
    assert run == checkpoint.load_results(plan.runs)
    assert run["curve"][-1]["step"] == plan.config.steps
    assert (plan.results / "gpu_sample.txt").read_text().startswith("ROMEO:")
    for name in gpu.STAGES:
        monkeypatch.setitem(gpu.STAGES, name, lambda plan: pytest.fail("done again"))
    assert gpu.carry_out(plan) == []
    after = {path: path.stat().st_mtime for path in gpu.ROOT.glob("*results/**/*")}
    assert after == before, "a trial touches no result"


@pytest.mark.usefixtures("without_tests")
def test_what_was_cut_off_is_taken_up_where_it_was(plan, monkeypatch):
    monkeypatch.setitem(gpu.STAGES, "characters", lambda plan: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        gpu.carry_out(plan)
    assert json.loads((plan.timings / "gpu.json").read_text())["results"].keys() == {"relative", "steps"}
    monkeypatch.setitem(gpu.STAGES, "characters", gpu.characters)
    step, seen = Trainer.step, []

    def lost(self, n):
        seen.append(n)
        if len(seen) == 8:  # five steps, a stop on purpose, then two more
            raise KeyboardInterrupt
        return step(self, n)

    monkeypatch.setattr(Trainer, "step", lost)
    with pytest.raises(KeyboardInterrupt):
        gpu.carry_out(plan)
    assert checkpoint.step_of(plan.runs) == 5
    monkeypatch.setattr(Trainer, "step", lambda self, n: seen.append(n) or step(self, n))
    assert gpu.carry_out(plan) == ["capstone"]
    assert seen == [*range(5), *range(5, 8), *range(5, 12)]


@pytest.mark.usefixtures("without_tests")
def test_other_code_or_another_gpu_measures_again_and_a_commit_of_results_does_not(plan, monkeypatch):
    for name in gpu.STAGES:
        monkeypatch.setitem(gpu.STAGES, name, lambda plan: {"x": timed()})
    assert len(gpu.carry_out(plan)) == 5
    origin = gpu.manifest()
    monkeypatch.setattr(gpu, "manifest", lambda: origin | {"commit": "another", "environment": {"OMP": "1"}})
    assert gpu.carry_out(plan) == []
    monkeypatch.setattr(gpu, "manifest", lambda: origin | {"gpu": "another"})
    assert len(gpu.carry_out(plan)) == 5
    monkeypatch.setattr(gpu, "code", lambda: "another")
    assert len(gpu.carry_out(plan)) == 5


def test_code_that_is_not_committed_is_not_measured(monkeypatch):
    monkeypatch.setattr(gpu, "manifest", lambda: {"commit": "abc+changes"})
    monkeypatch.setattr(gpu, "precision_for", lambda *_: "bf16")
    with pytest.raises(SystemExit, match="commit first"):
        gpu.carry_out(gpu.real())


def test_failing_tests_end_it_before_anything_is_measured(plan, monkeypatch):
    monkeypatch.setattr(
        gpu.subprocess, "run", lambda *a, **k: types.SimpleNamespace(returncode=1, stdout="E", stderr="")
    )
    with pytest.raises(SystemExit, match="nothing is measured with what is wrong"):
        gpu.carry_out(plan)
    assert not plan.timings.exists()


def test_without_a_gpu_it_is_a_trial_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", "--into", str(tmp_path)])
    monkeypatch.setattr(gpu, "carry_out", lambda plan: ["tests"] if plan.dry else pytest.fail("real"))
    gpu.main()
    assert "There is no CUDA GPU here, so this is a dry run" in capsys.readouterr().out


def test_the_real_plan_is_the_preset_in_the_places_that_the_readme_reads():
    plan = gpu.real()
    assert plan.config == PRESETS["gpu"]
    assert (plan.results, plan.timings) == (gpu.ROOT / "results", gpu.ROOT / "benchmarks/results")
    assert not plan.dry


def test_the_readme_takes_the_results_up(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert "make gpu" in readme.gpu()
    for name in gpu.STAGES:
        monkeypatch.setitem(gpu.STAGES, name, lambda plan, name=name: {"1024": timed()})
    monkeypatch.setattr(gpu, "manifest", lambda: MANIFEST)
    plan = gpu.Plan(**vars(plan) | {"timings": tmp_path / "benchmarks/results"})
    gpu.carry_out(plan)
    table = readme.gpu().splitlines()
    assert table[0].startswith("| measured side by side on NVIDIA X |")
    assert len(table) == 5
    assert "after 1024: recomputed / cached | **1.50** | 1.00 to 2.00 |" in table[-1]


MANIFEST = {"commit": "c", "torch": "2", "gpu": "NVIDIA X", "processor": "p", "precision": "bf16"}


def test_a_step_of_the_benchmark_is_a_step_of_training(plan, monkeypatch):
    seen = []
    monkeypatch.setattr(training.Trainer, "advance", lambda self, n: seen.append((n, self.config.kernel_size)))
    with gpu.stepping(plan, kernel_size=5) as step:
        step()
    assert seen == [(0, 5), (1, 5), (2, 5), (3, 5)]
