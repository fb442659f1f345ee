"""The house has one direction: what a device imports, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import exported_once
from small_networks import SIZE, small_network

import ppexport
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs
from ppexport.remote import archive

ROOT = Path(ppexport.__file__).parent
DEVICE = {"numpy", "PIL", "ppexport", *sys.stdlib_module_names}
RUNTIMES = {"onnxruntime"}
"""What device code imports beside `DEVICE`; the other runtimes are imported by name."""
ROOMS = [
    "errors", "files", "plugins", "device", "folders", "remote", "imaging", "networks", "twin", "quantize", "backends",
    "exporting", "parity", "profile", "search", "report", "cli",
]  # fmt: skip
"""In the order of the way through the house."""


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


@pytest.mark.parametrize("name", archive.MODULES)
def test_device_code_imports_what_a_device_has(name):
    path = ROOT / f"{name}.py"
    assert {module.partition(".")[0] for module in imported(path)} <= DEVICE | RUNTIMES
    # Devices run it with Python 3.8.
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_no_check_is_left_out_by_python_with_optimisations():
    """`python -O` drops assertions: what a device, a file or a user says is checked by raising.

    Not looked at: the twin, which reads nothing from outside.
    """
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] != "twin"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert not found


def room_of(module: str) -> str:
    """The room of *module*; "" for what stands before all of them."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "ppexport" and parts[1] not in OUTSIDE else ""


OUTSIDE = ("__init__", "__main__", "models", "calibration")


def test_no_room_imports_a_later_one():
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        own = room_of(".".join(("ppexport", *path.relative_to(ROOT).with_suffix("").parts)))
        if not own:
            continue
        for module in imported(path):
            other = room_of(module)
            if other and ROOMS.index(other) > ROOMS.index(own):
                found.add((own, other))
    assert not found


BLOCKED = """
import sys
# As if none of them were installed, for `import` and for `find_spec`.
sys.modules.update(dict.fromkeys({blocked!r}))
"""


def run_without(blocked, code):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code], capture_output=True, text=True, check=False
    )


def test_a_device_upscales_without_torch(tmp_path_factory, tmp_path):
    from PIL import Image

    artifact = exported_once(tmp_path_factory, small_network(layers=2), backend="onnx", size=(32, 48))
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
    return run_without(blocked, f"from pathlib import Path\nfrom ppexport.cli.parity import parity\n{call}")


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
    assert "ppexport.load_network needs torch: pip install -e '.[export]' in a checkout, or pip install" in done.stderr
    assert ".whl[export]' elsewhere" in done.stderr


def test_the_public_names():
    for name in ("load_network", "make_twin", "export", "open_artifact", "pure_mask", "pixel_labels"):
        assert callable(getattr(ppexport, name))
        assert name in dir(ppexport)
    # Loading the module behind a function must not hide the function.
    import_module("ppexport.exporting")
    assert callable(ppexport.export)
    with pytest.raises(AttributeError):
        _ = ppexport.nonsense
