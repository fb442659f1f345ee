"""Ablation of a model's Pure-Pass options, one factor at a time: python tools/ablation.py --help."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from ablating.datasets import DataSet, check_names, held_out, parse_data_set
from ablating.measure import Figures, measure
from ablating.report import Row, insert_into, read_place, render
from ablating.store import Store, identity
from ablating.variants import Variant, variants
from rich.console import Console
from training.fast import speed_up

from ppexport.cli.console import fail, percent, progress_bar
from ppexport.errors import InputError, PpexportError, UnavailableError
from ppexport.networks.atd.network import ATDLight
from ppexport.networks.load import card_of, load_network

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)
console = Console(highlight=False, soft_wrap=True, markup=False)


def open_model(name: str) -> ATDLight:
    """The network of the model *name*. Raises PpexportError, also for one without Pure-Pass."""
    network = load_network(name)
    assert isinstance(network, ATDLight)
    card = card_of(network)
    if card.options is None:
        raise InputError(f"{name} is {card.arch}, which has no Pure-Pass options to compare")
    return network


def warn_if_slow(network: ATDLight, say: Callable[[str], None]) -> None:
    """Say so where the compiled kernels are not to be had."""
    try:
        speed_up(copy.deepcopy(network))
    except UnavailableError as error:
        say(f"measuring takes three times as long: {error}")


def finish(
    network: ATDLight, weights_sha256: str, variant: Variant, data: DataSet, store: Store, say: Callable[[str], None]
) -> Figures:
    """The figures of *variant* on *data*: from *store*, else measured now and kept there."""
    what = identity(weights_sha256, variant.options, data)
    known = store.get(what)
    if known is not None:
        return known
    begin = time.monotonic()
    with progress_bar(f"{data.name}, {variant.name}") as progress:
        figures = measure(network, variant.options, data, progress)
    store.put(what, data, figures)
    seconds = time.monotonic() - begin
    say(
        f"{data.name}, {variant.name}: {figures.mean_psnr_y:.3f} dB, {percent(figures.mean_pure)} pure, {seconds:.0f} s"
    )
    return figures


def compare(network: ATDLight, sets: Sequence[DataSet], store: Store, say: Callable[[str], None]) -> str:
    """All variants of *network* on all *sets*, as Markdown; *say* is told each result once it is measured."""
    card = card_of(network)
    assert card.options is not None
    assert card.weights is not None
    sections = []
    for data in sets:
        rows = [
            Row(variant, finish(network, card.weights.sha256, variant, data, store, say))
            for variant in variants(card.options)
        ]
        sections.append((data, rows))
    return render(card.weights.sha256, card.scale, sections)


@app.command(
    epilog="Example: python tools/ablation.py pp_atd_light_x2 --data photos=calibration/images --state ablation.json"
)
def ablation(
    model: Annotated[str, typer.Argument(help="A bundled PP-ATD-light, or a folder with a card.yaml and its weights.")],
    state: Annotated[Path, typer.Option(help="JSON file of finished results; one that is there is gone on from.")],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=HR_DIR, or NAME=HR_DIR:LR_DIR; may be given several times.")
    ] = None,
    train_data: Annotated[
        list[Path] | None, typer.Option(help="A --data folder of the training run, in its order; with --holdout.")
    ] = None,
    holdout: Annotated[int, typer.Option(min=0, help="Measure on the images that so many in training held out.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="File with the comments `ablation` and `/ablation`: tables go between them.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: as torch finds.")] = None,
) -> None:
    """PSNR-Y, pure share and multiply-adds of a model's weights under other Pure-Pass options, without training again.

    One factor at a time differs from the card: compensation (value, zero, normed), cross-shift mask fusion, number of
    colour centres (6, 8) and window (4, 8, 16). The last row is the same weights without Pure-Pass. Pictures are taken
    whole. After a kill the same command goes on with the first data set and variant that --state does not hold.
    """
    try:
        if threads:
            torch.set_num_threads(threads)
        network = open_model(model)
        scale = network.config.scale
        sets = [*held_out(train_data or [], holdout), *(parse_data_set(text, scale) for text in data or [])]
        check_names(sets)
        if out is not None:
            read_place(out)
        warn_if_slow(network, console.print)
        table = compare(network, sets, Store(state), console.print)
        if out is None:
            console.print(table)
        else:
            insert_into(out, table)
            console.print(f"written to {out}")
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
