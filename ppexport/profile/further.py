"""What may follow a latency run in its folder, each measured by a process of its own:

layers.json         time by layer (layers-RUNTIME.json for a second runtime, as below)
routing.json        time against pure share and capacity
frames.json         real time on a sequence of frames
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ppexport.device.artifact import read_artifact
from ppexport.device.job import CROPS, Job
from ppexport.device.launch import ask
from ppexport.errors import InputError
from ppexport.files import finite, write_text
from ppexport.imaging.images import pictures_in
from ppexport.profile import frames as frames_module
from ppexport.profile import routing as routing_module
from ppexport.profile.layers.result import METHODS, layers_result, write_layers
from ppexport.profile.layers.spans import Operation
from ppexport.profile.layers.tensorrt import read_profile
from ppexport.profile.pictures import pictures, save_pictures
from ppexport.profile.result import Profile


def file_name(kind: str, index: int, job: Job) -> str:
    """Name of the *index*-th target's file."""
    runtime = job.targets[index].name.replace(":", "_")
    return f"{kind}.json" if index == 0 else f"{kind}-{runtime}.json"


def heads(kind: str, version: int, subject: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """What every file begins with."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"format": kind, "version": version, "created": created, "subject": subject, "machine": machine}


def profile_layers(job: Job, result: Profile, exported: Path | None = None) -> list[dict[str, Any]]:
    """Time by layer of every target, or of the only one from the file that trtexec *exported*. Raises PpexportError."""
    if exported is not None and (len(job.targets) > 1 or job.targets[0].runtime != "tensorrt"):
        raise InputError("--layer-times is a file of trtexec, for one TensorRT engine")
    made = []
    for index, target in enumerate(job.targets):
        subject = result.subjects[index]
        if exported is None:
            answer = json.loads(ask("ppexport.profile.by_layer:print_layers", replace(job, targets=(target,))))
            operations = [Operation(**{**entry, "names": tuple(entry["names"])}) for entry in answer]
        else:
            operations = read_profile(exported)
        if target.runtime == "coreml":
            operations = [replace(op, ms=op.ms * subject["summary"]["p50_ms"]) for op in operations]
        data = layers_result(operations, subject, result.data["machine"], METHODS[target.runtime])
        write_layers(job.journal.parent / file_name("layers", index, job), data)
        made.append(data)
    return made


def profile_routing(job: Job, result: Profile, folder: Path | None) -> list[dict[str, Any]]:
    """Time against pure share and capacity of every target, on many crops. Raises PpexportError."""
    made = []
    for index, target in enumerate(job.targets):
        manifest = read_artifact(Path(target.artifact)).manifest
        if not manifest.options:
            raise InputError(f"{target.artifact} has no Pure-Pass, so its time follows no mask: leave --routing out")
        crops = pictures(manifest, folder, routing_module.PLACES)
        place = job.journal.parent / CROPS
        place.unlink(missing_ok=True)
        save_pictures(place, crops)
        try:
            found = json.loads(
                ask("ppexport.profile.routing:print_routing", replace(job, targets=(target,), images=place))
            )
        finally:
            place.unlink(missing_ok=True)
        images = [
            {"name": c.name, "pure_share": c.pure_share, **m} for c, m in zip(crops, found["images"], strict=True)
        ]
        data = heads(routing_module.FORMAT, routing_module.VERSION, result.subjects[index], result.data["machine"])
        data |= {"images": images, "capacities": found["capacities"], "line": routing_module.line(images)}
        write_text(
            job.journal.parent / file_name("routing", index, job), json.dumps(finite(data), allow_nan=False) + "\n"
        )
        made.append(data)
    return made


def profile_frames(job: Job, result: Profile, folder: Path) -> list[dict[str, Any]]:
    """Real time of every target on the frames in *folder*. Raises PpexportError."""
    pictures_in(folder)
    made = []
    for index, target in enumerate(job.targets):
        found = json.loads(
            ask("ppexport.profile.frames:print_frames", replace(job, targets=(target,), images=folder.resolve()))
        )
        data = heads(frames_module.FORMAT, frames_module.VERSION, result.subjects[index], result.data["machine"])
        data |= frames_module.answers(found)
        write_text(
            job.journal.parent / file_name("frames", index, job), json.dumps(finite(data), allow_nan=False) + "\n"
        )
        made.append(data)
    return made
