"""Train or fine-tune a network of the toolkit from folders of HR images: python tools/train.py --help."""

from __future__ import annotations

import os
import signal
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from training.data import PatchSampler, center_crop, find_images, load_pairs, split_holdout
from training.fast import speed_up
from training.gpu import open_device, use_gpu_modules
from training.loop import Schedule, StopRequest, Trainer
from training.state import NETWORKS, Ema, Position, RunFiles, RunState, build, rewind_log, start_from

from ppexport.cli.console import fail
from ppexport.errors import InputError, PpexportError, UnavailableError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)
console = Console(highlight=False, soft_wrap=True, markup=False)


def _moment(text: str | None, minutes: float | None) -> datetime | None:
    """The end of the run: an ISO moment, UTC unless it names another zone, or *minutes* from now."""
    if text is not None and minutes is not None:
        raise InputError("a run ends at one moment: give --until or --minutes")
    if minutes is not None:
        return datetime.now(timezone.utc) + timedelta(minutes=minutes)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        raise InputError(f"--until takes a moment such as 2026-05-01T22:15, not {text!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


@app.command()
def train(
    run: Annotated[Path, typer.Option(help="Folder of the run; one that holds a state is continued.")],
    data: Annotated[list[Path], typer.Option(help="Folder of HR images; may be given several times.")],
    arch: Annotated[str, typer.Option(help=f"Network to train: {', '.join(NETWORKS)}.")] = "pp_atd_light",
    scale: Annotated[int, typer.Option(min=2, max=4, help="Upscaling factor.")] = 2,
    init: Annotated[
        Path | None, typer.Option(help="Weights to start from; of another scale, all but the last convolution.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Averaged weights (.safetensors); default: in the run folder.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run in optimiser steps.")] = None,
    hours: Annotated[float | None, typer.Option(help="Length of the run in hours spent in steps.")] = None,
    until: Annotated[str | None, typer.Option(help="Moment the schedule ends at, ISO, UTC unless zoned.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="As --until, so many minutes after the start of this command.")
    ] = None,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 4e-4,
    floor: Annotated[float, typer.Option(min=0, help="Learning rate at the end of the cosine.")] = 1e-6,
    warmup: Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")] = 50,
    beta2: Annotated[float, typer.Option(min=0, max=0.99999, help="Second AdamW momentum; the first is 0.9.")] = 0.99,
    decay: Annotated[float, typer.Option(min=0, help="Decay of weights per step and learning rate.")] = 0.0,
    ema: Annotated[float, typer.Option(min=0, max=1, help="Decay of the averaged weights per step.")] = 0.998,
    clip: Annotated[float, typer.Option(min=1e-6, help="Gradients of a larger norm are scaled down to it.")] = 1.0,
    patch: Annotated[
        list[int] | None, typer.Option(help="LR patch side, a multiple of 16; default 32, 48 and 64.")
    ] = None,
    pixels: Annotated[int, typer.Option(min=256, help="LR pixels per step, about.")] = 4096,
    holdout: Annotated[int, typer.Option(min=0, help="Images taken out of the training set for validation.")] = 0,
    val: Annotated[list[Path] | None, typer.Option(help="Folder of HR images for validation.")] = None,
    val_side: Annotated[
        int, typer.Option(min=16, help="Validate on the middle of each image: its side in LR pixels.")
    ] = 128,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What computes.")] = "cpu",
    precision: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option(help="bf16: from fp32 weights, on a CPU slow; default: bf16 with cuda, fp32 on the CPU."),
    ] = None,
    plain: Annotated[bool, typer.Option(help="Plain PyTorch in fp32, without the faster modules.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; if left out, torch chooses.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and patches.")] = 0,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 20,
    save_every: Annotated[int | None, typer.Option(min=1, help="Steps between saves, instead of minutes.")] = None,
    save_minutes: Annotated[float, typer.Option(help="Minutes between saves.")] = 3.0,
    val_minutes: Annotated[float, typer.Option(help="Minutes between validations.")] = 15.0,
) -> None:
    """Train a network on patches of HR images: L1 loss, AdamW, averaged weights; LR by the bicubic of ppexport.

    The length is one of --steps, --hours, --until and --minutes; the learning rate warms up and then follows half a
    cosine. After 15 steps the throughput is printed, and how many more steps fit into the length.

    **Stopping.** SIGTERM or Ctrl-C ends the step, saves and exits; the same command continues, after a kill from the
    last save. kill -STOP and -CONT pause a run without touching its schedule, except that --until is kept. A state that
    one device saved continues on another.

    **Speed.** PP-ATD-light x2 trains at 4800 LR pixels/s on one core of an AVX-512 Xeon, whatever the patch size; plain
    PyTorch makes 2100 to 2500. C kernels compiled on first use do it: attention that stores no attention matrix
    (2300 -> 3800), the gradient of the depthwise convolution and a fused AdamW (-> 4800).

    **GPU.** --device cuda keeps all pictures on the GPU and cuts patches there; attention is
    scaled_dot_product_attention, and layers compute in bf16 but for what chooses categories. --precision bf16 does so
    on a CPU as well, at a third of the speed, for tests. docs/training.md says how to use a GPU for a few minutes.
    """
    try:
        if threads:
            torch.set_num_threads(threads)
        # Denormals, in gradients of nearly unused weights, cost a hundred times as much as other numbers.
        torch.set_flush_denormal(True)
        torch.manual_seed(seed)
        schedule = Schedule(lr, floor, warmup, steps, hours, _moment(until, minutes))
        chosen = open_device(device)
        precision = precision or ("bf16" if device == "cuda" else "fp32")
        if plain and precision == "bf16":
            raise InputError("--plain computes in fp32: leave it out, or add --precision fp32")
        images, held = split_holdout(find_images(data), holdout)
        held += find_images(val or [])
        network = build(arch, scale)
        if device == "cuda" or precision == "bf16":
            if not plain:
                use_gpu_modules(network, precision == "bf16")
        elif not plain:
            try:
                speed_up(network)
            except UnavailableError as error:
                console.print(f"training runs at half the speed: {error}")
        files = RunFiles(run, out or run / "weights.safetensors")
        files.claim()
        if init is not None and not files.state.is_file():
            whole = start_from(network, init)
            console.print(f"starting from {init}" + ("" if whole else ": all but the last convolution"))
        network.to(chosen)
        optimizer = torch.optim.AdamW(network.parameters(), lr, (0.9, beta2), weight_decay=decay, fused=True)
        generator = torch.Generator().manual_seed(seed)
        state = RunState({"arch": arch, "scale": scale}, network, Ema(network, ema), optimizer, generator, Position())
        if files.state.is_file():
            state.load(files.state)
            position = state.position
            position.progress = schedule.resume(position.progress, position.step, position.trained)
            rewind_log(files.log, position.step)
            console.print(f"continuing after step {position.step} of {files.state}")
        console.print(f"pid {os.getpid()}: reading {len(images)} images to train on, {len(held)} to validate on")
        sampler = PatchSampler(load_pairs(images, scale), patch or [32, 48, 64], pixels, chosen)
        validation = [center_crop(pair, val_side) for pair in load_pairs(held, scale)]
        trainer = Trainer(
            state=state,
            schedule=schedule,
            sampler=sampler,
            validation=validation,
            files=files,
            clip=clip,
            say=console.print,
            log_every=log_every,
            save_minutes=save_minutes,
            save_every=save_every,
            val_minutes=val_minutes,
        )
        stop = StopRequest()
        try:
            finished = trainer.run(stop)
        except torch.OutOfMemoryError:
            raise UnavailableError(
                f"the GPU has too little memory for {pixels} LR pixels a step: the same command continues with a lower "
                "--pixels"
            ) from None
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None
    done = f"{state.position.step} steps, {state.position.trained / 3600:.2f} h: {files.weights}"
    if finished:
        console.print(f"finished after {done}")
    else:
        assert stop.number is not None
        console.print(f"stopped by {signal.Signals(stop.number).name} after {done}; the same command continues")
        raise typer.Exit(128 + stop.number)


if __name__ == "__main__":
    app()
