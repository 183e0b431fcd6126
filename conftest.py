"""What pytest needs for the book: the built site, kernels that find the package, figures that must not be stale."""

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from filelock import FileLock
from nbval.plugin import IPyNbCell

from tools.notebooks import stale_figures

ROOT = Path(__file__).resolve().parent
KERNEL = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "RCMHA_LITE_STATIC": "1",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--site", type=Path, help="check this built book instead of building one")


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built book: `--site`, or built here, once for all workers, warnings being errors."""
    if given := request.config.getoption("--site"):
        return given.resolve()
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(base / "book.lock"):
        if not (base / "book.built").exists():
            build = "from jupyter_book.cli.main import main; main()"
            command = [sys.executable, "-c", build, "build", ROOT, "--path-output", base / "book"]
            options = ["--all", "-W", "-n", "--keep-going", "-q"]
            run = subprocess.run([*command, *options], capture_output=True, text=True)
            assert run.returncode == 0, f"the book does not build:\n{run.stdout}\n{run.stderr}"
            (base / "book.built").touch()
    return base / "book/_build/html"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Start each notebook's kernel (nbval does, before the first cell) with the package on its path."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KERNEL.items() if isinstance(item, IPyNbCell) else ():
            patch.setenv(name, value)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Compare stored figures with fresh ones, which nbval leaves out."""
    result = yield
    compare = isinstance(item, IPyNbCell) and item.options["check"]
    if compare and (fault := stale_figures(item.cell.outputs, item.test_outputs)):
        item.raise_cell_error(fault)
    return result
