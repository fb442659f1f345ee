"""The linter on what torch's two exporters write, and the names of modules it finds there."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest

from ppexport.backends.onnx.lint.lint_child import lint_here
from ppexport.backends.onnx.lint.linting import Finding, LintReport, Severity
from ppexport.backends.onnx.modules import known_modules, module_of, module_of_initializer, module_of_name

torch = pytest.importorskip("torch")
nn = torch.nn


class Attention(nn.Module):
    """Window attention as it is usually written: a table gathered by position, windows by one 6-D permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(31 * 31, 4))
        self.register_buffer("index", torch.randint(0, 31 * 31, (256, 256)))
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = x.view(1, 2, 16, 2, 16, 8).permute(0, 1, 3, 2, 4, 5).reshape(4, 256, 8)
        q, k, v = self.qkv(windows).view(4, 256, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(256, 256, 4).permute(2, 0, 1)
        mixed = (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v
        out = mixed.transpose(1, 2).reshape(1, 2, 2, 16, 16, 8).permute(0, 1, 3, 2, 4, 5)
        return out.reshape(1, 1024, 8)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn_win = Attention()
        self.ffn = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Sequential(nn.Linear(8, 8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn_win(self.norm(x))
        return self.ffn(self.norm(x))


class Group(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"group": Group()})["group"]])
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x) * self.gain


def export(module: nn.Module, shape: tuple[int, ...], path: Path, **options: object) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.randn(shape),), str(path), verbose=False, **options)
    return path


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traced") / "m.onnx"
    return export(Network(), (1, 1024, 8), path, dynamo=False, opset_version=17, do_constant_folding=False)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folded") / "m.onnx"
    return export(Network(), (1, 1024, 8), path, dynamo=False, opset_version=17)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    return export(Network(), (1, 1024, 8), tmp_path_factory.mktemp("dynamo") / "m.onnx", dynamo=True)


def errors(report: LintReport, rule: str) -> list[Finding]:
    return [f for f in report.findings if f.rule == rule and f.severity is Severity.ERROR]


def modules(path: Path) -> set[str | None]:
    proto = onnx.load(path, load_external_data=False)
    known = known_modules(tensor.name for tensor in proto.graph.initializer)
    return {module_of(node, known) for node in proto.graph.node}


EXPECTED = {
    "",
    "layers.0.layers.0",
    "layers.0.layers.0.attn_win",
    "layers.0.layers.0.attn_win.qkv",
    "layers.0.layers.0.norm",
    "layers.0.layers.0.ffn.0",
    "layers.0.layers.0.ffn.1",
    "layers.0.layers.0.ffn.2.0",
}


def test_modules_of_a_trace(traced: Path) -> None:
    # None: constants shared by layers, whose nodes the exporter calls Constant_12 and Identity_3.
    assert modules(traced) - {None} == EXPECTED


def test_modules_of_a_dynamo_export(exported: Path) -> None:
    assert modules(exported) - {None} == EXPECTED


def test_a_trace_with_six_dimensions(traced: Path) -> None:
    report = lint_here(traced)
    found = errors(report, "rank")
    assert {f.module for f in found} == {"layers.0.layers.0.attn_win"}
    assert {f.op for f in found} == {"Reshape", "Transpose"}
    assert not errors(report, "large-constant"), "the bias is gathered in the graph"
    assert {f.rule for f in report.findings if f.severity is Severity.ERROR} == {"rank"}


def test_a_trace_that_folds_the_bias(folded: Path) -> None:
    report = lint_here(folded)
    (finding,) = errors(report, "large-constant")
    assert (finding.module, finding.op) == ("layers.0.layers.0.attn_win", "Add")
    assert report.facts["large_constant_bytes"] == 2**20


def test_a_dynamo_export(exported: Path) -> None:
    report = lint_here(exported)
    assert {f.module for f in errors(report, "rank")} == {"layers.0.layers.0.attn_win"}
    assert errors(report, "ir-version")
    assert not errors(report, "external-data")
    assert report.facts["external_files"] or report.facts["initializer_bytes"] < report.facts["file_bytes"]


def test_a_learned_table_is_no_large_constant(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(1, 256, 256))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.position

    report = lint_here(export(Embedding(), (1, 256, 256), tmp_path / "m.onnx", dynamo=True))
    assert not [f for f in report.findings if f.rule == "large-constant"]


def test_a_network_with_a_dynamic_batch(tmp_path: Path) -> None:
    """Another project's classifier: nothing of ours in it, no capacity, no mask."""
    cnn = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
    axes = {"image": {0: "batch"}, "scores": {0: "batch"}}
    names = {"input_names": ["image"], "output_names": ["scores"], "dynamic_axes": axes}
    path = export(cnn, (1, 3, 8, 8), tmp_path / "m.onnx", dynamo=False, opset_version=17, **names)
    report = lint_here(path)
    assert [f.tensor for f in errors(report, "dynamic-shape")] == ["image", "scores"]
    assert {f.rule for f in report.findings} == {"dynamic-shape"}
    assert lint_here(path, symbols={"batch": 4}).findings == ()


def test_names_of_initializers() -> None:
    assert module_of_initializer("layers.0.attn.table") == "layers.0.attn"
    for made_up in ("onnx::MatMul_175", "val_18", "weight", "input.3", "/attn/Constant_output_0", "a b.c", ""):
        assert module_of_initializer(made_up) is None


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/layers.0/residual_group/layers.3/attn_aca/MatMul", "layers.0.residual_group.layers.3.attn_aca"),
        ("/body/body.0/body.0.1/Conv_3", "body.0.1"),
        ("/body/body.0_2/Gemm", "body.0"),
        ("/Mul", ""),
        ("node_linear_1", None),
        ("model/conv/Conv2D", None),
        ("", None),
    ],
)
def test_names_of_traced_nodes(name: str, module: str | None) -> None:
    assert module_of_name(name) == module


def test_parameters_settle_what_is_ambiguous() -> None:
    known = known_modules(["layers.layers.0.weight", "norm.weight"])
    assert known == {"layers.layers.0", "layers.layers", "layers", "norm"}
    assert module_of_name("/layers/layers.0/Gemm", known) == "layers.layers.0"
    assert module_of_name("/layers/layers.0/Gemm") == "layers.0"
    assert module_of_name("/norm_1/LayerNormalization", known) == "norm"
    assert module_of_name("/conv_1/Conv", known) == "conv_1"


@pytest.mark.parametrize(
    ("scopes", "module"),
    [
        ("['', 'layers.0', 'layers.0.attn', 'softmax']", "layers.0.attn"),
        ("['', 'mul_24']", ""),
        ("['_empty_nn_module_stack_from_metadata_hook', 'sym_size_int_7']", None),
        ("[]", None),
        ("nonsense", None),
    ],
)
def test_scopes_of_dynamo_nodes(scopes: str, module: str | None) -> None:
    node = onnx.helper.make_node("Softmax", ["x"], ["y"], name="node_softmax")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert module_of(node) == module
