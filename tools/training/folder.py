"""The files of a run, and the right to write them."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from ppexport.errors import InputError


@dataclass(frozen=True)
class RunFiles:
    """The files of a run *folder*, and where the averaged *weights* go."""

    folder: Path
    weights: Path

    @property
    def state(self) -> Path:
        """What resuming reads."""
        return self.folder / "state.pt"

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.folder / "log.jsonl"

    @property
    def plot(self) -> Path:
        """Loss, learning rate and validation over the steps."""
        return self.folder / "loss.png"

    def claim(self) -> None:
        """Make the folder and keep other processes out of it until this one ends, however it ends.

        Raises InputError when it cannot be written, is in use, or the weights could not be written later.
        """
        if self.weights.suffix != ".safetensors":
            raise InputError(f"--out takes a .safetensors file, not {self.weights.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be a run folder: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is training in {self.folder}") from None
        # A process killed while it wrote leaves its unfinished file behind.
        for target in (self.state, self.weights, self.log, self.plot):
            for left in target.parent.glob(f".{target.name}.*{target.suffix}"):
                left.unlink(missing_ok=True)
