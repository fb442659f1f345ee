"""The tables of measured figures in the READMEs and in PRECISION.md, made from numerics.yaml; they lie in `Place`s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from figures.places import Place
from ppexport.errors import change
from ppexport.files import write_text
from ppexport.networks.card import Card, read_card
from ppexport.report.records import NETWORK, read_numerics

QUALITY, PARITY, TILES, SEARCH, ABLATION = "quality", "parity", "tiles", "search", "ablation"
"""The places."""
README, PRECISION = "README.md", "PRECISION.md"
SETS = {"set5": "Set5", "set14": "Set14"}
"""{name in numerics.yaml: what a table calls the data set}, in the order of tables."""
NEW_README = """# {title} x{scale}

{summary}. The [card](card.yaml) has the network, the licence and how the weights were trained.

## Quality

PSNR-Y in dB and SSIM-Y, means over whole pictures with a border of {scale} pixels left off, LR files of the data sets,
measured by `ppexport evaluate` in PyTorch, fp32; the last column is as published by the authors.

<!-- quality -->
<!-- /quality -->

[PRECISION.md](PRECISION.md) has the figures of every precision.
"""
NEW_PRECISION = """# Precision of {title} x{scale}

Ranges and recipe are `calibration/ranges/{name}.npz` and `calibration/recipes/{name}.yaml`. How everything here is
measured is written for [x2](../pp_atd_light_x2/PRECISION.md).

## int8

<!-- search -->
<!-- /search -->

## Parity of every precision

<!-- parity -->
<!-- /parity -->

## Artifacts on test sets

<!-- tiles -->
<!-- /tiles -->
"""


def make_pages(folder: Path) -> None:
    """Write a short README.md and PRECISION.md, with their places, into the *folder* of a model that has none."""
    card = read_card(folder)
    facts = {"name": card.name, "scale": card.scale, "summary": card.summary, "title": title(card)}
    for name, text in ((README, NEW_README), (PRECISION, NEW_PRECISION)):
        if not (folder / name).exists():
            write_text(folder / name, text.format(**facts))


def title(card: Card) -> str:
    """What people call the network of *card*."""
    return card.arch.replace("pp_", "PP-").replace("atd", "ATD").replace("_", "-")


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown of a table."""
    head = list(columns)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" if line is not lines[1] else f"|{'|'.join(line)}|" for line in lines)


def _sets(evaluation: Mapping[str, Any]) -> list[str]:
    return [*(name for name in SETS if name in evaluation), *(sorted(set(evaluation) - set(SETS)))]


def _published(figures: Mapping[str, Any]) -> str:
    return f"{figures['published_psnr_y']:.2f}" if "published_psnr_y" in figures else "–"


def quality_of(folder: Path) -> str:
    """PSNR-Y and SSIM-Y of the model in *folder* on every data set, beside bicubic."""
    evaluation, rows = read_numerics(folder)["evaluation"], []
    for name in _sets(evaluation):
        f = evaluation[name].get(NETWORK)
        if f is None:
            continue
        cells = f"{f['bicubic_psnr_y']:.2f} / {f['bicubic_ssim_y']:.4f}", f"{f['psnr_y']:.2f} / {f['ssim_y']:.4f}"
        gain = change(f["psnr_y"] - f["bicubic_psnr_y"], 2)
        rows.append([SETS.get(name, name), *cells, gain, _published(f)])
    return table(["", "bicubic", "this model", "gain", "published, fully trained"], rows)


def quality_of_all(folders: Iterable[Path]) -> str:
    """PSNR-Y of the models in *folders* on every data set."""
    rows = []
    for folder in folders:
        card, evaluation = read_card(folder), read_numerics(folder)["evaluation"]
        for name in _sets(evaluation):
            f = evaluation[name].get(NETWORK)
            if f is not None:
                cells = f"{f['bicubic_psnr_y']:.2f}", f"{f['psnr_y']:.2f}", _published(f)
                rows.append([f"{SETS.get(name, name)} x{card.scale}", *cells])
    return table(["", "bicubic", "bundled PP-ATD-light", "ATD-light as published by its authors"], rows)


def _named(key: str, figures: Mapping[str, Any], weights_sha256: str) -> str:
    """*key*, and whether its figures are those of earlier weights, as they are where a row could not be renewed."""
    return f"`{key}`" + ("" if figures["weights_sha256"] == weights_sha256 else " (of earlier weights)")


def parity_of(folder: Path) -> str:
    """Every parity row of the model in *folder*."""
    sha256, rows = _sha256(folder), []
    for key, f in sorted(read_numerics(folder)["parity"].items()):
        # A PSNR of null stands for equal pictures.
        dbs = ["equal" if f[name] is None else f"{f[name]:.1f}" for name in ("psnr", "psnr_same_routing")]
        changes = [change(f[name], 4) for name in ("psnr_y_change", "psnr_y_change_same_routing")]
        share = "–" if f["equal_categories"] is None else f"{100 * f['equal_categories']:.1f} %"
        flips = "–" if f["flips"] is None else f"{f['flips']:,}"
        rows.append([_named(key, f, sha256), "pass" if f["passed"] else "**fail**", *dbs, *changes, share, flips])
    columns = [
        "artifact", "verdict", "worst input, dB", "with the twin's routing", "mean PSNR-Y change, dB",
        "with the twin's routing", "equal categories, worst layer", "flips",
    ]  # fmt: skip
    return table(columns, rows)


def tiles_of(folder: Path) -> str:
    """PSNR-Y of artifacts of the model in *folder* on data sets, by tiles, and of the network on whole pictures."""
    sha256, evaluation, rows = _sha256(folder), read_numerics(folder)["evaluation"], []
    for name in _sets(evaluation):
        entries = evaluation[name]
        if set(entries) <= {NETWORK}:
            continue
        for key, f in sorted(entries.items()):
            rows.append([SETS.get(name, name), _named(key, f, sha256), f"{f['psnr_y']:.3f}", f"{f['ssim_y']:.4f}"])
    return table(["", "", "PSNR-Y, dB", "SSIM-Y"], rows)


def _sha256(folder: Path) -> str:
    weights = read_card(folder).weights
    return "" if weights is None else weights.sha256


def write_tables(root: Path, folders: Iterable[Path]) -> list[Path]:
    """Write every table that has a place in the checkout *root*, *folders* being those of all models with weights.

    Returns the files that changed. Raises InputError for a file with half a place.
    """
    folders = sorted(folders)
    makers = (README, QUALITY, quality_of), (PRECISION, PARITY, parity_of), (PRECISION, TILES, tiles_of)
    wanted = [(folder / file, name, partial(made, folder)) for folder in folders for file, name, made in makers]
    changed: dict[Path, None] = {}
    for path, name, content in [(root / README, QUALITY, partial(quality_of_all, folders)), *wanted]:
        if has_place(path, name) and Place(path, name).write(content()):
            changed[path] = None
    return list(changed)


def has_place(path: Path, name: str) -> bool:
    """Whether the file *path* exists and has the place *name*."""
    return path.is_file() and f"<!-- {name} -->" in path.read_text(encoding="utf-8")
