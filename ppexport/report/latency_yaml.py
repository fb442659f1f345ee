"""`latency.yaml` beside a model's card: measured latency by machine, written by the tool and reviewed like code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ppexport.errors import InputError
from ppexport.files import write_text
from ppexport.profile.result import Profile
from ppexport.report.numerics import key_of as artifact_key
from ppexport.report.numerics import model_folder
from ppexport.report.records import read_record

LATENCY = "latency.yaml"
HEADER = "# Written by `ppexport report DIR --record`; milliseconds of one query, see ppexport/profile/result.py.\n"
FIGURES = ("p50_ms", "p90_ms", "p99_ms", "p90_ms_per_megapixel", "host_p50_ms")


def read_latency(folder: Path) -> dict[str, Any]:
    """What is recorded in *folder*, empty where nothing is yet. Raises InputError for a damaged file."""
    path = folder / LATENCY
    data = read_record(path, "machines")
    if not all(isinstance(entry, dict) for entry in data.values()):
        raise InputError(f"{path} is not a mapping of machines")
    return data


def entry_of(profile: Profile, subject: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of one subject."""
    s, plan = subject["summary"], profile.data["protocol"]["plan"]
    return {
        "date": str(profile.data["created"])[:10],
        "protocol": plan["name"],
        "order": profile.data["protocol"]["order"],
        "queries": s["count"],
        **{name: round(float(s[name]), 3) for name in FIGURES},
        "p90_interval_ms": [round(float(v), 3) for v in s["p90_interval_ms"]],
        "load_ms": round(float(subject["load_ms"]), 1),
        "first_ms": round(float(subject["first_ms"]), 1),
        "joules_per_image": None if s.get("energy") is None else round(float(s["energy"]["joules_per_image"]), 4),
        "peak_mb": None if subject["memory"] is None else round(subject["memory"]["peak"] / 1e6, 1),
        "system": profile.data["machine"]["system"],
        "cores": profile.data["machine"]["usable_cores"],
        "threads": subject["threads"],
        "runtime_versions": subject["runtime_versions"],
        "files": subject["files"],
        "weights_sha256": subject["weights_sha256"],
        "marks": [mark["text"] for mark in profile.data["marks"]],
    }


def machine_of(profile: Profile) -> str:
    """What a machine is called: its processor or board and, where there is one, the power mode it was set to."""
    machine = profile.data["machine"]
    mode = (machine.get("jetson") or {}).get("power_mode")
    return str(machine["cpu"]) + (f", {mode['name']}" if isinstance(mode, dict) and mode.get("name") else "")


def key_of(subject: dict[str, Any]) -> str:
    """What an entry is called on its machine: backend, precision, flavour, capacities, size and runtime."""
    fields = (subject[name] for name in ("backend", "precision", "flavour", "capacities", "size"))
    return f"{artifact_key(*fields)} {subject['runtime']}:{subject['runtime_device']}"


def record(profiles: list[Profile]) -> list[Path]:
    """Write *profiles* into the `latency.yaml` of their models, beside other machines' figures. Raises InputError.

    Everything that can be refused is refused before the first file is written.
    """
    found: dict[Path, dict[str, Any]] = {}
    for profile in profiles:
        for subject in profile.subjects:
            folder = model_folder(subject["model"])
            data = found.setdefault(folder, read_latency(folder))
            data.setdefault(machine_of(profile), {})[key_of(subject)] = entry_of(profile, subject)
    for folder, data in found.items():
        write_text(folder / LATENCY, HEADER + yaml.safe_dump(data, sort_keys=True, allow_unicode=True))
    return [folder / LATENCY for folder in found]
