"""What the project's files say of each other."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

import rcmha_lite
from experiments.price import CURVES, prices, ranges, word
from experiments.questions import QUESTIONS, default_start, finding
from experiments.registry import BASE, KERNELS
from experiments.results import load
from rcmha_lite.config import PRESETS, Config
from rcmha_lite.data import SHA256
from tools import address, readme

ROOT = Path(__file__).parents[1]


def test_package_requirements_are_those_of_the_requirements_file():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n\n")[0].splitlines()[1:]
    assert set(wanted) ^ set(listed) == {"torch>=2.9,<3", "torch>=2.9,<2.14"}, "2.14 and later download gigabytes"


def test_version_is_that_of_the_project():
    """It stands in the package; pyproject reads it there, CITATION.cff and the newest change name it."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found["project"]["dynamic"] == ["version"]
    assert found["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rcmha_lite.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rcmha_lite.__version__ == citation["version"] == changes[0]
    shown = subprocess.run(
        [sys.executable, "-m", "rcmha_lite", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"rcmha_lite {rcmha_lite.__version__}\n"


def test_a_wheel_has_the_package_whole_and_its_command(tmp_path):
    """Built and used without a network: module, data files, version and command line, from another folder."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "rcmha_lite", source / "rcmha_lite", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    build = subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"rcmha_lite-{rcmha_lite.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as held:
        names = {name for name in held.namelist() if name.startswith("rcmha_lite/")}
        (entry,) = (held.read(name).decode() for name in held.namelist() if name.endswith("entry_points.txt"))
        held.extractall(tmp_path / "site")
    ours = (file for file in (ROOT / "rcmha_lite").rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert names == {file.relative_to(ROOT).as_posix() for file in ours}
    assert "rcmha-lite = rcmha_lite.__main__:main" in entry
    code = "import rcmha_lite; print(rcmha_lite.__file__); from rcmha_lite.__main__ import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    first, second = run.stdout.splitlines()
    assert first.startswith(str(tmp_path / "site"))
    assert second == f"rcmha_lite {rcmha_lite.__version__}"


def test_the_book_has_a_licence_of_its_own_that_is_named():
    licence = (ROOT / "chapters/LICENSE").read_text(encoding="utf-8")
    for part in ("Creative Commons Attribution 4.0 International", "https://creativecommons.org/licenses/by/4.0/"):
        assert part in licence
    for page in ("README.md", "chapters/index.md"):
        assert "CC BY 4.0" in (ROOT / page).read_text(encoding="utf-8")


def test_the_address_stands_in_one_place():
    assert all(path.read_text(encoding="utf-8") == text for path, text in address.rest().items()), (
        "the address changed: run python -m tools.address"
    )


def test_an_address_is_written_everywhere_and_taken_back():
    url, cell = "https://git.example/we/book", '    "REPOSITORY = \\"\\"\\n",'
    before = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "pyproject.toml")}
    before["01.ipynb"] = cell
    before = {name: address.with_address(name, text, "") for name, text in before.items()}
    after = {name: address.with_address(name, text, url) for name, text in before.items()}
    assert yaml.safe_load(after["CITATION.cff"])["repository-code"] == url
    assert tomllib.loads(after["pyproject.toml"])["project"]["urls"] == {"Repository": url}
    assert after["01.ipynb"] == f'    "REPOSITORY = \\"{url}\\"\\n",'
    assert {name: address.with_address(name, text, url) for name, text in after.items()} == after
    assert {name: address.with_address(name, text, "") for name, text in after.items()} == before


@pytest.mark.parametrize("url", ["", "https://git.example/we/book"])
def test_buttons_follow_the_address(url):
    options = {"use_repository_button": True, "launch_buttons": {"colab_url": "x"}, "use_issues_button": True}
    config = SimpleNamespace(html_theme_options=options | {"repository_url": url})
    address.drop_buttons(None, config)
    assert (options.keys() <= config.html_theme_options.keys()) == bool(url)
    assert bool(url) or not options.keys() & config.html_theme_options.keys()


@pytest.mark.parametrize("module", sorted(file.stem for file in (ROOT / "rcmha_lite").glob("[!_]*.py")))
def test_every_module_says_what_it_is_for_and_has_a_place_in_the_api(module):
    source = (ROOT / "rcmha_lite" / f"{module}.py").read_text(encoding="utf-8")
    assert source.startswith('"""')
    assert f"rcmha_lite.{module}\n" in (ROOT / "chapters/api.md").read_text(encoding="utf-8")


def test_readme_shows_the_results_that_are_there():
    text = readme.README.read_text(encoding="utf-8")
    assert text == readme.with_tables(text), "results changed: run python -m tools.readme"


def test_readme_compares_by_eight_seeds_or_more():
    assert all(found.interval.n >= 8 for both in readme.earned().values() for found in both)


def test_readme_names_the_steps_of_equal_time():
    steps = {cell: load(f"equal_time/{cell}-relu2-0")["config"]["steps"] for cell in ("rcmha", "rmha")}
    text = readme.README.read_text(encoding="utf-8")
    assert f"RCMHA has {steps['rcmha']} and RMHA {steps['rmha']}, what fits into MHA's {BASE.steps}" in text


def test_readme_names_both_prices_of_a_step():
    """RCMHA / MHA on one thread: as measured, and as fitted, which gave the runs of equal time their steps."""
    timed = json.loads((ROOT / "benchmarks/results/ablation.json").read_text(encoding="utf-8"))["results"]
    direct = timed["cells"]["rcmha-relu2"]["milliseconds"] / timed["cells"]["mha-relu2"]["milliseconds"]
    adds = timed["adds"]
    fit = sum(adds.values()) / (adds["nothing"] + adds["squared ReLU"])
    text = readme.README.read_text(encoding="utf-8")
    assert f"{direct:.2f} times as measured, {fit:.2f} by the fit" in text


def test_readme_tells_rows_5_and_7_over_the_price_of_a_step():
    """Every figure of the sentence, from the rule at every measured price; "open up to" and "pays up to" end at a range."""
    row_5, row_7 = ("equal time", "rcmha less rmha"), ("starts at equal time", "pytorch, beside RMHA")
    known = {found.how: found.price for found in prices(CURVES[row_5].step)}
    assert CURVES[row_7].step == CURVES[row_5].step
    first, costs = ranges(*row_5, "loss")
    pays, _ = ranges(*row_7, "loss on the plays left out")
    assert (first.word, costs.word, pays.word) == ("open", "costs", "pays")
    assert {word(*row_7, "loss", price) for price in known.values()} == {"open"}
    clock = known["own clocks, from the identity"]
    below = sum(price < first.high for price in known.values())
    assert (len(known), below) == (8, 5)
    assert clock < first.high
    shown = (CURVES[row_5].given(), first.high, min(known.values()), max(known.values()), clock, pays.high)
    run, turn, low, high, own, end = (f"{100 * price:.1f}" for price in shown)
    assert CURVES[row_5].given() == pytest.approx(known["1 thread, fit to eight cells"], abs=0.001)
    text = readme.README.read_text(encoding="utf-8")
    assert f"one price of a step, {run} % dearer: the convolution is open up to {turn} % and costs beyond" in text
    assert (
        f"of eight measured prices, {low} to {high} %, five lie below, the compared runs' own clocks ({own} %)" in text
    )
    assert f"Row 7's is open at all eight; on plays left out it pays up to {end} %" in text


def test_readme_says_what_the_rule_says_beside_its_table():
    text = readme.README.read_text(encoding="utf-8")
    plays = [
        finding(question, comparison, "loss on the plays left out")
        for question, comparison in (("sixteen seeds", "convolution beside RMHA"), ("starts", "pytorch, beside RMHA"))
    ]
    assert all(found.settled for found in plays)
    assert "by {:.3f} and {:.3f}".format(*(-found.interval.mean for found in plays)) in text
    assert not any(found.settled for found in QUESTIONS["longer"].findings().values())


def test_readme_tells_what_was_asked_before_its_runs():
    text = readme.README.read_text(encoding="utf-8")
    asked = QUESTIONS["convolution by start"]
    found = asked.findings()
    loss, plays, accuracy = (
        found["pytorch", measure] for measure in ("loss", "loss on the plays left out", "accuracy")
    )
    assert (asked.declared, len(asked.seeds)) == ("before", 8)
    assert all(one.settled for one in (loss, plays, accuracy))
    assert not any(found["identity", measure].settled for measure in asked.measures)
    assert default_start() == BASE.replace(**KERNELS).kernel_init == "pytorch"
    mean, low, high, _ = loss.interval
    lower = (
        f"at equal steps by {-mean:.4f} ({-high:.4f} to {-low:.4f}), on plays left out by {-plays.interval.mean:.4f}"
    )
    assert f"{lower}, and raises the accuracy by {accuracy.interval.mean:.4f}; from the identity all three" in text


def test_readme_figure_is_of_these_results():
    with Image.open(readme.FIGURE) as picture:
        assert picture.text["Description"] == readme.digest(), "results changed: run python -m tools.readme"


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("*.json")), ids=lambda file: file.stem)
def test_results_carry_their_manifest(file):
    run = json.loads(file.read_text(encoding="utf-8"))
    origin = run["manifest"]
    assert origin["data_sha256"] == SHA256
    assert all(origin[key] is not None for key in ("commit", "torch", "processor", "threads", "device", "seed"))
    assert not origin["commit"].endswith("+changes")
    assert Config(**run["config"]) == PRESETS[file.stem], "the preset changed after this run: run it again"
    assert run["curve"][-1]["step"] == run["config"]["steps"]
    assert run["curve"][-1]["val_loss"] == pytest.approx(run["val_loss"], abs=0.005)
    assert run["seconds"] > 0


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda file: file.stem)
def test_benchmarks_carry_their_manifest(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["benchmark"] == file.stem
    assert not found["manifest"]["commit"].endswith("+changes")
    assert found["manifest"]["processor"]


def test_laptop_run_reaches_its_bar():
    run = json.loads((ROOT / "results/laptop.json").read_text(encoding="utf-8"))
    assert run["val_loss"] <= 1.45
    assert run["val_accuracy"] >= 0.57


def test_the_module_can_be_copied_out(tmp_path):
    """The files that README names need nothing else of the package, and nothing but torch and jaxtyping."""
    line = next(line for line in readme.README.read_text(encoding="utf-8").splitlines() if "or copy `" in line)
    names = re.findall(r"`(\w+\.py)`", line)
    (tmp_path / "rcmha_lite").mkdir()
    for name in names:
        shutil.copy(ROOT / "rcmha_lite" / name, tmp_path / "rcmha_lite")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['accelerate', 'tqdm', 'safetensors', 'matplotlib', 'click']));"
        "import torch; from rcmha_lite.attention import rcmha, __file__ as here; print(here);"
        "print(rcmha(16, 2)(torch.zeros(1, 3, 16)).shape)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path))
