"""Builds an engine from an ONNX artifact, on this machine or on a device, and makes an engine artifact of it.

The work is done by `run_builder` in the device's Python, where that has TensorRT, else by trtexec.

An engine artifact is a folder of its own: `model.engine`, `build.log`, `timing.cache`, `device.json`, `layers.json` and
`manifest.json`, which is that of the ONNX artifact with backend "tensorrt" and the field `engine` (see `run_facts`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ppexport.backends.onnx.modules import module_of_name
from ppexport.backends.onnx.run_external import graph_bytes
from ppexport.backends.tensorrt import trtexec
from ppexport.backends.tensorrt.run_builder import ENGINE, LAYERS, LOG, MODEL, RUNTIMES, TIMING_CACHE
from ppexport.backends.tensorrt.run_facts import Machine, machine_of, sign
from ppexport.device.agent import ARCHIVE, OUTCOME
from ppexport.device.artifact import Artifact, read_artifact, write_manifest
from ppexport.errors import EXIT_GATE_FAILED, ArtifactError, ExportError, PpexportError, UnavailableError, printable
from ppexport.files import sha256_file, sha256_text, write_text
from ppexport.folders import artifact_target, new_folder, work_beside
from ppexport.remote.address import TransferError
from ppexport.remote.archive import AgentWork
from ppexport.remote.detached import OUTPUT, Pace, State, Telling
from ppexport.remote.output import TAIL, JobOutput, parse_object
from ppexport.remote.transport import Transport

WORK = "ppexport.backends.tensorrt.run_builder:build"
DEVICE = "device.json"
LIMITS = {ENGINE: 8 << 30, LOG: 256 << 20, TIMING_CACHE: 1 << 30, LAYERS: 256 << 20}
"""Bytes that each file from a device may have. The layer list of a large set takes some ten megabytes."""
MAX_TEXT = 200
MACHINE = tuple(field.name for field in fields(Machine))
"""Fields of an outcome that are texts, or null, and are printed."""
FUSED = re.compile(r"mha|fmha|attention_fus|fused_attention", re.IGNORECASE)
"""In the name, type or tactic of a layer that computes attention in one kernel."""
SHOWN = 3
"""Errors that a sentence holds; the log has all."""


class BuildFailed(ExportError):
    """TensorRT made no engine of a model; the files and options were good."""

    exit_code = EXIT_GATE_FAILED


def read_source(path: Path) -> Artifact:
    """The ONNX artifact in the folder *path*. Raises ArtifactError unless an engine can be built from it."""
    artifact = read_artifact(path)
    manifest = artifact.manifest
    if manifest.backend != "onnx" or manifest.flavour == "ort":
        made = f"{manifest.backend}, flavour {manifest.flavour}"
        raise ArtifactError(f"{path} is for {made}: an engine is built from `ppexport export --backend tensorrt`")
    # Before TensorRT or a device sees it: the parser opens the files that a graph names.
    graph_bytes(artifact)
    return artifact


@dataclass(frozen=True)
class EngineRequest:
    """What engine is to be built."""

    source: Artifact
    """As `read_source` returns it."""
    workspace_mb: int | None = None
    """Memory that TensorRT may use for a layer; None leaves the choice to it."""
    tf32: bool = False
    optimization_level: int | None = None
    """0 to 5; None is TensorRT's default."""
    runtime: str | None = None
    """"tensorrt" or "tensorrt_rtx"; None is the first that the machine has."""

    @property
    def onnx_sha256(self) -> str:
        """Hash of the model."""
        return self.source.manifest.files[self.source.graph_file.name]

    @property
    def data(self) -> dict[str, Any]:
        """What the builder receives, as `run_builder` describes it; the model goes beside it."""
        manifest = self.source.manifest
        return {
            "onnx_sha256": self.onnx_sha256,
            "tf32": self.tf32,
            "slots": manifest.capacities if len(manifest.capacities) > 1 else [],
            "workspace_mb": self.workspace_mb,
            "optimization_level": self.optimization_level,
            "runtime": self.runtime,
            "activation_bytes": manifest.activation_bytes or None,
        }

    @property
    def prefix(self) -> str:
        """What the names of all jobs of this model begin with."""
        return f"build-{self.onnx_sha256[:16]}-"


def _check_outcome(outcome: Mapping[str, Any], engine: Path) -> None:
    """Raise TransferError unless *outcome*, which comes from a device, can be kept and is of the file *engine*."""
    kinds: dict[str, tuple[type, ...]] = {name: (str, type(None)) for name in MACHINE}
    kinds.update(seconds=(int, float), activation_bytes=(int, type(None)), device=(dict,))
    for name, kind in kinds.items():
        value = outcome.get(name)
        long = isinstance(value, str) and len(value) > MAX_TEXT
        endless = isinstance(value, float) and not math.isfinite(value)
        if not isinstance(value, kind) or isinstance(value, bool) or long or endless:
            raise TransferError(f"the device's result has no usable {name}")
    if outcome.get("engine_sha256") != sha256_file(engine):
        raise TransferError("the engine that arrived is not the one that the device's result describes")


def _is_fused(layers: list[Any]) -> bool:
    """Whether some layer is attention in one kernel, as far as names tell."""
    keys = ("Name", "LayerType", "TacticName")
    return any(FUSED.search(str(layer.get(key, ""))) for layer in layers if isinstance(layer, dict) for key in keys)


def engine_artifact(request: EngineRequest, outcome: Mapping[str, Any], folder: Path, out: Path) -> Path:
    """Make the engine artifact *out*, atomically, of what a build left.

    Args:
        request: what was built.
        outcome: what `run_builder.build` returned, checked here.
        folder: holds `model.engine`, `build.log`, `timing.cache`, and `layers.json` where there is a layer list. They
            are moved away.
        out: the artifact's folder; it is signed as this user's own.

    Raises:
        TransferError: the outcome cannot be used, or is not of this engine.
        ArtifactError: it does not say which TensorRT built the engine.
        InputError: *out* holds something else.
    """
    _check_outcome(outcome, folder / ENGINE)
    source, out = request.source, artifact_target(out)
    listed = parse_object((folder / LAYERS).read_bytes()) if (folder / LAYERS).is_file() else {}
    if listed is None:
        raise TransferError(f"{LAYERS} from the device is not a JSON object")
    layers = listed.get("Layers")
    layers = layers if isinstance(layers, list) else None
    machine = {name: outcome.get(name) for name in MACHINE}
    facts = {
        **machine,
        **{name: request.data[name] for name in ("tf32", "workspace_mb", "optimization_level")},
        **{name: outcome.get(name) for name in ("seconds", "activation_bytes")},
        "attention_fused": _is_fused(layers) if layers else None,
        "source": {"name": source.path.resolve().name, "onnx_sha256": request.onnx_sha256},
        "profiles": source.manifest.capacities,
        "layers": None if layers is None else len(layers),
    }
    with new_folder(out) as made:
        for name in (ENGINE, TIMING_CACHE):
            os.rename(folder / name, made / name)
        write_text(made / LOG, printable((folder / LOG).read_bytes()))
        write_text(made / DEVICE, json.dumps({**machine, **outcome["device"]}, indent=2) + "\n")
        write_text(made / LAYERS, json.dumps(layers, indent=1) + "\n")
        manifest = replace(
            source.manifest,
            backend="tensorrt",
            files={name: sha256_file(made / name) for name in (ENGINE, LOG, TIMING_CACHE, DEVICE, LAYERS)},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            engine=facts,
        )
        machine_of(manifest)
        write_manifest(made, sign(manifest))
    return out


class EngineBuild(AgentWork[Path]):
    """The build of one engine on one device."""

    noun, doing, failed = "build", "building", BuildFailed

    def __init__(
        self, transport: Transport, request: EngineRequest, out: Path, telling: Telling, pace: Pace | None = None
    ) -> None:
        """*out* is the engine artifact's folder; the whole log of a failed build becomes the file `OUT-build.log`."""
        digest = sha256_text(json.dumps(request.data, sort_keys=True))
        super().__init__(transport, request.prefix, digest, None, telling, pace)
        self.request, self.out = request, out

    def run(self, timeout: float | None = None) -> Path:
        """Build, or continue with an earlier build, and make the engine artifact; returns its folder.

        Raises:
            BuildFailed: TensorRT built no engine; its log was shown.
            UnavailableError: the device has no TensorRT.
            DeviceError: the device cannot be used; StillRunning after *timeout* seconds.
        """
        with work_beside(Path(os.path.abspath(self.out)), "build") as self.work:
            return self.follow_up(timeout)

    def _failed_before(self) -> None:
        self.telling.notice(f"the last build on {self.transport.name} failed, its log ends with:")
        self._show_log()
        self.telling.notice("starting it again")

    def _start(self) -> None:
        self.job.discard((OUTCOME, ENGINE, LOG, LAYERS))
        name, wanted, module = self.transport.name, self.request.runtime, WORK.partition(":")[0]
        runtimes = RUNTIMES if wanted is None else (wanted,)
        found = self._probe((module, *(f"{runtime}:Builder" for runtime in runtimes)))
        by_python = not found.old and module in found.has and any(runtime in found.has for runtime in runtimes)
        if not by_python:
            # The archive in a job's folder says that Python builds.
            self.job.discard((ARCHIVE,))
            if wanted == "tensorrt_rtx":
                raise UnavailableError(
                    f"{name} has no TensorRT-RTX: its {self.python} does not import tensorrt_rtx; leave --runtime out"
                )
            if self.transport.checked(trtexec.PROBE).strip() != b"yes":
                raise UnavailableError(
                    f"{name} has no TensorRT: neither its {self.python} imports one, nor is there a trtexec; on a "
                    "Jetson it comes with JetPack"
                )
        self._estimate()
        files: dict[str, Path | bytes] = {MODEL: graph_bytes(self.request.source)}
        if by_python:
            self._start_agent(WORK, self.request.data, files)
        else:
            self._send(files)
            self._run(trtexec.command(self.request.data))

    def _estimate(self) -> None:
        """Say before building what a run will take, and what the device has."""
        need = self.request.source.manifest.activation_bytes
        if not need:
            return
        has = self.transport.describe().get("memory_kb", "")
        of = f" of the {int(has) / 2**20:.1f} GiB of {self.transport.name}" if has.isdecimal() else ""
        self.telling.notice(
            f"a run's tensors take about {need / 2**20:.0f} MiB{of}, two to three times as much as TensorRT places them"
        )

    def _collect(self) -> Path:
        folder, by_python = self.work / "collected", self.job.has(ARCHIVE)
        folder.mkdir()
        try:
            self.job.get(ENGINE, folder / ENGINE, LIMITS[ENGINE])
            if (folder / ENGINE).stat().st_size == 0:
                raise BuildFailed("TensorRT says that the build went well, but its engine is an empty file")
            self.job.get(TIMING_CACHE, folder / TIMING_CACHE, LIMITS[TIMING_CACHE])
            self.job.get(LOG if by_python else OUTPUT, folder / LOG, LIMITS[LOG])
            if self.job.has(LAYERS):
                self.job.get(LAYERS, folder / LAYERS, LIMITS[LAYERS])
            outcome = self._outcome() if by_python else self._outcome_of_trtexec(folder)
            return engine_artifact(self.request, outcome, folder, self.out)
        except BuildFailed:
            self._show_log()
            # What is on the device would fail again: the same command is to build anew.
            self.job.remove()
            raise
        except TransferError as error:
            raise TransferError(f"{error}; if that happens again, --clean removes the build on the device") from None

    def _outcome_of_trtexec(self, folder: Path) -> dict[str, Any]:
        """What `run_builder.build` would return, from trtexec's log in *folder*."""
        said = trtexec.read_log(printable((folder / LOG).read_bytes()))
        if not said.passed:
            raise BuildFailed(said.errors[0] if said.errors else "trtexec ended well, but its log does not say so")
        here = {"engine_sha256": sha256_file(folder / ENGINE), "device": self.transport.describe()}
        return {"runtime": "tensorrt", **said._asdict(), **here}

    def _show_log(self) -> None:
        """Show the end of the job's log, all of which goes into the file `OUT-build.log`, if there is one."""
        target = self.out.with_name(self.out.name + "-build.log")
        for name in (LOG, OUTPUT):
            if self.job.has(name):
                self.job.get(name, target, LIMITS[LOG])
                text = printable(target.read_bytes())
                write_text(target, text)
                if text.strip():
                    self.telling.notice(f"the whole log is in {target}")
                    for line in text.rstrip().splitlines()[-TAIL:]:
                        self.telling.notice(f"    {line[:1000]}")
                    return

    def _explain(self, event: dict[str, Any] | None, output: JobOutput, state: State) -> PpexportError | None:
        name = self.transport.name
        if event is None or event["kind"] != "no-tensorrt":
            self._show_log()
        if event is not None:
            return failure(event)
        if state.killed:
            return BuildFailed(
                f"the build on {name} {state.ending}: free memory on it, limit what TensorRT uses with --workspace, or "
                "export a smaller --size; the same command starts it again"
            )
        said = trtexec.read_log("\n".join(output.tail)).errors
        return BuildFailed(f"trtexec on {name} built no engine: {said[0]}") if said and state.kind == "exited" else None


def failure(event: Mapping[str, Any]) -> PpexportError:
    """The error of a builder's event "failed", which names the PyTorch modules that TensorRT's parser objects to."""
    message, errors = " ".join(event["message"].split()), event.get("errors")
    if event["kind"] == "no-tensorrt":
        return UnavailableError(message)
    if event["kind"] != "parse" or not isinstance(errors, list) or not errors:
        return BuildFailed(message or "TensorRT built no engine and gave no reason")
    told = []
    for error in errors[:SHOWN]:
        texts = error if isinstance(error, dict) else {}
        node, operator, text = (" ".join(str(texts.get(key, "")).split()) for key in ("node", "operator", "text"))
        module = module_of_name(node)
        where = f"module {module}" if module else node or "an unnamed node"
        told.append(f"{operator or 'an operator'} in {where}: {text or 'no reason given'}")
    more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return BuildFailed(f"TensorRT cannot read the model: {'; '.join(told)}{more}")
