"""Which candidates there are, and what each is called."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from peers.arithmetic import Arithmetic, flop
from peers.cache import Cache, Say
from peers.candidate import Candidate, Image
from peers.in_onnxruntime import FixedCapacity, OurArtifact, PlainOnnx
from peers.in_openvino import OpenVino
from peers.in_torch import Source, TorchCompiled, TorchEager
from peers.race import BASELINE, Heat
from ppexport.backends.onnx.export_onnx import MODEL
from ppexport.device.artifact import GROUP, ONNX_FLAVOURS
from ppexport.device.mask import padded_tokens
from ppexport.device.sizes import capacity_set
from ppexport.errors import InputError
from ppexport.networks.atd.cost import count_macs

PEERS = "peers"
"""The heat that all programs run in; the others are one for every flavour of ours."""
SHARES = {"1/4": 0.25, "1/2": 0.5, "5/8": 0.625, "3/4": 0.75, "1": 1.0}
"""Capacities that a set is run with, as shares of all tokens."""
BOUND = "bound"


def slots_for(share: float, tokens: int) -> int:
    """The multiple of 128 that is at least *share* of *tokens*."""
    return min(tokens, -(-round(share * tokens) // GROUP) * GROUP)


def set_key(flavour: str, share: str) -> str:
    """The key of a set of *flavour* run with the share of slots called *share*."""
    return f"{flavour}-set-{share}"


KEYS = (
    BASELINE,
    "plain-flushed",
    "torch-eager",
    "torch-pure-pass",
    "torch-compile",
    *(f"{flavour}-{kind}" for flavour in ONNX_FLAVOURS for kind in ("dense", "full")),
    "openvino-plain",
    "openvino-portable",
    BOUND,
    *(set_key(flavour, share) for flavour in ONNX_FLAVOURS for share in SHARES),
    *(f"{flavour}-{kind}" for flavour in ONNX_FLAVOURS for kind in ("auto-pure", "auto-busy")),
)
"""All candidates; `--only` and `--without` take these."""


def check_keys(only: Collection[str], without: Collection[str]) -> frozenset[str]:
    """The keys to run. Raises InputError for one that is not known."""
    unknown = sorted((set(only) | set(without)) - set(KEYS))
    if unknown:
        raise InputError(f"{unknown[0]!r} is no candidate: {', '.join(KEYS)}")
    return frozenset({BASELINE, *((set(only) or set(KEYS)) - set(without))})


@dataclass
class Lineup:
    """Makes the candidates for one model and size; exports what is missing in the cache."""

    cache: Cache
    scale: int
    pure: Image
    """The picture with pure pixels, on which all are compared."""
    busy: Image
    """The picture without."""
    threads: int
    say: Say

    @property
    def tokens(self) -> int:
        """Pixels of the padded picture."""
        return padded_tokens(self.cache.size)

    def source(self, dense: bool) -> Source:
        """The network with or without Pure-Pass."""
        return Source(self.cache.model, dense)

    def plain(self) -> Path:
        """The plain graph's file."""
        return self.cache.plain(self.source(dense=True), self.say)

    def ours(self, flavour: str, dense: bool = False) -> Path:
        """Our artefact at full capacity."""
        return self.cache.artifact(self.source(dense), flavour, None, self.say)

    def our_set(self, flavour: str) -> Path:
        """Our capacity set."""
        return self.cache.artifact(self.source(dense=False), flavour, capacity_set(self.cache.size), self.say)

    def _makers(self) -> dict[str, Callable[[str], Candidate]]:
        """Key -> what makes that candidate. Exports happen when it is called."""
        lr, threads = self.pure, self.threads

        def in_torch(name: str, kind: type[TorchEager], dense: bool) -> Callable[[str], Candidate]:
            return lambda key: kind(key, name, lr, self.source(dense), threads)

        def full(name: str, flavour: str, dense: bool) -> Callable[[str], Candidate]:
            reference = "dense" if dense else "pure_pass"
            return lambda key: OurArtifact(key, name, lr, self.ours(flavour, dense), threads, reference)

        def fixed(flavour: str, share: str) -> Callable[[str], Candidate]:
            slots = slots_for(SHARES[share], self.tokens)
            name = f"ours, {flavour}: {slots} slots"
            return lambda key: FixedCapacity(key, name, lr, self.our_set(flavour), threads, slots)

        def chosen(flavour: str, what: str, picture: Image) -> Callable[[str], Candidate]:
            name = f"ours, {flavour}: slots chosen, {what}"
            return lambda key: OurArtifact(key, name, picture, self.our_set(flavour), threads, "pure_pass")

        makers: dict[str, Callable[[str], Candidate]] = {
            BASELINE: lambda key: PlainOnnx(key, "plain ONNX", lr, self.plain(), threads),
            "plain-flushed": lambda key: PlainOnnx(
                key, "plain ONNX, denormals as zero", lr, self.plain(), threads, flush=True
            ),
            "torch-eager": in_torch("PyTorch eager", TorchEager, dense=True),
            "torch-pure-pass": in_torch("PyTorch eager, with Pure-Pass", TorchEager, dense=False),
            "torch-compile": in_torch("PyTorch, torch.compile", TorchCompiled, dense=True),
            "openvino-plain": lambda key: OpenVino(key, "plain ONNX, in OpenVINO", lr, self.plain(), threads),
            "openvino-portable": lambda key: OpenVino(
                key,
                "ours, portable: dense, in OpenVINO",
                lr,
                self.ours("portable", dense=True) / MODEL,
                threads,
            ),
            BOUND: lambda key: Arithmetic(
                key,
                "arithmetic alone, at the rate of sgemm",
                lr,
                flop(count_macs(self.scale, self.cache.size)),
                threads,
            ),
        }
        for flavour in ONNX_FLAVOURS:
            makers[f"{flavour}-dense"] = full(f"ours, {flavour}: dense", flavour, dense=True)
            makers[f"{flavour}-full"] = full(f"ours, {flavour}: Pure-Pass, full capacity", flavour, dense=False)
            makers |= {set_key(flavour, share): fixed(flavour, share) for share in SHARES}
            makers[f"{flavour}-auto-pure"] = chosen(flavour, "pure picture", self.pure)
            makers[f"{flavour}-auto-busy"] = chosen(flavour, "busy picture", self.busy)
        return makers

    def heats(self, wanted: Collection[str]) -> list[Heat]:
        """The heats with the candidates *wanted*; a flavour's dense artefact comes with whatever is compared to it."""
        makers, made = self._makers(), dict[str, Candidate]()

        def make(key: str) -> Candidate:
            if key not in made:
                made[key] = makers[key](key)
            return made[key]

        own = {
            flavour: [
                key
                for key in KEYS
                if key.startswith(f"{flavour}-") and key not in (f"{flavour}-dense",) and key in wanted
            ]
            for flavour in ONNX_FLAVOURS
        }
        everyone = [key for key in KEYS[: KEYS.index(BOUND) + 1] if key in wanted]
        heats = [Heat(PEERS, tuple(make(key) for key in everyone))]
        for flavour, keys in own.items():
            if keys:
                heats.append(Heat(flavour, tuple(make(key) for key in (f"{flavour}-dense", *keys))))
        return heats
