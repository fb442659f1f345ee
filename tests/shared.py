"""Where tests find what is not in the project: evaluation images (their licences allow research only), and tools/."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
FREE_IMAGES = ROOT / "calibration" / "images"
"""Pictures that anybody may use, part of the project."""

ODD = "a b\tü 日本"
"""A name of a file or folder that people give, and that shells, configurations and encodings trip over."""

EXAMPLES = {"dev": 0.2, "ci": 1, "nightly": 20}
"""How many times as many examples a property is tried on, by $HYPOTHESIS_PROFILE; "ci" is the default."""


def examples(count: int = 100, **more: Any) -> settings:
    """The settings of a property that is tried on *count* examples, or what the profile makes of them."""
    factor = EXAMPLES[os.environ.get("HYPOTHESIS_PROFILE", "ci")]
    return settings(max_examples=max(1, round(count * factor)), deadline=None, **more)


# Programs of tools/ import their parts as `training.…`, which works from a script's own folder only.
if str(TOOLS) not in sys.path:
    sys.path.append(str(TOOLS))


def shared_folder(*parts: str) -> Path:
    """A folder below $PPEXPORT_SHARED, else below `shared` beside the checkout; skips the test where it is missing."""
    base = Path(os.environ.get("PPEXPORT_SHARED") or ROOT.parent / "shared")
    folder = base.joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: set PPEXPORT_SHARED to a folder with {'/'.join(parts)}")
    return folder


def evaluation_pairs(name: str, scale: int) -> list[tuple[Path, Path]]:
    """(HR, LR) files of *name* (set5 or set14) at *scale*; skips the test where they are missing."""
    folder = shared_folder("images", name, f"image_SRF_{scale}")
    return [(hr, hr.with_name(hr.name.replace("_HR", "_LR"))) for hr in sorted(folder.glob("*_HR.png"))]
