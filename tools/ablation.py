"""Ablation of a model's Pure-Pass options, one factor at a time: python tools/ablation.py --help."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from figures.places import Place
from numpy.typing import NDArray
from rich.console import Console
from training.data import find_images, split_holdout
from training.fast import speed_up

from ppexport.cli.console import fail, giga, percent, progress_bar
from ppexport.device.mask import ATD_LAYOUT, pure_mask
from ppexport.errors import InputError, PpexportError, UnavailableError
from ppexport.files import sha256_file, sha256_text, write_text
from ppexport.networks.architecture import find_architecture
from ppexport.networks.atd.atd_light import ATDLight, PPATDLight
from ppexport.networks.card import PurePassOptions
from ppexport.networks.cost import Cost, default_size
from ppexport.networks.load import card_of, load_network
from ppexport.parity.evaluation import Pair, evaluate, find_pairs, network_upscaler

FACTORS: dict[str, dict[Any, str]] = {
    "compensation": {"value": "compensation value", "zero": "compensation zero", "normed": "compensation normed"},
    "csmf": {True: "CSMF on", False: "CSMF off"},
    "colors": {6: "K 6", 8: "K 8"},
    "window": {4: "w 4", 8: "w 8", 16: "w 16"},
}
"""The fields of `ppexport.networks.card.PurePassOptions`, and the values that are compared with what a table calls
them."""
PLACE = "ablation"
FORMAT = 1
"""Of the file of finished results."""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)
console = Console(highlight=False, soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Variant:
    """One row of the ablation; *options* is None without Pure-Pass."""

    name: str
    options: PurePassOptions | None


@dataclass(frozen=True)
class DataSet:
    """Pictures under one name; *sha256* is that of the hashes of their files, wherever these lie."""

    name: str
    pairs: tuple[Pair, ...]
    sha256: str


@dataclass(frozen=True)
class Figures:
    """Per picture of a data set, in its order: PSNR-Y in dB, and the pure share of the padded LR in [0, 1]."""

    psnr_y: tuple[float, ...]
    pure: tuple[float, ...]

    @property
    def mean_psnr_y(self) -> float:
        """Mean over the pictures, in dB."""
        return float(np.mean(self.psnr_y))

    @property
    def mean_pure(self) -> float:
        """Mean over the pictures, in [0, 1]."""
        return float(np.mean(self.pure))


def variants(default: PurePassOptions) -> list[Variant]:
    """*default* first, then every other value of every factor alone, and the same weights without Pure-Pass last."""
    mixing = f"{default.compensation}, CSMF {'on' if default.csmf else 'off'}"
    # Every factor has the default among its values: under its options it is found once.
    names = {default: f"default ({mixing}, K {default.colors}, w {default.window})"}
    for factor, values in FACTORS.items():
        for value, name in values.items():
            names.setdefault(default.model_copy(update={factor: value}), name)
    return [*(Variant(name, options) for options, name in names.items()), Variant("no Pure-Pass", None)]


def with_options(network: ATDLight, options: PurePassOptions | None) -> ATDLight:
    """A network with the weights of *network* under other *options*; None: as ATD-light, where no pixel is pure."""
    scale = network.scale
    made = ATDLight(scale) if options is None else PPATDLight(scale, PurePassOptions(**options.model_dump()))
    made.load_state_dict(network.state_dict())
    return made.eval()


def _data_set(name: str, pairs: Sequence[Pair]) -> DataSet:
    lines = [f"{sha256_file(p.hr)} {'-' if p.lr is None else sha256_file(p.lr)}\n" for p in pairs]
    return DataSet(name, tuple(pairs), sha256_text("".join(lines)))


def parse_data_set(text: str, scale: int) -> DataSet:
    """`NAME=HR_DIR[:LR_DIR]`; without LR files these are made by bicubic. Raises InputError."""
    name, _, folders = text.partition("=")
    high, _, low = folders.partition(":")
    if not name.isidentifier() or not high:
        raise InputError(f"a data set is NAME=HR_DIR or NAME=HR_DIR:LR_DIR, the name without spaces, not {text!r}")
    return _data_set(name, find_pairs(Path(high), Path(low) if low else None, scale))


def held_out(folders: Sequence[Path], count: int) -> list[DataSet]:
    """The *count* pictures of *folders* that `tools/train.py --holdout` leaves out, as `holdout8`; none for 0.

    Folders are those of the training run, in its order. Raises InputError for a count without folders or the reverse.
    """
    if bool(folders) != bool(count):
        raise InputError("--holdout and --train-data belong together: the number, and the folders of the training run")
    if not count:
        return []
    _, held = split_holdout(find_images(folders), count)
    return [_data_set(f"holdout{count}", [Pair(path.stem, path, None) for path in held])]


def check_names(sets: Sequence[DataSet]) -> None:
    """Raise InputError where there is no data set, or two have one name."""
    names = [data.name for data in sets]
    if not names:
        raise InputError("there is nothing to measure on: give --data NAME=HR_DIR, or --holdout with --train-data")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two data sets are called {twice}: a name stands for one")


def measure(
    network: ATDLight,
    options: PurePassOptions | None,
    data: DataSet,
    progress: Callable[[int, int], None] | None = None,
) -> Figures:
    """The weights of *network* under *options* (None: without Pure-Pass) on whole pictures; *progress* as `evaluate`.

    Runs with the compiled kernels of training where there is a C compiler. They round otherwise than PyTorch, by about
    1e-6, which can settle a near tie of two categories the other way: up to 0.003 dB in one picture, 0.0002 dB in the
    mean over the bundled photographs. Raises InputError or ImageError for pictures that cannot be evaluated.
    """
    shares: list[float] = []
    chosen = with_options(network, options)
    with suppress(UnavailableError):
        speed_up(chosen)
    upscale = network_upscaler(chosen)

    def noting(lr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        o = options
        shares.append(0.0 if o is None else float(pure_mask(lr, o.colors, o.window, o.csmf, centres=o.centres).mean()))
        return upscale(lr)

    result = evaluate(noting, list(data.pairs), network.scale, progress or (lambda done, total: None))
    return Figures(tuple(s.psnr_y for s in result.scores), tuple(shares))


def cost_at(scale: int, pure: float, options: PurePassOptions | None) -> Cost:
    """Cost of 1280x720 output where the share *pure* of the padded LR pixels is pure; in the published counting."""
    size = default_size(scale)
    tokens = ATD_LAYOUT.tokens(size)
    impure = round(tokens * (1 - pure))
    colors = 0 if options is None else options.colors
    macs = find_architecture("atd_light").cost
    return Cost(macs(scale, size), macs(scale, size, impure, colors), tokens, impure, pure)


class Store:
    """Finished results, kept in one JSON file that is whole after every `put`, so that a killed run continues.

    A result is known by weights, options and the bytes of the pictures, not by where they lie nor by a version.
    """

    def __init__(self, path: Path) -> None:
        """Read *path* if it exists. Raises InputError for a file that is no such store."""
        self.path = path
        self._entries: dict[str, Any] = {}
        if not path.exists():
            if not path.parent.is_dir():
                raise InputError(f"{path} cannot be written: {path.parent} is not a folder")
            return
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']}, not {FORMAT}")
            self._entries = data["results"]
            for entry in self._entries.values():
                self._figures(entry)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            text = f"{path} holds no results of an ablation ({type(error).__name__}: {error})"
            raise InputError(f"{text}: name another --state, or delete it to start again") from None

    @staticmethod
    def _figures(entry: dict[str, Any]) -> Figures:
        psnr_y, pure = (tuple(float(picture[name]) for picture in entry["pictures"]) for name in ("psnr_y", "pure"))
        return Figures(psnr_y, pure)

    @staticmethod
    def _identity(weights_sha256: str, options: PurePassOptions | None, data: DataSet) -> tuple[str, dict[str, Any]]:
        chosen = None if options is None else options.model_dump()
        what = {"weights_sha256": weights_sha256, "options": chosen, "pictures_sha256": data.sha256}
        return sha256_text(json.dumps(what, sort_keys=True, separators=(",", ":"))), what

    def get(self, weights_sha256: str, options: PurePassOptions | None, data: DataSet) -> Figures | None:
        """The result of these weights under *options* on *data*, None if it is not finished."""
        entry = self._entries.get(self._identity(weights_sha256, options, data)[0])
        return None if entry is None else self._figures(entry)

    def put(self, weights_sha256: str, options: PurePassOptions | None, data: DataSet, figures: Figures) -> None:
        """Keep *figures*; names are written for people only."""
        key, what = self._identity(weights_sha256, options, data)
        rows = zip(data.pairs, figures.psnr_y, figures.pure, strict=True)
        pictures = [{"name": pair.name, "psnr_y": psnr_y, "pure": pure} for pair, psnr_y, pure in rows]
        self._entries[key] = {**what, "data_set": data.name, "pictures": pictures}
        write_text(self.path, json.dumps({"format": FORMAT, "results": self._entries}, indent=1) + "\n")


def change(figures: Figures, default: Figures) -> str:
    """Mean difference to *default* in dB, and the smallest and largest over the pictures."""
    differences = np.subtract(figures.psnr_y, default.psnr_y)
    if not differences.any():
        return "0"
    return f"{differences.mean():+.3f} ({differences.min():+.3f} to {differences.max():+.3f})"


def render(data: DataSet, scale: int, rows: Sequence[tuple[Variant, Figures]]) -> str:
    """The table of one data set; the first of *rows* is the default that the others are compared with."""
    count = len(data.pairs)
    lines = [
        f"**{data.name}**, {count} picture{'s' if count != 1 else ''}, "
        f"LR {'as given' if data.pairs[0].lr else 'by bicubic'}:",
        "",
        "| variant | PSNR-Y dB | change dB, mean (range over pictures) | pure share | multiply-adds | saved |",
        "|---|---|---|---|---|---|",
    ]
    for variant, figures in rows:
        cost = cost_at(scale, figures.mean_pure, variant.options)
        quality = variant.name, f"{figures.mean_psnr_y:.3f}", change(figures, rows[0][1])
        saved = percent(figures.mean_pure), giga(cost.actual.published), percent(cost.saving)
        lines.append(f"| {' | '.join((*quality, *saved))} |")
    return "\n".join(lines)


def open_model(name: str) -> ATDLight:
    """The network of the model *name*. Raises PpexportError, also for one without Pure-Pass."""
    network = load_network(name)
    assert isinstance(network, ATDLight)
    card = card_of(network)
    if card.options is None:
        raise InputError(f"{name} is {card.arch}, which has no Pure-Pass options to compare")
    return network


def compare(network: ATDLight, sets: Sequence[DataSet], store: Store, say: Callable[[str], None]) -> str:
    """All variants of *network* on all *sets*, as Markdown; what *store* lacks is measured, kept and told to *say*."""
    card = card_of(network)
    assert isinstance(card.options, PurePassOptions)
    assert card.weights is not None
    weights_sha256 = card.weights.sha256
    sections = [
        f"Written by `tools/ablation.py` for the weights with SHA-256 `{weights_sha256[:12]}…`. The pure share is the "
        f"mean over the LR pictures; multiply-adds, counted as published, are those of 1280x720 output at that share."
    ]
    for data in sets:
        rows = []
        for variant in variants(card.options):
            figures = store.get(weights_sha256, variant.options, data)
            if figures is None:
                begin = time.monotonic()
                with progress_bar(f"{data.name}, {variant.name}") as progress:
                    figures = measure(network, variant.options, data, progress)
                store.put(weights_sha256, variant.options, data, figures)
                found = f"{figures.mean_psnr_y:.3f} dB, {percent(figures.mean_pure)} pure"
                say(f"{data.name}, {variant.name}: {found}, {time.monotonic() - begin:.0f} s")
            rows.append((variant, figures))
        sections.append(render(data, card.scale, rows))
    return "\n\n".join(sections)


@app.command(
    epilog="Example: python tools/ablation.py pp_atd_light_x2 --data photos=calibration/images --state ablation.json"
)
def ablation(
    model: Annotated[str, typer.Argument(help="A bundled PP-ATD-light, or a folder with a card.yaml and its weights.")],
    state: Annotated[
        Path, typer.Option(help="JSON file of finished results; if it exists, only what it lacks is measured.")
    ],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=HR_DIR, or NAME=HR_DIR:LR_DIR; may be given several times.")
    ] = None,
    train_data: Annotated[
        list[Path] | None, typer.Option(help="A --data folder of the training run, in its order; with --holdout.")
    ] = None,
    holdout: Annotated[int, typer.Option(min=0, help="Measure on the images that training held out: how many.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="File with the comments `ablation` and `/ablation`: tables go between them.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; if left out, torch chooses.")] = None,
) -> None:
    """PSNR-Y, pure share and multiply-adds of a model's weights under other Pure-Pass options, without training again.

    One factor at a time differs from the card: compensation (value, zero, normed), cross-shift mask fusion, number of
    colour centres (6, 8) and window (4, 8, 16). The last row is the same weights without Pure-Pass. Pictures are taken
    whole. After a kill the same command continues with the first data set and variant that --state does not hold.
    """
    try:
        if threads:
            torch.set_num_threads(threads)
        network = open_model(model)
        scale = network.scale
        sets = [*held_out(train_data or [], holdout), *(parse_data_set(text, scale) for text in data or [])]
        check_names(sets)
        place = None if out is None else Place(out, PLACE)
        store = Store(state)
        try:
            speed_up(copy.deepcopy(network))
        except UnavailableError as error:
            console.print(f"measuring takes three times as long: {error}")
        table = compare(network, sets, store, console.print)
        if place is None:
            console.print(table)
        else:
            place.write(table)
            console.print(f"written to {out}")
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
