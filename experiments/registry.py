"""Every training run behind the book's claims, declared: name → configuration and what to measure at its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rcmha_lite.config import CELLS, PRESETS, Config

SEEDS = range(8)

BASE = Config(
    d_model=160, n_heads=5, d_ff=640, context=128, window=128, device="cpu",
    steps=500, eval_every=50, checkpoint_every=250, kernel_init="identity",
)  # fmt: skip
"""RCMHA, a little smaller than in the laptop preset: about 2.5 minutes of one core. Comparisons change this. Kernels from
the identity were the default before ``kernel_starts``; what was declared then keeps them."""


@dataclass(frozen=True)
class Run:
    """One training run: ``group/name``, its configuration, the measures taken of the trained model, and its task.

    On "training split" the text ends where the validation split begins, so a choice made by that run's own validation
    loss, over the last tenth of what is left, has not seen the validation split. ``alone``: its time is a result, so
    it has the machine for itself.
    """

    group: str
    name: str
    config: Config
    measures: tuple[str, ...] = ()
    task: Literal["tiny-shakespeare", "training split", "induction"] = "tiny-shakespeare"
    alone: bool = False

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"


def ablation() -> Iterator[Run]:
    """Position × convolution × activation, all eight, eight paired seeds."""
    for seed in SEEDS:
        for cell, changes in CELLS.items():
            for activation in ("relu", "relu2"):
                config = BASE.replace(**changes, activation=activation, seed=seed)
                yield Run("ablation", f"{cell}-{activation}-{seed}", config, ("unseen", "lengths", "taps", "heads"))


EQUAL_TIME = {"mdha-relu2": 429, "rmha-relu2": 382, "rcmha-relu": 363, "rcmha-relu2": 339}
"""Steps in the time of 500 of ``mha-relu2``, by what each part adds in benchmarks/results/ablation.json."""


def equal_time() -> Iterator[Run]:
    """Cells of the ablation with the steps that they make in the time of MHA's 500, the schedule ending there."""
    for run in ablation():
        cell = run.name.rpartition("-")[0]
        if cell in EQUAL_TIME:
            long = cell in ("rmha-relu2", "rcmha-relu2") and run.config.seed < 4
            measures = ("unseen", "contexts") if long else ("unseen",)
            yield Run("equal_time", run.name, run.config.replace(steps=EQUAL_TIME[cell]), measures)


def parts() -> Iterator[Run]:
    """Which part of the convolution or the encoding matters: RCMHA with one choice changed, beside RCMHA itself."""
    choices: dict[str, dict[str, Any]] = {
        "rcmha": {},
        "activation-relu": {"activation": "relu"},
        **{f"kernel-{size}": {"kernel_size": size} for size in (0, 1, 2, 5, 9)},
        **{f"convolve-{names}": {"convolve": names} for names in ("q", "k", "v", "qk", "qv", "kv")},
        "kernels-separate": {"shared_kernels": False},
        "init-primer": {"kernel_init": "primer"},
        "init-pytorch": {"kernel_init": "pytorch"},
        **{
            f"position-{name}": {"position": name}
            for name in ("none", "absolute-sinusoidal", "absolute-learned", "relative-learned")
        },
    }
    for seed in SEEDS[:4]:
        for name, changes in choices.items():
            yield Run("parts", f"{name}-{seed}", BASE.replace(**changes, eval_every=250, seed=seed))


def starts() -> Iterator[Run]:
    """How kernels start, with seeds that chose nothing: RCMHA from three starts and RMHA at equal steps, two at equal time.

    Registered when two seeds of ``parts``, 0 and 1, suggested that PyTorch's and Primer's starts do better than the
    identity. Later MHA, and MDHA from PyTorch's start, whose kernels are distributed as the public code's: the paper's four
    cells; and from that start kernels of one tap, which are random, too, and mix no neighbours. Their scales are as random
    as those of three taps, their biases spread more (±1 in place of ±0.577). Both with the seeds of one processor.
    """
    cells: dict[str, dict[str, Any]] = {
        "rmha": {"kernel_size": 0},
        "identity": {},
        "primer": {"kernel_init": "primer"},
        "pytorch": {"kernel_init": "pytorch"},
    }
    for seed in range(8, 16):
        for name, changes in cells.items():
            config = BASE.replace(**changes, eval_every=250, seed=seed)
            yield Run("starts", f"{name}-{seed}", config, ("unseen", "taps", "heads"))
        more = {"mha": CELLS["mha"], "mdha": CELLS["mdha"], "one-tap": {"kernel_size": 1}} if seed > 8 else {}
        for name, changes in more.items():
            config = BASE.replace(**changes, kernel_init="pytorch", eval_every=250, seed=seed)
            yield Run("starts", f"{name}-{seed}", config, ("unseen",))
        for name in ("rmha", "pytorch"):
            steps = EQUAL_TIME["rmha-relu2" if name == "rmha" else "rcmha-relu2"]
            config = BASE.replace(**cells[name], eval_every=250, seed=seed, steps=steps)
            yield Run("starts", f"equal-time-{name}-{seed}", config, ("unseen",))


def kernel_starts() -> Iterator[Run]:
    """Which start of the kernels becomes the default, with seeds that chose nothing: a careful start may only want a rate of
    its own. Pairs with and without the convolution share every other starting weight; in the groups above they share
    linear layers and embeddings alone, since kernels of that time drew from the same stream as the sinusoids' projection.
    """
    cells: dict[str, dict[str, Any]] = {
        "rmha": {"kernel_size": 0},
        "identity": {},
        "primer": {"kernel_init": "primer"},
        "pytorch": {"kernel_init": "pytorch"},
        "rate-3": {"kernel_rate": 3.0},
        "rate-10": {"kernel_rate": 10.0},
    }
    for seed in range(24, 32):
        for name, changes in cells.items():
            config = BASE.replace(**changes, eval_every=250, seed=seed)
            yield Run("kernel_starts", f"{name}-{seed}", config, ("unseen", "taps"))


def position_codes() -> Iterator[Run]:
    """Other codes of position, without the convolution and with it; ``kernel_starts`` has the sinusoids of these seeds."""
    codes: dict[str, dict[str, Any]] = {
        "rope": {"position": "rope"},
        "alibi": {"position": "alibi"},
        "table": {"position": "relative-learned"},
    }
    for seed in range(24, 32):
        absolute = BASE.replace(**CELLS["mha"], eval_every=250, seed=seed)
        yield Run("position_codes", f"absolute-{seed}", absolute, ("unseen",))
        for name, changes in codes.items():
            config = BASE.replace(**changes, kernel_size=0, eval_every=250, seed=seed)
            yield Run("position_codes", f"{name}-{seed}", config, ("unseen",))
    for seed in range(24, 32):  # made once ``kernel_starts`` has decided
        for name, changes in codes.items():
            config = BASE.replace(**changes, **KERNELS, eval_every=250, seed=seed)
            yield Run("position_codes", f"{name}-convolution-{seed}", config, ("unseen",))


def repeats() -> Iterator[Run]:
    """Two runs of ``kernel_starts`` made once more, by later code: where every digit is the same, the engine is the same."""
    for run in kernel_starts():
        if run.name in ("rmha-24", "pytorch-24"):
            yield Run("repeats", run.name, run.config, run.measures)


KERNELS: dict[str, Any] = {"kernel_init": "pytorch"}
"""The default start, which ``kernel_starts`` decided."""


def lasting() -> Iterator[Run]:
    """Early or lasting? The four cells in 2000 steps, kernels from the default start, without dropout and with it; and RCMHA
    from the identity.
    """
    cells = {cell: changes | KERNELS for cell, changes in CELLS.items()} | {"identity": {}}
    for seed in range(32, 38):
        for name, dropout in (("dropout", 0.1), ("plain", 0.0)):
            for cell, changes in cells.items():
                config = BASE.replace(**changes, dropout=dropout, steps=2000, eval_every=200, seed=seed)
                yield Run("lasting", f"{cell}-{name}-{seed}", config, ("unseen",))


def regimes() -> Iterator[Run]:
    """Where convolution or squared ReLU might pay: depth, optimiser, few steps. RMHA and RCMHA from PyTorch's start, which
    does better than the identity, and that with ReLU; in one or two blocks also from the identity; and, for four seeds,
    RMHA in half the steps, which tells what time is worth. ``starts`` has them in the ablation's recipe, ``longer`` in
    many steps.

    The seeds had no part in the choice of the start. But seed 16 suggested the cell from the identity, and the last four
    went to one and two blocks when the first four were known: there the convolution had earned most, and two blocks were
    at the edge of paying. AdamW and 125 steps got none.
    """
    regimes: dict[str, dict[str, Any]] = {
        "layers-1": {"layers": 1},
        "layers-2": {"layers": 2},
        "adamw": {"optimizer": "adamw"},
        "steps-125": {"steps": 125, "eval_every": 125},
    }
    cells: dict[str, dict[str, Any]] = {
        "rmha": {"kernel_size": 0},
        "rcmha": {"kernel_init": "pytorch"},
        "relu": {"kernel_init": "pytorch", "activation": "relu"},
    }
    for seed in range(16, 24):
        for regime, setting in regimes.items():
            if seed >= 20 and "layers" not in setting:
                continue
            also: dict[str, dict[str, Any]] = {"identity": {}} if "layers" in setting else {}
            for cell, changes in (cells | also).items():
                config = BASE.replace(**{"eval_every": 250, **setting}, **changes, seed=seed)
                yield Run("regimes", f"{regime}-{cell}-{seed}", config, ("unseen",))
            if seed < 20:
                half = BASE.replace(**setting, **cells["rmha"], seed=seed)
                half = half.replace(steps=half.steps // 2, eval_every=half.steps // 2)
                yield Run("regimes", f"{regime}-half-{seed}", half, ("unseen",))


def longer() -> Iterator[Run]:
    """Whether the order of the cells holds in four times the steps, without dropout and with it; one run of each, and four
    of RMHA and of RCMHA from PyTorch's start, with dropout.

    Seeds 0 to 3 are those of ``parts`` and the ablation; 0 and 1 had picked this start. Of the two with dropout, one seed
    became two when the first showed RCMHA lower, and four when both were known. ``lasting`` asks again with fresh seeds.
    """
    for cell, changes in (CELLS | {"rcmha-pytorch": {"kernel_init": "pytorch"}}).items():
        config = BASE.replace(**changes, steps=2000, eval_every=500)
        yield Run("longer", f"{cell}-relu2-{config.seed}", config, ("unseen",))
        for seed in range(4 if cell in ("rmha", "rcmha-pytorch") else 1):
            yield Run("longer", f"{cell}-dropout-{seed}", config.replace(dropout=0.1, seed=seed), ("unseen",))
    relu = BASE.replace(kernel_init="pytorch", activation="relu", dropout=0.1, steps=2000, eval_every=500)
    yield Run("longer", f"rcmha-pytorch-relu-dropout-{relu.seed}", relu, ("unseen",))


def recipes() -> Iterator[Run]:
    """Candidates for the speed track, without the validation split: each in about the time of ``start``, five minutes
    of two cores; ``longer-*``, ten; ``minute-*``, one; ``half-hour-*``, thirty.
    """
    start = Config(dropout=0.1, steps=1300, eval_every=325, device="cpu", kernel_init="identity")
    choices: dict[str, dict[str, Any]] = {
        "start": {},
        "batch-16": {"batch": 16, "steps": 2150, "eval_every": 430},
        "context-256": {"context": 256, "batch": 16, "steps": 1120, "eval_every": 280},
        "narrow": {"layers": 6, "d_model": 128, "n_heads": 4, "d_ff": 512, "steps": 1380, "eval_every": 345},
        "muon-rate-0.04": {"muon_rate": 0.04},
        "muon-rate-0.01": {"muon_rate": 0.01},
        "kernel-init-primer": {"kernel_init": "primer"},
        "kernel-init-pytorch": {"kernel_init": "pytorch"},
    }
    for name, changes in choices.items():
        yield Run("recipes", name, start.replace(**changes), task="training split")
    for name in ("start", "narrow"):  # ten minutes
        longer = start.replace(**choices[name])
        longer = longer.replace(steps=19 * longer.steps // 10, eval_every=longer.steps // 2)
        for dropout in (0.1, 0.2):
            yield Run(
                "recipes", f"longer-{name}-dropout-{dropout}", longer.replace(dropout=dropout), task="training split"
            )
    for decay in (0.3, 0.6):
        config = start.replace(weight_decay=decay, steps=2470, eval_every=650)
        yield Run("recipes", f"longer-start-weight-decay-{decay}", config, task="training split")
    half_hour = start.replace(layers=5, context=192, batch=24, steps=5000, eval_every=1000)
    for dropout in (0.1, 0.15):
        config = half_hour.replace(dropout=dropout)
        yield Run("recipes", f"half-hour-dropout-{dropout}", config, task="training split")
    short = start.replace(dropout=0.0, layers=4, d_model=128, n_heads=4, d_ff=512, batch=16)
    short_choices: dict[str, dict[str, Any]] = {  # the steps fit their measured times
        "4x128": {"steps": 600},
        "3x128": {"layers": 3, "steps": 820},
        "2x128": {"layers": 2, "steps": 1180},
        "2x128-batch-32": {"layers": 2, "batch": 32, "steps": 650},
        "2x128-muon-rate-0.03": {"layers": 2, "muon_rate": 0.03, "steps": 1180},
        "2x192": {"layers": 2, "d_model": 192, "n_heads": 6, "d_ff": 768, "steps": 740},
        "4x96": {"d_model": 96, "n_heads": 3, "d_ff": 384, "steps": 770},
        "4x96-batch-32": {"d_model": 96, "n_heads": 3, "d_ff": 384, "batch": 32, "steps": 460},
    }
    for name, changes in short_choices.items():
        config = short.replace(**changes, eval_every=0)
        yield Run("recipes", f"minute-{name}", config, task="training split")


def speed() -> Iterator[Run]:
    """How low RCMHA's validation loss gets in 1 and 30 minutes of two CPU cores, and how few operations reach a loss.

    In 10 minutes: the ``laptop`` preset. 1.4697 and 1.88 are nanoGPT's, each in windows of its own context, 256 and 64.
    """
    base = Config(window=256, device="cpu", kernel_init="identity")
    minute = base.replace(layers=2, d_model=128, n_heads=4, d_ff=512, batch=16, steps=1100, eval_every=550)
    yield Run("speed", "1-minute", minute, ("unseen", "lengths"), alone=True)
    half_hour = base.replace(layers=5, dropout=0.2, steps=5200, eval_every=1040)
    yield Run("speed", "30-minutes", half_hour, ("unseen", "lengths"), alone=True)
    fourth = half_hour.replace(dropout=0.15)
    third = fourth.replace(steps=4200, eval_every=840)
    longer = half_hour.replace(context=192, batch=24, dropout=0.25, steps=5000, eval_every=1000)
    wide = longer.replace(d_model=256, n_heads=4, d_ff=1024, dropout=0.2, steps=4150, eval_every=830)
    for name, config in (("5200-steps", fourth), ("4200-steps", third), ("dropout-0.25", longer), ("wide", wide)):
        yield Run("speed", f"30-minutes-{name}", config, ("unseen", "lengths"), alone=True)  # earlier tries
    narrow = base.replace(layers=6, d_model=128, n_heads=4, d_ff=512, dropout=0.1, steps=1650, eval_every=330)
    yield Run("speed", "to-1.4697", narrow)
    yield Run("speed", "narrow-batch-16", narrow.replace(batch=16, steps=2500, eval_every=500))
    for steps in (1500, 1800):  # narrow-*: earlier tries at the first, made under its name
        yield Run("speed", f"narrow-{steps}", narrow.replace(steps=steps, eval_every=steps // 5))
    controls: dict[str, dict[str, Any]] = {  # to-1.4697 with one choice of nanoGPT's
        "attention": {"position": "absolute-learned", "kernel_size": 0, "context": 256, "batch": 16},
        "activation": {"activation": "gelu"},
        "optimizer": {"optimizer": "adamw"},
    }
    for name, changes in controls.items():
        yield Run("speed", f"control-{name}", narrow.replace(**changes))
    small = base.replace(
        layers=4, d_model=48, n_heads=3, d_ff=192, d_position=16, context=64, window=64, batch=8, steps=600,
        eval_every=100,
    )  # fmt: skip
    yield Run("speed", "to-1.88", small)


def capstone() -> Iterator[Run]:
    """The ``gpu`` preset where there is no GPU: on a CPU, where a step takes ten seconds, in fewer steps, and as the preset
    was when it was made: with kernels from the identity.
    """
    config = PRESETS["gpu"].replace(
        device="cpu", precision="bfloat16", compile=False, steps=600, eval_every=100, checkpoint_every=25,
        kernel_init="identity",
    )  # fmt: skip
    yield Run("capstone", "gpu-preset-600-steps", config, ("unseen", "lengths"))


def paper() -> Iterator[Run]:
    """The public code's settings: ten epochs with relative positions, two without.

    Without relative positions there are none at all, as in its model. Its schedule does not depend on the length of
    a run, so two epochs are the first two of ten. Its starting weights are our own, not those of the public code, but
    for the kernels: the preset's ``layer_init`` came later.
    """
    without: dict[str, Any] = {"position": "none", "steps": 31_370}
    cells: dict[str, dict[str, Any]] = {
        "rmha": {"kernel_size": 0},
        "rcmha": {},
        "mha": {**without, "kernel_size": 0},
        "mdha": without,
    }
    for cell, changes in cells.items():
        config = PRESETS["paper"].replace(**changes, device="cpu", layer_init="scaled")
        yield Run("paper", cell, config, ("running_memory",))


def induction() -> Iterator[Run]:
    """One layer of each cell on sequences that repeat: who learns to look up what came next last time?"""
    base = Config(
        layers=1, d_model=64, n_heads=2, d_ff=128, d_position=32, vocabulary=64, context=64, window=64, batch=32,
        steps=1500, eval_every=50, optimizer="adamw", clip=0, precision="float32", device="cpu",
        kernel_init="identity",
    )  # fmt: skip
    for seed in SEEDS:
        for cell, changes in CELLS.items():
            yield Run("induction", f"{cell}-{seed}", base.replace(**changes, seed=seed), task="induction")


GROUPS = {
    f.__name__: f
    for f in (
        *(
            ablation,
            equal_time,
            induction,
            parts,
            starts,
            kernel_starts,
            repeats,
            position_codes,
            lasting,
            regimes,
            longer,
        ),
        *(recipes, speed, capstone, paper),
    )
}

RUNS = {str(run): run for group in GROUPS.values() for run in group()}
