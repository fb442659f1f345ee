"""Time the networks, as they are exported, against their own arithmetic: python tools/compare_networks.py --help."""

from __future__ import annotations

import os

# Before torch is loaded: idle OpenMP threads that spin slow every other program.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from compare_peers import ROOT, Heat, figures, markdown, times
from peers import (
    BOUND,
    FLOP,
    Peer,
    Run,
    busy_photo,
    matrix_products,
    our_artifact,
    our_code,
    plain_graph,
    race,
)
from plain_export import export_plain

from ppexport.cli.console import check_json, decibel, emit_json, fail, people, progress_bar, table
from ppexport.cli.options import parse_size
from ppexport.device.machine import cpu_name, versions
from ppexport.device.picture import psnr, to_input
from ppexport.device.target import Target
from ppexport.errors import InputError, PpexportError
from ppexport.exporting import export, package_versions
from ppexport.files import sha256_text
from ppexport.imaging.tiles import MULTIPLE
from ppexport.networks.architecture import find_architecture
from ppexport.networks.load import load_network
from ppexport.networks.network import Network

SCALE, TRAINED = 2, "pp_atd_light_x2"
NETWORKS = ("atd_light", "atd_light_v2", "swinir_light", "camixersr", "camixer_atd_light")
PROGRAMS = {
    "ort": "flavour ort",
    "portable": "flavour portable",
    "openvino": "portable, in OpenVINO",
    "plain": "plain ONNX",
}
"""What a network is run as; *plain ONNX* is the network itself with the least change that makes it export."""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)


def make_network(arch: str) -> Network:
    """The network *arch* for x2, with bundled weights or, where there are none, untrained from a fixed seed."""
    if arch == "atd_light":
        return load_network(arch=arch, scale=SCALE, checkpoint=ROOT / "models" / TRAINED / "weights.safetensors")
    architecture = find_architecture(arch)
    options = architecture.options()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architecture.build(SCALE, None if options is None else options()).eval()


class Programs:
    """The programs of one network; what they run is exported into *work*, and used again until the code changes."""

    def __init__(
        self, arch: str, size: tuple[int, int], threads: int, work: Path, say: Callable[[str], object]
    ) -> None:
        self.network, self.size, self.threads, self.work, self.say = make_network(arch), size, threads, work, say
        self.architecture = find_architecture(arch)
        self.lr = to_input(busy_photo(size, 8))
        self.skipped: dict[str, str] = {}
        """Why a program does not run here, by its name."""

    def _kept(self, kind: str, make: Callable[[Path], object]) -> Path:
        made_from = sha256_text(f"{package_versions()} {our_code()}")[:12]
        path = self.work / f"{self.architecture.name}-{kind}-{self.size[0]}x{self.size[1]}-{made_from}"
        if not path.exists():
            self.say(f"exporting {path.name}")
            self.work.mkdir(parents=True, exist_ok=True)
            make(path)
        return path

    def _opener(self, key: str) -> Callable[[], Run]:
        """What opens the program *key*; what it runs is exported now unless it is kept. Raises PpexportError."""
        if key == "plain":
            path = self._kept("plain.onnx", lambda out: export_plain(self.network, self.size, out))
            return partial(plain_graph, path, self.threads, False)
        flavour, runtime = {"ort": ("ort", "onnxruntime"), "openvino": ("portable", "openvino")}.get(
            key, (key, "onnxruntime")
        )
        folder = self._kept(
            flavour, lambda out: export(self.network, backend="onnx", size=self.size, out=out, flavour=flavour)
        )
        return partial(our_artifact, Target(str(folder.resolve()), runtime, "CPU", self.threads))

    def heat(self) -> Heat:
        """First matrix products with as many multiply-adds as the network has, then all that run here, each tried."""
        bound = Peer("arithmetic alone", self.lr, partial(matrix_products, self.threads))
        bound.part = 2 * self.architecture.cost(SCALE, self.size).pure / FLOP
        heat = {BOUND: bound}
        expected = self.network(torch.from_numpy(self.lr)).numpy()
        for key, name in PROGRAMS.items():
            if key == "ort" and "ort" not in self.architecture.flavours:
                continue
            self.say(f"trying {self.architecture.name}, {name}")
            try:
                peer = Peer(name, self.lr, self._opener(key))
                peer.decibel = psnr(peer.open_it()(self.lr)[0], expected, 1.0)
            except PpexportError as error:
                self.skipped[name] = str(error)
            else:
                heat[key] = peer
        return heat


def network_rows(arch: str, heat: Heat, skipped: dict[str, str]) -> list[list[str]]:
    """A row for every program of a network, and one with the reason for every one that does not run."""
    bound, rows = heat[BOUND], []
    for peer in heat.values():
        low, middle, high = peer.spread
        row = [arch, peer.name, figures(middle), f"{figures(low)} to {figures(high)}", times(peer.relative(bound))]
        rows.append([*row, "" if peer.decibel is None else decibel(peer.decibel)])
    return [*rows, *([arch, name, why, "", "", ""] for name, why in skipped.items())]


def choose(only: str) -> list[str]:
    """The networks in a text separated by commas, all for an empty one. Raises InputError for one that is not known."""
    named = [name.strip() for name in only.split(",") if name.strip()] or list(NETWORKS)
    unknown = next((name for name in named if name not in NETWORKS), None)
    if unknown is not None:
        raise InputError(f"{unknown!r} is not one of {', '.join(NETWORKS)}")
    return named


@app.command(epilog="Example: python tools/compare_networks.py --size 256x256 --rounds 4")
def compare_networks(
    size: Annotated[str, typer.Option(help="LR size HxW, multiples of 16.")] = "64x64",
    work: Annotated[Path, typer.Option(help="Folder of exported graphs, used again.")] = ROOT / "runs" / "networks",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every program is timed twice in each.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every program.")] = 2,
    only: Annotated[str, typer.Option(help=f"Networks, separated by commas, of {', '.join(NETWORKS)}.")] = "",
    processor: Annotated[
        bool,
        typer.Option("--processor", help="Count processor time, for one thread on a machine where other programs run."),
    ] = False,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", callback=check_json, help="Write all times as JSON; - is stdout."),
    ] = None,
) -> None:
    """Time four networks for x2 as they are exported, each beside the time of its own arithmetic.

    That is what its convolutions, linear layers and matmuls take at the rate of 1024x1024 matrix products in the same
    rounds. The programs of a network take turns, A B C C B A, and so do the networks, round by round; how a program is
    timed is what tools/compare_peers.py --help says. Networks without bundled weights are untrained. For clean numbers
    of several threads nothing else may run.
    """
    try:
        height, width = parse_size(size)
        if height % MULTIPLE or width % MULTIPLE:
            raise InputError(f"a size to compare is of multiples of {MULTIPLE}, so that no program has to pad")
        if processor and threads > 1:
            raise InputError("--processor is for --threads 1: of several threads it would count those that wait, too")
        console, heats, rows, skipped = people(json), {}, [], {}
        torch.set_num_threads(threads)
        with torch.inference_mode(), progress_bar("rounds") as progress:
            for arch in choose(only):
                programs = Programs(arch, (height, width), threads, work, console.print)
                heats[arch], skipped[arch] = programs.heat(), programs.skipped
            race([list(heat.values()) for heat in heats.values()], rounds, progress, processor)
        for arch, heat in heats.items():
            rows += network_rows(arch, heat, skipped[arch])
        made = " ".join(part for item in versions(("onnxruntime", "openvino", "torch")).items() for part in item)
        clock = "processor time" if processor else "time"
        title = f"LR {size}, x2, {clock} with --threads {threads}, {rounds} rounds; {cpu_name('/')}; {made}"
        columns = ["network", "program", "ms, median", "p10 to p90", "times its arithmetic (95 %)", "dB to the network"]
        console.print(table(title, columns, rows))
        console.print(markdown((title, columns, rows)))
        raw = {arch: {key: peer.to_dict() for key, peer in heat.items()} for arch, heat in heats.items()}
        emit_json(json, {"threads": threads, "size": [height, width], "heats": raw, "skipped": skipped})
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
