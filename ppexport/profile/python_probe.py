"""Whether a device's Python can import what a measurement imports: asked before anything else is done there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ppexport.profile.archive import NAMES
from ppexport.remote import scripts

PROBE = (
    scripts.PRELUDE
    + r"""
cd "$root/$1"
archive=$2 python=$3
shift 3
if ! command -v "$python" > /dev/null; then echo none; exit 0; fi
"$python" -c 'import sys; print("python %d.%d.%d" % sys.version_info[:3])' || { echo none; exit 0; }
for modules; do
    # One process for each group: a runtime that was compiled for another processor ends it.
    # shellcheck disable=SC2086
    "$python" "$archive" check $modules 2> /dev/null || echo "lacks ${modules##* } it ends Python"
done
"""
)
"""Version of the Python `$3`, then a line of the archive `$2` in job `$1` for each of the groups of modules `$4`…"""
LEAST = {"Python": (3, 8), "NumPy": (1, 17)}
"""What the archive needs at least; JetPack 5 has these."""
NO_REASON = "no reason given"


def groups_of(runtimes: Sequence[str]) -> tuple[str, ...]:
    """The groups of modules that PROBE takes: NumPy, all of ppexport that the device runs, and each of *runtimes*."""
    return ("numpy", " ".join(NAMES), *runtimes)


def problem_of(said: str, python: str, name: str, runtimes: Sequence[str]) -> str | None:
    """Why *python* on the device *name* cannot measure in *runtimes*, in one sentence; None where it can.

    *said* is what PROBE printed for `groups_of(runtimes)`, made printable.
    """
    lines = said.splitlines()
    version = re.fullmatch(r"python (\d{1,2})\.(\d{1,3})\.\d{1,3}", lines[0] if lines else "")
    if version is None:
        return f"{name} has no Python that starts as {python}: name one with --device-python, such as that of a venv"
    has, lacks = dict[str, str](), dict[str, str]()
    for line in lines[1:]:
        kind, _, rest = line.partition(" ")
        module, _, text = rest.partition(" ")
        if kind in ("has", "lacks"):
            (has if kind == "has" else lacks)[module] = text.strip()[:200]
    numpy = re.match(r"(\d{1,3})\.(\d{1,3})", has.get("numpy", ""))
    old = numpy is not None and (int(numpy[1]), int(numpy[2])) < LEAST["NumPy"]
    fault = None
    if (int(version[1]), int(version[2])) >= LEAST["Python"] and not old:
        # What comes first is the reason for what follows.
        own = next((module for module in lacks if module.startswith("ppexport")), NAMES[-1])
        fault = next((module for module in ("numpy", own, *runtimes) if module not in has), "")
    if fault == "":
        return None
    with_numpy = "" if numpy is None else f" with NumPy {has['numpy']}"
    lacking = "" if fault is None else f" and does not import {fault} ({lacks.get(fault, NO_REASON)})"
    least = [f"{what} {major}.{minor} or newer" for what, (major, minor) in LEAST.items()]
    return (
        f"{python} on {name} is Python {lines[0].partition(' ')[2]}{with_numpy}{lacking}; a measurement needs "
        f"{', '.join([*least, *runtimes])}: name another Python with --device-python{_hint(fault, python)}"
    )


def _hint(module: str | None, python: str) -> str:
    """How to install *module*, where a package index has it; TensorRT comes with JetPack."""
    if module is None or module.startswith(("ppexport", "tensorrt")):
        return ""
    return f", or install it on the device (`{python} -m pip install {module}`)"
