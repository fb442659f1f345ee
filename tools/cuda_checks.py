"""Runs on a GPU what the CUDA parts of this project do, without TensorRT: python tools/cuda_checks.py --help.

The session of `ppexport/backends/tensorrt` runs an engine that is a small kernel (`gpu/stand_in_engine.py`). So
buffers, pinned memory, streams and graph capture are the project's own. It needs an NVIDIA driver, libcudart and NumPy.
Where this Python has PyTorch for CUDA, and the packages of ppexport's extra `export`, network and twin are compared on
the GPU, too (`gpu/column.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from gpu.bench import Bench, CheckError
from gpu.check_list import CHECKS

from ppexport.backends.tensorrt.run_builder import describe_gpu
from ppexport.errors import EXIT_GATE_FAILED, PpexportError, UnavailableError
from ppexport.files import write_text

FORMAT, VERSION = "ppexport-cuda-checks", 1
LIMIT = 90.0
"""Seconds of one check: CUDA calls that never return cannot be broken off otherwise."""


class Record:
    """The result file, written anew after every check, so that whatever ends the program leaves what was found."""

    def __init__(self, file: Path, machine: dict[str, Any]) -> None:
        self.file = file
        self.data: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine,
            "passed": False,
            "checks": [],
        }

    def add(self, name: str, passed: bool, seconds: float, text: str) -> None:
        """Note a check, and print its line."""
        row = {"name": name, "passed": passed, "seconds": round(seconds, 3), "text": text}
        self.data["checks"].append(row)
        print(f"{name:<18} {'passed' if passed else 'FAILED'} {seconds:8.2f} s   {text}", flush=True)
        self.write()

    def write(self) -> None:
        """Write the file atomically."""
        write_text(self.file, json.dumps(self.data, indent=2) + "\n")


def run_checks(
    bench: Bench,
    record: Record,
    checks: dict[str, Callable[[Bench], str]] | None = None,
    limit: float = LIMIT,
    leave: Callable[[int], object] = os._exit,
) -> bool:
    """Run *checks* and note what they find.

    Args:
        bench: what they run on.
        record: what they are noted in.
        checks: by name; all if left out.
        limit: seconds of each. Then the result is written and the program left, which alone ends a call of CUDA.
        leave: leaves it with an exit code.

    Returns:
        Whether all passed.
    """

    def out_of_time(name: str) -> None:
        record.add(name, False, limit, "it did not end: the program was left, and later checks did not run")
        leave(EXIT_GATE_FAILED)

    for name, check in (checks or CHECKS).items():
        timer = threading.Timer(limit, out_of_time, [name])
        timer.daemon = True
        begin = time.perf_counter()
        timer.start()
        try:
            passed, text = True, check(bench)
        except (CheckError, PpexportError) as error:
            passed, text = False, str(error)
        except Exception as error:
            passed, text = False, f"{type(error).__name__}: {error}"
        finally:
            timer.cancel()
        record.add(name, passed, time.perf_counter() - begin, text)
        # What a failed check left behind is its own fault alone.
        bench.forget()
    return all(row["passed"] for row in record.data["checks"])


def describe_machine(bench: Bench) -> dict[str, Any]:
    """GPU, driver, runtime and Python."""
    version, (free, total) = bench.cuda.number("cudaRuntimeGetVersion"), bench.cuda.memory()
    return {
        **describe_gpu(),
        "runtime": f"{version // 1000}.{version % 1000 // 10}",
        "memory_bytes": total,
        "free_bytes": free,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run everything; the exit code: 0 all passed, 1 a check failed, 2 bad input, 3 no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    default = Path(os.environ.get("OUT") or ".") / "cuda_checks.json"
    parser.add_argument("--out", type=Path, default=default, metavar="FILE", help="the result (default: %(default)s)")
    parser.add_argument("--no-column", action="store_true", help="leave network and twin in PyTorch out")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder))
            machine = describe_machine(bench)
            print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
            record = Record(options.out, machine)
            record.write()
            passed = run_checks(bench, record)
            if not options.no_column:
                passed = add_column(record) and passed
        record.data["passed"] = passed
        record.write()
    except PpexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{'all checks passed' if passed else 'some check FAILED'}: {options.out}")
    return 0 if passed else EXIT_GATE_FAILED


def add_column(record: Record, device: str = "cuda") -> bool:
    """Compare network and twin in PyTorch on *device*, or note why that was left out; whether nothing failed."""
    begin = time.perf_counter()
    try:
        from gpu.column import compare_on

        column = compare_on(device)
    except (ModuleNotFoundError, UnavailableError) as error:
        reason = f"this Python has no {error.name}" if isinstance(error, ModuleNotFoundError) else str(error)
        record.data["column"] = {"left_out": reason}
        print(f"{'network and twin':<18} left out: {reason}")
        record.write()
        return True
    except Exception as error:
        column = {"passed": False, "text": f"{type(error).__name__}: {error}"}
    record.data["column"] = column
    record.add("network and twin", column["passed"], time.perf_counter() - begin, column["text"])
    return bool(column["passed"])


if __name__ == "__main__":
    sys.exit(main())
