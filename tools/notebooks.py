"""What must hold for a notebook beyond what nbval compares."""

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

SKIPPED = "skip-execution"  # the tag of a cell for readers to run, which the book leaves out, with nbval-skip for nbval
TOLERANCE = 2.0  # root mean square difference of two pictures, in grey levels out of 255


def figures(outputs: Iterable[Any]) -> list[bytes]:
    """The PNG pictures among a cell's outputs, in order."""
    return [base64.b64decode(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def stale_figures(stored: Iterable[Any], fresh: Iterable[Any]) -> str | None:
    """Say how the fresh pictures differ from the stored ones; `None` where they show the same."""
    old, new = figures(stored), figures(fresh)
    if len(old) != len(new):
        return f"stale figure: {len(old)} stored, {len(new)} drawn now"
    for number, pair in enumerate(zip(old, new, strict=True), start=1):
        a, b = (np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float64) for png in pair)
        if a.shape != b.shape:
            return f"stale figure {number}: stored {a.shape[1]}×{a.shape[0]}, drawn now {b.shape[1]}×{b.shape[0]}"
        if (difference := np.sqrt(np.mean((a - b) ** 2))) > TOLERANCE:
            return f"stale figure {number}: differs by {difference:.1f} of 255 (root mean square)"
    return None


def faults(notebook: Any) -> list[str]:
    """What is wrong with a notebook as stored: not one clean run, an error, a figure without its description."""
    cells = [
        cell for cell in notebook.cells if cell.cell_type == "code" and SKIPPED not in cell.metadata.get("tags", [])
    ]
    found = []
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        found.append(f"execution counts {counts}: not those of one clean run")
    for cell, count in zip(cells, counts, strict=True):
        if "raises-exception" not in cell.metadata.get("tags", []):
            found += [f"cell {count}: error {o.ename}" for o in cell.outputs if o.output_type == "error"]
        if figures(cell.outputs):
            mystnb = cell.metadata.get("mystnb", {})
            for key, field in ("image", "alt"), ("figure", "caption"), ("figure", "name"):
                if not mystnb.get(key, {}).get(field):
                    found.append(f"cell {count}: figure without {field} (metadata mystnb.{key}.{field})")
            if sum(o.output_type in ("display_data", "execute_result") for o in cell.outputs) > 1:
                found.append(
                    f"cell {count}: another output beside the figure, which would bear its name: end with _ = …"
                )
    return found
