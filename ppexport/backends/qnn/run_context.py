"""A compiled file of a QNN artifact: its name, what it says of itself, and whether it is one."""

from __future__ import annotations

from typing import Dict, List

from ppexport.backends.onnx.run_external import refuse_external
from ppexport.device.wire import Message
from ppexport.errors import ArtifactError, counted

CONTEXT = ("EPContext", "com.microsoft")
"""Operator and domain of a node that holds what was compiled."""


def context_name(chip: str, capacity: int, capacities: List[int]) -> str:
    """The file that was compiled for *chip* with *capacity* slots, one of *capacities*."""
    return f"context-{chip}{f'-{capacity}' if len(capacities) > 1 else ''}.onnx"


def context_facts(chip: str, slots: int) -> Dict[str, str]:
    """What a compiled file says beside what its graph said: its chip, and its slots, 0 where there is one capacity."""
    return {"ppexport.soc": chip, "ppexport.slots": str(slots)}


def check_context(content: bytes, where: str, chip: str, slots: int) -> None:
    """Raise ArtifactError unless the ONNX file *content* is one compiled node, for *chip* and so many *slots*.

    Qualcomm's library would compile another graph, which takes minutes, and opens what was compiled for another chip.
    """
    refuse_external(content, where, contexts=True)
    # As onnx.proto numbers them: the graph and its nodes, of a node its operator and domain; the metadata.
    try:
        model = Message(memoryview(content))
        nodes = [(node.text(4), node.text(7)) for graph in model.messages(7) for node in graph.messages(1)]
        said = {entry.text(1): entry.text(2) for entry in model.messages(14)}
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from None
    if nodes != [CONTEXT]:
        raise ArtifactError(f"{where} holds {counted(len(nodes), 'node')}, not one that is compiled: export it again")
    for key, value in context_facts(chip, slots).items():
        if said.get(key) != value:
            raise ArtifactError(f"{where}: {key} is {said.get(key)!r}, where {value!r} is needed: export it again")
