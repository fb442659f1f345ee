"""ONNX Runtime sessions, configured the same everywhere. Imports onnxruntime when a session is made."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Mapping

from ppexport.backends.onnx.run_external import is_ort_format, refuse_external
from ppexport.device.artifact import Artifact
from ppexport.device.runner import Flushed, Prepared, Result, Runner, feeds, thread_count
from ppexport.device.target import Runtime, Target
from ppexport.errors import ArtifactError, InputError, UnavailableError, first_line, require

CPU = "CPU"
OPTIONS = {"session.intra_op.allow_spinning": ("1", "0"), "session.dynamic_block_base": ("0", "4")}
"""What the threads of a session can be set to, and the values worth a try, the default first.

Whether a thread that waits for the others spins, which takes the core from whatever else runs; and into how many parts
for each thread the work is cut, from large to small ones, so that one that is held up does not keep the others waiting
(0: equal parts, one for each thread)."""
LOGGER = logging.getLogger("ppexport")


class Session:
    """An `onnxruntime.InferenceSession` whose runs leave the calling thread's mode as it was."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """As `InferenceSession.run`, with denormals as zeros."""
        with Flushed():
            return self._inner.run(*args, **kwargs)


def load(
    model: bytes, where: str, provider: str = CPU, entries: Mapping[str, str] | None = None, **settings: Any
) -> Session:
    """A session for an ONNX model.

    Args:
        model: its bytes.
        where: what errors call it.
        provider: an execution provider without that suffix, such as CUDA.
        entries: of the session's configuration, in place of the defaults of `OPTIONS`, or beside them.
        settings: attributes of `onnxruntime.SessionOptions`.

    Raises:
        ArtifactError: the model names another file, or ONNX Runtime cannot load it.
        UnavailableError: ONNX Runtime lacks the provider, or cannot start it.
    """
    # Also of bytes: ONNX Runtime would open the files that they name, looked for from the current folder on.
    if not is_ort_format(model):
        refuse_external(model, where)
    require("onnxruntime", "onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # For the session's own threads; `Flushed` is for the caller's.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    entries = {**{name: values[0] for name, values in OPTIONS.items()}, **(entries or {})}
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    for name, value in settings.items():
        setattr(options, name, value)
    LOGGER.debug(
        "ONNX Runtime %s opens %s: provider %s, %s, %s", onnxruntime.__version__, where, provider, settings, entries
    )
    wanted = f"{provider}ExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise UnavailableError(f"ONNX Runtime {onnxruntime.__version__} as installed here has no provider {provider}")
    try:
        with Flushed():
            session = onnxruntime.InferenceSession(model, options, providers=[wanted])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ArtifactError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {where}: {first_line(error)}"
        ) from None
    # A provider that does not start is replaced by the CPU, with no more than a line in the log.
    if session.get_providers()[0] != wanted:
        raise UnavailableError(f"ONNX Runtime cannot start its provider {provider} on this machine")
    # Likewise one that fails in a later run, unless this is called.
    session.disable_fallback()
    return Session(session)


def make_session(model: bytes, where: str, threads: int | None = None, provider: str = CPU, **settings: Any) -> Session:
    """A session for running the bytes *model*, as `load`; *threads* as `thread_count` takes them."""
    return load(model, where, provider, intra_op_num_threads=thread_count(threads), **settings)


def make_frugal_session(model: bytes, where: str) -> Session:
    """A session for looking into a model: slower, but it gives memory back after every tensor."""
    return load(model, where, enable_cpu_mem_arena=False, enable_mem_pattern=False)


class OnnxRunner(Runner):
    """An ONNX artifact in ONNX Runtime, on its CPU provider unless another is named."""

    calibrates = True

    def __init__(self, artifact: Artifact, threads: int | None = None, provider: str = CPU, **settings: Any) -> None:
        """Raises as `load`, whose *settings* these are, and ArtifactError where the file is not what the manifest says.

        *threads* are as `thread_count` takes them.
        """
        super().__init__(artifact)
        file = artifact.model_file
        self.session: Any = make_session(artifact.read(file), str(file), threads, provider, **settings)
        m, (h, w), s = artifact.manifest, self.size, self.scale
        expected: dict[str, list[int | str]] = {"lr": [1, 3, h, w], "sr": [1, 3, h * s, w * s], "impure_tokens": [1]}
        if len(m.capacities) > 1:
            expected["slots"] = [1, "slots"]
        if m.mask == "input":
            expected["mask"] = [1, 1, *m.layout.padded(self.size)]
        found = {port.name: port.shape for port in (*self.session.get_inputs(), *self.session.get_outputs())}
        if found != expected:
            raise ArtifactError(f"{file} has {found}, but the manifest says {expected}")
        self.check_facts(self.session.get_modelmeta().custom_metadata_map)

    def _run(self, prepared: Prepared) -> Result:
        sr, impure = self.session.run(["sr", "impure_tokens"], feeds(self.artifact.manifest, prepared))
        return Result(sr, int(impure[0]), prepared.capacity)


PROVIDERS = (
    "CPU", "CUDA", "Tensorrt", "NvTensorRTRTX", "ROCM", "MIGraphX", "OpenVINO", "Dnnl", "VitisAI", "QNN", "Nnapi",
    "CoreML", "Dml", "Xnnpack", "WebGpu", "WebNN", "Js", "ACL", "ArmNN", "Rknpu", "SNPE", "VSINPU", "CANN", "Azure",
)  # fmt: skip
"""Execution providers as ONNX Runtime 1.15 to 1.32 spell them (`onnxruntime.get_all_providers()`, which lists those too
that a build lacks), so that a misspelt one is told from a missing one also where another machine measures."""
SILENT = ("Azure",)
"""Providers that are always listed and compute nothing here."""


def open_target(artifact: Artifact, target: Target, **settings: Any) -> OnnxRunner:
    """*artifact* on the target's provider, with what the target sets; *settings* are those of `load`."""
    return OnnxRunner(artifact, target.threads, target.device, entries=dict(target.options), **settings)


def installed_providers() -> list[str]:
    """The providers of the ONNX Runtime that is installed here, the CPU first; none without it."""
    if find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    providers = [name.replace("ExecutionProvider", "") for name in onnxruntime.get_available_providers()]
    return [CPU, *(name for name in providers if name not in (CPU, *SILENT))]


def find_provider(text: str) -> str:
    """The provider that a user calls *text*: NNAPI is what ONNX Runtime calls Nnapi. Raises InputError for none."""
    names = {name.lower(): name for name in PROVIDERS}
    if text.lower() not in names:
        near = get_close_matches(text.lower(), names, 1)
        hint = f"did you mean onnxruntime:{names[near[0]]}?" if near else f"it has {', '.join(PROVIDERS)}"
        raise InputError(f"ONNX Runtime has no provider called {text!r}: {hint}")
    return names[text.lower()]


RUNTIME = Runtime(
    "onnxruntime",
    "onnx",
    ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    CPU,
    open_target,
    installed_providers,
    find_provider,
    program="ppexport.backends.onnx.perf_test",
    times="ppexport.backends.onnx.ort_trace",
    threads_on=(CPU,),
    options=OPTIONS,
)
