"""The house has one direction: what a device imports, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from small_networks import SIZE, small_network

import ppexport
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs

ROOT = Path(ppexport.__file__).parent
DEVICE = {"numpy", "PIL", "ppexport", *sys.stdlib_module_names}
DEVICE_FILES = [
    "errors.py", "files.py", "mask.py", "artifact.py", "picture.py", "images.py", "tiles.py", "upscale.py",
    "pipeline.py", "opening.py", "bicubic.py", "alpha.py", "colour_chunks.py", "wire.py",
    "backends/__init__.py", "backends/base.py", "backends/denormals.py", "backends/describing.py",
    "backends/onnx/__init__.py", "backends/onnx/session.py", "backends/onnx/external.py",
    "backends/onnx/runner.py", "folders.py",
    *(f"backends/tensorrt/{name}.py" for name in (
        "__init__", "cuda", "engine_artifact", "engine_builder", "facts", "parser_report", "runner", "session", "trust",
        "remote", "remote_collect", "trtexec",
    )),
    *(f"backends/openvino/{name}.py" for name in ("__init__", "runner", "session")), "parity/inputs.py",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "profile").rglob("*.py"))), "backends/onnx/modules.py",
    "backends/coreml/device.py", "backends/coreml/mac.py",
    *(f"devices/{path.name}" for path in sorted((ROOT / "devices").glob("*.py"))),
]  # fmt: skip
ROOMS = ["cards", "networks", "twin", "devices", "backends", "parity", "profile", "report"]
"""In the order of the way through the house."""
AGENT = sorted((ROOT / "profile" / "agent").glob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that *path* imports anywhere, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", DEVICE_FILES)
def test_device_code_imports_what_a_device_has(name):
    runtimes = {"onnxruntime"} if name.endswith(("session.py", "runtimes.py")) else set()
    assert {module.partition(".")[0] for module in imported(ROOT / name)} <= DEVICE | runtimes


def test_no_check_is_left_out_by_python_with_optimisations():
    """`python -O` drops assertions: what a device, a file or a user says is checked by raising.

    Not looked at: the twin, which reads nothing from outside, and `compare`, whose assertions repeat checks for mypy.
    """
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] != "twin" and path != ROOT / "parity" / "compare.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert not found


@pytest.mark.parametrize("path", AGENT, ids=lambda p: p.name)
def test_the_agent_imports_itself_and_the_standard_library(path):
    own = {m for m in imported(path) if m.startswith("ppexport")}
    assert all(m.startswith("ppexport.profile.agent.") for m in own)
    assert {m.partition(".")[0] for m in imported(path)} <= {"numpy", "ppexport", *sys.stdlib_module_names}
    # Devices run it with Python 3.8.
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_runners_import_artifact_mask_and_their_base_only():
    allowed = {"ppexport.artifact", "ppexport.mask", "ppexport.errors", "ppexport.backends.base"}
    for runner in ROOT.glob("backends/*/runner.py"):
        own = {m for m in imported(runner) if m.startswith("ppexport.")}
        session = f"ppexport.backends.{runner.parent.name}.session"
        assert own <= allowed | {session}, runner


def room_of(module: str) -> int | None:
    parts = module.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 1 and parts[0] == "ppexport" and parts[1] in ROOMS else None


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_imports_a_later_one(path):
    own = room_of(".".join(("ppexport", *path.relative_to(ROOT).with_suffix("").parts)))
    if own is None:
        return
    later = {m for m in imported(path) if (room_of(m) or 0) > own}
    assert not later


BLOCKED = """
import sys
# As if none of them were installed, for `import` and for `find_spec`.
sys.modules.update(dict.fromkeys({blocked!r}))
"""


def run_without(blocked, code):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code], capture_output=True, text=True, check=False
    )


def test_a_device_upscales_without_torch(artifact, tmp_path):
    from PIL import Image

    Image.new("RGB", (60, 40), (10, 200, 90)).save(tmp_path / "in.png")
    blocked = ("torch", "onnx", "onnxsim", "yaml", "safetensors")
    arguments = ["ppexport", "upscale", str(artifact), str(tmp_path / "in.png"), str(tmp_path / "out.png")]
    done = run_without(blocked, f"import sys; sys.argv = {arguments!r}\nfrom ppexport.cli import run; run()")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (120, 80)


def parity_without(blocked, artifact, against):
    """Without the command line's parser, whose newer versions need pydantic themselves."""
    run = None if against is None else str(against)
    call = f"parity(Path({str(artifact)!r}), against={run!r} and Path({run!r}))"
    return run_without(blocked, f"from pathlib import Path\nfrom ppexport.commands.parity import parity\n{call}")


def test_a_device_compares_with_a_saved_run_without_torch(tmp_path, monkeypatch):
    network = small_network()
    folder = ppexport.export(network, backend="onnx", size=SIZE, out=tmp_path / "a")
    one = [item for item in parity_inputs(SIZE, 2) if item.name == "coffee"]
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: one)
    saved = tmp_path / "run"
    assert parity_run.run_parity(network, ppexport.open_artifact(folder), saved, lambda *_: None).passed
    blocked = ("torch", "onnx", "onnxsim", "pydantic", "yaml", "safetensors")
    done = parity_without(blocked, folder, saved)
    assert done.returncode == 0, done.stderr
    assert "flips were not measured: onnx-fp32 does not tell its categories" in done.stdout
    assert (saved / "report-onnx-fp32.json").is_file()
    done = parity_without(blocked, folder, None)
    assert "UnavailableError: torch is not installed" in done.stderr
    assert "ppexport parity ARTIFACT --against RUN" in done.stderr


def test_import_needs_no_torch_and_says_what_to_install():
    code = "import ppexport\nassert callable(ppexport.pure_mask)\nppexport.load_network"
    done = run_without(("torch",), code)
    assert done.returncode == 1
    assert "ppexport.load_network needs torch: pip install 'ppexport[export]'" in done.stderr


def test_the_public_names():
    for name in ("load_network", "make_twin", "export", "open_artifact", "pure_mask", "pixel_labels"):
        assert callable(getattr(ppexport, name))
        assert name in dir(ppexport)
    # Loading the module behind a function must not hide the function.
    import_module("ppexport.exporting")
    assert callable(ppexport.export)
    with pytest.raises(AttributeError):
        _ = ppexport.nonsense
