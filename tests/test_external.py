"""Models that name other files are refused before a runtime sees them; a runtime gets the bytes that were hashed."""

from __future__ import annotations

import shutil
import struct
from contextlib import nullcontext, suppress

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from shared import examples
from test_artifact import change
from typer.testing import CliRunner

import ppexport
from ppexport.backends.onnx import run_external as external
from ppexport.backends.onnx.build_onnx import convert_to_ort
from ppexport.backends.onnx.model_file import iter_tensors, read_model
from ppexport.backends.onnx.run_external import check_graphs, refuse_external
from ppexport.backends.onnx.run_onnxruntime import load
from ppexport.cli import app
from ppexport.device.artifact import read_artifact
from ppexport.errors import ArtifactError, InputError, PpexportError
from ppexport.files import sha256_file

SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----"
PLACE = "home/.ssh/id"


def outside(name="weight"):
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[len(SECRET)])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=PLACE)
    return tensor


def empty():
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def attribute(model):
    return model.graph.node[0].attribute.add(name="value")


def function(model):
    return model.functions.add(name="f", domain="d")


PLACES = {
    "initializer": lambda m: m.graph.initializer.append(outside()),
    "sparse values": lambda m: m.graph.sparse_initializer.add().values.CopyFrom(outside()),
    "sparse indices": lambda m: m.graph.sparse_initializer.add().indices.CopyFrom(outside()),
    "attribute": lambda m: attribute(m).t.CopyFrom(outside()),
    "attribute with tensors": lambda m: attribute(m).tensors.append(outside()),
    "sparse attribute": lambda m: attribute(m).sparse_tensor.values.CopyFrom(outside()),
    "attribute with sparse tensors": lambda m: attribute(m).sparse_tensors.add().indices.CopyFrom(outside()),
    "subgraph": lambda m: attribute(m).g.initializer.append(outside()),
    "subgraphs": lambda m: attribute(m).graphs.add().node.add().attribute.add().g.initializer.append(outside()),
    "function": lambda m: function(m).node.add().attribute.add().t.CopyFrom(outside()),
    "attribute of a function": lambda m: function(m).attribute_proto.add().t.CopyFrom(outside()),
    "training": lambda m: m.training_info.add().initialization.initializer.append(outside()),
    "training algorithm": lambda m: m.training_info.add().algorithm.initializer.append(outside()),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_tensor_anywhere_is_kept_in_another_file(place):
    model = empty()
    refuse_external(model.SerializeToString(), "m")
    PLACES[place](model)
    with pytest.raises(ArtifactError, match="m: tensor 'weight' is kept in another file"):
        refuse_external(model.SerializeToString(), "m")


@pytest.mark.parametrize("place", [place for place in PLACES if "sparse" not in place])
def test_lint_of_a_file_reports_it_wherever_it_is(place, tmp_path):
    model = empty()
    PLACES[place](model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert list(read_model(tmp_path / "m.onnx").unsafe) == ["weight"]


def test_half_of_the_naming_is_enough():
    for field in ("data_location", "external_data"):
        model = empty()
        model.graph.initializer.append(outside())
        model.graph.initializer[0].ClearField(field)
        with pytest.raises(ArtifactError, match="another file"):
            refuse_external(model.SerializeToString(), "m")
    stored = empty()
    stored.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "w"))
    stored.graph.initializer[0].data_location = TensorProto.DEFAULT
    refuse_external(stored.SerializeToString(), "m")


def test_a_node_that_loads_a_compiled_model_is_refused():
    model = empty()
    model.graph.node[0].op_type = "EPContext"
    with pytest.raises(ArtifactError, match="another file loaded"):
        refuse_external(model.SerializeToString(), "m")


@pytest.mark.parametrize(
    ("modes", "passes"), [((1,), True), ((0,), False), ((), False), ((1, 0), False), ((0, 1), False)]
)
def test_a_compiled_model_is_let_through_where_it_is_asked_for_and_inside_the_node(modes, passes):
    model = empty()
    node = model.graph.node[0]
    node.op_type = "EPContext"
    for mode in modes:
        node.attribute.append(helper.make_attribute("embed_mode", mode))
    with pytest.raises(ArtifactError, match="another file loaded"):
        refuse_external(model.SerializeToString(), "m")
    with nullcontext() if passes else pytest.raises(ArtifactError, match="another file loaded"):
        refuse_external(model.SerializeToString(), "m", contexts=True)


def test_every_field_of_the_format_that_can_hold_a_tensor_is_looked_into():
    """Also in versions of ONNX that are newer than this project."""
    kinds = {
        "ModelProto": external.MODEL, "TrainingInfoProto": external.TRAINING, "FunctionProto": external.FUNCTION,
        "GraphProto": external.GRAPH, "NodeProto": external.NODE, "AttributeProto": external.ATTRIBUTE,
        "SparseTensorProto": external.SPARSE, "TensorProto": external.TENSOR,
    }  # fmt: skip
    holders, changed = {"TensorProto"}, True
    descriptors, waiting = {}, [ModelProto.DESCRIPTOR]
    while waiting:
        found = waiting.pop()
        if found.name not in descriptors:
            descriptors[found.name] = found
            waiting += [field.message_type for field in found.fields if field.message_type is not None]
    while changed:
        more = {
            name for name, d in descriptors.items()
            if any(f.message_type is not None and f.message_type.name in holders for f in d.fields)
        }  # fmt: skip
        changed, holders = not more <= holders, holders | more
    assert holders == set(kinds)
    for name in holders:
        fields = {
            f.number: kinds[f.message_type.name]
            for f in descriptors[name].fields
            if f.message_type is not None and f.message_type.name in holders
        }
        assert external.INSIDE[kinds[name]] == fields, name
    tensor = TensorProto.DESCRIPTOR.fields_by_name
    numbers = [tensor[name].number for name in ("name", "external_data", "data_location")]
    assert numbers == [external.NAME, external.EXTERNAL_DATA, external.DATA_LOCATION]


def varint(number):
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def field(number, content, length=None):
    return varint(number << 3 | 2) + varint(len(content) if length is None else length) + content


def nested(depth):
    graph = field(5, outside().SerializeToString())
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (b"", None),
        (field(7, b"", length=1), "damaged: it ends inside a field"),
        (field(7, b"", length=2**63), "damaged: it ends inside a field"),
        (varint(7 << 3 | 2) + b"\xff" * 12, "damaged: a number does not end"),
        (varint(7 << 3) + b"\x01", "damaged: field 7 is a number"),
        (varint((7 << 3 | 2) + (1 << 32)) + b"\x00", "damaged: field number 536870919 does not exist"),
        (b"\x00\x00", "damaged: field number 0 does not exist"),
        (varint(7 << 3 | 3) + varint(7 << 3 | 4), "damaged: field kind 3 does not exist"),
        (nested(2), "kept in another file"),
        (nested(200), "more than 100 messages inside each other"),
        (field(7, b"\x18\x01" * 2_000_001), "more than 2000000 fields"),
    ],
)
def test_hostile_bytes(rest, message):
    data = b"\x08\x08" + rest
    if message is None:
        refuse_external(data, "m")
        return
    with pytest.raises(ArtifactError, match=message):
        refuse_external(data, "m")


@pytest.mark.parametrize(
    "data", [b"", b"not a model", b"<net/>", b"\x12\x06\0\0ORTM" + b"\0" * 9, b"\x08\0\0\0ORTM" * 2]
)
def test_other_formats_are_no_onnx_files(data):
    with pytest.raises(ArtifactError, match="not an ONNX file|damaged"):
        refuse_external(data, "m")


def tensors(model):
    yield from iter_tensors(model)
    for training in model.training_info:
        yield from (*training.initialization.initializer, *training.algorithm.initializer)


@examples(300)
@given(st.sampled_from(sorted(PLACES)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3))
def test_what_is_let_through_names_no_file_to_protobuf_either(place, changes):
    model = empty()
    PLACES[place](model)
    data = bytearray(model.SerializeToString())
    for position, byte in changes:
        data[position % len(data)] = byte
    try:
        refuse_external(bytes(data), "m")
    except ArtifactError:
        return
    read = ModelProto()
    try:
        read.ParseFromString(bytes(data))
    except Exception:  # protobuf's own error
        return
    found = []
    # A name that is not text is refused as well.
    with suppress(InputError):
        found = list(tensors(read))
    assert not any(t.external_data or t.data_location for t in found)


def test_a_model_in_onnxruntimes_own_format_can_name_no_file(tmp_path):
    """Its tensors have a field `external_data_offset`, 7th of the table; a session refuses to follow it."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    add = helper.make_node("Add", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4096]) for name in ("x", "y")]
    weights = numpy_helper.from_array(np.zeros((1, 4096), np.float32), "w")
    graph = helper.make_graph([add], "g", ports[:1], ports[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    data = bytearray(convert_to_ort(tmp_path / "m.onnx")[0].read_bytes())
    load(bytes(data), "m.ort")
    tensor = InferenceSession.GetRootAs(data, 0).Model().Graph().Initializers(0)
    start, numbers = tensor._tab.Pos, tensor._tab.Vector(tensor._tab.Offset(12))
    table = start - struct.unpack_from("<i", data, start)[0]
    size, length = struct.unpack_from("<HH", data, table)
    fields = [*struct.unpack_from(f"<{(size - 4) // 2}H", data, table + 4), 0, 0][:7]
    fields[4], fields[6] = 0, numbers + -numbers % 8 - start
    data += bytes(-len(data) % 8)
    struct.pack_into("<i", data, start, start - len(data))
    data += struct.pack("<HH7H6x", 18, length, *fields)
    assert InferenceSession.GetRootAs(data, 0).Model().Graph().Initializers(0).ExternalDataOffset() == 0
    with pytest.raises(ArtifactError, match="data reader was not provided"):
        load(bytes(data), "m.ort")


@pytest.fixture
def spy(artifact, tmp_path, monkeypatch):
    """An artifact whose first initializer lies in a file below the current folder."""
    folder = shutil.copytree(artifact, tmp_path / "spy")
    model = onnx.load(folder / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=PLACE)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    change(folder, files={"model.onnx": sha256_file(folder / "model.onnx")})
    secret = tmp_path / PLACE
    secret.parent.mkdir(parents=True)
    secret.write_bytes((SECRET * (size // len(SECRET) + 1))[:size])
    monkeypatch.chdir(tmp_path)
    return folder


def test_onnxruntime_does_not_see_it(spy):
    with pytest.raises(ArtifactError, match="kept in another file"):
        ppexport.open_artifact(spy)


def test_openvino_does_not_see_it(spy):
    pytest.importorskip("openvino")
    from ppexport.backends.openvino.run_openvino import OpenVinoRunner

    with pytest.raises(ArtifactError, match="kept in another file"):
        OpenVinoRunner(read_artifact(spy))


def test_a_file_that_only_says_that_it_is_of_that_format(spy):
    """ONNX Runtime believes the bytes, not the name."""
    (spy / "model.ort").write_bytes((spy / "model.onnx").read_bytes())
    names = ("model.ort", "model.onnx")
    change(spy, files={name: sha256_file(spy / name) for name in names})
    for opener in (ppexport.open_artifact, lambda path: check_graphs(read_artifact(path))):
        with pytest.raises(ArtifactError, match=r"model.ort: tensor .* is kept in another file"):
            opener(spy)


@pytest.mark.parametrize(
    "arguments",
    [
        ["upscale", "spy", "coffee.png", "out.png"],
        ["parity", "spy"],
        ["profile", "spy", "--quick"],
        ["profile", "spy", "--quick", "--on", "ssh://nobody@localhost:1"],
        ["profile", "spy", "--quick", "--on", "ssh://nobody@localhost:1", "--perf-binary", "coffee.png"],
        ["build", "spy"],
        ["lint", "spy"],
    ],
    ids=lambda a: " ".join(a[:5:2]),
)
def test_no_command_hands_it_on(spy, arguments):
    from PIL import Image

    Image.new("RGB", (53, 37), "brown").save("coffee.png")
    change(spy, flavour="portable")
    with pytest.raises(PpexportError, match="kept in another file"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_calibration_does_not_follow_it(spy):
    from ppexport.backends.onnx.model_file import artifact_model

    with pytest.raises(PpexportError, match="kept in another file"):
        artifact_model(read_artifact(spy))


def test_a_file_that_is_exchanged_after_its_hash_was_checked_is_not_run(artifact, tmp_path):
    folder = shutil.copytree(artifact, tmp_path / "copy")
    opened = read_artifact(folder)
    model = onnx.load(folder / "model.onnx")
    model.producer_name = "somebody else"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    from ppexport.backends.onnx.model_file import artifact_model
    from ppexport.backends.onnx.run_onnxruntime import OnnxRunner
    from ppexport.backends.openvino.run_openvino import OpenVinoRunner

    for opener in (OnnxRunner, OpenVinoRunner, artifact_model):
        with pytest.raises(ArtifactError, match="was changed while it was opened"):
            opener(opened)
