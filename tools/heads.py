"""Train two layers of plain attention until heads do something that can be seen, and keep their weights over a few lines.

`python -m tools.heads` writes `results/heads/line.json`, which chapter 2 draws. The text is Tiny Shakespeare, each speech cut to
its first line, in half of the windows to its speaker, so that names are frequent; and the capital letters of each window
are exchanged by an alphabet drawn anew, so that no name can be learned by heart: who speaks again can only be copied from
the window itself. The kept lines stand in the validation split, and keep their letters.
"""

import json
import string
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from rcmha_lite.attention import MultiHeadAttention
from rcmha_lite.config import CELLS, PRESETS, Config
from rcmha_lite.data import CharTokenizer, load_tiny_shakespeare, random_windows, split
from rcmha_lite.manifest import manifest
from rcmha_lite.model import LanguageModel
from rcmha_lite.optimizers import build_optimizers, rate_factor

FILE = Path(__file__).parents[1] / "results" / "heads" / "line.json"
LINE = "GRUMIO:\nLend thine ear.\n\nCURTIS:\nHere.\n\nGRUMIO:\nThere.\n\nCURTIS:\n"
CONFIG = PRESETS["tiny"].replace(
    **CELLS["rmha"], d_model=96, n_heads=4, d_ff=192, d_position=32, context=128, window=128, steps=1500, device="cpu"
)


def shortened(text: str, lines: int) -> str:
    """Each speech cut to its speaker and so many lines."""
    return "\n\n".join("\n".join(speech.split("\n")[: 1 + lines]) for speech in text.split("\n\n"))


def renamed(ids: Int[Tensor, "batch time"], capitals: Tensor, generator: torch.Generator) -> Int[Tensor, "batch time"]:
    """Each row with its capital letters exchanged by an order of its own."""
    rows = []
    for row in ids:
        table = torch.arange(int(ids.max()) + int(capitals.max()) + 2)
        table[capitals] = capitals[torch.randperm(len(capitals), generator=generator)]
        rows.append(table[row])
    return torch.stack(rows)


def trained(config: Config, text: str, show: bool = True) -> LanguageModel:
    """The model after ``config.steps`` on renamed windows of the training split."""
    tokenizer = CharTokenizer()
    training = tokenizer.decode(split(tokenizer.encode(text))[0])
    texts, capitals = (
        [tokenizer.encode(shortened(training, n)) for n in (0, 1)],
        tokenizer.encode(string.ascii_uppercase),
    )
    shape = {"batch": config.batch // 2, "length": config.context, "seed": config.seed}
    torch.manual_seed(config.seed)
    model, generator = LanguageModel(config), torch.Generator().manual_seed(config.seed)
    optimizers = build_optimizers(model, config)
    schedulers = [LambdaLR(optimizer, partial(rate_factor, config)) for optimizer in optimizers]
    for step in range(config.steps):
        windows = [random_windows(ids, **shape, step=step) for ids in texts]
        ids = torch.cat([torch.cat((x, y[:, -1:]), dim=1) for x, y in windows])
        rows = renamed(ids, capitals, generator)
        loss = F.cross_entropy(model(rows[:, :-1])[0].flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if show and (step + 1) % 50 == 0:
            probabilities = looked(model, tokenizer.encode(LINE))[1]
            print(step + 1, f"loss {loss.item():.3f}, the name again:", end=" ")
            print(*(f"{p:.2f}" for p in probabilities[-9:]), flush=True)
    return model


@torch.no_grad()
def looked(model: LanguageModel, ids: Int[Tensor, " time"]) -> tuple[Tensor, Tensor]:
    """Attention weights ``[layers, heads, time, time]``, and the probability given to each character that came next."""
    inputs: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    logits = model(ids[None])[0][0]
    for hook in hooks:
        hook.remove()
    weights = [layer.weights(x)[0] for layer, x in zip(layers, inputs, strict=True)]
    return torch.stack(weights), logits[:-1].softmax(-1).gather(1, ids[1:, None])[:, 0]


def main() -> None:
    """Train, look, write."""
    text, tokenizer = load_tiny_shakespeare(), CharTokenizer()
    training, held_out = split(tokenizer.encode(text))
    assert LINE in tokenizer.decode(held_out)
    model = trained(CONFIG, text)
    weights, probabilities = looked(model, tokenizer.encode(LINE))
    names = sorted({speaker.split("\n")[-1] for speaker in LINE.split(":")[:-1]})
    found: dict[str, Any] = {
        "line": LINE,
        "times_in_training": {name: tokenizer.decode(training).count(name) for name in names},
        "weights": [
            [[[round(w, 4) for w in row[: i + 1]] for i, row in enumerate(h)] for h in n] for n in weights.tolist()
        ],
        "next_probability": [round(p, 4) for p in probabilities.tolist()],
        "config": json.loads(CONFIG.to_json()),
        "manifest": manifest() | {"seed": CONFIG.seed},
    }
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
