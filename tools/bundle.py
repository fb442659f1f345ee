"""Takes weights into models/ if they are better than those there: make bundle MODEL=NAME WEIGHTS=FILE IMAGES=DIR."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from ablation import DataSet, Figures, Store, held_out, measure, parse_data_set
from figures.places import with_hash
from training.data import HELD_OUT, TRAINING
from training.state import read_log

from ppexport.cli.console import fail, progress_bar
from ppexport.errors import EXIT_GATE_FAILED, InputError, PpexportError, change
from ppexport.files import atomic_path, read_limited_text, sha256_file
from ppexport.imaging.bicubic import enlarge_bicubic
from ppexport.networks.atd.atd_light import ATDLight
from ppexport.networks.card import CARD, PurePassOptions, read_card
from ppexport.networks.load import card_of, load_network
from ppexport.parity.evaluation import evaluate

LEAST_GAIN = 0.005
"""dB; less can come from rounding, by which near ties of categories fall the other way (see tools/ablation.py)."""
FIELDS = ("steps", "hours", "hardware", "recipe", "command")
"""Of an entry of `training.runs` in a card."""
MAX_BYTES = 1 << 16

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)


def data_sets(images: Path, root: Path, scale: int) -> list[DataSet]:
    """What weights are judged on, whole pictures: those that training held out, and the photographs of the project."""
    return [
        *held_out([images / name for name in TRAINING], HELD_OUT),
        parse_data_set(f"calibration={root / 'calibration' / 'images'}", scale),
    ]


def figures_of(folder: Path, weights: Path | None, sets: Sequence[DataSet], store: Store) -> list[Figures]:
    """PSNR-Y on *sets* of the model in *folder*, with *weights* in place of its own; what *store* lacks is measured.

    Raises PpexportError for weights that are no such network's.
    """
    network = load_network(str(folder), checkpoint=weights)
    if not isinstance(network, ATDLight):
        raise InputError(f"{folder} is {card_of(network).arch}: PP-ATD-light alone is trained here")
    card, found = card_of(network), []
    options = card.options if isinstance(card.options, PurePassOptions) else None
    sha256 = "" if card.weights is None else card.weights.sha256
    for data in sets:
        figures = store.get(sha256, options, data)
        if figures is None:
            with progress_bar(data.name) as progress:
                figures = measure(network, options, data, progress)
            store.put(sha256, options, data, figures)
        found.append(figures)
    return found


def bicubic_of(sets: Sequence[DataSet], scale: int) -> list[Figures]:
    """The same of bicubic enlargement, which a first network has to beat."""
    results = [
        evaluate(lambda lr: enlarge_bicubic(lr, scale), list(data.pairs), scale, lambda *_: None) for data in sets
    ]
    return [Figures(tuple(s.psnr_y for s in r.scores), (0.0,) * len(r.scores)) for r in results]


def mean(figures: Sequence[Figures]) -> float:
    """PSNR-Y in dB over all pictures of all data sets."""
    return float(np.mean([value for one in figures for value in one.psnr_y]))


def training_run(weights: Path, about: Path | None) -> dict[str, Any]:
    """The entry of the card: steps and hours from the log beside *weights*, and what the YAML file *about* says.

    Raises InputError where steps, hours or hardware are not known then, or *about* says something else.
    """
    entries = [e for e in read_log(weights.with_name("log.jsonl")) if e.get("kind") == "train"]
    run: dict[str, Any] = {}
    if entries:
        run = {"steps": entries[-1]["step"], "hours": round(entries[-1]["trained"] / 3600, 2)}
    if about is not None:
        try:
            given = yaml.safe_load(read_limited_text(about, MAX_BYTES, "a training run"))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise InputError(f"{about} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(given, dict) or not set(given) <= set(FIELDS):
            raise InputError(f"{about} is a mapping of some of {', '.join(FIELDS)}")
        run |= given
    missing = [name for name in FIELDS[:3] if name not in run]
    if missing:
        raise InputError(f"the card needs {', '.join(missing)} of the run: give a YAML file with --about (ABOUT=)")
    return {name: run[name] for name in FIELDS if name in run}


def with_run(text: str, sha256: str, run: dict[str, Any]) -> str:
    """The card *text* with the hash of the new weights and with *run* as the last one of its training.

    Raises InputError for a card without `weights:` and `training:` with `runs:`, in which it would not know where.
    """
    text = with_hash(text, sha256)
    block = re.search(r"(?m)^training:\n(?:(?: .*)?\n)*?  runs:( *\[\])?\n(?:    .*\n)*", text)
    if block is None:
        raise InputError(f"{CARD} needs `training:` with `  runs: []` for a first run")
    lines = yaml.safe_dump([run], sort_keys=False, allow_unicode=True, width=110).splitlines()
    added = "".join(f"    {line}\n" for line in lines)
    runs = block[0].replace("  runs: []\n", "  runs:\n")
    return f"{text[: block.start()]}{runs}{added}{text[block.end() :]}"


def bundle(folder: Path, weights: Path, run: dict[str, Any]) -> None:
    """Put *weights*, their run and its curve into the model's *folder*."""
    card = folder / CARD
    text = with_run(card.read_text(encoding="utf-8"), sha256_file(weights), run)
    curve = weights.with_name("loss.png")
    # The card last: until then `make numbers` and every command say that weights and card do not fit.
    sources = [(weights, folder / "weights.safetensors"), *([(curve, folder / "training.png")] * curve.is_file())]
    for source, target in sources:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
    with atomic_path(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    read_card(folder)


def judge(
    folder: Path,
    weights: Path,
    run: dict[str, Any],
    sets: Sequence[DataSet],
    store: Store,
    say: Callable[[str], None],
) -> bool:
    """Bundle *weights* in *folder* if they are better on *sets* than the model's own, or than bicubic, as `main` says.

    Returns whether they are.
    """
    first = not (folder / "weights.safetensors").is_file()
    old = bicubic_of(sets, read_card(folder).scale) if first else figures_of(folder, None, sets, store)
    new = figures_of(folder, weights, sets, store)
    for data, before, after in zip(sets, old, new, strict=True):
        say(f"{data.name}: {before.mean_psnr_y:.3f} dB now, {after.mean_psnr_y:.3f} dB with {weights}")
    gain = mean(new) - mean(old)
    say(f"mean of {sum(len(one.psnr_y) for one in new)} pictures: {mean(old):.3f}, {mean(new):.3f} ({change(gain, 3)})")
    if gain < LEAST_GAIN:
        say(f"not better by {LEAST_GAIN:g} dB: nothing was changed")
        return False
    bundle(folder, weights, run)
    say(f"bundled in {folder}; next: make numbers IMAGES=DIR MODEL={folder.name}")
    return True


@app.command(epilog="Example: make bundle MODEL=pp_atd_light_x2 WEIGHTS=runs/x2/weights.safetensors IMAGES=DIR")
def main(
    model: Annotated[str, typer.Argument(help="Name of a folder of models/, with a card.yaml.")],
    weights: Annotated[Path, typer.Argument(help="Averaged weights, .safetensors, as tools/train.py writes them.")],
    images: Annotated[Path, typer.Argument(help=f"Folder with {' and '.join(TRAINING)}, the training pictures.")],
    about: Annotated[
        Path | None, typer.Option(help=f"YAML of {', '.join(FIELDS)}; steps and hours default to the run's log.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Compare WEIGHTS with those of MODEL on pictures that were never trained on, and bundle them if they are better.

    Better is a mean PSNR-Y that is higher by 0.005 dB, over the pictures that training held out and the bundled
    photographs, all taken whole; the first weights of a model have to beat bicubic. Ends with 1, and changes nothing,
    where they are not.
    """
    root = Path(__file__).resolve().parents[1]
    folder = root / "models" / model
    try:
        if weights.suffix != ".safetensors" or not weights.is_file():
            raise InputError(f"{weights} is no .safetensors file")
        torch.set_num_threads(threads)
        scale = read_card(folder).scale
        run = training_run(weights, about)
        sets = data_sets(images, root, scale)
        (root / "runs").mkdir(exist_ok=True)
        taken = judge(folder, weights, run, sets, Store(root / "runs" / "ablation.json"), print)
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None
    if not taken:
        raise typer.Exit(EXIT_GATE_FAILED)


if __name__ == "__main__":
    app()
