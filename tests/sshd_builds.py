"""What tests of `ppexport build` share: artifacts to build from, and the command."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import onnx

from ppexport.backends.tensorrt.build_engine import EngineBuild, EngineRequest
from ppexport.device.artifact import Manifest, read_artifact, write_manifest
from ppexport.remote.detached import Pace, Telling
from ppexport.remote.ssh import open_device

MODEL_BYTES = 200_000


def write_source(folder: Path, size: int = MODEL_BYTES) -> Path:
    """An ONNX artifact as far as a build looks at it: a manifest and *size* bytes. A capacity set of two."""
    folder.mkdir()
    # Random bytes do not shrink on their way.
    model = onnx.ModelProto(ir_version=8, producer_name=os.urandom(size // 2 - 3).hex()).SerializeToString()
    (folder / "model.onnx").write_bytes(model)
    manifest = Manifest(
        backend="onnx", name="pp_atd_light_x2", arch="pp_atd_light",
        options={"colors": 8, "window": 8, "csmf": True, "compensation": "value"}, scale=2, size=[64, 64],
        precision="fp32", flavour="portable", capacities=[2048, 4096], mask="graph", tokens=4096,
        files={"model.onnx": hashlib.sha256(model).hexdigest()}, weights={"file": "w", "sha256": "0" * 64},
        card_sha256="0" * 64, licence="Apache-2.0", created="2026-11-23T00:00:00+00:00", versions={},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def command(source, *arguments):
    """The command line of a build."""
    return [sys.executable, "-m", "ppexport", "build", str(source), *map(str, arguments)]


def build(source, *arguments, code=0):
    """Run it, and check its exit code."""
    done = subprocess.run(command(source, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return done


def error_of(done) -> str:
    """The last line on standard error."""
    return done.stderr.strip().splitlines()[-1]


class Told:
    """Runs a build in this process, at a test's pace, and keeps what it tells."""

    def __init__(self, device, source, poll=0.05, reconnect=(0.05,) * 5):
        self.device, self.source = device, source
        self.lines: list[str] = []
        self.pace = Pace(poll, reconnect)

    def run(self, out, timeout=None):
        artifact = read_artifact(self.source)
        with open_device(self.device.address, self.device.options) as transport:
            telling = Telling(self.lines.append, lambda doing: None)
            return EngineBuild(transport, EngineRequest(artifact), Path(out), telling, self.pace).run(timeout)


def in_background(work):
    """Start *work* in a thread; the list receives what it returns or raises."""
    result: list[object] = []

    def run():
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result
