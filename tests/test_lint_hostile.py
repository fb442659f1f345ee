"""Files that are damaged, cut off, or made to do harm: one clear error or a finding, never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from pathlib import Path

import lint_models as m
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from lint_models import model, node, value
from onnx import TensorProto, helper
from shared import examples

from ppexport.backends import lint_report
from ppexport.backends.onnx.lint import lint_child, linting
from ppexport.backends.onnx.lint.lint_child import lint_here
from ppexport.backends.onnx.lint.linting import lint_model
from ppexport.errors import InputError

MODELS = {name: proto.SerializeToString() for name, proto in m.all_models().items() if name != "quantized"}
SETTINGS = examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        lint_here(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"not a model", b"\x08\x08", b"\x89PNG\r\n\x1a\n", b"{}"])
def test_no_model(tmp_path: Path, data: bytes) -> None:
    refused(write(tmp_path, data), "not an ONNX model")


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "model.onnx", "does not exist")
    refused(tmp_path, "is not a file")
    # Error texts hold no control characters.
    refused(tmp_path / "a\0b", "ab")


def test_a_file_above_two_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with open(path, "wb") as stream:
        stream.truncate(2**31)  # a hole: nothing is written
    refused(path, "2.0 GiB", "ends at 2 GiB")


def test_cut_off(tmp_path: Path) -> None:
    data = m.plain().SerializeToString()
    for length in range(1, len(data), 13):
        refused(write(tmp_path, data[:length]))


def test_names_that_are_not_text(tmp_path: Path) -> None:
    data = m.plain().SerializeToString().replace(b"/layer/Conv", b"/layer\xff\xfe\xffnv")
    refused(write(tmp_path, data), "not text")


@pytest.mark.parametrize("dims", [[2**40], [2**62, 2**62], [-1], [4, 4, 3, 4], [1] * 1000])
def test_tensors_that_claim_more_than_they_hold(tmp_path: Path, dims: list[int]) -> None:
    proto = m.plain()
    proto.graph.initializer[0].dims[:] = dims
    refused(m.saved(proto, tmp_path), "is damaged")


def test_tensors_of_an_unknown_type(tmp_path: Path) -> None:
    proto = m.plain()
    proto.graph.initializer[0].data_type = 99
    refused(m.saved(proto, tmp_path), "does not hold the data that its shape and type claim")


def test_huge_dimensions_are_not_allocated(tmp_path: Path) -> None:
    """A petabyte by name only: in the input, in ConstantOfShape, Expand, Range and Tile."""
    big = 2**50
    proto = model(
        [
            node("ConstantOfShape", "shape", "a"),
            node("Expand", "one shape", "b"),
            node("Range", "start limit step", "c"),
            node("Tile", "one shape", "d"),
            node("Reshape", "x shape", "e"),
        ],
        [m.ints("shape", big), m.ints("one", 1)]
        + [m.constant(name, np.array(number)) for name, number in (("start", 0), ("limit", big), ("step", 1))],
        inputs=[value("x", [big])],
        outputs=[value(name, None, m.FLOAT if name in "ae" else m.INT64) for name in "abcde"],
    )
    report = lint_here(m.saved(proto, tmp_path))
    assert m.shape_of(report, "c") == [big]


def test_a_long_list_is_not_written_out(tmp_path: Path) -> None:
    """onnx's data propagation fills the memory for this: it takes every list for a shape, also one of 2**60."""
    proto = model([node("Add", "x x", "a"), node("Mul", "a a", "y")], inputs=[value("x", [2**60])])
    assert m.shape_of(lint_here(m.saved(proto, tmp_path)), "y") == [2**60]


def external(folder: Path, location: str, size: int = 64, **entries: object) -> onnx.ModelProto:
    proto = model([node("Add", "x w", "y")], [m.zeros("w", 4, 4)], outputs=[value("y", [1, 4, 4, 4])])
    proto.graph.input[0].CopyFrom(value("x", [1, 4, 4, 4]))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(entry))
    (folder / "w.bin").write_bytes(b"\0" * size)
    return proto


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    report = lint_here(m.saved(external(tmp_path, "w.bin", offset=0, length=64), tmp_path))
    assert report.ok
    assert report.facts["external_files"] == {"w.bin": 64}
    assert report.facts["initializer_bytes"] == 64


@pytest.mark.parametrize(
    "location", ["../w.bin", "folder/w.bin", "/etc/hostname", "..", "", ".hidden", "C:\\w.bin", "w.bin\0"]
)
def test_external_data_elsewhere_is_not_opened(tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = m.saved(external(tmp_path, location), tmp_path)
    touched: list[str] = []
    for method in ("is_file", "is_symlink", "stat", "open", "read_bytes"):
        original = getattr(Path, method)
        monkeypatch.setattr(
            Path, method, lambda self, *a, _o=original, **k: (touched.append(str(self)), _o(self, *a, **k))[1]
        )
    report = lint_here(path)
    monkeypatch.undo()
    (finding,) = [finding for finding in report.findings if finding.rule == "external-data"]
    assert finding.tensor == "w"
    assert not report.ok
    assert set(touched) == {str(path)}


def test_external_data_behind_a_link(tmp_path: Path) -> None:
    proto = external(tmp_path, "link.bin")
    os.symlink(tmp_path / "w.bin", tmp_path / "link.bin")
    report = lint_here(m.saved(proto, tmp_path))
    assert "symbolic link" in next(f.message for f in report.findings if f.rule == "external-data")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 0, "length": 32}, "does not hold all"),
        ({"offset": 60}, "does not hold all"),
        ({"offset": -4}, "does not hold all"),
        ({"offset": 2**70}, "does not hold all"),
        ({"offset": "x"}, "no readable offset"),
        ({"length": "9" * 5000}, "no readable offset"),
    ],
)
def test_external_data_out_of_bounds(tmp_path: Path, entries: dict[str, object], words: str) -> None:
    refused(m.saved(external(tmp_path, "w.bin", **entries), tmp_path), words)


def test_missing_external_data(tmp_path: Path) -> None:
    refused(m.saved(external(tmp_path, "gone.bin"), tmp_path), "gone.bin", "does not exist")
    refused(m.saved(external(tmp_path, "w" * 300), tmp_path))


def test_duplicates_beside_the_model(tmp_path: Path) -> None:
    proto = model(
        [node("Gather", "x i0", "a"), node("Gather", "x i1", "y")], outputs=[value("a", None), value("y", None)]
    )
    for name, offset in (("i0", 0), ("i1", 32768)):
        tensor = TensorProto(name=name, data_type=m.INT64, dims=[4096], data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", "i.bin"), ("offset", offset)):
            tensor.external_data.add(key=key, value=str(entry))
        proto.graph.initializer.append(tensor)
    (tmp_path / "i.bin").write_bytes(bytes(65536))
    report = lint_here(m.saved(proto, tmp_path))
    assert [f.rule for f in report.findings if f.rule == "duplicate-constant"]


def calls(op: str, count: int, name: str) -> onnx.FunctionProto:
    names = ["a", *(f"t{i}" for i in range(count - 1)), "b"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]], domain="l") for i in range(count)]
    return helper.make_function(
        "l", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    )


def with_functions(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    call = helper.make_node("F0", ["x"], ["y"], domain="l")
    return model([call], functions=functions, domains={"l": 1}, outputs=[value("y", [1, 4, 8, 8])])


def test_functions_that_call_themselves(tmp_path: Path) -> None:
    """What onnx makes of them depends on its version: an exception, or a crash of the child."""
    for functions in (
        [calls("F0", 1, "F0")],
        [calls("F1", 1, "F0"), calls("F0", 1, "F1")],
        [calls(f"F{i + 1}", 1, f"F{i}") for i in range(2000)],
    ):
        path = m.saved(with_functions(*functions), tmp_path)
        with pytest.raises(InputError, match="cannot be expanded|ended the process that reads it") as caught:
            lint_model(path)
        assert str(path) in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_functions_that_explode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linting, "MEGABYTES", 768)
    bomb = with_functions(*(calls(f"F{i + 1}", 10, f"F{i}") for i in range(9)))
    with pytest.raises(InputError, match="needs more memory to lint than the limit of 768 MB: keep its weights beside"):
        lint_model(m.saved(bomb, tmp_path))


def test_a_child_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_report, "SECONDS", 0.01)
    with pytest.raises(InputError, match="takes more time to lint than the limit of 0 s: simplify it"):
        lint_model(m.saved(m.plain(), tmp_path))


def test_a_child_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linting, "CHILD", (sys.executable, "-c", "import os; os.abort()"))
    with pytest.raises(InputError, match=r"ended the process that reads it \(exit code -6\): it is damaged or made"):
        lint_model(m.saved(m.plain(), tmp_path))


def test_the_child_says_the_same(tmp_path: Path) -> None:
    path = m.saved(m.everything_wrong(), tmp_path)
    assert lint_model(path) == lint_here(path)
    with pytest.raises(InputError, match=r"gone\.onnx does not exist"):
        lint_model(tmp_path / "gone.onnx")


@pytest.mark.parametrize("error", [ValueError("a\nb"), RecursionError()])
def test_what_nobody_expected_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(lint_child, "lint_here", fail)
    monkeypatch.setitem(sys.modules, "resource", None)  # the limit would be that of the tests
    said = json.loads(lint_child.answer("m.onnx", {}, 1))["error"]
    assert said.startswith(f"m.onnx cannot be linted, it is probably damaged: {type(error).__name__}")


def test_a_report_of_any_length_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_report, "MAX_REPORT", 100)
    monkeypatch.setitem(sys.modules, "resource", None)
    path = m.saved(m.plain(), tmp_path)
    assert "is longer than the limit" in json.loads(lint_child.answer(str(path), {}, 1))["error"]


def test_bodies_that_nest_without_end(tmp_path: Path) -> None:
    """protobuf gives up at a hundred levels; written by hand, because it will not build such a model either."""

    def field(number: int, content: bytes) -> bytes:
        length, prefix = len(content), bytearray([number << 3 | 2])
        while length > 127:
            prefix.append(length & 127 | 128)
            length >>= 7
        return bytes([*prefix, length]) + content

    for levels in (20, 30, 40, 5000):
        graph = b""
        for _ in range(levels):
            attribute = field(5, field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05")
            graph = field(1, field(1, b"c") + field(2, b"y") + field(4, b"If") + attribute)
        data = b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")
        with contextlib.suppress(InputError):
            assert not lint_here(write(tmp_path, data)).ok


@SETTINGS
@given(data=st.binary(max_size=400))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    with contextlib.suppress(InputError):
        lint_here(write(tmp_path, data))


@SETTINGS
@given(name=st.sampled_from(sorted(MODELS)), seed=st.integers(0, 2**32), count=st.integers(1, 8))
def test_mutated_models(tmp_path: Path, name: str, seed: int, count: int) -> None:
    """Bytes changed, left out, or doubled in otherwise good models."""
    rng, data = random.Random(seed), bytearray(MODELS[name])
    for _ in range(count):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(1, 9)]
            case _:
                data[at:at] = data[max(0, at - 16) : at]
        data = data or bytearray(1)
    with contextlib.suppress(InputError):
        lint_here(write(tmp_path, bytes(data))).to_dict()


NUMBERS = st.sampled_from([-(2**63), -(2**31), -1, 0, 1, 2, 5, 17, 4096, 2**31 - 1, 2**40, 2**63 - 1])


@SETTINGS
@given(
    name=st.sampled_from(sorted(MODELS)),
    op=st.sampled_from(sorted({s.name for s in onnx.defs.get_all_schemas()})),
    at=st.integers(0, 99),
    axis=NUMBERS,
    numbers=st.lists(NUMBERS, max_size=6),
)
def test_well_formed_nonsense(tmp_path: Path, name: str, op: str, at: int, axis: int, numbers: list[int]) -> None:
    """Any operator, with any attributes and any shape, in the place of another."""
    proto = onnx.ModelProto.FromString(MODELS[name])
    changed = proto.graph.node[at % len(proto.graph.node)]
    changed.op_type = op
    changed.attribute.append(helper.make_attribute("axis", axis))
    if numbers:
        changed.attribute.append(helper.make_attribute("axes", numbers))
        tensor = m.ints("numbers", *numbers)
        proto.graph.initializer.append(tensor)
        changed.input.append("numbers")
        changed.input[len(changed.input) // 2] = "numbers"
    with contextlib.suppress(InputError):
        lint_here(write(tmp_path, proto.SerializeToString())).to_dict()
