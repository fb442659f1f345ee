"""Compare a model's artifacts with other ways to run it, in time: python tools/compare_peers.py --help."""

from __future__ import annotations

import os

# Before torch is loaded: idle OpenMP threads that spin slow every other program.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import platform
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from figures.places import Place
from numpy.typing import NDArray
from peers import BASELINE, FLAVOURS, NAMES, Lineup, Peer, load, open_card, race

from ppexport.cli.console import check_json, decibel, emit_json, fail, people, percent, progress_bar, table
from ppexport.cli.options import parse_size
from ppexport.device.job import Job
from ppexport.device.launch import memory_of
from ppexport.device.machine import cpu_name, versions
from ppexport.device.measure import PLANS
from ppexport.device.picture import psnr, to_uint8
from ppexport.device.target import Target
from ppexport.errors import ExportError, InputError, PpexportError
from ppexport.imaging.tiles import MULTIPLE
from ppexport.networks.cost import cost
from ppexport.profile.statistics import Interval

ROOT = Path(__file__).resolve().parents[1]
SPEED, PLACE = "SPEED.md", "peers"
CHECK_DB = 90.0
"""What the plain graph must reach against the network before anything is timed."""
Heat = dict[str, Peer]
"""Programs that take turns; the first is what the others are compared with."""
Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows; columns from the second on are numbers."""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)


def peak_of(target: Target, lr: NDArray[np.float32]) -> int:
    """Peak bytes of a process that opens *target* and super-resolves *lr* once, as `ppexport profile` measures it."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npy"
        np.save(images, to_uint8(lr)[None])
        return memory_of(Job((target,), images, PLANS["quick"], Path(folder) / "journal", {}))[1]


def warm_up(lineup: Lineup, heats: dict[str, Heat]) -> dict[str, str]:
    """Run every program once, and take out what cannot run here; returns why not, by name.

    Those that must give a network's picture are compared with it. Raises ExportError where the plain graph gives it for
    neither picture: in a near tie of two categories a right graph may take the other one, but not in both pictures.
    """
    skipped = {}
    networks = {name: load(lineup.model, name == "dense") for name in ("dense", "pure_pass")}
    for heat in heats.values():
        for key, peer in list(heat.items()):
            lineup.say(f"preparing {peer.name}")
            reached = []
            try:
                run = peer.open_it()
                for lr in (peer.lr, lineup.busy) if key == BASELINE else (peer.lr,):
                    sr, _ = run(lr)
                    if peer.reference is not None:
                        reached.append(psnr(sr, networks[peer.reference](torch.from_numpy(lr)).numpy(), 1.0))
            except PpexportError as error:
                if peer is next(iter(heat.values())):
                    raise
                skipped[peer.name] = str(error)
                del heat[key]
                continue
            peer.run, peer.decibel = run if peer.keep else None, reached[0] if reached else None
            if key == BASELINE and max(reached) < CHECK_DB:
                raise ExportError(
                    f"the plain graph is {max(reached):.1f} dB from the network, not {CHECK_DB:.0f}: it is wrong"
                )
    return skipped


def figures(ms: float) -> str:
    """Three digits or more."""
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"


def times(interval: Interval) -> str:
    """A ratio with its interval."""
    return f"{interval.middle:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _shares(interval: Interval) -> str:
    return f"{100 * interval.middle:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def heat_table(title: str, versus: str, heat: Heat, skipped: dict[str, str]) -> Table:
    """Times of *heat* beside its first program; what could not run has a row with the reason."""
    baseline, rows = next(iter(heat.values())), []
    for peer in heat.values():
        low, middle, high = peer.spread
        row = [peer.name, figures(middle), f"{figures(low)} to {figures(high)}", times(baseline.relative(peer))]
        row.append("" if peer.decibel is None else decibel(peer.decibel))
        rows.append([*row, "" if peer.peak is None else f"{peer.peak / 1e6:.0f}"])
    columns = ["", "ms, median", "p10 to p90", f"times as fast as {versus} (95 %)", "dB to the network", "peak MB"]
    return title, columns, [*rows, *([name, why, "", "", "", ""] for name, why in skipped.items())]


def pure_pass_table(lineup: Lineup, heats: dict[str, Heat]) -> Table:
    """What Pure-Pass saves of the time of the dense artifact of the same flavour, where that was measured."""
    macs, rows = cost(load(lineup.model, dense=False), lineup.size, lineup.mask).saving, []
    for flavour in FLAVOURS:
        heat = heats.get(flavour, {})
        auto, busy = (heat.get(f"{flavour}-auto-{kind}") for kind in ("pure", "busy"))
        if auto is None or macs <= 0:
            continue
        dense = heat[f"{flavour}-dense"]
        saved = auto.relative(dense).map(-1, 1)
        extra = "" if busy is None else _shares(busy.relative(dense).map(1, -1))
        host = float(np.median([told.host_ns for told in auto.told])) / 1e6
        row = [flavour, percent(lineup.shares[0]), str(auto.told[-1].capacity), _shares(saved), percent(macs)]
        rows.append([*row, times(saved.map(1 / macs)), extra, f"{host:.2f}"])
    columns = [
        "flavour", "pure pixels", "slots", "time saved (95 %)", "multiply-adds saved", "time / multiply-adds saved",
        f"extra time at {percent(lineup.shares[1])} pure", "host's mask and choice, ms",
    ]  # fmt: skip
    return "Pure-Pass against dense ATD-light of the same flavour", columns, rows


def heats_of(lineups: Sequence[Lineup], keys: Sequence[str]) -> dict[str, Heat]:
    """The programs *keys* of the first of *lineups*; of several, which differ in size, our full artifacts too."""
    heats: dict[str, Heat] = {PLACE: {k: lineups[0].peer(k) for k in keys if "-set-" not in k and "-auto-" not in k}}
    for flavour in FLAVOURS:
        own = [key for key in keys if key.startswith(f"{flavour}-") and key != f"{flavour}-dense"]
        if own:
            heats[flavour] = {key: lineups[0].peer(key) for key in (f"{flavour}-dense", *own)}
        if own and len(lineups) > 1:
            heats[f"{flavour}, by size"] = by_size = {}
            for one in lineups:
                peer = one.peer(f"{flavour}-full")
                peer.name, peer.reference = f"{one.size[0]}x{one.size[1]}", None
                peer.part = lineups[0].pure.size / one.pure.size
                by_size[peer.name] = peer
    return heats


def describe(lineup: Lineup, rounds: int) -> str:
    """What was measured, and on what; how is told in SPEED.md."""
    packages = {"Python": platform.python_version(), **versions(("torch", "onnxruntime", "openvino", "numpy", "onnx"))}
    machine = f"{cpu_name('/')}, {os.cpu_count()} cores, {lineup.threads} threads; {platform.system()}"
    made = ", ".join(f"{name} {number}" for name, number in packages.items())
    return (
        f"Measured on {machine}; {made}; {datetime.now(timezone.utc):%Y-%m-%d}. LR "
        f"{lineup.size[0]}x{lineup.size[1]}, {rounds} rounds; {percent(lineup.shares[0])} of the picture is pure. "
        f"*Arithmetic alone* is what the {lineup.flop / 1e9:.2f} GFLOP of the dense network's convolutions, linear "
        "layers and matmuls take at the rate of 1024x1024 matrix products in the same rounds."
    )


def markdown(made: Table) -> str:
    """A table under its title."""
    title, columns, rows = made
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def choose(only: str) -> list[str]:
    """The keys to run, of a text separated by commas, and the baseline. Raises InputError for one that is not known."""
    named = [key.strip() for key in only.split(",") if key.strip()] or list(NAMES)
    unknown = next((key for key in named if key not in NAMES), None)
    if unknown is not None:
        raise InputError(f"{unknown!r} is not one of {', '.join(NAMES)}")
    return [key for key in NAMES if key == BASELINE or key in named]


@app.command(epilog="Example: python tools/compare_peers.py pp_atd_light_x2 --rounds 20 --memory --write")
def compare_peers(
    model: Annotated[str, typer.Argument(help="A bundled PP-ATD-light, or a folder with a card.yaml and its weights.")],
    size: Annotated[
        str, typer.Option(help="LR size HxW, multiples of 16. Of several, separated by commas, artifacts are compared.")
    ] = "",
    work: Annotated[Path, typer.Option(help="Folder of exported graphs, used again.")] = ROOT / "runs" / "peers",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every program is timed twice in each.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every program.")] = 2,
    only: Annotated[str, typer.Option(help="Programs, separated by commas; the plain graph always runs.")] = "",
    pure_share: Annotated[float, typer.Option(min=0, max=1, help="Share of pure pixels, about.")] = 0.389,
    memory: Annotated[bool, typer.Option("--memory", help="Also measure the peak memory of our artifacts.")] = False,
    write: Annotated[bool, typer.Option("--write", help=f"Write the tables into {SPEED} beside the card.")] = False,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", callback=check_json, help="Write all times as JSON; - is stdout."),
    ] = None,
) -> None:
    """Time a model's artifacts beside PyTorch, a plain ONNX export, OpenVINO, and the arithmetic alone.

    All programs take turns, A B C C B A, on one picture; each time a program runs twice, and the second run, with warm
    caches, is timed. Ratios are taken per round and given as a median with a bootstrap 95 % interval. What cannot run
    here has a row that says why. The first run exports about eight graphs and compiles (several minutes); --rounds 1
    does only that much. For clean numbers nothing else may run. OpenVINO is optional: pip install openvino.
    """
    try:
        keys = choose(only)
        card, folder = open_card(model)
        sizes = sorted(parse_size(part) for part in size.split(",")) if size else [card.default_size]
        if any(side % MULTIPLE for one in sizes for side in one):
            raise InputError(f"sizes to compare are multiples of {MULTIPLE}, so that no program has to pad")
        place = Place(folder / SPEED, PLACE) if write else None
        # Compiling takes minutes; kept beside the graphs it takes half a minute the next time.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((work / "inductor").absolute()))
        console = people(json)
        lineups = [Lineup(model, one, work, threads, pure_share, console.print) for one in sizes]
        heats = heats_of(lineups, keys)
        for peer in [peer for heat in heats.values() for peer in heat.values()] if memory else []:
            if peer.target is not None:
                console.print(f"memory of {peer.name}")
                peer.peak = peak_of(peer.target, peer.lr)
        torch.set_num_threads(threads)
        with torch.inference_mode(), progress_bar("rounds") as progress:
            skipped = warm_up(lineups[0], heats)
            race([list(heat.values()) for heat in heats.values()], rounds, progress)
        made = []
        for name, heat in heats.items():
            title, versus = f"Flavour {name}", "dense"
            if name == PLACE:
                title, versus = "All programs", "plain ONNX"
            elif name in FLAVOURS:
                title += ": capacities; with too few slots the surplus counts as pure"
            else:
                title, versus = f"{title}: ms for as many pixels as the smallest has", "the smallest"
            made.append(heat_table(title, versus, heat, skipped if name == PLACE else {}))
        savings = pure_pass_table(lineups[0], heats)
        if savings[2]:
            made.append(savings)
        for title, columns, rows in made:
            console.print(table(title, columns, rows))
        head = describe(lineups[0], len(heats[PLACE][BASELINE].rounds))
        raw = {name: {key: peer.to_dict() for key, peer in heat.items()} for name, heat in heats.items()}
        emit_json(json, {"model": card.name, "threads": threads, "about": head, "heats": raw, "skipped": skipped})
        if place is not None:
            place.write("\n\n".join([head, *map(markdown, made)]))
            console.print(f"written to {folder / SPEED}")
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
