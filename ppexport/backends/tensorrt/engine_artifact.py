"""ONNX artefact -> request for `engine_builder`; the files that it leaves -> engine artefact.

An engine artefact is a folder of its own: `model.engine`, `build.log`, `timing.cache`, `device.json`, `layers.json` and
`manifest.json`, which is that of the ONNX artefact with backend "tensorrt" and the field `engine` (see `facts`).

Standard library only: this file runs on devices.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ppexport.backends.onnx.run_external import graph_bytes
from ppexport.backends.tensorrt.run_engine import sign
from ppexport.backends.tensorrt.run_facts import machine_of
from ppexport.device.artifact import Artifact, Manifest, read_artifact, write_manifest
from ppexport.errors import ArtifactError, InputError
from ppexport.files import sha256_file, write_text
from ppexport.folders import artifact_target, new_folder

ENGINE, LOG, TIMING_CACHE, DEVICE, RESULT = "model.engine", "build.log", "timing.cache", "device.json", "result.json"
LAYERS = "layers.json"
MAX_JSON = 1 << 28
"""The layer list of a large engine with many profiles takes some ten megabytes."""


def read_source(path: Path) -> Artifact:
    """The ONNX artefact in the folder *path*. Raises ArtifactError unless an engine can be built from it."""
    artifact = read_artifact(path)
    manifest = artifact.manifest
    if manifest.backend != "onnx" or manifest.flavour == "ort":
        made = f"{manifest.backend}, flavour {manifest.flavour}"
        raise ArtifactError(f"{path} is for {made}: an engine is built from `ppexport export --backend tensorrt`")
    # Before TensorRT or a device sees it: the parser opens the files that a graph names.
    graph_bytes(artifact)
    return artifact


def make_request(
    source: Artifact,
    *,
    workspace_mb: int | None = None,
    tf32: bool = False,
    optimization_level: int | None = None,
    runtime: str | None = None,
) -> dict[str, Any]:
    """The request for an engine of *source*, as `engine_builder` describes it; the model goes beside it."""
    manifest = source.manifest
    slots = {"name": "slots", "lengths": manifest.capacities} if len(manifest.capacities) > 1 else None
    return {
        "version": 1,
        "onnx": source.graph_file.name,
        "onnx_sha256": manifest.files[source.graph_file.name],
        "engine": ENGINE,
        "log": LOG,
        "timing_cache": TIMING_CACHE,
        "device": DEVICE,
        "result": RESULT,
        "workspace_mb": workspace_mb,
        "precision": manifest.precision,
        "tf32": tf32,
        "slots": slots,
        "optimization_level": optimization_level,
        "runtime": runtime,
        "activation_bytes": manifest.activation_bytes or None,
    }


def read_result(build_folder: Path) -> dict[str, Any]:
    """What the builder wrote of its work. Raises InputError: the file may come from another machine."""
    path = build_folder / RESULT
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_JSON:
            raise InputError(f"{path} is missing or is not what the builder writes")
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(result, dict) or result.get("version") != 1:
        raise InputError(f"{path} is not the result of a build of this version")
    return result


def engine_facts(source: Artifact, result: dict[str, Any]) -> dict[str, Any]:
    """The field `engine` of the manifest, without its signature."""
    kept = (
        "runtime", "tensorrt", "gpu", "compute_capability", "driver", "tf32", "workspace_mb", "optimization_level",
        "seconds", "activation_bytes", "attention_fused",
    )  # fmt: skip
    layers = result.get("layers")
    return {
        **{key: result.get(key) for key in kept},
        "source": {"name": source.path.resolve().name, "onnx_sha256": result.get("onnx_sha256")},
        "profiles": source.manifest.capacities,
        "layers": len(layers) if isinstance(layers, list) else None,
    }


def describe_engine(source: Artifact, result: dict[str, Any], files: dict[str, str]) -> Manifest:
    """The signed manifest of the engine that *result* tells of. Raises ArtifactError for a result without facts."""
    made = replace(
        source.manifest,
        backend="tensorrt",
        files=files,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        engine=engine_facts(source, result),
    )
    machine_of(made)
    return sign(made)


def engine_artifact(source: Path, build_folder: Path, out: Path) -> Path:
    """Make the engine artefact *out* of the files that the builder left in *build_folder*; returns *out*.

    *source* is the folder of the ONNX artefact it was built from. The engine is signed as this user's own. Raises
    InputError or ArtifactError where the files are not of this ONNX artefact, or not what the result says; *out* is
    then as it was.
    """
    artifact, result, out = read_source(source), read_result(build_folder), artifact_target(out)
    if result.get("onnx_sha256") != artifact.manifest.files[artifact.graph_file.name]:
        raise InputError(f"the engine in {build_folder} was not built from {source}: build it again")
    with new_folder(out) as folder:
        for name in (ENGINE, LOG, TIMING_CACHE, DEVICE):
            file = build_folder / name
            if file.is_symlink() or not file.is_file():
                raise InputError(f"{build_folder} is not complete: {name} is missing or is not a plain file")
            shutil.copyfile(file, folder / name)
        write_text(folder / LAYERS, json.dumps(result.get("layers"), indent=1) + "\n")
        files = {name: sha256_file(folder / name) for name in (ENGINE, LOG, TIMING_CACHE, DEVICE, LAYERS)}
        if files[ENGINE] != result.get("engine_sha256"):
            raise InputError(f"{build_folder / ENGINE} is not the engine that {RESULT} tells of: build it again")
        write_manifest(folder, describe_engine(artifact, result, files))
    return out
