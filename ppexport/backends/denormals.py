"""Denormal numbers as zeros while a runtime computes, and at no other time.

Softmax leaves denormals where a weight is very small, and x86 cores take a hundred times as long over them. Whether
they count as zeros is a mode of each thread. ONNX Runtime and OpenVINO set it in the threads that they own, and in the
thread that opens a model (ONNX Runtime only for the first model of a process), but part of every run is computed in the
thread that asks for it, and neither ever puts the mode back. Without `Flushed` a caller's NumPy would lose denormals
for good, and a model that is run in another thread than the one that opened it would be slow.

The mode is a register (MXCSR), which C libraries save and restore with the floating-point environment. Only 64-bit x86
under Linux, Android or macOS is handled: on other processors the runtimes leave the mode alone, and under Windows they
still change the caller's. Standard library only, for Python 3.8.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from ctypes.util import find_library
from typing import Any

FLUSH = 0x8040
"""Bits of MXCSR: results become zero (15), operands count as zero (6)."""


def _environment() -> tuple[Any, Any, int] | None:
    """The C library, its type `fenv_t` as 32-bit numbers, and which of them is MXCSR; None where there is none."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.maxsize < 1 << 32:
        return None
    if sys.platform == "darwin":
        words, place = 4, 1
    elif sys.platform in ("linux", "android"):
        words, place = 8, 7
    else:
        return None
    # Not CDLL, which lets other threads take Python's lock at every call.
    library = ctypes.PyDLL(None)
    if not hasattr(library, "fegetenv"):
        library = ctypes.PyDLL(find_library("m"))
    return (library, ctypes.c_uint32 * words, place) if hasattr(library, "fegetenv") else None


_ENVIRONMENT = _environment()


class Flushed:
    """`with Flushed():` has the calling thread take denormals as zeros, and puts back what was before."""

    def __enter__(self) -> None:
        if _ENVIRONMENT is None:
            return
        library, kind, place = _ENVIRONMENT
        self._before = kind()
        library.fegetenv(self._before)
        inside = kind(*self._before)
        inside[place] |= FLUSH
        library.fesetenv(inside)

    def __exit__(self, *_: object) -> None:
        if _ENVIRONMENT is not None:
            _ENVIRONMENT[0].fesetenv(self._before)
