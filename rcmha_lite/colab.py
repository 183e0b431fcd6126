"""Training in a notebook that may be cut off: what is seen as it runs, and checkpoints kept where they outlive it."""

import base64
import html
import io
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from rcmha_lite import checkpoint, figures
from rcmha_lite.cache import write_whole
from rcmha_lite.config import Config
from rcmha_lite.generation import generate
from rcmha_lite.texts import TOKENIZER
from rcmha_lite.training import Interrupted, Trainer, train

DRIVE = Path("/content/drive")


def train_here(
    config: Config,
    out: str | Path,
    *,
    keep_in_drive: bool = False,
    levels: Mapping[str, float] | None = None,
    text: str | None = None,
    show: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """``train`` on whatever this machine has, with its learning curve and a sample after each validation.

    With ``keep_in_drive``, in Colab, every checkpoint is copied to ``rcmha_lite`` in your Drive, and a new session goes
    on from there. ■ stops the run after a checkpoint; it and a lost session cost no more than the steps since the last
    one. ``levels`` are lines to compare with, ``show`` takes the page that is shown. Returns the results, or an empty
    dictionary for a run that was stopped.
    """
    out, kept = Path(out), drive_folder(Path(out).name) if keep_in_drive else None
    if kept:
        copy_run(kept, out)
    shown, show = [""], show or display()

    def watch(trainer: Trainer) -> None:
        if kept:
            copy_run(out, kept)
        if trainer.curve and trainer.curve[-1]["step"] == trainer.done:
            shown[0] = page(trainer, levels or {})
            show(shown[0])

    try:
        found = train(config, out, text=text, watch=watch)
    except Interrupted as stopped:
        print(str(stopped).replace("the same command", "this cell"))
        return {}
    finally:
        if kept:
            copy_run(out, kept)
    where = found["manifest"]["gpu"] or found["manifest"]["processor"]
    print(
        f"validation loss {found['val_loss']:.4f}, accuracy {found['val_accuracy']:.4f} after "
        f"{found['seconds'] / 60:.1f} minutes on {where}, in {found['manifest']['precision']}; {kept or out} holds all"
    )
    return found


def drive_folder(name: str) -> Path | None:
    """The run's folder in Google Drive, which Colab asks you to open; None, in words, elsewhere."""
    try:
        from google.colab import drive  # type: ignore[import-not-found]
    except ImportError:
        print("There is no Google Drive outside Colab: checkpoints stay in this machine's folder.")
        return None
    drive.mount(str(DRIVE))
    return DRIVE / "MyDrive" / "rcmha_lite" / name


def copy_run(source: Path, target: Path) -> None:
    """Bring ``target`` up to ``source``'s files, each whole, weights before what a run goes on from.

    Not over a run that has come further, nor from a folder without one.
    """
    ours, theirs = (checkpoint.step_of(folder) for folder in (source, target))
    if ours is None or (theirs is not None and theirs > ours):
        return
    for name in (TOKENIZER, checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TRAINING, checkpoint.RESULTS):
        file, copy = source / name, target / name
        if not file.is_file():
            continue
        if not copy.is_file() or (file.stat().st_size, file.stat().st_mtime) != (
            copy.stat().st_size,
            copy.stat().st_mtime,
        ):
            write_whole(copy, file.read_bytes())
            with suppress(OSError):  # no times: it is copied again
                shutil.copystat(file, copy)


def page(trainer: Trainer, levels: Mapping[str, float]) -> str:
    """HTML: the learning curve so far, and what the model writes now."""
    config, point = trainer.config, trainer.curve[-1]
    title = f"Step {trainer.done} of {config.steps}: validation loss {point['val_loss']:.3f}"
    results = {"curve": trainer.curve, "config": {"batch": config.batch, "context": config.context}}
    figure, png = figures.learning_curve(title, results, levels), io.BytesIO()
    figure.savefig(png, format="png", dpi=90)
    plt.close(figure)
    written = "".join(generate(trainer.model, "\n", 200, temperature=0.8, seed=trainer.done))
    picture = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{picture}"><pre>{html.escape(written)}</pre>'


def display() -> Callable[[str], None]:
    """Shows pages in a notebook, each in the place of the one before."""
    from IPython.display import HTML
    from IPython.display import display as show

    handles: list[Any] = []

    def update(content: str) -> None:
        if handles:
            handles[0].update(HTML(content))
        else:
            handles.append(show(HTML(content), display_id=True))

    return update
