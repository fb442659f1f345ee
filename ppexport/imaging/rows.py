"""A picture that comes row by row: it is written while it is computed, and never held as a whole."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

AHEAD = 1 << 26
"""Bytes of rows that are held for the reader; whoever computes faster waits."""


class Rows:
    """Rows (H, W, 3) from one thread for another, which takes them from top to bottom by slices.

    It stands for an array where one is read so. What lies above a slice that was taken is gone.
    """

    ndim = 3

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._change = threading.Condition()
        self._blocks: deque[NDArray[Any]] = deque()
        # Rows from `_top` to `_end` are here, and the reader waits for those up to `_wanted`.
        self._top = self._end = self._wanted = 0
        self._ended = False
        self._error: BaseException | None = None

    def put(self, rows: NDArray[Any]) -> None:
        """The next rows (n, W, 3). Waits while many are not read yet; does nothing where nobody will read them."""
        row = self.shape[1] * self.shape[2] * self.dtype.itemsize
        with self._change:
            self._change.wait_for(
                lambda: self._ended or self._end < self._wanted or (self._end - self._top) * row <= AHEAD
            )
            if not self._ended:
                self._blocks.append(rows)
                self._end += len(rows)
                self._change.notify_all()

    def end_with(self, computing: Future[Any]) -> None:
        """No more rows will come, since *computing* is done; what it raised is raised where they are read."""
        with self._change:
            self._ended = True
            self._error = CancelledError() if computing.cancelled() else computing.exception()
            self._change.notify_all()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> NDArray[Any]:
        """Rows, as soon as they are there. Raises ValueError for rows that are gone, and what kept them from coming."""
        if not isinstance(key, slice):
            row: NDArray[Any] = self._rows(key, key + 1, keep=True)[0]
            return row
        start, stop, step = key.indices(len(self))
        if step != 1:
            raise ValueError("rows are read one after the other")
        return self._rows(start, stop, keep=False)

    def _rows(self, start: int, stop: int, keep: bool) -> NDArray[Any]:
        with self._change:
            if start < self._top:
                raise ValueError(f"row {start} was read already, and is gone")
            self._wanted = stop
            self._change.notify_all()
            self._change.wait_for(lambda: self._ended or self._end >= stop)
            if self._end < stop:
                raise self._error or ValueError(f"{self._end} of {len(self)} rows came")
            while not keep and self._blocks and self._top + len(self._blocks[0]) <= start:
                self._top += len(self._blocks.popleft())
            taken, top = [], self._top
            for block in self._blocks:
                if top < stop and top + len(block) > start:
                    taken.append(block[max(0, start - top) : stop - top])
                top += len(block)
            self._change.notify_all()
        return np.concatenate(taken) if len(taken) != 1 else np.ascontiguousarray(taken[0])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The whole picture, for whoever cannot take it in rows."""
        return np.asarray(self[:], dtype)
