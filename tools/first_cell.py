# Set-up: the package from the repository that holds this notebook, or an
# installed one, or, as in Colab, from a copy that is fetched beside it.
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = ""


def whole(folder: Path) -> bool:
    """Whether a folder is the repository, and not one that shares a name."""
    parts = ("rcmha_lite/__init__.py", "experiments/results.py")
    return all((folder / part).is_file() for part in parts)


def fetched(folder: Path) -> Path:
    """A clone; one that was cut off is made again, and no file is lost."""
    while folder.exists() and not whole(folder):
        if folder.is_dir() and {p.name for p in folder.iterdir()} <= {".git"}:
            shutil.rmtree(folder)
        else:
            folder = folder.with_name(folder.name + "-again")
    if not folder.exists():
        clone = ["git", "clone", "-q", "--depth=1", REPOSITORY, str(folder)]
        subprocess.run(clone, check=True)
    return folder


here = Path.cwd()
found = [p for p in (here, *here.parents, here / "rcmha-lite") if whole(p)]
installed = importlib.util.find_spec("rcmha_lite")
if found:
    ROOT = found[0]
elif installed and installed.origin:
    ROOT = Path(installed.origin).parents[1]
    if not whole(ROOT):
        print("Results are in the repository: start Jupyter inside it.")
else:
    do = "download the repository and start Jupyter inside it"
    if not REPOSITORY:
        sys.exit(f"rcmha_lite is not here: {do}")
    try:
        ROOT = fetched(here / "rcmha-lite")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{REPOSITORY} could not be cloned ({error}): {do}")
needed = "accelerate click filelock jaxtyping pooch psutil safetensors scipy"
missing = [
    name  # never torch: Colab brings its own
    for name in needed.split()
    if not importlib.util.find_spec(name)
]
if missing:
    pip = [sys.executable, "-m", "pip", "install", "-q", *missing]
    subprocess.run(pip, check=True)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
