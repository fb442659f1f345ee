"""LiteRT's GPU accelerator: what it refuses and misreads, that exports are right on it, and that lint knows.

Where no GPU driver is installed, Debian's chromium brings one that computes on the CPU (SwiftShader).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import exported_once
from small_networks import small_network
from test_litert_rewrites import rewritten
from torch import nn

import ppexport
from ppexport.backends.backend import FP32_GATE, find_backend
from ppexport.backends.lint_report import answer
from ppexport.backends.litert.rewrite import rewrite
from ppexport.backends.litert.rewrite.inverse import MOST, falling
from ppexport.backends.litert.rewrite.rewritten import Run
from ppexport.backends.open_front import Front
from ppexport.device.target import choose, open_target
from ppexport.errors import ArtifactError, InputError, UnavailableError
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs

pytest.importorskip("litert_torch")
from tflite_files import File, behind, elementwise, packed

from ppexport.backends.litert import gpu_trial
from ppexport.backends.litert.gpu_constants import align_constants, match_ranks
from ppexport.backends.litert.lint.lint_tflite import lint_here, lint_tflite
from ppexport.backends.litert.run_gpu import GpuSession, has_gpu, looks_up_computed
from ppexport.backends.litert.run_litert import Session
from ppexport.backends.litert.run_litert_facts import facts_of
from ppexport.backends.litert.tflite import add_facts, edit, read_model

CHROMIUM = Path("/usr/lib/chromium")
SIZE, CAPACITIES = (16, 32), (256, 512)
"""As in test_litert.py, so that the artifact is made once."""
MISREAD = {
    "all axes": ("ADD", (7,), (7,), "right", np.float32),
    "into the constant": ("MUL", (1, 6, 1), (5, 6, 1), "right", np.float32),
    "a column": ("MUL", (5, 1), (5, 7), "left", np.float32),
    "a quotient": ("DIV", (9,), (1,), "left", np.float32),
    "a comparison": ("GREATER", (4, 3, 5), (4, 3, 5), "right", np.float32),
    "whole, fewer axes": ("ADD", (5, 7), (7,), "right", np.int32),
    "whole, on the left": ("SUB", (5, 7), (5, 7), "left", np.int32),
    "whole, compared": ("LESS", (1, 7), (1, 7), "left", np.int32),
}
"""{name: operator, shapes, which is constant, type} of what the accelerator computes wrong."""
RIGHT = {
    "a row": ("ADD", (5, 7), (7,), "right", np.float32),
    "a number": ("MUL", (5, 7), (), "right", np.float32),
    "one slice": ("SUB", (1, 5, 7), (1, 5, 7), "left", np.float32),
    "whole, all axes": ("MUL", (5, 7), (5, 7), "right", np.int32),
    "whole, broadcast": ("SUB", (9,), (1,), "left", np.int32),
    "nothing constant": ("ADD", (5, 7), (5, 1), None, np.float32),
}


@pytest.fixture(scope="session")
def vulkan(tmp_path_factory):
    """A GPU driver, which children of this process find, too."""
    with pytest.MonkeyPatch.context() as patch:
        driver, loader = CHROMIUM / "vk_swiftshader_icd.json", CHROMIUM / "libvulkan.so.1"
        if not has_gpu() and driver.is_file() and loader.is_file():
            folder = tmp_path_factory.mktemp("vulkan")
            (folder / loader.name).symlink_to(loader)
            patch.setenv("LD_LIBRARY_PATH", str(folder))
            for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
                patch.setenv(name, str(driver))
            # This process read LD_LIBRARY_PATH when it started.
            ctypes.CDLL(str(loader), ctypes.RTLD_GLOBAL)
        if not has_gpu():
            pytest.skip("no Vulkan driver: install a GPU's, or Debian's package chromium, which brings SwiftShader")
        yield


def on_cpu(content, inputs):
    session = Session(content, "m", 1)
    return session.run(inputs)["sr"]


def on_gpu(content, inputs):
    session = GpuSession(content, "m")
    try:
        return session.run(inputs)["sr"]
    finally:
        session.close()


def lint(content, folder):
    (folder / "m.tflite").write_bytes(content)
    return lint_here(folder / "m.tflite", {})


def rules(report, severity="error"):
    return {finding.rule for finding in report.findings if finding.severity.value == severity}


@pytest.mark.parametrize("case", MISREAD.values(), ids=MISREAD)
def test_an_aligned_constant_changes_no_number(case, tmp_path):
    file, content = elementwise(*case)
    aligned = edit(content, align_constants)
    assert np.array_equal(on_cpu(content, file.inputs), on_cpu(aligned, file.inputs))
    assert rules(lint(content, tmp_path)) == {"gpu-misread-constant"}
    assert not rules(lint(aligned, tmp_path))


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_what_is_read_right_stays_as_it_is(case, tmp_path):
    _, content = elementwise(*case)
    assert len(edit(content, align_constants)) == len(edit(content))
    assert not rules(lint(content, tmp_path))


def test_the_accelerator_misreads_just_these_constants(vulkan):
    wrong = {}
    for name, case in (MISREAD | RIGHT).items():
        file, content = elementwise(*case)
        expected = on_cpu(content, file.inputs)
        wrong[name] = not np.allclose(on_gpu(content, file.inputs), expected, rtol=1e-5)
        assert np.allclose(on_gpu(edit(content, align_constants), file.inputs), expected, rtol=1e-5), name
    # Where this fails because nothing is wrong any more, LiteRT was mended, and `gpu_constants` can go.
    assert wrong == dict.fromkeys(MISREAD, True) | dict.fromkeys(RIGHT, False)


def test_a_linear_layer_of_8_bits_keeps_its_rank(vulkan, tmp_path):
    generator, file = np.random.default_rng(0), File()
    weight = file.constant(generator.integers(-127, 128, (6, 8)).astype(np.int8), scale=0.01)
    rows = file.given(generator.random((1, 5, 8), np.float32))
    content = file.content(file.add("FULLY_CONNECTED", [rows, weight], (5, 6), version=9))
    matched, expected = edit(content, match_ranks), on_cpu(content, file.inputs)
    assert np.array_equal(on_cpu(matched, file.inputs), expected)
    assert rules(lint(content, tmp_path)) == {"gpu-wrong"}
    assert not rules(lint(matched, tmp_path))
    # The CPU rounds what the layer takes to 8 bits, the GPU does not.
    assert np.abs(on_gpu(content, file.inputs) - expected).max() > 1
    assert np.abs(on_gpu(matched, file.inputs) - expected).max() < 0.05


def refused_files():
    """{name: (rule, content)} of files that the accelerator refuses."""
    generator = np.random.default_rng(0)
    x = generator.random((6, 4), np.float32)
    found = {}

    def of(name, rule, kind, shape, *inputs, dtype=np.float32, **options):
        file = File()
        places = [file.constant(i[0]) if isinstance(i, tuple) else file.given(i) for i in inputs]
        found[name] = rule, file.content(file.add(kind, places, shape, dtype, **options))

    index = np.array([1, 0, 3], np.int32)
    of("unknown to it", "gpu-refused", "L2_NORMALIZATION", (6, 4), x)
    of("clamped", "gpu-refused", "RELU_0_TO_1", (6, 4), x)
    of("left constant", "gpu-refused-arguments", "BATCH_MATMUL", (6, 6), (x,), x.T.copy())
    of("rank 5", "gpu-refused-arguments", "RESHAPE", (1, 2, 3, 2, 2), x, (np.array([1, 2, 3, 2, 2], np.int32),))
    of("rank 2", "gpu-refused-arguments", "PAD", (8, 4), x, (np.array([[1, 1], [0, 0]], np.int32),))
    of("two axes", "gpu-refused-arguments", "GATHER", (3, 1, 4), x, index[:, None])
    of("constants only", "gpu-refused-arguments", "ABS", (6, 4), (x,))
    file = File()
    place = file.given(np.arange(9, dtype=np.int32))
    numbers, _ = file.several("TOPK_V2", [place, file.constant(np.array(3, np.int32))], [((3,), np.int32)] * 2)
    found["whole numbers"] = "gpu-refused-arguments", file.content(numbers)
    file = File()
    condition = file.add("GREATER", [file.given(x), file.constant(np.float32(0.5))], (6, 4), np.bool_)
    branches = [file.given(x), file.given(x[:, :1].copy())]
    found["small branch"] = "gpu-refused-arguments", file.content(file.add("SELECT_V2", [condition, *branches], (6, 4)))
    return found


def test_lint_knows_what_the_accelerator_refuses(tmp_path):
    for name, (rule, content) in refused_files().items():
        assert rule in rules(lint(content, tmp_path)), name


def test_the_accelerator_refuses_what_lint_knows(vulkan):
    for name, (_, content) in refused_files().items():
        with pytest.raises(ArtifactError, match=f"GPU accelerator refuses {name}: "):
            GpuSession(content, name)


def embeddings(computed):
    """A file that looks up embeddings in a table that is *computed* or constant."""
    file = File()
    table = np.random.default_rng(0).random((6, 4), np.float32)
    place = file.add("ABS", [file.given(table)], (6, 4)) if computed else file.constant(table)
    index = file.given(np.array([1, 0, 3], np.int32))
    return file.content(file.add("EMBEDDING_LOOKUP", [index, place], (3, 4)))


def test_embeddings_of_a_computed_table_do_not_end_the_process(tmp_path):
    assert rules(lint(embeddings(computed=True), tmp_path)) == {"gpu-computed-embedding"}
    assert not rules(lint(embeddings(computed=False), tmp_path))
    assert not looks_up_computed(behind(embeddings(computed=False)))
    with pytest.raises(ArtifactError, match="ends the process"):
        GpuSession(embeddings(computed=True), "m")


@pytest.mark.parametrize(("tokens", "warned"), [(2048, False), (2304, True)])
def test_counts_beyond_fp16_are_found(tokens, warned, tmp_path):
    file = File()
    given = file.given(np.zeros(tokens, np.float32))
    flags = file.cast(file.add("GREATER", [given, file.constant(np.float32(0.5))], (tokens,), np.bool_), (tokens,))
    count = file.add("SUM", [flags, file.constant(np.array([0], np.int32))], (1,), keepDims=True)
    assert ("gpu-half-range" in rules(lint(file.content(count), tmp_path), "warning")) == warned


def test_a_constant_beyond_fp16_is_found(tmp_path):
    for largest, warned in ((65504, False), (70000, True)):
        file = File()
        place = file.add("MUL", [file.given(np.ones((1, 4), np.float32)), file.constant(np.float32(largest))], (1, 4))
        assert ("gpu-half-range" in rules(lint(file.content(place), tmp_path), "warning")) == warned


def counting(case):
    """A file of truth values, of which more or less is made."""
    file, axis = File(), np.array(0, np.int32)

    def flags(*shape):
        return file.cast(file.given(np.zeros(shape, np.bool_)), shape)

    def wide(value):
        return file.add("DEQUANTIZE", [file.constant(value)], value.shape)

    if "input summed" in case:
        place = file.add("SUM", [flags(4096), file.constant(axis[None])], (1,), keepDims=True)
    elif case.startswith("a running sum"):
        count = 2048 if "short" in case else 4096
        place = file.add("CUMSUM", [flags(count, 2), file.constant(axis)], (count, 2))
    elif case.startswith("weights of 16 bits"):
        ones = (np.arange(4096) < (2048 if "short" in case else 4096)).astype(np.float16)
        place = file.add("FULLY_CONNECTED", [flags(1, 4096), wide(ones[None])], (1, 1))
    elif case == "a factor of 16 bits":
        place = file.add("MUL", [flags(4), wide(np.full(4, 60000, np.float16))], (4,))
    elif case.startswith("weights of 8 bits"):
        scale = 0.01 if "small" in case else 4.0
        weights = file.constant(np.full((1, 1024), 100 if "small" in case else 1, np.int8), scale)
        place = file.add("FULLY_CONNECTED", [flags(1, 1024), weights], (1, 1))
    else:
        constant = np.array([np.inf, 1e9 if "large" in case else -np.inf, 1, 1], np.float32)
        if "least" in case:
            # Beside the infinity a count stays what it is, up to 2048 and not 1.
            counts = file.add("MUL", [flags(4), file.constant(np.float32(2048))], (4,))
            least = file.add("MINIMUM", [counts, file.constant(constant)], (4,))
            place = file.add("ADD", [least, flags(4)], (4,))
        else:
            place = file.add("ADD", [flags(4), file.constant(constant)], (4,))
    content = file.content(place)
    return edit(content, call_mask) if "called mask" in case else content


def call_mask(model):
    model.signatureDefs[0].inputs[0].name = "mask"


@pytest.mark.parametrize(
    ("case", "warned"),
    {
        "an input summed": True,
        "an input summed, called mask": True,
        "a running sum": True,
        "a running sum that is short": False,
        "weights of 16 bits": True,
        "weights of 16 bits, short": False,
        "a factor of 16 bits": True,
        "weights of 8 bits": True,
        "weights of 8 bits, small": False,
        "infinity beside a large number": True,
        "infinity as a mask": False,
        "the least of infinity": True,
    }.items(),
)
def test_what_makes_more_than_fp16_holds_is_found(case, warned, tmp_path):
    assert ("gpu-half-range" in rules(lint(counting(case), tmp_path), "warning")) == warned


def test_numbers_behind_the_flatbuffer_are_read(tmp_path):
    file, content = elementwise(*MISREAD["a column"])
    content = edit(content, add_facts({"name": "value"}))
    moved = behind(content)
    assert np.array_equal(on_cpu(moved, file.inputs), on_cpu(content, file.inputs))
    assert rules(lint(moved, tmp_path)) == {"gpu-misread-constant"}
    assert not rules(lint(behind(embeddings(computed=False)), tmp_path))
    assert facts_of(moved, "m") == {"name": "value"}
    # Where a buffer has both, the runtime takes its own.
    model = read_model(content)
    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.offset, buffer.size = 4, len(buffer.data)
    for both in (packed(model), edit(packed(model))):
        assert np.array_equal(on_cpu(both, file.inputs), on_cpu(content, file.inputs))
    for read in (facts_of, lambda content, _: edit(content)):
        with pytest.raises(ArtifactError, match="is a damaged LiteRT file: bytes [0-9]+ to [0-9]+ are numbers"):
            read(moved[:-1], "m")
    (tmp_path / "m.tflite").write_bytes(moved[:-1])
    with pytest.raises(InputError, match=r"m\.tflite is a damaged LiteRT file"):
        lint_tflite(tmp_path / "m.tflite")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.tflite")
    for path in (tmp_path / "m.tflite", tmp_path):
        with pytest.raises(InputError, match="is a folder, pipe or device, not a LiteRT file"):
            lint_tflite(path)


def test_a_damaged_file_ends_in_a_sentence(tmp_path, monkeypatch):
    content = bytearray(embeddings(computed=False))
    path = tmp_path / "m.tflite"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"m\.tflite cannot be linted, it is probably damaged"):
        lint_tflite(path)
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a LiteRT file"):
        lint_tflite(path)
    # The limit of memory would be that of the tests.
    monkeypatch.setitem(sys.modules, "resource", None)
    generator = np.random.default_rng(0)
    for _ in range(80):
        changed = bytearray(content)
        for place in generator.integers(8, len(content), 3):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        assert {"error", "findings"} & set(json.loads(answer(lint_here, str(path), {}, 1)))


A = torch.arange(12.0).view(3, 4) - 6
FUNCTIONS = {
    "clamp": (lambda x: x.clamp(0, 1), torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5, float("nan")])),
    "square": (lambda x: x.pow(2), A),
    "expand": (lambda x: x.view(3, 1, 4, 1).expand(3, 2, 4, 2) * 1, A),
    "expand, a new axis": (lambda x: x.expand(2, -1, 4) * 1, A),
    "where, zero": (lambda x: torch.where(torch.ones(5, 3, 4) > x.abs(), x, torch.zeros(())), A),
    "where, a row": (lambda x: torch.where(x > 0, x[:1], x), A),
    "where, a column": (lambda x: torch.where(x > 0, x, x[:, :1]), A),
    "left constant": (lambda x: torch.arange(6.0).view(2, 3) @ x, A),
    "left constant, batch": (lambda x: torch.arange(6.0).view(3, 2) @ x.view(3, 2, 2), A),
    "pad": (lambda x: nn.functional.pad(x, (0, 1, 2, 0)), A),
    "quotient": (lambda x: torch.div(torch.arange(40), x.int(), rounding_mode="trunc").int(), torch.tensor([6.0])),
}


@pytest.mark.parametrize("case", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_rewrite_for_the_accelerator_is_equal(case):
    function, x = case
    before, after, operators = rewritten(function, x)
    assert torch.equal(before.nan_to_num(7), after.nan_to_num(7))
    assert before.dtype == after.dtype
    refused = {"expand", "clamp", "scatter"}
    assert not {str(operator).split(".")[1] for operator in operators if "." in str(operator)} & refused


def test_tokens_are_sorted_by_numbers_that_fp16_holds():
    table = falling(MOST)
    assert torch.equal(table.half().float(), table)
    assert (table[1:] < table[:-1]).all()
    assert len(table) == MOST > 240 * 240


class Half(Run):
    """Computes as a processor that keeps every float in fp16."""

    def run_node(self, n):
        found = super().run_node(n)
        half = isinstance(found, torch.Tensor) and found.is_floating_point()
        return found.half().float() if half else found


def test_counting_is_exact_where_every_float_is_fp16():
    """Android's GPUs compute so unless an app asks for fp32."""
    twin = ppexport.make_twin(small_network(), size=(64, 64))
    front, lr = Front(twin), torch.from_numpy(parity_inputs((64, 64), 2)[0].lr)
    module = rewrite(front, {"sr": True, "impure_tokens": True}, {"lr": lr})
    routed = {}
    with torch.no_grad():
        for kind in (Run, Half):
            run = kind(module)
            sr, impure = run.run(lr, enable_io_processing=False)
            order = next(
                run.env[node] for node in module.module.graph.nodes if node.target is torch.ops.aten.scatter.src
            )
            routed[kind] = sr, int(impure), order.sort().values
    assert routed[Run][1] == routed[Half][1] < 4096
    assert torch.equal(routed[Half][2], torch.arange(4096, dtype=torch.int32))
    difference = (routed[Run][0] - routed[Half][0]).pow(2).mean()
    assert -10 * difference.log10() > 45


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return exported_once(tmp_path_factory, small_network(2, 2), backend="litert", size=SIZE, capacities=CAPACITIES)


def test_nothing_of_an_export_is_refused_or_beyond_fp16(artifact):
    report = lint_tflite(artifact / "model.tflite")
    assert report.ok
    assert rules(report, "warning") == {"gpu-older"}
    assert report.facts["signatures"] == ["capacity_256", "capacity_512"]


def test_parity_on_the_gpu(artifact, vulkan, tmp_path, monkeypatch):
    monkeypatch.setattr(parity_run, "parity_inputs", lambda *given: parity_inputs(*given)[:2])
    runner = ppexport.open_artifact(artifact)
    units = find_backend("litert").unit_runs(runner, ["gpu"])
    report = parity_run.run_parity(small_network(2, 2), runner, tmp_path / "run", lambda *_: None, units)
    assert report.units["gpu"]["crossings"] == 0
    assert report.units["gpu"]["precision"] == "fp32"
    column = next(pair for pair in report.pairs if pair.other == "litert-fp32-gpu")
    assert column.passed
    assert column.gate == FP32_GATE
    assert min(row.errors.psnr for row in column.rows) > 120


def test_the_gpu_is_a_device_of_the_runtime(artifact, vulkan):
    (target,) = choose(artifact, "litert:gpu", None, False)
    assert target.name == "litert:GPU"
    lr = parity_inputs(SIZE, 2)[0].lr
    flat = np.full_like(lr, 0.5)
    with open_target(target) as runner, ppexport.open_artifact(artifact) as reference:
        for image, capacity in ((lr, 512), (flat, 256)):
            found, expected = runner(image), reference(image)
            assert found[1:] == expected[1:]
            assert found.capacity == capacity
            np.testing.assert_allclose(found.sr, expected.sr, atol=1e-5)


def test_other_devices_and_machines_without_a_gpu_get_a_sentence(artifact, monkeypatch):
    with pytest.raises(InputError, match="computes on CPU or GPU, not 'npu'"):
        choose(artifact, "litert:npu", None, False)
    with pytest.raises(InputError, match="litert:GPU takes no number of threads"):
        open_target(choose(artifact, "litert:GPU", 2, False)[0])
    runner = ppexport.open_artifact(artifact)
    with pytest.raises(InputError, match="unit of LiteRT is gpu, not 'ne'"):
        gpu_trial.unit_runs(runner, ["ne"])
    monkeypatch.setattr(gpu_trial, "has_gpu", lambda: False)
    with pytest.raises(UnavailableError, match="finds no GPU here"):
        gpu_trial.unit_runs(runner, ["gpu"])


@pytest.mark.slow
def test_the_bundled_network_is_right_on_the_gpu(vulkan, tmp_path):
    network = ppexport.load_network("pp_atd_light_x2")
    artifact = ppexport.export(network, backend="litert", size=(32, 32), out=tmp_path / "x2")
    assert lint_tflite(artifact / "model.tflite").ok
    runner = ppexport.open_artifact(artifact)
    units = find_backend("litert").unit_runs(runner, ["gpu"])
    report = parity_run.run_parity(network, runner, tmp_path / "run", lambda *_: None, units)
    assert report.passed
    assert report.pairs[-1].other == "litert-fp32-gpu"
