"""What a lint rule is and what it finds.

A rule is one class whose docstring says what it forbids, on which runtime and since or until which version, why, and
the way out. The versions are the oldest that this project supports, whatever is installed where the linter runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from ppexport.backends.onnx.reading.view import GraphView, Node


class Severity(str, Enum):
    """How bad a finding is."""

    ERROR = "error"
    """Some supported runtime refuses the model, runs it wrongly, or runs it absurdly slowly."""
    WARNING = "warning"
    """It works on the oldest supported runtimes, but costs something or is one step from not working."""
    NOTE = "note"
    """Worth knowing when something else goes wrong."""


class Runtime(str, Enum):
    """The runtimes that artefacts are made for."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    COREML = "coreml"
    OPENVINO = "openvino"

    @property
    def oldest(self) -> str:
        """The oldest supported version, for people to read."""
        return _OLDEST[self]


_OLDEST = {
    Runtime.ONNXRUNTIME: "ONNX Runtime 1.15",
    Runtime.TENSORRT: "TensorRT 10.3",  # JetPack 6
    Runtime.COREML: "Core ML of iOS 16",
    Runtime.OPENVINO: "OpenVINO 2025.0",
}
ALL_RUNTIMES = tuple(Runtime)


@dataclass(frozen=True)
class Finding:
    """One thing that a rule objects to."""

    severity: Severity
    rule: str
    message: str
    """What is wrong and why, one or two sentences."""
    way_out: str
    runtimes: tuple[Runtime, ...]
    """Those concerned."""
    node: str | None = None
    op: str | None = None
    module: str | None = None
    """Dotted path of the PyTorch module; "" is the network itself, None is unknown or does not apply."""
    tensor: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "severity": self.severity.value,
            "rule": self.rule,
            "message": self.message,
            "way_out": self.way_out,
            "runtimes": [runtime.value for runtime in self.runtimes],
            "node": self.node,
            "op": self.op,
            "module": self.module,
            "tensor": self.tensor,
        }


class Rule(ABC):
    """One rule: subclasses set the class attributes and write `check`."""

    id: ClassVar[str]
    runtimes: ClassVar[tuple[Runtime, ...]] = ALL_RUNTIMES
    way_out: ClassVar[str]

    @abstractmethod
    def check(self, graph: GraphView) -> Iterator[Finding]:
        """Yield what *graph* does wrong."""

    def found(
        self,
        message: str,
        node: Node | None = None,
        *,
        severity: Severity = Severity.ERROR,
        tensor: str | None = None,
        module: str | None = None,
        runtimes: tuple[Runtime, ...] | None = None,
        way_out: str | None = None,
    ) -> Finding:
        """A finding of this rule, at *node* if there is one; *module* overrules the node's."""
        return Finding(
            severity,
            self.id,
            message,
            way_out or self.way_out,
            runtimes or self.runtimes,
            node=node.label if node else None,
            op=node.op if node else None,
            module=module if module is not None or node is None else node.module,
            tensor=tensor,
        )


def places(nodes: Sequence[Node]) -> str:
    """Where *nodes* are, briefly: "in layers.0.attn, layers.1.attn and 22 more modules"."""
    modules = sorted({module_name(node.module) for node in nodes})
    shown, more = modules[:3], len(modules) - 3
    return "in " + ", ".join(shown) + (f" and {more} more modules" if more > 0 else "")


def module_name(module: str | None) -> str:
    """*module* in a sentence."""
    return "an unknown module" if module is None else module or "the network itself"


def size_text(size: int) -> str:
    """*size* bytes in KiB or MiB."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
