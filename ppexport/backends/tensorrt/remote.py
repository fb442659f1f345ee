"""Builds an engine on a device, this machine or one behind ssh, in a job that outlives the connection.

The job's folder is named after the model and the request. The same call again therefore finds it: it waits for a build
that runs, collects one that is done, and starts one that failed anew. The folder is removed once the artefact is
whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ppexport.backends.onnx.run_external import graph_bytes
from ppexport.backends.tensorrt import run_builder as engine_builder
from ppexport.backends.tensorrt import trtexec
from ppexport.backends.tensorrt.engine_artifact import engine_artifact
from ppexport.backends.tensorrt.remote_collect import LIMITS, collect
from ppexport.backends.tensorrt.trtexec import BuildFailed, failure
from ppexport.device.artifact import Artifact
from ppexport.errors import UnavailableError
from ppexport.files import sha256_file, write_text
from ppexport.folders import work_beside
from ppexport.remote import scripts
from ppexport.remote.address import TransferError
from ppexport.remote.job import OUTPUT, Pace, State, remove_jobs
from ppexport.remote.output import TAIL, JobOutput, printable
from ppexport.remote.transport import Transport
from ppexport.remote.work import NO_SPACE, DetachedWork, Telling

BUILDER = "engine_builder.py"
REQUEST = "request.json"
COLLECTED = "collected"
PROBE_SECONDS = 120
"""Importing TensorRT from a memory card takes a while."""
PROBE = (
    scripts.PRELUDE
    + r"""
python=$1
shift
if command -v "$python" > /dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))'; then
    for module in "$@"; do
        if "$python" -c 'import importlib, sys; importlib.import_module(sys.argv[1]).Builder' "$module" \
            > /dev/null 2>&1; then
            echo python; exit 0
        fi
    done
fi
PATH=$PATH:/usr/src/tensorrt/bin
if command -v trtexec > /dev/null; then echo trtexec; else echo none; fi
"""
)
"""How the device can build: `python`, `trtexec` or `none`. `$1` is its Python, `$2`… the modules that would do."""


def job_prefix(request: dict[str, Any]) -> str:
    """What the names of all jobs of a model begin with."""
    return f"build-{request['onnx_sha256'][:16]}-"


def job_name(request: dict[str, Any]) -> str:
    """The job folder of *request* with this version of the builder."""
    text = json.dumps(request, sort_keys=True) + sha256_file(Path(engine_builder.__file__))
    return job_prefix(request) + hashlib.sha256(text.encode()).hexdigest()[:12]


def clean(transport: Transport, request: dict[str, Any]) -> list[str]:
    """Stop and remove every build of the request's model on the device; returns what was done."""
    return remove_jobs(transport, job_prefix(request))


class RemoteBuild(DetachedWork[Path]):
    """The build of one request on one device."""

    noun, doing = "build", "building"

    def __init__(
        self, transport: Transport, source: Artifact, request: dict[str, Any], telling: Telling,
        pace: Pace | None = None,
    ) -> None:  # fmt: skip
        super().__init__(transport, job_name(request), telling, pace)
        self.source = source
        self.request = request
        self.out = source.path.with_name(source.path.name + "-engine")

    def run(self, out: Path, timeout: float | None = None) -> Path:
        """Build, or go on with an earlier build, and make the engine artefact *out*; returns it.

        Raises BuildFailed after telling the log, whose whole is then in the file `OUT-build.log`; UnavailableError
        for a device without TensorRT; DeviceError, among them StillRunning after *timeout* seconds.
        """
        self.out = out
        with work_beside(Path(os.path.abspath(out)), "build") as self.work:
            return self.follow_up(timeout)

    def _failed_before(self, state: State) -> None:
        self.telling.notice(f"the last build on {self.transport.name} failed, its log ends with:")
        self._tell(self._log())
        self.telling.notice("starting it again")

    def _start(self) -> None:
        self.telling.stage(f"looking for TensorRT on {self.transport.name}")
        wanted = self.request["runtime"]
        modules = engine_builder.RUNTIMES if wanted is None else (wanted,)
        tool = self.transport.checked(PROBE, (self.transport.python, *modules), PROBE_SECONDS)
        outputs = ("engine", "log", "device", "result")
        self.job.discard([*(self.request[part] for part in outputs), trtexec.ARGUMENTS, trtexec.LAYERS])
        with tempfile.TemporaryDirectory() as folder:
            request = Path(folder) / REQUEST
            write_text(request, json.dumps(self.request, indent=2) + "\n")
            if tool.strip() == b"python":
                files = {REQUEST: request, BUILDER: Path(engine_builder.__file__)}
                command = [self.transport.python, "-u", BUILDER, REQUEST]
            elif tool.strip() == b"trtexec" and wanted != "tensorrt_rtx":
                arguments = Path(folder) / trtexec.ARGUMENTS
                write_text(arguments, "\n".join(trtexec.arguments(self.request)) + "\n")
                files, command = {trtexec.ARGUMENTS: arguments}, trtexec.command(self.request)
            else:
                raise UnavailableError(self._missing(wanted))
            self._estimate()
            model = Path(folder) / self.request["onnx"]
            model.write_bytes(graph_bytes(self.source))
            for name, file in {**files, self.request["onnx"]: model}.items():
                self.telling.stage(f"sending {name}")
                self.job.put(file, name)
        self._run(command)

    def _missing(self, wanted: str | None) -> str:
        """Why nothing can be built there."""
        name, python = self.transport.name, self.transport.python
        if wanted == "tensorrt_rtx":
            return f"{name} has no TensorRT-RTX: its {python} does not import tensorrt_rtx; leave --runtime out"
        return (
            f"{name} has no TensorRT: neither its {python} imports one, nor is there a trtexec; on a Jetson it comes "
            "with JetPack"
        )

    def _estimate(self) -> None:
        """Say before building what a run will take, and what the device has."""
        need = self.request.get("activation_bytes")
        if need is None:
            return
        has = self.transport.describe().get("memory_kb", "")
        of = f" of the {int(has) / 2**20:.1f} GiB of {self.transport.name}" if has.isdecimal() else ""
        self.telling.notice(
            f"a run's tensors take about {need / 2**20:.0f} MiB{of}, two to three times as much as TensorRT places them"
        )

    def _finish(self) -> Path:
        out = self.out
        self.telling.stage("collecting")
        folder = self.work / COLLECTED
        folder.mkdir()
        try:
            collect(self.job, self.request, folder)
        except BuildFailed:
            self._tell(self._log())
            # What is on the device would fail again: the same command is to build anew.
            self._remove()
            raise
        except TransferError as error:
            raise TransferError(f"{error}; if that happens again, --clean removes the build there") from None
        made = engine_artifact(self.source.path, folder, out)
        self._remove()
        return made

    def _log(self) -> list[str]:
        """The lines of the job's log, all of which go into the file `OUT-build.log`; empty where there is none."""
        target = self.out.with_name(self.out.name + "-build.log")
        for name in (OUTPUT,) if self.job.has(trtexec.ARGUMENTS) else (self.request["log"], OUTPUT):
            if self.job.has(name):
                self.job.get(name, target, LIMITS["log"])
                text = printable(target.read_bytes())
                write_text(target, text)
                if text.strip():
                    self.telling.notice(f"the whole log is in {target}")
                    return text.rstrip().splitlines()
        return []

    def _tell(self, lines: list[str]) -> None:
        for line in lines[-TAIL:]:
            self.telling.notice(f"    {line[:1000]}")

    def _failure(self, output: JobOutput, state: State) -> Exception:
        """The error of a build that ended badly, after its log was told."""
        name = self.transport.name
        if output.failure is None or output.failure["kind"] != "no-tensorrt":
            self._tell(self._log())
        full = self._full()
        if output.failure is not None:
            return full if NO_SPACE in output.failure["message"] else failure(output.failure)
        if any(NO_SPACE in line for line in output.tail):
            return full
        if state.killed:
            return BuildFailed(
                f"the build on {name} {state.ending}: free memory there, limit it with --workspace, or export a "
                "smaller --size; the same command starts it again"
            )
        said = trtexec.read_log("\n".join(output.tail)).errors
        if state.kind == "exited" and said:
            return BuildFailed(f"trtexec on {name} built no engine: {said[0]}")
        if self._looks_full():
            return full
        if state.kind == "died":
            return BuildFailed(
                f"the build on {name} was ended from outside: {name} was restarted, or ran out of memory"
            )
        return BuildFailed(f"the build on {name} {state.ending} and gave no reason")
