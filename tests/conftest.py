"""What the tests share: the folder of golden arrays, and small random inputs."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

if sys.platform == "darwin":  # hosted Macs report a GPU that has no memory to give
    torch.backends.mps.is_available = lambda: False

os.environ["RCMHA_PROGRESS"] = "off"  # no test's answer is the reader's
torch.set_num_threads(1)  # the tensors are small, and pytest-xdist gives every core a worker


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="folder of recorded arrays (*.npz) to check the modules against",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        files = sorted(metafunc.config.getoption("--golden-dir").glob("*.npz"))
        metafunc.parametrize("golden_file", files, ids=[file.stem for file in files])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """A command of the package's command line: exit status, standard output and error."""
    from rcmha_lite import __main__ as command_line  # only now: imports before the tests' type checks would escape them

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rcmha_lite", *map(str, words)])
        status = 0
        try:
            command_line.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the tests' own type checks, as users run the package."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
