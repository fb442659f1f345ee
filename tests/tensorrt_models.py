"""Small networks and requests for the tests of the TensorRT builder."""

from __future__ import annotations

import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from small_networks import lively, shortened

from ppexport.backends.tensorrt.build_engine import WORK, EngineRequest
from ppexport.device.agent import do_job
from ppexport.device.artifact import read_artifact
from ppexport.networks.atd.atd_light import ATDLight, PPATDLight
from ppexport.networks.card import PurePassOptions


def shorten(network: ATDLight, layers: int = 2) -> ATDLight:
    """A copy of *network* with the first *layers* layers only: all operators, a tenth of the time."""
    return shortened(copy.deepcopy(network), layers).eval()


def random_network(arch: str, scale: int, compensation: str = "value") -> ATDLight:
    """A network of *arch* and *scale* with random weights."""
    if arch == "atd_light":
        return lively(ATDLight(scale))
    return lively(PPATDLight(scale, PurePassOptions(compensation=compensation)))


def request_in(folder: Path, artifact: Path) -> EngineRequest:
    """A build folder with the model of *artifact*; returns a request for it."""
    request = EngineRequest(read_artifact(artifact), runtime="tensorrt_rtx")
    write_request(folder, request.source.graph_file.read_bytes(), request.data)
    return request


def write_request(folder: Path, model: bytes, data: dict[str, object]) -> None:
    """What the archive finds in a job's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "request.json").write_text(json.dumps({"work": WORK, "id": "1", **data}))


def run_job(folder: Path) -> tuple[int, list[dict[str, object]]]:
    """Do the job of *folder* as the archive does; returns the exit code and the events."""
    with redirect_stdout(io.StringIO()) as printed:
        code = do_job(folder)
    return code, [json.loads(line) for line in printed.getvalue().splitlines() if line.startswith("{")]
