"""What the project's files say of each other."""

import tomllib
from pathlib import Path

import pytest

import rcmha_lite

ROOT = Path(__file__).parents[1]


def test_package_requirements_are_those_of_the_requirements_file():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n\n")[0].splitlines()[1:]
    assert sorted(wanted) == sorted(listed)


def test_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert rcmha_lite.__version__ == project["version"]


@pytest.mark.parametrize("module", sorted(file.stem for file in (ROOT / "rcmha_lite").glob("[!_]*.py")))
def test_every_module_says_what_it_is_for_and_has_a_place_in_the_api(module):
    source = (ROOT / "rcmha_lite" / f"{module}.py").read_text(encoding="utf-8")
    assert source.startswith('"""')
    assert f"rcmha_lite.{module}\n" in (ROOT / "chapters/api.md").read_text(encoding="utf-8")
