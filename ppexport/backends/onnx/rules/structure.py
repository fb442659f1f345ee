"""The file itself: files beside it, storage that runtimes do not read, graphs that break the standard."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import ModelProto, TensorProto

from ppexport.backends.onnx.reading.inference import schema_of
from ppexport.backends.onnx.reading.model_file import iter_tensors
from ppexport.backends.onnx.reading.view import GraphView
from ppexport.backends.onnx.rules.base import Finding, Rule, Runtime, Severity


class ExternalData(Rule):
    """Forbids external data outside the model's folder.

    A path with folders, an absolute path or a symbolic link makes a runtime read, and ship, whatever file it names:
    ONNX Runtime and the onnx package have both had to close that hole. Such a file is never opened here. Way out: plain
    names beside the model.
    """

    id = "external-data"
    way_out = "save again with onnx.save(..., save_as_external_data=True, location='plain_name.bin'), or in one file"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per tensor."""
        for unsafe in graph.source.unsafe:
            message = f"{unsafe.tensor} is kept in {unsafe.location!r}, which {unsafe.reason}; it was not opened"
            yield self.found(message, tensor=unsafe.tensor)


class SparseConstant(Rule):
    """Forbids sparse initializers and Constant nodes with a sparse value.

    TensorRT's parser has neither ("sparse_value ... unsupported"), ONNX Runtime expands them. Way out: store dense.
    """

    id = "sparse-constant"
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "store the tensor dense"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per constant."""
        for constant in graph.constants.values():
            if constant.sparse:
                yield self.found(f"{constant.name} is stored sparse", tensor=constant.name, module=constant.owner)


class InvalidGraph(Rule):
    """Forbids graphs that onnx's own checker refuses.

    An input that nobody makes, a tensor made twice, an attribute of a wrong type: no runtime has to accept that, and
    those that do need not agree on what it means. Way out: repair what wrote the file.
    """

    id = "invalid-graph"
    way_out = "the file was written or changed by a tool that made a mistake; export again"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding at most: the checker stops at the first mistake."""
        standard = all(node.domain or schema_of(node.op, graph.opset) for node in graph.nodes)
        external = any(tensor.data_location == TensorProto.EXTERNAL for tensor in iter_tensors(graph.model))
        if not standard or external or graph.model.ir_version > onnx.IR_VERSION:
            return  # other rules report these; the checker would only repeat them, or look for the files
        checked = ModelProto()
        checked.CopyFrom(graph.model)
        for info in checked.graph.output:
            # The checker wants a shape of every output, which no runtime does; that it is unknown is `unknown-rank`'s.
            if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
                info.type.tensor_type.shape.SetInParent()
        try:
            onnx.checker.check_model(checked)
        except Exception as error:  # ValidationError, and C++ exceptions of other types
            yield self.found(" ".join(str(error).split())[:300])


class ShapeConflict(Rule):
    """Warns when declared shapes or types contradict what the operators make.

    Runtimes infer shapes themselves and differ in what they then believe; a declared output shape that is wrong is
    what an app allocates. Way out: export again, or run onnx.shape_inference with strict_mode to see where.
    """

    id = "shape-conflict"
    way_out = "export again; onnx.shape_inference.infer_shapes(model, strict_mode=True) says more"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding at most."""
        if graph.conflict is not None:
            yield self.found(f"shape inference: {graph.conflict}", severity=Severity.WARNING)
