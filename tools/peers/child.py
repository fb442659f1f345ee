"""Calls a function in a new process: for its peak memory, and so that an export that needs too much ends alone.

`python -m peers.child` reads a pickled call from standard input and writes its pickled result to standard output.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ppexport.errors import PpexportError, UnavailableError, first_line

T = TypeVar("T")
STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Most memory that this process has had in use so far (resident), in bytes."""
    if STATUS.is_file():
        # Not ru_maxrss: that begins with the size of the process that started this one.
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int | None:
    """Memory that a new process could take without swapping, None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def in_child(function: Callable[..., T], *arguments: Any, memory: int | None = None) -> T:
    """`function(*arguments)` in a new process that may take *memory* bytes of data; all of it has to be picklable.

    Raises PpexportError as the function does, UnavailableError where the process ends in another way.
    """
    # The child finds whatever this process finds, this folder's programs first.
    paths = [str(Path(__file__).parents[1]), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-m", "peers.child"],
        input=pickle.dumps((function, arguments, memory)),
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode == 0:
        kind, value = pickle.loads(done.stdout)
        if kind == "error":
            raise PpexportError(value)
        result: T = value
        return result
    if done.returncode < 0:
        raise UnavailableError(f"ended by {signal.Signals(-done.returncode).name}, perhaps for lack of memory")
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    raise UnavailableError(lines[-1])


def limit_memory(limit: int) -> None:
    """Let allocations beyond *limit* bytes of data fail, before the system ends some other process for them."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    """Read the call, make it, write the result."""
    # What libraries print must not mix with the result.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function, arguments, memory = pickle.load(sys.stdin.buffer)
    if memory is not None:
        limit_memory(memory)
    answer: tuple[str, Any]
    try:
        answer = "result", function(*arguments)
    except PpexportError as error:
        answer = "error", str(error)
    except MemoryError:
        answer = "error", f"needs more than the {(memory or 0) / 1e9:.1f} GB that are free"
    except RuntimeError as error:
        # torch's allocator says it in its own words.
        if "alloc" not in str(error):
            raise
        answer = "error", first_line(error)
    with output:
        pickle.dump(answer, output)


if __name__ == "__main__":
    main()
