"""The programs that tools/compare_peers.py compares, and their measurement in turns by the product's own loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import plain_export
import torch
from numpy.typing import NDArray
from plain_export import export_plain

import ppexport
from ppexport.backends.onnx.run_onnxruntime import make_session
from ppexport.device.capacities import capacity_set
from ppexport.device.journal import Journal, Past
from ppexport.device.mask import ATD_LAYOUT, pure_mask
from ppexport.device.measure import Loop, Plan, Query, Subject
from ppexport.device.picture import to_input
from ppexport.device.runner import Flushed
from ppexport.device.target import Target, open_target
from ppexport.errors import InputError, UnavailableError, first_line
from ppexport.exporting import export, package_versions
from ppexport.files import sha256_text
from ppexport.imaging.images import photo_folder, read_levels
from ppexport.networks.architecture import find_architecture
from ppexport.networks.atd.atd_light import ATDLight
from ppexport.networks.atd.config import GROUP
from ppexport.networks.card import Card, find_card
from ppexport.networks.load import load_network
from ppexport.profile.latency_run import crop
from ppexport.profile.statistics import Interval, median_interval

FLAVOURS = ("portable", "ort")
Image: TypeAlias = NDArray[np.float32]
Run: TypeAlias = Callable[[Image], tuple[Image, Query]]
"""LR (1, 3, h, w) in [0, 1] -> SR (1, 3, h * scale, w * scale), not clipped, and what the run tells of itself."""
UNTOLD = Query(0, 0, -1)
SIDE, PRODUCTS = 1024, 8
FLOP = 2 * PRODUCTS * SIDE**3
"""Floating point operations of one run of `matrix_products`: two for every multiply-add."""
BASELINE, BOUND = "plain", "bound"
SHARES = {"1/4": 0.25, "1/2": 0.5, "5/8": 0.625, "3/4": 0.75, "1": 1.0}
"""Capacities that a set is run with, as shares of all tokens."""
SLOTS = {f"set-{share}": f"{share} of all slots" for share in SHARES}
SLOTS |= {f"auto-{picture}": f"slots chosen, {picture} picture" for picture in ("pure", "busy")}
NAMES = {
    BASELINE: "plain ONNX",
    "plain-flushed": "plain ONNX, denormals as zero",
    "torch-eager": "PyTorch eager",
    "torch-pure-pass": "PyTorch eager, with Pure-Pass",
    "torch-compile": "PyTorch, torch.compile",
    **{f"{f}-dense": f"ours, {f}: dense" for f in FLAVOURS},
    **{f"{f}-full": f"ours, {f}: Pure-Pass, full capacity" for f in FLAVOURS},
    "openvino-plain": "plain ONNX, in OpenVINO",
    "openvino-portable": "ours, portable: dense, in OpenVINO",
    BOUND: "arithmetic alone, at the rate of sgemm",
    **{f"{f}-{kind}": f"ours, {f}: {what}" for f in FLAVOURS for kind, what in SLOTS.items()},
}
"""All programs by the keys that `--only` and `--without` take."""
DENSE = ("", "flushed", "eager", "compile", "plain", "portable", "dense")
"""What keys of programs that compute the network without Pure-Pass end with."""
PHOTO, FLAT, CELL = "astronaut.png", (40, 90, 200), 8
SPECKS = ((200, 40, 30), (30, 60, 200))
"""Two colours with different labels."""
Pixels: TypeAlias = NDArray[np.uint8]


def busy_photo(size: tuple[int, int], window: int) -> Pixels:
    """The middle of a photograph, (h, w, 3), with no pure pixel: in every Pure-Pass window two pixels differ in label.

    They lie on a lattice with the window's period, so each window of both grids holds exactly one pair.
    """
    rgb = crop(read_levels(photo_folder() / PHOTO), size, (0.5, 0.5))
    for i, colour in enumerate(SPECKS):
        rgb[window // 2 - 1 :: window, window // 2 + i :: window] = colour
    return rgb


def with_pure_share(rgb: Pixels, share: float) -> Pixels:
    """A copy of *rgb* whose upper cells of 8x8 pixels, row by row, are flat: about *share* of the picture."""
    h, w = rgb.shape[0] // CELL, rgb.shape[1] // CELL
    flat = np.arange(h * w).reshape(h, w) < round(share * h * w)
    out: Pixels = rgb.copy()
    out[flat.repeat(CELL, axis=0).repeat(CELL, axis=1)] = FLAT
    return out


def plain_graph(path: Path, threads: int, flush: bool) -> Run:
    """The ONNX graph *path* in ONNX Runtime with default options; with *flush* denormals count as zeros."""
    import onnxruntime

    if flush:
        session: Any = make_session(path.read_bytes(), str(path), threads)
    else:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            # Opening a session changes the mode of this thread for good, unless it is put back.
            with Flushed():
                session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise UnavailableError(f"ONNX Runtime cannot load it: {first_line(error)}") from None
    return lambda lr: (session.run(["sr"], {"lr": lr})[0], UNTOLD)


def in_openvino(path: Path, threads: int) -> Run:
    """The ONNX graph *path* in OpenVINO's CPU plugin. Raises UnavailableError where OpenVINO is missing."""
    from ppexport.backends.openvino.run_openvino import Session

    session = Session(path.read_bytes(), str(path), threads=threads)
    return lambda lr: (session.run({"lr": lr}, ["sr"])["sr"], UNTOLD)


def in_torch(network: Any, threads: int, compiled: bool) -> Run:
    """*network* in PyTorch, as it is or through torch.compile, which compiles in its first run."""
    torch.set_num_threads(threads)
    network = torch.compile(network) if compiled else network

    def run(lr: Image) -> tuple[Image, Query]:
        try:
            return network(torch.from_numpy(lr)).numpy(), UNTOLD
        except Exception as error:  # whatever a compiler's layers raise
            raise UnavailableError(f"PyTorch fails: {type(error).__name__}: {first_line(error)}") from None

    return run


def matrix_products(threads: int) -> Run:
    """No network: FLOP operations as the best known kernel does them; the picture is not touched.

    That is PyTorch's or ONNX Runtime's, whichever is faster here: on an AMD EPYC the former reaches half of the latter.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(SIDE, SIDE, generator=generator) for _ in range(2))
    out, shape = torch.empty(SIDE, SIDE), [SIDE, SIDE]
    a_info, b_info, out_info = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b", "c")
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a_info, b_info], [out_info])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with Flushed():
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"a": a.numpy(), "b": b.numpy()}

    def taken(product: Callable[[], object]) -> float:
        product()
        begin = time.process_time()
        for _ in range(3):
            product()
        return time.process_time() - begin

    products: list[Callable[[], object]] = [partial(torch.mm, a, b, out=out), partial(session.run, None, feeds)]
    product = min(products, key=taken)

    def run(lr: Image) -> tuple[Image, Query]:
        for _ in range(PRODUCTS):
            product()
        return lr, UNTOLD

    return run


def our_artifact(target: Target, slots: int | None = None) -> Run:
    """An artifact of ours, called as a user calls it; *slots* replaces the choice of the capacity."""
    runner = open_target(target)

    def run(lr: Image) -> tuple[Image, Query]:
        begin = time.perf_counter_ns()
        prepared = runner.prepare(lr)
        host = time.perf_counter_ns() - begin
        result = runner.run(prepared if slots is None else prepared._replace(capacity=slots))
        return result.sr, Query(host, result.capacity, result.impure_tokens)

    return run


class Peer(Subject):
    """One way to super-resolve the picture *lr*."""

    def __init__(self, name: str, lr: Image, open_it: Callable[[], Run], reference: str | None = None) -> None:
        """*reference* is the network whose picture it must give, None where it may give another one."""
        self.name, self.lr, self.open_it, self.reference = name, lr, open_it, reference
        self.part = 1.0
        """Of a run's time that counts."""
        self.target: Target | None = None
        """The artifact of ours that it runs."""
        self.keep = False
        """Whether it stays open between rounds: torch has no session, and compiles for minutes."""
        self.rounds: list[list[float]] = []
        """Milliseconds."""
        self.told: list[Query] = []
        self.decibel: float | None = None
        """To the reference's picture."""
        self.peak: int | None = None
        """Most bytes of a process that does nothing but open it and run it once."""
        self.run: Run | None = None

    def load(self) -> None:
        """Open it, unless it is open."""
        self.run = self.run or self.open_it()

    def query(self, image: int) -> Query:
        """Run it on its picture."""
        assert self.run is not None
        return self.run(self.lr)[1]

    @property
    def spread(self) -> tuple[float, float, float]:
        """10th percentile, median and 90th percentile of all times, in ms."""
        low, middle, high = np.percentile(np.concatenate(self.rounds), (10, 50, 90))
        return float(low), float(middle), float(high)

    def relative(self, baseline: Peer) -> Interval:
        """Its time divided by that of *baseline*, which took turns with it.

        Ratios are taken per round: within a round the machine is nearly the same for both, and over the whole run its
        speed changes by a third.
        """
        pairs = zip(self.rounds, baseline.rounds, strict=True)
        return median_interval([float(np.mean(own) / np.mean(other)) for own, other in pairs])

    def to_dict(self) -> dict[str, Any]:
        """For JSON; equal pictures have null for infinite dB."""
        return {"name": self.name, "ms": self.rounds, "decibel": self.decibel, "peak_bytes": self.peak}


class _Records(Journal):
    """Gives every query to its peer, in place of a file: what is compared takes minutes, and is not continued."""

    def __init__(self, peers: Sequence[Peer], processor: bool) -> None:
        self.peers, self.column = peers, 5 if processor else 4

    def write(self, *record: Any) -> None:
        if record[0] == "q":
            peer = self.peers[record[1]]
            peer.rounds[-1].append(record[self.column] / 1e6 * peer.part)
            peer.told.append(Query(*record[6:]))

    def sync(self) -> None:
        pass


def race(
    heats: Sequence[Sequence[Peer]], rounds: int, progress: Callable[[int, int], object], processor: bool = False
) -> None:
    """Time the peers of every one of *heats* in turns by the product's own loop, A B C C B A, in *rounds* rounds.

    With *processor* the time is what the threads of this process computed, not what passed.

    Every round begins with the next peer and opens all sessions anew, which finds them elsewhere in memory: where a
    session's memory happens to lie changes its times by up to a tenth for as long as it lives. Between eight processes
    the ratio of one and the same pair of graphs went from 0.89 to 0.99.
    """
    plan = Plan("peers", queries=2, seconds=0.0, warm_windows=0)
    for i in range(rounds):
        for heat in heats:
            order = [heat[(place + i) % len(heat)] for place in range(len(heat))]
            for peer in order:
                peer.rounds.append([])
                peer.run = peer.run if peer.keep else None
            Loop(order, 1, plan, _Records(order, processor)).run(Past(len(order)))
            for peer in order:
                peer.run = peer.run if peer.keep else None
        progress(i + 1, rounds)


def open_card(model: str) -> tuple[Card, Path]:
    """Card and folder of *model*. Raises PpexportError for one without weights or without Pure-Pass."""
    card, folder = find_card(model)
    if card.weights is None or card.options is None:
        raise InputError(f"{model} has no {'weights' if card.weights is None else 'Pure-Pass'}: name a PP-ATD-light")
    return card, folder


def load(model: str, dense: bool) -> ATDLight:
    """The network of *model*, in eval mode; *dense*: its weights without Pure-Pass. Raises PpexportError."""
    card, folder = open_card(model)
    assert card.weights is not None
    weights = folder / card.weights.file
    network = load_network(arch="atd_light", scale=card.scale, checkpoint=weights) if dense else load_network(model)
    assert isinstance(network, ATDLight)
    return network


@cache
def our_code() -> str:
    """All code that an export depends on: between two commits the version stays and the graph does not."""
    files = [*Path(ppexport.__file__).parent.rglob("*.py"), Path(__file__), Path(plain_export.__file__)]
    return "\0".join(f"{p.name}\0{p.read_text(encoding='utf-8')}" for p in sorted(files))


class Lineup:
    """Makes the programs for one model and size; what they run is exported into *work*, and used again.

    All are compared on a picture of which about *pure_share* is pure, `pure`, and some on one without, `busy`.
    """

    def __init__(
        self, model: str, size: tuple[int, int], work: Path, threads: int, pure_share: float,
        say: Callable[[str], object],
    ) -> None:  # fmt: skip
        """Raises PpexportError for a model that `open_card` refuses."""
        self.card, _ = open_card(model)
        self.model, self.size, self.work, self.threads, self.say = model, size, work, threads, say
        o = self.card.options.model_dump()  # type: ignore[union-attr]
        busy = busy_photo(size, o["window"])
        pictures = with_pure_share(busy, pure_share), busy
        self.pure, self.busy = (to_input(rgb) for rgb in pictures)
        self.mask, no_mask = (
            pure_mask(rgb, o["colors"], o["window"], o["csmf"], centres=o["centres"]) for rgb in pictures
        )
        self.shares = float(self.mask.mean()), float(no_mask.mean())
        self.flop = 2 * find_architecture("atd_light").cost(self.card.scale, size).pure
        """Of the dense network: convolutions, linear layers and matmuls; norms, softmax and GELU are left out."""

    def _exported(self, kind: str, dense: bool, make: Callable[[ATDLight, Path], object]) -> Path:
        """Where *make* puts what it makes of the network; it is called where nothing is kept of the same inputs."""
        made_from = sha256_text(f"{self.card.hash()} {package_versions()} {our_code()}")[:12]
        name = f"{self.card.name}-{'dense-' if dense else ''}{kind}-{self.size[0]}x{self.size[1]}-{made_from}"
        if not (self.work / name).exists():
            self.say(f"exporting {name}")
            self.work.mkdir(parents=True, exist_ok=True)
            make(load(self.model, dense), self.work / name)
        return self.work / name

    def plain(self) -> Path:
        """The plain graph's file."""
        return self._exported("plain.onnx", True, lambda network, out: export_plain(network, self.size, out))

    def ours(self, flavour: str, dense: bool, slots: Sequence[int] | None = None) -> Target:
        """Our artifact in ONNX Runtime, at full capacity unless *slots* of a capacity set are named."""

        def make(network: ATDLight, out: Path) -> None:
            export(network, backend="onnx", size=self.size, out=out, capacities=slots, flavour=flavour)

        folder = self._exported(f"{flavour}-{'full' if slots is None else 'set'}", dense, make)
        return Target(str(folder.resolve()), "onnxruntime", "CPU", self.threads)

    def peer(self, key: str) -> Peer:
        """The program called *key*; what it runs is exported now unless it is kept. Raises PpexportError."""
        family, _, kind = key.partition("-")
        dense, target, slots = kind in DENSE, None, None
        open_it: Callable[[], Run]
        if family == "plain":
            open_it = partial(plain_graph, self.plain(), self.threads, kind == "flushed")
        elif family == "torch":
            open_it = partial(in_torch, load(self.model, dense), self.threads, kind == "compile")
        elif key == "openvino-plain":
            open_it = partial(in_openvino, self.plain(), self.threads)
        elif key == BOUND:
            open_it = partial(matrix_products, self.threads)
        else:
            if key == "openvino-portable":
                target = replace(self.ours("portable", dense), runtime="openvino")
            elif kind in ("dense", "full"):
                target = self.ours(family, dense)
            else:
                target = self.ours(family, dense, capacity_set(self.size))
                if kind.startswith("set-"):
                    tokens = ATD_LAYOUT.tokens(self.size)
                    slots = min(tokens, -(-round(SHARES[kind[4:]] * tokens) // GROUP) * GROUP)
            open_it = partial(our_artifact, target, slots)
        reference = None if key == BOUND or slots is not None else "dense" if dense else "pure_pass"
        peer = Peer(NAMES[key], self.busy if kind == "auto-busy" else self.pure, open_it, reference)
        peer.target, peer.keep = target, family == "torch"
        peer.part = self.flop / FLOP if key == BOUND else 1.0
        return peer
