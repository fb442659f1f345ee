"""The training loop: L1, AdamW, gradient clipping, EMA, validation, saving; and how far training has come.

Progress runs from 0 to 1, and the learning rate follows it. A run of N steps adds 1/N per step. A run of a number of
hours, or until a certain moment, adds to every step the share of the remaining time that the step took. Only time spent
in steps counts: being killed, stopped (SIGSTOP) or suspended costs nothing, and a moment to end at is kept by going
through the rest faster.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import median
from types import FrameType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.device.picture import psnr_y, to_uint8
from ppexport.errors import InputError
from training.data import Pair, PatchSampler, to_tensor
from training.state import RunFiles, RunState, append_log, plot_log, write_weights

_OUTLIER = 4.0
"""A step this many times slower than usual was stopped in between and counts as a usual one."""
_WINDOW = 51
_MINIMUM = 5
"""Steps needed to know what is usual."""
_WARM_UP = 5
"""Steps of a call that are not representative: memory is reserved, and the quickest convolutions are looked for."""
_MEASURED = 10
"""Steps after those whose throughput is printed."""


@dataclass
class StepClock:
    """Seconds a step really trained: its duration, but the usual one if it was stopped or suspended in between."""

    paces: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    """Seconds per LR pixel of the last steps."""

    def count(self, seconds: float, pixels: int) -> float:
        """Seconds to count for a step of *pixels* LR pixels that lasted *seconds*."""
        pace = seconds / pixels
        usual = median(self.paces) if len(self.paces) >= _MINIMUM else pace
        # The true pace is remembered, so that a machine that has become slow is believed after half a window.
        self.paces.append(pace)
        return pixels * usual if pace > _OUTLIER * usual else seconds


@dataclass(frozen=True)
class Schedule:
    """End of the run (exactly one of three) and the learning rate: linear warm-up, then half a cosine to the floor."""

    lr: float
    floor: float
    warmup: int
    steps: int | None = None
    hours: float | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.steps, self.hours, self.until)) != 1:
            raise InputError("the length of a run is given by one of --steps, --hours, --until and --minutes")
        if (self.steps is not None and self.steps < 1) or (self.hours is not None and self.hours <= 0):
            raise InputError("a run has at least one step and takes some time")
        if not 0 <= self.floor <= self.lr:
            raise InputError(f"the learning rate falls from --lr {self.lr} to --floor {self.floor}, which is above it")

    def advance(self, progress: float, step: int, trained: float, seconds: float, now: datetime) -> float:
        """Progress after step number *step* (from 1), which counted for *seconds* of *trained* seconds in all."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        if self.hours is not None:
            return min(1.0, trained / (3600 * self.hours))
        assert self.until is not None
        left = (self.until - now).total_seconds() + seconds
        # A step that would end after the moment is not begun: half a step's time left is no time.
        return 1.0 if left <= 1.5 * seconds else progress + (1 - progress) * seconds / left

    def resume(self, progress: float, step: int, trained: float) -> float:
        """Progress of a run that is continued, perhaps with another number of steps or hours than before."""
        if self.until is not None:
            return progress
        return self.advance(progress, step, trained, 0.0, datetime.now(timezone.utc))

    def left(self, trained: float, now: datetime) -> float | None:
        """Seconds left after *trained* seconds at the moment *now*; None for a number of steps."""
        if self.hours is not None:
            return 3600 * self.hours - trained
        return None if self.until is None else (self.until - now).total_seconds()

    def rate(self, progress: float, step: int) -> float:
        """Learning rate of step number *step* (from 0) at *progress*."""
        cosine = self.floor + (self.lr - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
        return cosine * min(1.0, (step + 1) / max(1, self.warmup))


class StopRequest:
    """Remembers SIGTERM or SIGINT, so that the step under way can end first; a second signal kills as usual."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class Step:
    """What one optimiser step came to."""

    values: Tensor
    """(2,) loss and gradient norm before clipping, on the device."""
    pixels: int
    """LR pixels."""
    seconds: float
    """That count as trained."""


def validate(network: nn.Module, weights: dict[str, Tensor], pairs: Sequence[Pair]) -> float:
    """Mean PSNR-Y in dB (crop = scale) of *network* with *weights* over *pairs*; the network keeps its own weights.

    The network computes where its weights are, in full precision.
    """
    device = next(network.parameters()).device
    own = {k: v.detach().clone() for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    network.eval()
    values = []
    with torch.no_grad():
        for pair in pairs:
            crop = pair.hr.shape[0] // pair.lr.shape[0]
            values.append(psnr_y(to_uint8(network(to_tensor(pair.lr).to(device)).cpu().numpy()), pair.hr, crop))
    network.train()
    network.load_state_dict(own)
    return float(np.mean(values))


@dataclass
class Trainer:
    """One run. *say* prints a line for people."""

    state: RunState
    schedule: Schedule
    sampler: PatchSampler
    validation: Sequence[Pair]
    files: RunFiles
    clip: float
    say: Callable[[str], None]
    log_every: int = 20
    """Steps."""
    save_minutes: float = 3.0
    save_every: int | None = None
    """Steps between saves, instead of minutes."""
    val_minutes: float = 15.0

    def step(self) -> tuple[Tensor, int]:
        """One optimiser step: loss and gradient norm before clipping, which stay on the device, and LR pixels."""
        state, position = self.state, self.state.position
        lr, hr = self.sampler.batch(state.generator)
        for group in state.optimizer.param_groups:
            group["lr"] = self.schedule.rate(position.progress, position.step)
        state.optimizer.zero_grad(set_to_none=True)
        loss = F.l1_loss(state.network(lr), hr)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), self.clip, foreach=True)
        state.optimizer.step()
        position.step += 1
        state.ema.update(position.step)
        return torch.stack((loss.detach(), norm)), lr.shape[0] * lr.shape[2] * lr.shape[3]

    def values(self, steps: Sequence[Step]) -> list[tuple[float, float]]:
        """Loss and norm of the last *steps*. Raises InputError when training diverged in one of them.

        It waits for the device, and so is called now and then, but before anything is saved.
        """
        if not steps:
            return []
        rows = torch.stack([step.values for step in steps]).tolist()
        for number, row in enumerate(rows, self.state.position.step - len(rows)):
            if not all(map(math.isfinite, row)):
                raise InputError(
                    f"training diverged at step {number}: continue from {self.files.state} with a lower --lr"
                )
        return [(loss, norm) for loss, norm in rows]

    def check(self) -> None:
        """Validate the averaged weights, log and draw."""
        position = self.state.position
        if self.validation:
            value = validate(self.state.network, self.state.ema.weights, self.validation)
            position.best = max(position.best, value)
            entry = {"kind": "validation", "step": position.step, "trained": position.trained, "psnr_y": value}
            append_log(self.files.log, entry)
            self.say(f"step {position.step}: validation PSNR-Y {value:.3f} dB (best {position.best:.3f})")
        plot_log(self.files.log, self.files.plot)

    def save(self) -> None:
        """Write the state for resuming and the averaged weights."""
        position, identity = self.state.position, self.state.identity
        self.state.save(self.files.state)
        metadata = {k: str(v) for k, v in identity.items()} | {"steps": str(position.step)}
        write_weights(self.state.ema.weights, self.files.weights, metadata)

    def timed_step(self, clock: StepClock) -> Step:
        """One step and the progress it makes, in the seconds that *clock* counts."""
        position = self.state.position
        begin = time.monotonic()
        values, pixels = self.step()
        seconds = clock.count(time.monotonic() - begin, pixels)
        position.trained += seconds
        position.progress = self.schedule.advance(
            position.progress, position.step, position.trained, seconds, datetime.now(timezone.utc)
        )
        return Step(values, pixels, seconds)

    def forecast(self, pixels: int, seconds: float) -> None:
        """Say the throughput of the steps that took *pixels* and *seconds*, and what it means for the rest."""
        position = self.state.position
        pace = seconds / _MEASURED
        left = self.schedule.left(position.trained, datetime.now(timezone.utc))
        if left is not None:
            rest = f"about {max(0.0, left) / pace:.0f} more steps fit into the {max(0.0, left) / 60:.1f} minutes left"
        else:
            steps = (self.schedule.steps or 0) - position.step
            rest = f"the {steps} steps left take about {steps * pace / 60:.1f} minutes"
        self.say(f"throughput: {pixels / seconds:.0f} LR pixels/s, {pixels / _MEASURED:.0f} a step: {rest}")

    def report(self, steps: Sequence[Step]) -> None:
        """Log and say the mean over *steps*, those since the last report."""
        position = self.state.position
        loss, norm = (sum(column) / len(steps) for column in zip(*self.values(steps), strict=True))
        speed = sum(step.pixels for step in steps) / max(sum(step.seconds for step in steps), 1e-9)
        rate = self.state.optimizer.param_groups[0]["lr"]
        entry = {"kind": "train", "step": position.step, "trained": position.trained, "progress": position.progress}
        append_log(self.files.log, entry | {"lr": rate, "loss": loss, "norm": norm, "speed": speed})
        self.say(
            f"step {position.step} ({position.progress:.1%}, {position.trained / 3600:.2f} h): "
            f"loss {loss:.5f}, lr {rate:.2e}, {speed:.0f} LR pixels/s"
        )

    def run(self, stop: StopRequest) -> bool:
        """Train until the schedule ends or a signal comes; returns whether the schedule ended.

        Raises InputError when training diverged; the state that was saved last is from before.
        """
        position, clock = self.state.position, StepClock()
        unreported: list[Step] = []
        done, pixels, mark = 0, 0, 0.0
        self.state.network.train()
        if position.step == 0:
            self.check()
        saved = validated = time.monotonic()
        while position.progress < 1 and stop.number is None:
            unreported.append(self.timed_step(clock))
            done, pixels = done + 1, pixels + unreported[-1].pixels
            if done in (_WARM_UP, _WARM_UP + _MEASURED):
                self.values(unreported)
                if done > _WARM_UP:
                    self.forecast(pixels, time.monotonic() - mark)
                pixels, mark = 0, time.monotonic()
            if position.step % self.log_every == 0:
                self.report(unreported)
                unreported.clear()
            if time.monotonic() - validated > 60 * self.val_minutes:
                self.values(unreported)
                self.check()
                validated = time.monotonic()
            waited = time.monotonic() - saved
            if waited > 60 * self.save_minutes if self.save_every is None else position.step % self.save_every == 0:
                self.values(unreported)
                self.save()
                saved = time.monotonic()
        self.values(unreported)
        # The state is safe first: validation takes a while, and a second signal may cut it.
        self.save()
        if position.progress < 1:
            return False
        self.check()
        self.save()
        return True
