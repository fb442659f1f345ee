"""The training loop: L1, AdamW, gradient clipping, EMA, validation, saving."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from types import FrameType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.device.picture import psnr_y, to_uint8
from ppexport.errors import InputError
from training.data import Pair, PatchSampler, to_tensor
from training.folder import RunFiles
from training.log import append_log, plot_log
from training.registry import write_weights
from training.schedule import Schedule, StepClock
from training.state import RunState


@dataclass(frozen=True)
class Cadence:
    """How often things happen. Steps, except where minutes are named."""

    log: int = 20
    save_minutes: float = 3.0
    save_steps: int | None = None
    """Save every so many steps instead of every so many minutes."""
    validate_minutes: float = 15.0

    def save_due(self, step: int, seconds: float) -> bool:
        """Whether to save after *step*, *seconds* after the last time."""
        return seconds > 60 * self.save_minutes if self.save_steps is None else step % self.save_steps == 0


@dataclass
class Meter:
    """Sums over the steps since the last report."""

    steps: int = 0
    loss: float = 0.0
    norm: float = 0.0
    pixels: int = 0
    seconds: float = 0.0

    def add(self, loss: float, norm: float, pixels: int, seconds: float) -> None:
        """Take in one step."""
        self.steps += 1
        self.loss += loss
        self.norm += norm
        self.pixels += pixels
        self.seconds += seconds

    def take(self) -> dict[str, float]:
        """Means since the last call: loss, gradient norm, LR pixels a second."""
        steps = max(1, self.steps)
        means = {"loss": self.loss / steps, "norm": self.norm / steps, "speed": self.pixels / max(self.seconds, 1e-9)}
        self.__init__()  # type: ignore[misc]
        return means


class StopRequest:
    """Remembers SIGTERM or SIGINT, so that the step under way can end first; a second signal kills as usual."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)


def validate(network: nn.Module, weights: dict[str, Tensor], pairs: Sequence[Pair]) -> float:
    """Mean PSNR-Y in dB (crop = scale) of *network* with *weights* over *pairs*; the network keeps its own weights."""
    own = {k: v.detach().clone() for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    network.eval()
    values = []
    with torch.no_grad():
        for pair in pairs:
            crop = pair.hr.shape[0] // pair.lr.shape[0]
            values.append(psnr_y(to_uint8(network(to_tensor(pair.lr)).numpy()), pair.hr, crop))
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
    cadence: Cadence
    clip: float
    say: Callable[[str], None]
    teacher: nn.Module | None = None
    teacher_weight: float = 1.0

    def loss(self, lr: Tensor, hr: Tensor) -> Tensor:
        """L1 to the HR patch, plus the weighted L1 to the teacher's output."""
        sr = self.state.network(lr)
        loss = F.l1_loss(sr, hr)
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(lr)
            loss = loss + self.teacher_weight * F.l1_loss(sr, target)
        return loss

    def step(self) -> tuple[float, float, int]:
        """One optimiser step: loss, gradient norm before clipping, LR pixels. Raises InputError when it diverged."""
        state, position = self.state, self.state.position
        lr, hr = self.sampler.batch(state.generator)
        for group in state.optimizer.param_groups:
            group["lr"] = self.schedule.rate(position.progress, position.step)
        state.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(lr, hr)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), self.clip, foreach=True)
        value = float(loss.detach())
        if not np.isfinite(value) or not np.isfinite(float(norm)):
            raise InputError(
                f"training diverged at step {position.step}: go on from {self.files.state} with a lower --lr"
            )
        state.optimizer.step()
        position.step += 1
        state.ema.update(position.step)
        return value, float(norm), lr.shape[0] * lr.shape[2] * lr.shape[3]

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

    def timed_step(self, clock: StepClock, meter: Meter) -> None:
        """One step, counted by *clock* and *meter*, and the progress it makes."""
        position = self.state.position
        begin = time.monotonic()
        loss, norm, pixels = self.step()
        seconds = clock.count(time.monotonic() - begin, pixels)
        position.trained += seconds
        position.progress = self.schedule.advance(
            position.progress, position.step, position.trained, seconds, datetime.now(timezone.utc)
        )
        meter.add(loss, norm, pixels, seconds)

    def report(self, meter: Meter) -> None:
        """Log and say the mean over the steps since the last report."""
        position, mean = self.state.position, meter.take()
        rate = self.state.optimizer.param_groups[0]["lr"]
        entry = {"kind": "train", "step": position.step, "trained": position.trained, "progress": position.progress}
        append_log(self.files.log, entry | {"lr": rate} | mean)
        self.say(
            f"step {position.step} ({position.progress:.1%}, {position.trained / 3600:.2f} h): "
            f"loss {mean['loss']:.5f}, lr {rate:.2e}, {mean['speed']:.0f} LR pixels/s"
        )

    def run(self, stop: StopRequest) -> bool:
        """Train until the schedule ends or a signal comes; returns whether the schedule ended."""
        position, cadence, clock, meter = self.state.position, self.cadence, StepClock(), Meter()
        self.state.network.train()
        if position.step == 0:
            self.check()
        saved = validated = time.monotonic()
        while position.progress < 1 and stop.number is None:
            self.timed_step(clock, meter)
            if position.step % cadence.log == 0:
                self.report(meter)
            if time.monotonic() - validated > 60 * cadence.validate_minutes:
                self.check()
                validated = time.monotonic()
            if cadence.save_due(position.step, time.monotonic() - saved):
                self.save()
                saved = time.monotonic()
        # The state is safe first: validation takes a while, and a second signal may cut it.
        self.save()
        if position.progress < 1:
            return False
        self.check()
        self.save()
        return True
