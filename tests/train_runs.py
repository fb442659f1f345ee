"""Runs of tools/train.py on the first two layers of a network, and pictures for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from shared import FREE_IMAGES, ROOT, TOOLS


def two_photos(folder):
    """*folder* with two small pictures."""
    with Image.open(FREE_IMAGES / "chelsea.png") as image:
        image.crop((100, 50, 200, 130)).save(folder / "a.png")
        image.crop((200, 80, 281, 161)).save(folder / "b.png")
    return folder


SHORT = """
import sys
sys.path[:0] = sys.argv[1:3]
from small_networks import shortened
from training import state
state.NETWORKS.update({n: lambda scale, make=make: shortened(make(scale), 2) for n, make in state.NETWORKS.items()})
import train
del sys.argv[1:3]
train.app()
"""
"""The program, which trains the first two layers only."""


def command(run, data, *options):
    fixed = ["--patch", "16", "--pixels", "256", "--threads", "1", "--log-every", "1", "--holdout", "1"]
    program = [sys.executable, "-c", SHORT, str(TOOLS), str(ROOT / "tests")]
    return [*program, "--run", str(run), "--data", str(data), *fixed, *options]


def environment():
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "OMP_NUM_THREADS": "1"}


def train(run, data, *options, code=0):
    """Run the program to its end; its output."""
    done = subprocess.run(
        command(run, data, *options), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def start(run, data, *options):
    """Start the program; returns its process."""
    return subprocess.Popen(
        command(run, data, *options), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def entries(run, kind):
    lines = (Path(run) / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def wait_for_step(run, step, process):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "log.jsonl").is_file() and any(e["step"] >= step for e in entries_so_far(run)):
            return
        time.sleep(0.02)
    pytest.fail("the program did not get so far: " + (process.stdout.read() if process.poll() is not None else ""))


def entries_so_far(run):
    found = []
    for line in (run / "log.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
