"""What runtimes print while they load a model is dropped, or kept; their failures are raised all the same."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import IO, Iterator


@contextmanager
def quiet(into: IO[bytes] | None = None) -> Iterator[None]:
    """Write whatever the process writes to standard output and standard error to the file *into*, None drops it."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nothing if into is None else into.fileno(), stream)
        yield
    finally:
        for stream, copy in zip((1, 2), kept):
            os.dup2(copy, stream)
        for opened in (*kept, nothing):
            os.close(opened)
