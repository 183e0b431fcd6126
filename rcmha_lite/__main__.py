"""The command line: python -m rcmha_lite {data,train,evaluate,sample,info}."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from rcmha_lite import __version__
from rcmha_lite.config import CELLS, PRESETS, RELATIVE, Config


class Folder(click.Path):
    """A path in which ~ stands for the home folder, also where no shell has put it in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)


FOLDER = Folder(path_type=Path)
TEXT = Folder(path_type=Path, dir_okay=False)


def config_flags(command: Any) -> Any:
    """A flag for every field of Config: dashes for underscores, its help, its preset's value unless given."""
    hints = get_type_hints(Config)
    for field in reversed(dataclasses.fields(Config)):
        kind, flag = hints[field.name], field.name.replace("_", "-")
        name = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
        options = get_args(kind)
        command = click.option(
            name, field.name, default=None, type=click.Choice(options) if options else kind, help=field.metadata["help"]
        )(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="rcmha_lite %(version)s")
def cli() -> None:
    """Relative convolutional multi-head attention: fetch the data, train, evaluate, sample."""


@cli.command()
@click.option("--path", type=FOLDER, help="a copy of Tiny Shakespeare to use and check")
def data(path: Path | None) -> None:
    """Fetch Tiny Shakespeare, or check a copy of it, and say what it holds."""
    from rcmha_lite.data import SHA256, CharTokenizer, load_tiny_shakespeare, split

    text = load_tiny_shakespeare(path)
    train, validation = split(CharTokenizer().encode(text))
    click.echo(f"Tiny Shakespeare, SHA-256 {SHA256}")
    click.echo(f"{len(text)} characters, {len(set(text))} of them distinct, {len(text.splitlines())} lines")
    click.echo(f"{len(train)} to train on, {len(validation)} to validate")


@cli.command()
@click.option("--preset", type=click.Choice(list(PRESETS)), default="laptop", show_default=True, help="where to start")
@click.option(
    "--cell",
    type=click.Choice(list(CELLS)),
    help="position and convolution by their usual names; kernels as in the preset",
)
@click.option("--out", type=FOLDER, help="folder of the run  [default: runs/PRESET]")
@click.option("--text", type=TEXT, help="a text of your own in UTF-8; its characters are the vocabulary")
@click.option("--path", type=FOLDER, help="a copy of Tiny Shakespeare to use")
@click.option(
    "--more-steps", type=click.IntRange(1), help="give the finished run in --out its schedule again, over so many steps"
)
@config_flags
def train(
    preset: str,
    cell: str | None,
    out: Path | None,
    text: Path | None,
    path: Path | None,
    more_steps: int | None,
    **fields: Any,
) -> None:
    """Train a model, or go on with the run in --out. Ctrl-C leaves a checkpoint."""
    from rcmha_lite.checkpoint import load_config
    from rcmha_lite.data import load_tiny_shakespeare
    from rcmha_lite.texts import OwnText, find_text
    from rcmha_lite.training import train as run

    one_text(text, path)
    out = out or Path("runs") / preset
    start = load_config(out) if more_steps else PRESETS[preset]
    own = find_text(out, text) if more_steps else OwnText.read(text) if text else None
    given = {name: value for name, value in fields.items() if value is not None}
    changes = cell_fields(cell, start, given.get("context")) if cell else {}
    if own:
        changes["vocabulary"] = len(own.tokenizer)
    if cell and contradicts(cell, given):
        raise click.UsageError(
            f"--cell {cell} and --position or --kernel-size ask for different cells: give one of them"
        )
    config = start.replace(**changes | given)
    results = run(config, out, text=own or load_tiny_shakespeare(path), more_steps=more_steps or 0)
    if results:
        click.echo(
            f"validation loss {results['val_loss']:.4f}, accuracy {results['val_accuracy']:.4f} "
            f"after {results['seconds']:.0f} s; results in {out / 'results.json'}"
        )


def one_text(text: Path | None, path: Path | None) -> None:
    """UsageError for two texts."""
    if text and path:
        raise click.UsageError("--text is for a text of your own, --path for a copy of Tiny Shakespeare: give one")


def cell_fields(cell: str, preset: Config, context: int | None = None) -> dict[str, Any]:
    """What a cell changes in a preset: a relative encoding stays the preset's own, absolute ones end with the context."""
    fields = dict(CELLS[cell])
    relative = fields["position"] in RELATIVE
    if relative and preset.position in RELATIVE:
        del fields["position"]
    elif not relative and not preset.memory:
        fields["window"] = min(preset.window, context or preset.context)
    return fields


def contradicts(cell: str, given: dict[str, Any]) -> bool:
    """Whether the fields given make another cell of the grid."""
    fields = CELLS[cell] | given
    relative, convolution = fields["position"] in RELATIVE, bool(fields["kernel_size"])
    return (relative, convolution) != (cell in ("rmha", "rcmha"), cell in ("mdha", "rcmha"))


@cli.command()
@click.option("--checkpoint", type=FOLDER, required=True, help="folder of a run")
@click.option("--window", type=click.IntRange(1), help="characters in a window  [default: the run's]")
@click.option("--text", type=TEXT, help="the run's own text  [default: where it was in training]")
@click.option("--path", type=FOLDER, help="a copy of Tiny Shakespeare to use")
def evaluate(checkpoint: Path, window: int | None, text: Path | None, path: Path | None) -> None:
    """Loss and accuracy over the whole validation split of the run's text, in both ways."""
    from accelerate import PartialState

    from rcmha_lite.checkpoint import load_model
    from rcmha_lite.data import load_tiny_shakespeare, split
    from rcmha_lite.evaluation import evaluate as score
    from rcmha_lite.texts import find_text, load_tokenizer

    one_text(text, path)
    model = load_model(checkpoint, PartialState().device)
    tokenizer = load_tokenizer(checkpoint, model.config.vocabulary)
    own = find_text(checkpoint, text)
    ids = split(tokenizer.encode(own.text if own else load_tiny_shakespeare(path)))[1]
    window = window or model.config.window
    for sliding, how in (
        (False, "side by side, every position scored"),
        (True, "half overlapping, second half scored"),
    ):
        found = score(model, ids, window=window, sliding=sliding)
        click.echo(
            f"windows of {window} {how}: loss {found.loss:.4f}, {found.bits_per_character:.3f} bits per character, "
            f"accuracy {found.accuracy:.4f} over {found.positions} characters"
        )


@cli.command()
@click.option("--checkpoint", type=FOLDER, required=True, help="folder of a run")
@click.option("--prompt", help="text to go on from  [default: a new line]")
@click.option("--prompt-file", type=TEXT, help="a file of text to go on from, its last new line too")
@click.option("--length", type=click.IntRange(0), default=500, show_default=True, help="characters, at most")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the most probable")
@click.option("--top-k", type=int, help="sample from the k most probable characters")
@click.option("--top-p", type=float, help="sample from the fewest characters whose probabilities reach p")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="the same seed gives the same text"
)
@click.option("--stop", help="end before this string")
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="texts, sampled together; text k is the same however many there are, the first that of one alone",
)
def sample(checkpoint: Path, prompt: str | None, prompt_file: Path | None, samples: int, **sampling: Any) -> None:
    """Print text, as it is sampled; several texts when all of them are done."""
    from accelerate import PartialState

    from rcmha_lite.checkpoint import load_model
    from rcmha_lite.generation import generate, generate_batch
    from rcmha_lite.texts import load_tokenizer, read_text

    if prompt is not None and prompt_file:
        raise click.UsageError("--prompt and --prompt-file both say what to go on from: give one of them")
    prompt = read_text(prompt_file) if prompt_file else "\n" if prompt is None else prompt
    model = load_model(checkpoint, PartialState().device)
    sampling["tokenizer"] = load_tokenizer(checkpoint, model.config.vocabulary)
    if samples > 1:
        for k, text in enumerate(generate_batch(model, [prompt] * samples, **sampling), 1):
            click.echo(f"--- {k} of {samples} ---\n{prompt}{text}")
        return
    pieces = generate(model, prompt, **sampling)
    first = next(pieces, "")  # before anything is printed: bad input raises here
    click.echo(prompt + first, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


@cli.command()
def info() -> None:
    """Versions, hardware, and the presets: their size, and what a run of each would use here."""
    from rcmha_lite.here import describe
    from rcmha_lite.manifest import manifest
    from rcmha_lite.model import LanguageModel

    click.echo(json.dumps({"rcmha_lite": __version__} | manifest(), indent=2))
    for name, config in PRESETS.items():
        parameters = sum(p.numel() for p in LanguageModel(config).parameters())
        characters = config.steps * config.batch * config.context
        click.echo(
            f"{name:8} {parameters / 1e6:6.2f} M parameters, {config.steps} steps, {characters / 1e6:.1f} M characters\n"
            f"         {describe(config)}"
        )


def main() -> None:
    """Run a command; every foreseeable failure is one line on standard error and a non-zero exit."""
    try:
        cli(standalone_mode=False, prog_name="python -m rcmha_lite")
    except click.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.UsageError as error:
        fail(f"{error.format_message()} (see --help)", 2)
    except Exception as error:
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            fail(f"torch.compile failed ({str(error).strip().splitlines()[0]}): give --no-compile", 1)
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error):
            fail("not enough memory: give a smaller batch, context or width", 1)
        if not foreseen(error):
            raise
        fail(str(error), 130 if type(error).__name__ == "Interrupted" else 1)


def foreseen(error: Exception) -> bool:
    """Errors whose message tells the user what to do, as opposed to faults of ours."""
    names = {"Interrupted", "CheckpointError", "CorpusUnavailable"}
    return isinstance(error, ValueError | OSError | IndexError) or type(error).__name__ in names


def fail(message: str, code: int) -> None:
    """End with one line on standard error."""
    click.echo(f"rcmha_lite: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
