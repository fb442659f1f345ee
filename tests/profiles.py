"""Journals and profiles that tests make up."""

from __future__ import annotations

import json

import numpy as np

from ppexport.device.journal import FORMAT, VERSION
from ppexport.device.measure import PLANS

MS = 1_000_000
MACHINE = {
    "address": "local", "host_name": "here", "cpu": "Test CPU", "architecture": "x86_64", "cores": 2,
    "usable_cores": 2, "memory_bytes": 1 << 30, "board": None, "system": "Test Linux", "kernel": "6", "governors": [],
    "virtual": True, "python": "3.11", "environment": {"OMP_WAIT_POLICY": "PASSIVE"},
}  # fmt: skip


def subject(name="x2 in onnxruntime", digest="a" * 64, **more):
    return {
        "name": name, "artifact": "x2", "model": "pp_atd_light_x2",
        "arch": "pp_atd_light", "scale": 2, "size": [64, 64],
        "backend": "onnx", "precision": "fp32", "flavour": "ort", "mask": "graph",
        "capacities": [4096], "tokens": 4096,
        "files": {"model.onnx": digest}, "weights_sha256": "b" * 64, "card_sha256": "c" * 64, "bytes": 4_000_000,
        "made_with": {"torch": "2.13"}, "runtime": "onnxruntime", "runtime_device": "CPU",
        "runtime_versions": {"onnxruntime": "1.32.0"}, "threads": None, **more,
    }  # fmt: skip


def header(subjects, plan="quick", images=8):
    pictures = [{"name": f"photo-{i}", "sha256": f"{i:064x}", "pure_share": i / 10} for i in range(images)]
    return {
        "format": FORMAT, "version": VERSION, "identity": "d" * 64, "created": "2026-11-23T00:00:00+00:00",
        "subjects": subjects, "plan": vars(PLANS[plan]), "machine": MACHINE, "versions": {"ppexport": "0.1.0"},
        "images": pictures, "inside_the_clock": "everything",
    }  # fmt: skip


def reading(t, **values):
    return ["c", t, {"busy": t / 1e9, "own": t / 1e9, "stolen": 0.0, "load": 1.0, "mhz.cpu0": 3000.0,
                     "celsius.cpu": 50.0, "wall": 1_000_000_000_000 + t, "boot": 5 + t, **values}]  # fmt: skip


def write_journal(path, times_ms, subjects=None, plan="quick", readings=None, cpu_ms=None, complete=True, settled=True):
    """A journal with *times_ms*, one list a subject, in turns."""
    subjects = subjects or [subject(f"s{i} in onnxruntime") for i in range(len(times_ms))]
    t = 0
    with path.open("w") as stream:

        def write(*record):
            stream.write(json.dumps(record) + "\n")

        write("header", header(subjects, plan))
        write("begin", {"t": 0, "now": 0, "wall": 0, "boot": 0, "memory": 1})
        for i in range(len(subjects)):
            write("load", i, 500 * MS)
            write("first", i, 200 * MS)
            write("warm", i, 16, settled)
        for number in range(max(map(len, times_ms))):
            for i, times in enumerate(times_ms):
                if number < len(times):
                    ns = round(times[number] * MS)
                    cpu = ns if cpu_ms is None else round(cpu_ms[number] * MS)
                    write("q", i, number % 8, t, ns, cpu, 1000, 4096, 100)
                    t += ns
        for record in readings or [reading(0), reading(t)]:
            write(*record)
        if complete:
            write("end", {"t": t, "memory": 1})
    return path


def steady(count=128, ms=100.0, spread=0.02, seed=0):
    return np.random.default_rng(seed).normal(ms, ms * spread, count).tolist()
