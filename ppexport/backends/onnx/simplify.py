"""Simplifies an ONNX file in a child process, without folding constants.

onnxsim is native code with known crashes, so it never runs in the caller's process. Constant folding stays off: it
would turn every 15 KiB bias table into a 1 MiB bias.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ppexport.errors import ExportError, printable, require
from ppexport.files import module_command

TIMEOUT = 900
"""Seconds; a 512x512 graph takes a few."""


def simplify_file(source: Path, target: Path) -> None:
    """Write the simplified *source* to *target*. Raises ExportError where onnxsim crashes, hangs or refuses."""
    require("onnxsim", "export")
    command = module_command(__name__, str(source.resolve()), str(target.resolve()))
    # The child's own folder, since a crash may leave files in it.
    with TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            target.unlink(missing_ok=True)
            raise ExportError(f"onnxsim did not finish in {TIMEOUT} s") from None
    if done.returncode != 0 or not target.is_file():
        target.unlink(missing_ok=True)
        raise ExportError(_failure(done.returncode, printable(done.stderr)))


def _failure(code: int, said: str) -> str:
    """What to say of a child that ended with *code* and whose standard error is *said*."""
    if code < 0:
        killed = code == -signal.SIGKILL
        hint = "memory may have run out, so export a smaller size" if killed else "try another of its versions"
        known = {number.value: number.name for number in signal.Signals}
        return f"onnxsim was ended by {known.get(-code, f'signal {-code}')} while it simplified the graph: {hint}"
    last = (said.strip() or "no message").splitlines()[-1]
    return f"onnxsim failed with exit code {code}: {last}"


def main(source: str, target: str) -> None:
    """Runs in the child."""
    # onnxsim imports these too where they are installed, for work that is not asked of it here. Most of the child's
    # time would be theirs.
    for name in ("torch", "sympy"):
        sys.modules[name] = None  # type: ignore[assignment]
    import onnx
    import onnxsim

    model, checked = onnxsim.simplify(onnx.load(source), skip_constant_folding=True)
    if not checked:
        raise SystemExit("the simplified graph computes something else")
    # Inferred shapes are a third of a megabyte and every reader infers them again.
    del model.graph.value_info[:]
    # What onnxsim says of its own work.
    del model.metadata_props[:]
    onnx.save(model, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
