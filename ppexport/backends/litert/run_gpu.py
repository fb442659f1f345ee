"""LiteRT's GPU accelerator: `ai-edge-litert` brings one over WebGPU, which needs a Vulkan driver and no torch.

The accelerator computes in fp16 on GPUs that can, unless fp32 is asked for. Labels and counts are int32 and stay
right, but the picture would be another one, so fp32 is always asked for here. An app has to do the same.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Mapping

import numpy as np

from ppexport.backends.litert.run_litert_facts import EXTRA, facts_of, stored
from ppexport.device.capacities import capacity_function
from ppexport.device.quiet import quiet
from ppexport.device.runner import Flushed
from ppexport.errors import ArtifactError, UnavailableError, first_line, imported, printable, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ppexport.device.runner import Arrays

LOADER = "libvulkan.so.1"
DRIVERS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")
"""Where installed Vulkan drivers are named; VK_DRIVER_FILES and VK_ICD_FILENAMES name others."""
NO_ADAPTER = re.compile(r"No adapters found|Couldn't load Vulkan|Failed to initialize WebGPU environment")
REFUSED = re.compile(r"^(?!(?:ERROR|INFO|WARNING):)([A-Z][A-Z0-9_]+): (.+)$", re.MULTILINE)
"""An operator, and why the accelerator refuses it."""
FAILED = re.compile(r"Failed to create [^\n]+")
ADAPTER = re.compile(r"Selected adapter: ([^,\n]+)")


def has_gpu() -> bool:
    """Whether the accelerator is installed, and with it a Vulkan loader and a driver. Opens nothing."""
    found = find_spec("ai_edge_litert")
    folders = () if found is None else found.submodule_search_locations or ()
    if not any(file for folder in folders for file in Path(folder).glob("libLiteRt*GpuAccelerator.*")):
        return False
    named = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    if not named and not any(file for folder in DRIVERS for file in Path(folder).glob("*.json")):
        return False
    try:
        ctypes.CDLL(LOADER)
    except OSError:
        return False
    return True


def looks_up_computed(content: bytes) -> bool:
    """Whether a LiteRT file looks embeddings up in a table that is computed."""
    schema = imported("ai_edge_litert.schema_py_generated", EXTRA)
    model = schema.Model.GetRootAs(content)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    lookup = schema.BuiltinOperator.EMBEDDING_LOOKUP
    # The older field has a byte.
    lookups = {i for i, code in enumerate(codes) if lookup in (code.BuiltinCode(), code.DeprecatedBuiltinCode())}
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength() if lookups else 0)):
        for operator in (graph.Operators(i) for i in range(graph.OperatorsLength())):
            if operator.OpcodeIndex() in lookups:
                table = model.Buffers(graph.Tensors(operator.Inputs(1)).Buffer())
                if not len(stored(content, table.Offset(), table.Size(), table.DataAsNumpy())):
                    return True
    return False


def refuse_crashing(content: bytes, where: str) -> None:
    """Raise ArtifactError for a file that would end the process on the GPU, or is damaged."""
    try:
        crashes = looks_up_computed(content)
    except (ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise ArtifactError(f"{where} is a damaged LiteRT file: {first_line(error)}") from None
    if crashes:
        raise ArtifactError(
            f"{where} looks embeddings up in a table that is computed, which ends the process of LiteRT's GPU "
            "accelerator: run it on the CPU, or export it again"
        )


class GpuSession:
    """An opened LiteRT file of which the GPU accelerator computes every operator, in fp32."""

    def __init__(self, content: bytes, where: str) -> None:
        """Open a file.

        Args:
            content: its bytes.
            where: what errors call it.

        Raises:
            ArtifactError: the accelerator refuses some operator, or the file.
            UnavailableError: ai-edge-litert is not installed, or it finds no GPU.
        """
        require("ai_edge_litert", EXTRA)
        self.where, self.facts = where, facts_of(content, where)
        refuse_crashing(content, where)
        kind, options, gpu_options, compiled = (
            imported(f"ai_edge_litert.{name}", EXTRA)
            for name in ("hardware_accelerator", "options", "gpu_options", "compiled_model")
        )
        wanted = options.Options(
            hardware_accelerators=kind.HardwareAccelerator.GPU, gpu_options=gpu_options.GpuOptions(enforce_f32=True)
        )
        # The runtime reads from these bytes as long as the model is open.
        self.content = content
        with TemporaryFile() as log:
            try:
                with quiet(log), Flushed():
                    self._model: Any = compiled.CompiledModel.from_buffer(content, options=wanted)
                    whole = self._model.is_fully_accelerated()
                error = "only some operators run on the GPU"
            except (RuntimeError, ValueError, MemoryError) as failure:
                self._model, whole, error = None, False, first_line(failure)
            log.seek(0)
            said = printable(log.read())
        if not whole:
            if NO_ADAPTER.search(said):
                raise UnavailableError(
                    f"LiteRT's GPU accelerator finds no GPU here: it needs {LOADER} and a Vulkan driver, which "
                    "VK_DRIVER_FILES can name"
                )
            refused = "; ".join(sorted({f"{kind}: {why.strip()}" for kind, why in REFUSED.findall(said)}))
            if not refused and (failed := FAILED.search(said)):
                refused = failed[0]
            raise ArtifactError(
                f"LiteRT's GPU accelerator refuses {where}: {refused[:300] or error}; `ppexport lint` says where, and "
                "on the CPU the file runs"
            )
        found = ADAPTER.search(said)
        self.adapter = found[1].strip() if found else "unknown"
        """What the driver calls the GPU."""
        self.signatures: list[str] = list(self._model.get_signature_list())
        self._buffers: dict[str, tuple[Any, Any]] = {}

    def ports(self, name: str) -> dict[str, tuple[str, list[int]]]:
        """{input or output of the signature *name*: (type, shape)}."""
        found = {**self._model.get_input_tensor_details(name), **self._model.get_output_tensor_details(name)}
        return {
            key: (np.dtype(port["dtype"]).name, [int(side) for side in port["shape"]]) for key, port in found.items()
        }

    def _opened(self, name: str) -> tuple[Any, Any]:
        """{input: buffer} and {output: buffer} of the signature *name*."""
        if name not in self._buffers:
            if name not in self.signatures:
                raise ArtifactError(f"{self.where} has signatures {', '.join(self.signatures)}, not {name!r}")
            ports = self._model.get_signature_list()[name]
            with quiet():
                self._buffers[name] = (
                    {key: self._model.create_input_buffer_by_name(name, key) for key in ports["inputs"]},
                    {key: self._model.create_output_buffer_by_name(name, key) for key in ports["outputs"]},
                )
                # The first write of a process opens something, and says so.
                for key, (kind, shape) in self.ports(name).items():
                    if key in ports["inputs"]:
                        self._buffers[name][0][key].write(np.zeros(shape, kind))
        return self._buffers[name]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """All outputs for *inputs* as the ONNX graph takes them; the length of `slots` (1, C) chooses the signature."""
        fed = dict(inputs)
        slots = fed.pop("slots", None)
        name = "main" if slots is None else capacity_function(slots.shape[1])
        given, made = self._opened(name)
        ports = self.ports(name)
        try:
            with Flushed():
                for key, value in fed.items():
                    given[key].write(np.ascontiguousarray(value))
                self._model.run_by_name(name, given, made)
                found: Arrays = {}
                for key, buffer in made.items():
                    kind, shape = ports[key]
                    count = int(np.prod(shape, dtype=np.int64))
                    found[key] = np.array(buffer.read(count, np.dtype(kind).type)).reshape(shape)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ArtifactError(f"LiteRT's GPU accelerator cannot run {self.where}: {first_line(error)}") from None
        return found

    def close(self) -> None:
        """Release the GPU's memory."""
        with quiet():
            self._buffers.clear()
            self._model = None
