"""What a long chain of large temporary tensors does to memory, and the way out."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3
"""The number of the setting in glibc's malloc.h."""
LARGE = 1 << 20


def return_large_blocks() -> None:
    """Have glibc return every freed block of a MiB or more to the system at once, in this process, from now on.

    Left alone it keeps blocks of up to 32 MiB, and while a graph is traced small objects settle between them: exporting
    a 256x256 image then holds several times what its tensors need. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGE)
