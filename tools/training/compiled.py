"""Small C files of this folder, compiled on first use for the processor at hand and called through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from ppexport.errors import UnavailableError


@lru_cache
def library(source: str, **constants: int) -> ctypes.CDLL:
    """The functions of *source* with its compile-time *constants*.

    Raises UnavailableError where there is no C compiler or it does not accept the file.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler (gcc) was found")
    folder = Path(tempfile.mkdtemp(prefix="ppexport-train-"))
    target = folder / "compiled.so"
    command = [compiler, "-O3", "-march=native", "-fPIC", "-shared", *(f"-D{k}={v}" for k, v in constants.items())]
    command += [str(Path(__file__).with_name(source)), "-lm", "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"{source} does not compile here: {done.stderr.strip()[:300]}")
        return ctypes.CDLL(str(target))
    finally:
        # A loaded library needs its file no longer.
        shutil.rmtree(folder, ignore_errors=True)


def address(x: Tensor | None) -> ctypes.c_void_p:
    """Where the data of a contiguous tensor lie; null for None."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())
