"""Runs graphs on Snapdragon's NPU (the HTP) through ONNX Runtime and Qualcomm's execution provider.

On an ARM machine that is the NPU. On x86-64 the package holds an emulator of it in its place: it computes what the NPU
is meant to compute, in minutes where the NPU takes milliseconds, so that its times measure nothing.

The NPU computes every float in fp16. Shapes are static there: a capacity set has a file for each capacity.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple

from ppexport.backends.onnx.run_external import refuse_external
from ppexport.backends.qnn.run_context import check_context, context_name
from ppexport.device.artifact import Artifact
from ppexport.device.runner import Flushed, Prepared, Result, Runner, feeds, refuse_threads
from ppexport.device.target import Runtime, Target
from ppexport.errors import (
    ArtifactError,
    ExportError,
    UnavailableError,
    first_line,
    how_to_install,
    imported,
    printable,
)

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

PACKAGE, PROVIDER = "onnxruntime_qnn", "QNNExecutionProvider"
CHIPS = {"SM8550": 43, "SM8650": 57, "SM8750": 69, "SM8850": 87}
"""Chips by the name that Qualcomm sells them under, and the number by which its tools know them: Snapdragon 8 Gen 2, 8
Gen 3, 8 Elite and 8 Elite Gen 5."""
NO_HALF = {"SM8350": 30}
"""Chips whose NPU has no fp16. The tools say of them that memory is short."""
NPU, EMULATOR = "NPU", "emulator"
OLDEST_PYTHON = (3, 11)
OUTPUTS = ("sr", "impure_tokens")
LEFT_OVER = re.compile(r"\{ name: (.*?), type: (\w+) \}")
"""A node that the provider does not take, as it prints them."""
SHORT = re.compile(r"QNN_\w*MEM_ALLOC|\bQNN[^\n]{0,200}\b[Cc]ode:? 1002\b")
"""That memory is short, in QNN's own words or by its number for it."""
NOT_SET_UP = re.compile(r"(?:SetupBackend failed|Error: )\s*(QNN_\w+|[^\n\x1b]+)")


def place() -> str:
    """What computes here: the NPU, or its emulator."""
    return NPU if platform.machine().lower() in ("aarch64", "arm64") else EMULATOR


def missing() -> str:
    """Why this machine has neither NPU nor emulator, and what to do about it; "" where it has one."""
    if place() == EMULATOR and (sys.platform != "linux" or platform.machine().lower() not in ("x86_64", "amd64")):
        return (
            f"Qualcomm's compiler and its emulator run on x86-64 Linux, not on {platform.system()} "
            f"{platform.machine()}: export there"
        )
    # Not compared directly: type checkers would take one of the two for impossible.
    if tuple(sys.version_info[:2]) < OLDEST_PYTHON:
        return (
            f"onnxruntime-qnn needs Python 3.11 or newer, this is {platform.python_version()}: make an environment "
            f"with a newer one, and in it {how_to_install('qnn')}"
        )
    if find_spec(PACKAGE) is None:
        return f"{PACKAGE} is not installed: {how_to_install('qnn')}"
    return ""


@contextmanager
def heard() -> Iterator[List[str]]:
    """A list that, after the block, holds all that the process wrote in it to its standard output and error.

    ONNX Runtime names the nodes that a provider leaves over in its log alone.
    """
    said: List[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            yield said
        finally:
            for stream, copy in zip((1, 2), kept):
                os.dup2(copy, stream)
                os.close(copy)
            file.seek(0)
            said.append(printable(file.read()))


@lru_cache(maxsize=None)
def _provider() -> Tuple[Any, str]:
    """Qualcomm's devices as ONNX Runtime lists them, and the library that computes. Raises UnavailableError."""
    why = missing()
    if why:
        raise UnavailableError(why)
    try:
        onnxruntime, qnn = imported("onnxruntime", "qnn"), imported(PACKAGE, "qnn")
        backend, library = qnn.get_qnn_htp_path(), qnn.get_library_path()
        if not (os.path.isfile(backend) and os.path.isfile(library)):
            raise UnavailableError(
                f"{PACKAGE} is installed without its libraries ({backend} is missing): pip uninstall "
                f"onnxruntime-qnn, then {how_to_install('qnn')}"
            )
        with heard():
            onnxruntime.register_execution_provider_library(PROVIDER, library)
            devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    except UnavailableError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class; AttributeError before version 1.23
        raise UnavailableError(
            f"Qualcomm's execution provider does not start here ({first_line(error)}): it needs ONNX Runtime 1.24 or "
            "newer and glibc 2.35 or newer"
        ) from None
    if not devices:
        raise UnavailableError("Qualcomm's execution provider finds no device here, not even its emulator")
    return devices, backend


def left_over(said: str) -> List[Tuple[str, str]]:
    """(name, operator) of every node that the provider said it does not take."""
    # It may try, and say so, twice.
    return list(dict.fromkeys((str(name), str(kind)) for name, kind in LEFT_OVER.findall(said)))


def explain(error: Exception, said: str, chip: str) -> str:
    """What a failure of the provider means, of which ONNX Runtime says *error* and its log *said* more."""
    names = left_over(said)
    if names:
        some = ", ".join(f"{kind} {name}" for name, kind in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"the NPU of {chip} does not take {some}{more}"
    if SHORT.search(f"{error}\n{said}"):
        # What it says of every chip without fp16, whatever memory there is.
        return (
            f"Qualcomm's compiler says that memory is short, which it also says where {chip} lacks fp16 or is not the "
            "chip that it was told: choose a chip from Snapdragon 8 Gen 2 on, or a smaller size"
        )
    found = NOT_SET_UP.search(said)
    return f"Qualcomm's tools refuse it for {chip}: {first_line(error) if found is None else found.group(1).strip()}"


class Session:
    """A graph on the NPU or in its emulator, none of it on the CPU."""

    def __init__(self, model: bytes, where: str, chip: str, slots: int = 0, **entries: str) -> None:
        """Prepare an ONNX model, which takes minutes for a large one, or open a compiled one.

        Args:
            model: its bytes; a compiled one holds what was compiled, and names no other file.
            where: what errors call it.
            chip: one of CHIPS.
            slots: the length of a symbolic axis `slots`, 0 where there is none.
            entries: ONNX Runtime's settings of a session by name, "." written as "__".

        Raises:
            ArtifactError: the model names another file, or it is damaged.
            ExportError: the NPU does not take all of it; the message names what is left over.
            UnavailableError: Qualcomm's execution provider or its libraries are missing.
        """
        refuse_external(model, where, contexts=True)
        devices, backend = _provider()
        onnxruntime = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        # Errors, among them the nodes that are left over.
        options.log_severity_level = 3
        # The emulator would otherwise wait for a thread on every core.
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        for key, value in entries.items():
            options.add_session_config_entry(key.replace("__", "."), value)
        if slots:
            options.add_free_dimension_override_by_name("slots", slots)
        options.add_provider_for_devices(devices, {"backend_path": backend, "soc_model": str(CHIPS[chip])})
        failed: Optional[Exception] = None
        with heard() as said, Flushed():
            try:
                self.inner: Any = onnxruntime.InferenceSession(model, options)
            except Exception as error:  # onnxruntime's exceptions share no base class
                failed = error
        if failed is not None:
            raise ExportError(f"{where}: {explain(failed, said[0], chip)}")
        self.where, self.names = where, {port.name for port in self.inner.get_inputs()}
        self.ports = {port.name: port.shape for port in (*self.inner.get_inputs(), *self.inner.get_outputs())}

    def run(self, outputs: Any, inputs: Arrays) -> List[Any]:
        """The *outputs*, a list of names, for *inputs*, of which those that the graph does not read are left out."""
        given = {name: inputs[name] for name in inputs if name in self.names}
        try:
            with heard(), Flushed():
                return list(self.inner.run(outputs, given))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ArtifactError(f"{self.where}: Qualcomm's {place()} failed: {first_line(error)}") from None

    def close(self) -> None:
        """Free what it holds."""
        self.inner = None


class QnnRunner(Runner):
    """A QNN artifact: what was compiled for the first of its chips, on the NPU or in its emulator."""

    has_fp32 = False

    def __init__(self, artifact: Artifact) -> None:
        """Open the file of the largest capacity; the others are opened when a picture needs them.

        Raises:
            ArtifactError: a file is damaged or not what the manifest says.
            UnavailableError: Qualcomm's execution provider is missing.
        """
        super().__init__(artifact)
        chips = artifact.manifest.build.get("soc")
        if (
            not isinstance(chips, list)
            or not chips
            or not all(isinstance(name, str) and name in CHIPS for name in chips)
        ):
            raise ArtifactError(f"{artifact.path}: the manifest names no chip that this ppexport knows: {chips!r}")
        self.chip = chips[0]
        self._sessions: Dict[int, Session] = {}
        self._session((artifact.manifest.capacities or [0])[-1])

    def _session(self, capacity: int) -> Session:
        if capacity in self._sessions:
            return self._sessions[capacity]
        m, (h, w), s = self.artifact.manifest, self.size, self.scale
        name = context_name(self.chip, capacity, m.capacities)
        if name not in m.files:
            raise ArtifactError(f"{self.artifact.path} lacks {name}: export it again")
        file = self.artifact.path / name
        content = self.artifact.read(file)
        check_context(content, str(file), self.chip, capacity if len(m.capacities) > 1 else 0)
        try:
            session = Session(content, str(file), self.chip)
        except ExportError as error:
            raise ArtifactError(str(error)) from None
        expected = {"lr": [1, 3, h, w], "sr": [1, 3, h * s, w * s], "impure_tokens": [1]}
        optional = {"slots": [1, capacity]}
        if m.mask == "input":
            expected["mask"] = [1, 1, *m.layout.padded(self.size)]
        found = {key: shape for key, shape in session.ports.items() if optional.get(key) != shape}
        if found != expected:
            raise ArtifactError(f"{file} has {found}, but the manifest says {expected}")
        self.check_facts(session.inner.get_modelmeta().custom_metadata_map)
        self._sessions[capacity] = session
        return session

    def _run(self, prepared: Prepared) -> Result:
        sr, impure = self._session(prepared.capacity).run(list(OUTPUTS), feeds(self.artifact.manifest, prepared))
        return Result(sr, int(impure[0]), prepared.capacity)

    def _close(self) -> None:
        self._sessions.clear()


def open_target(artifact: Artifact, target: Target) -> QnnRunner:
    """*artifact* on this machine's NPU. Raises UnavailableError in the emulator, which measures nothing."""
    refuse_threads(target.threads, "qnn")
    if place() != NPU:
        raise UnavailableError(
            "on this machine an emulator computes what the NPU would, a thousand times as slowly: time the artifact on "
            "a Snapdragon device"
        )
    return QnnRunner(artifact)


RUNTIME = Runtime(
    "qnn",
    "qnn",
    ("onnxruntime-qnn", "onnxruntime"),
    NPU,
    open_target,
    lambda: [NPU] if place() == NPU and not missing() else [],
)
