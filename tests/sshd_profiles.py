"""What tests of `ppexport profile --on` share: a small artifact, a Python for the device, and the command."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from ppexport.cli import app
from ppexport.device.artifact import Manifest, write_manifest
from ppexport.device.measure import Plan
from ppexport.device.target import choose
from ppexport.errors import PpexportError
from ppexport.profile.remote import RemoteProfile, Settings, prepare_remote
from ppexport.remote.detached import Pace, Telling
from ppexport.remote.ssh import open_device

SIZE = (32, 48)
SINES = 24
invoke = CliRunner().invoke
BRIEF = Plan("quick", 16, 0.1, warm_windows=2, sensor_seconds=0.05)
LONG = Plan("quick", 16, 1.0, warm_windows=2, sensor_seconds=0.05)
QUICKER = """
from ppexport.cli import run
from ppexport.device.measure import PLANS, Plan
PLANS["quick"] = Plan("quick", 64, 1.0)
run()
"""


def write_enlarger(folder: Path, opset: int = 17) -> Path:
    """An artifact that ONNX Runtime runs in some milliseconds: x2 by repetition, whatever its manifest says.

    An atd_light, which has no mask. Its only work is a long chain of sines, so that a run has hundreds of queries.
    """
    folder.mkdir()
    h, w = SIZE
    card = "c" * 64
    scales = numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales")
    none = numpy_helper.from_array(np.int32([0]), "none")
    nodes = [
        helper.make_node("Resize", ["lr", "", "scales"], ["sr"], mode="nearest"),
        *(helper.make_node("Sin", [f"s{i}" if i else "sr"], [f"s{i + 1}"]) for i in range(SINES)),
        helper.make_node("ReduceMax", [f"s{SINES}"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Mul", ["whole", "none"], ["impure_tokens"]),
    ]
    graph = helper.make_graph(
        nodes, "enlarger", [helper.make_tensor_value_info("lr", TensorProto.FLOAT, [1, 3, h, w])],
        [helper.make_tensor_value_info("sr", TensorProto.FLOAT, [1, 3, 2 * h, 2 * w]),
         helper.make_tensor_value_info("impure_tokens", TensorProto.INT32, [1])],
        [scales, none],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    helper.set_model_props(model, {"ppexport.capacities": "1536", "ppexport.card_sha256": card})
    onnx.save(model, folder / "model.onnx")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    manifest = Manifest(
        backend="onnx", name="enlarger", arch="atd_light", options={}, scale=2, size=list(SIZE), precision="fp32",
        flavour="portable", capacities=[1536], mask="none", tokens=1536, files={"model.onnx": digest},
        weights={"file": "w", "sha256": "0" * 64}, card_sha256=card, licence="Apache-2.0",
        created="2026-11-23T00:00:00+00:00", versions={},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def site_packages(python: Path) -> Path:
    """Where a virtual environment's Python finds its packages."""
    return python.parent.parent / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def link(packages: tuple[str, ...], target: Path) -> None:
    """Links to installed *packages*, with their metadata and libraries."""
    for package in packages:
        names = {path.parts[0] for path in importlib.metadata.files(package) or ()}
        for name in names - {"..", "__pycache__"}:
            source = Path(str(importlib.metadata.distribution(package).locate_file(name)))
            (target / name).symlink_to(source)


def make_python(folder: Path) -> Path:
    """A Python of a device: nothing but NumPy and ONNX Runtime."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
    python = folder / "bin" / "python3"
    link(("numpy", "onnxruntime"), site_packages(python))
    return python


class Profiled:
    """Runs measurements on a device from this process, at a test's pace, and keeps what they tell."""

    def __init__(self, device, artifact, folder, plan=BRIEF, settings=None):
        self.device, self.artifact, self.folder, self.plan = device, artifact, folder, plan
        self.settings = settings or Settings()
        self.lines: list[str] = []
        self.pace = Pace(0.05, (0.05,) * 5)

    def run(self, timeout=None):
        targets = choose(self.artifact, None, 1, False)
        request = prepare_remote(targets, self.plan, self.folder, None, self.device.address, self.settings)
        with open_device(self.device.address, self.device.options) as transport:
            telling = Telling(self.lines.append, lambda doing: None)
            return RemoteProfile(transport, request, telling, self.pace).run(timeout)

    def start(self) -> tuple[threading.Thread, list[object]]:
        """Run in a thread; the list receives what comes of it."""
        from sshd_builds import in_background

        return in_background(self.run)

    def journal(self) -> Path:
        """The journal on the device."""
        (job,) = self.device.jobs()
        return job / "latency.jsonl"

    def queries(self) -> list[bytes]:
        """Queries on the device so far."""
        journal = self.journal() if self.device.jobs() else None
        lines = journal.read_bytes().splitlines() if journal is not None and journal.exists() else []
        return [line for line in lines if line.startswith(b'["q"')]


def profile(artifact, *arguments, code=0):
    """The command in a process of its own, where --quick takes 1 s; checks its exit code."""
    command = [sys.executable, "-c", QUICKER, "profile", str(artifact), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return done


def said(artifact, *arguments) -> str:
    """What the command prints, run in this process, which is faster."""
    done = invoke(app, ["profile", str(artifact), *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def refused(artifact, *arguments, code=2) -> str:
    """The sentence that the command ends with, run in this process; checks its exit code."""
    error = invoke(app, ["profile", str(artifact), *map(str, arguments)]).exception
    assert isinstance(error, PpexportError), repr(error)
    assert error.exit_code == code
    return str(error)
