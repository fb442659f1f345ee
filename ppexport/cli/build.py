"""`ppexport build`: ONNX artifact -> TensorRT engine, on this machine or on a device."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ppexport.cli.console import emit_json, people
from ppexport.cli.devices import following, taken_up_later
from ppexport.cli.options import AcceptNewHostKey, ArtifactFolder, Identity, Json, SshConfig, Timeout
from ppexport.errors import counted


class Runtime(str, Enum):
    """What can build an engine."""

    TENSORRT = "tensorrt"
    RTX = "tensorrt_rtx"


EXAMPLE = "Example: ppexport build x2_64 --on ssh://user@jetson -o x2_64_orin"


def runs_on(facts: Mapping[str, Any]) -> str:
    """What an engine is for, by what its manifest says of its build."""
    # TensorRT-RTX alone builds where no GPU is.
    without = "tests (a Jetson needs its own build, made there)" if facts["runtime"] == Runtime.RTX.value else ""
    return facts["gpu"] or without or "a GPU that did not tell its name"


def build(
    artifact: ArtifactFolder,
    on: Annotated[str, typer.Option(help="where: local, or ssh://USER@HOST:PORT")] = "local",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="artifact folder to make; ARTIFACT-engine if left out")
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(min=1, metavar="MB", help="memory that TensorRT may use for a layer; its choice if left out"),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="how long TensorRT searches for fast kernels; its default if left out"),
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="let fp32 products run in TF32: faster on some GPUs, fails fp32 parity")
    ] = False,
    runtime: Annotated[
        Runtime | None, typer.Option(help="which TensorRT builds; the first that the machine has if left out")
    ] = None,
    timeout: Timeout = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="stop and remove this model's builds on the device, and build nothing")
    ] = False,
    identity: Identity = None,
    ssh_config: SshConfig = None,
    accept_new_host_key: AcceptNewHostKey = False,
    json: Json = None,
) -> None:
    """Build a TensorRT engine from an ONNX artifact, on the machine that is to run it.

    A build outlives this command: after Ctrl-C, or when the connection was lost, the same command again waits for it
    and collects it. A device needs sh, and TensorRT with its Python API or trtexec; ssh must log in without a password.
    """
    from ppexport.backends.tensorrt.build_engine import EngineBuild, EngineRequest, read_source
    from ppexport.backends.tensorrt.run_builder import LAYERS
    from ppexport.device.artifact import read_artifact
    from ppexport.folders import artifact_target, check_same
    from ppexport.remote.detached import remove_jobs
    from ppexport.remote.ssh import SshOptions, open_device

    source = read_source(artifact)
    request = EngineRequest(source, workspace, tf32, optimization_level, None if runtime is None else runtime.value)
    options = SshOptions(identity, ssh_config, accept_new_host_key)
    if clean:
        with open_device(on, options) as device:
            done = remove_jobs(device, request.prefix)
        emit_json(json, {"done": done})
        people(json).print("\n".join(done) or f"no build of {artifact} is on {on}")
        return
    whole = artifact.resolve()
    target = artifact_target(out or whole.with_name(whole.name + "-engine"))
    m = source.manifest
    check_same(
        target, "tensorrt", m.name, m.arch, m.scale, m.weights["sha256"], m.size, "move it away, or name another folder"
    )
    with open_device(on, options) as device, following("build") as telling:
        work = EngineBuild(device, request, target, telling)
        with taken_up_later(work):
            work.run(timeout)
    built = read_artifact(target)
    manifest, facts, size = built.manifest, built.manifest.engine, built.model_file.stat().st_size
    emit_json(json, {"artifact": str(target), "device": on, "engine_bytes": size, "manifest": vars(manifest)})
    people(json).print(
        f"{target}: {manifest.name} x{manifest.scale} {manifest.precision} for {runs_on(facts)}, "
        f"{facts['runtime']} {facts['tensorrt']}, {size / 1e6:.2f} MB, built in {facts['seconds']:.1f} s"
    )
    fused = "attention is fused" if facts["attention_fused"] else "no layer is named as fused attention"
    if facts["layers"]:
        people(json).print(f"{counted(facts['layers'], 'layer')}, {fused}: {target / LAYERS}")
    else:
        people(json).print("this TensorRT lists no layers, so it is not known whether attention was fused")
