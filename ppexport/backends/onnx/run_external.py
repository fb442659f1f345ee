"""Refuses ONNX files that name other files, before a runtime sees them.

A tensor of an ONNX file may be kept in another file, which its field `external_data` names. Runtimes open that file
also where they get the model as bytes: ONNX Runtime and OpenVINO every file below the current folder, older versions
any file at all. A foreign artifact could so have a file of this machine read into a picture, and the manifest's hash
would not cover what is computed. So no tensor with external data is let through, wherever the format allows a tensor,
nor a node that has a runtime load a compiled model from a file.

The file is hostile until proven otherwise, and it must be read here as the runtimes' parsers read it: what is unusual
is refused. Standard library only: this file runs on devices.
"""

from __future__ import annotations

from ppexport.device.artifact import Artifact
from ppexport.device.wire import Message, walk
from ppexport.errors import ArtifactError

MAX_DEPTH = 100
"""Messages inside messages; Protocol Buffers reads no more."""
MAX_FIELDS = 2_000_000
"""Fields that are looked at, about 3 s of work; the bundled models have some ten thousand."""
FIRST_BYTE = 0x08
"""The key of `ir_version`, which every ONNX file begins with and no file of another format that a runtime reads."""
ORT_FORMAT = b"ORTM"
"""From the fifth byte on: a model in ONNX Runtime's own format, which is no ONNX file. It can name no file: a session
refuses tensors that are kept outside it, "a data reader was not provided"."""

MODEL, TRAINING, FUNCTION, GRAPH, NODE, ATTRIBUTE, SPARSE, TENSOR = range(8)
INSIDE = {
    MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
    TRAINING: {1: GRAPH, 2: GRAPH},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    TENSOR: {},
}
"""Message -> number of a field -> the message in it, as onnx.proto numbers them; without what can hold no tensor."""
OPERATOR = 4
"""Of a node."""
NAME, EXTERNAL_DATA, DATA_LOCATION = 8, 13, 14
"""Of a tensor."""
LOADS_A_FILE = (b"EPContext",)
ATTRIBUTES, INTEGER, EMBEDDED = 5, 3, "embed_mode"
"""Of a node; of an attribute; the attribute that is 1 where a compiled model is inside the node."""


def is_ort_format(model: bytes) -> bool:
    """Whether ONNX Runtime takes the bytes *model* for a model in its own format."""
    return model[4:8] == ORT_FORMAT


def refuse_external(model: bytes, where: str, *, contexts: bool = False) -> None:
    """Raise ArtifactError unless the bytes *model* are an ONNX file that names no other; *where* names it in errors.

    *contexts* lets nodes through that hold a compiled model themselves.
    """
    if model[:1] != bytes([FIRST_BYTE]):
        raise ArtifactError(f"{where} is not an ONNX file, or it is damaged")
    try:
        _look_through(memoryview(model), contexts)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from None


def graph_bytes(artifact: Artifact) -> bytes:
    """The bytes of the ONNX graph of *artifact*, as its hash covers them. Raises ArtifactError as `refuse_external`."""
    content = artifact.read(artifact.graph_file)
    refuse_external(content, str(artifact.graph_file))
    return content


def check_graphs(artifact: Artifact) -> None:
    """Raise ArtifactError where a file of an ONNX artifact that a runtime may open names another file."""
    if not is_ort_format(artifact.read(artifact.model_file)):
        refuse_external(artifact.read(artifact.model_file), str(artifact.model_file))
    graph_bytes(artifact)


def _look_through(model: memoryview, contexts: bool) -> None:
    waiting = [(MODEL, model, 0)]
    count = 0
    while waiting:
        message, data, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ArtifactError(f"more than {MAX_DEPTH} messages inside each other are not read")
        inside = INSIDE[message]
        for number, value in walk(data):
            count += 1
            if count > MAX_FIELDS:
                raise ArtifactError(f"more than {MAX_FIELDS} fields are not read")
            if number in inside:
                if isinstance(value, int):
                    raise ArtifactError(f"the model file is damaged: field {number} is a number")
                waiting.append((inside[number], value, depth + 1))
            elif message == TENSOR and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
                raise ArtifactError(
                    f"tensor {_name(data)} is kept in another file, which is never opened: export the model again, as "
                    "one file"
                )
            elif message == NODE and number == OPERATOR and not isinstance(value, int) and value in LOADS_A_FILE:
                if contexts and _is_embedded(data):
                    continue
                raise ArtifactError("a node EPContext has another file loaded, which is never opened")


def _is_embedded(node: memoryview) -> bool:
    """Whether the EPContext *node* says, and never denies, that the compiled model is in it."""
    attributes = [Message(value) for number, value in walk(node) if number == ATTRIBUTES and not isinstance(value, int)]
    said = [attribute.integers(INTEGER) for attribute in attributes if attribute.texts(1) == [EMBEDDED]]
    named = [attribute for attribute in attributes if EMBEDDED in attribute.texts(1)]
    return bool(said) and len(said) == len(named) and all(values == [1] for values in said)


def _name(tensor: memoryview) -> str:
    """The tensor's name for a message, printable and short."""
    found = [value for number, value in walk(tensor) if number == NAME and not isinstance(value, int)]
    return ascii(bytes(found[-1][:60]).decode("utf-8", "replace")) if found else "without a name"
