"""Which pictures a run reads and where it writes them, decided and checked before anything is run.

    inputs      files, patterns such as 'photos/*.png', folders and, if asked, their subfolders
    outputs     one folder, in it the subfolders of the inputs, and names by a template

What a whole run must not do is refused at once: two inputs with one output, results that would replace an input or be
taken for inputs by the next run. What one input lacks is a `Failure`, which ends nothing.
"""

from __future__ import annotations

import glob
import os
import string
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import NamedTuple

from ppexport.errors import InputError, counted
from ppexport.files import check_writable, is_plain_name, system_sentence
from ppexport.imaging.images import is_picture

TEMPLATE = "{stem}_x{scale}{suffix}"
"""Names of results unless the caller says otherwise."""


class Existing(str, Enum):
    """What becomes of a result that is there already."""

    skip = "skip"
    overwrite = "overwrite"
    refuse = "refuse"


class Failure(NamedTuple):
    """An input of which there is no picture to enlarge, and why, in one sentence that names it."""

    source: Path
    reason: str


class Found(NamedTuple):
    """A picture, and the subfolder of the output that its result belongs into."""

    path: Path
    inside: PurePath


@dataclass
class Inputs:
    """What the inputs of a run are."""

    pictures: list[Found]
    failures: list[Failure]
    folders: list[Path]
    """The folders that were looked through, the inputs themselves first."""


class Job(NamedTuple):
    """A picture to read and the file to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    jobs: tuple[Job, ...]
    skipped: tuple[Job, ...]
    """Those whose results are there already and stay."""
    failures: tuple[Failure, ...]
    existing: Existing


def plan_run(
    inputs: Sequence[str], out: Path, name: Callable[[Path], str], existing: Existing, recursive: bool = False
) -> Plan:
    """Where the result of every picture that *inputs* name goes.

    Args:
        inputs: files, patterns and folders, as a user gave them; see `find_inputs`.
        out: the folder for the results, which need not exist.
        name: gives the name of a picture's result; see `output_name`.
        existing: what becomes of results that are there already.
        recursive: whether the subfolders of folders are searched.

    Raises:
        InputError: *out* cannot be written, lies where the next run would take results for inputs, two inputs would
            have one output, a result would replace an input, or results are there and are refused.
    """
    if "-" in inputs:
        raise InputError(
            "- is one picture on standard input: name where it goes, as in `ppexport upscale ARTIFACT - -`"
        )
    if str(out) == "-":
        raise InputError("--out names a folder: for standard output write - in the place of OUT")
    if "" in inputs:
        raise InputError("an input has no name")
    return plan_outputs(find_inputs(inputs, recursive), out, name, existing, recursive)


def check_template(template: str) -> None:
    """Raise InputError unless *template* makes plain names of the fields {stem}, {scale}, {suffix} and {model}."""
    fields = "{stem}, {scale}, {suffix} and {model}"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"--name {template!r} cannot be read ({error}): its fields are {fields}") from None
    for literal, field, spec, conversion in parts:
        if set(literal) & set("/\\:\0"):
            raise InputError(f"--name {template!r} is no plain file name: folders come from the inputs and from --out")
        if field is not None and (field not in ("stem", "scale", "suffix", "model") or spec or conversion):
            asked = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise InputError(f"--name {template!r} has a field {{{asked}}} that is none: its fields are {fields}")
    if template.strip(". ") == "":
        raise InputError(f"--name {template!r} is no file name: write, for example, {TEMPLATE!r}")
    if not is_picture(Path(template.format(stem="a", scale=2, suffix=".png", model="a"))):
        raise InputError(
            f"--name {template!r} makes names without a picture's extension: end it with {{suffix}} or .png"
        )


def output_name(template: str, source: Path, scale: int, model: str, suffix: str | None = None) -> str:
    """The name of the result of *source*, by a template that `check_template` has seen.

    *suffix*, such as ".webp", takes the place of the source's own. Raises InputError where this makes no file name,
    or where *model*, which comes from the artifact, is no plain name.
    """
    if "{model}" in template and not is_plain_name(model):
        raise InputError(f"--name {template!r} cannot be used: the artifact's model has the name {model!r}")
    own = source.suffix if suffix is None else suffix
    made = template.format(stem=source.stem, scale=scale, suffix=own, model=model)
    if made in ("", ".", ".."):
        raise InputError(f"--name {template!r} makes {made!r} of {source}, which is no file name")
    return made


def find_inputs(inputs: Sequence[str], recursive: bool = False) -> Inputs:
    """The pictures that *inputs* name, each once: files, folders, and patterns for shells that expand none.

    Of a folder these are the files with a picture's extension, by name, hidden ones left out; with *recursive* those of
    its subfolders as well. Links are followed as far as they stay inside the folder.
    """
    found = Inputs([], [], [])
    for text in inputs:
        # What exists is meant literally, whatever its name holds.
        names = [text] if os.path.lexists(text) or not glob.has_magic(text) else sorted(glob.glob(text, recursive=True))
        if not names:
            found.failures.append(Failure(Path(text), f"{text} matches no file"))
        for path in map(Path, names):
            if os.path.isdir(path):
                _search(path, recursive, found)
            else:
                found.pictures.append(Found(path, PurePath()))
    return found


def _search(root: Path, recursive: bool, found: Inputs) -> None:
    """Add the pictures of the folder *root*."""
    before, real = len(found.pictures) + len(found.failures), os.path.realpath(root)
    waiting = [(root, PurePath())]
    while waiting:
        folder, inside = waiting.pop()
        found.folders.append(folder)
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            found.failures.append(Failure(folder, f"{folder} cannot be read: {error.strerror}"))
            continue
        below = []
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            is_folder = os.path.isdir(path)
            if not (recursive if is_folder else is_picture(path)):
                continue
            if entry.is_symlink() and not _is_below(os.path.realpath(path), real):
                reason = f"{path} is a link that leaves the folder {root}: name what it points to as an input"
                found.failures.append(Failure(path, reason))
            elif not is_folder:
                found.pictures.append(Found(path, inside))
            elif not entry.is_symlink():
                # What a link inside the folder points to is found where it lies.
                below.append((path, inside / entry.name))
        waiting += reversed(below)
    if len(found.pictures) + len(found.failures) == before:
        deeper = "" if recursive else " (--recursive looks into its subfolders)"
        found.failures.append(Failure(root, f"{root} holds no pictures{deeper}"))


def _is_below(path: str | Path, folder: str | Path) -> bool:
    """Whether the real *path* is the real *folder* or lies in it."""
    return PurePath(path).is_relative_to(folder)


def plan_outputs(inputs: Inputs, out: Path, name: Callable[[Path], str], existing: Existing, recursive: bool) -> Plan:
    """As `plan_run`, for *inputs* that were found."""
    _check_folder(out)
    real = os.path.realpath(out)
    walked = {os.path.realpath(folder): folder for folder in inputs.folders}
    for place, folder in walked.items():
        if real == place or (recursive and _is_below(real, place)):
            raise InputError(
                f"{out} lies in the input folder {folder}, so that another run would take its results for inputs: "
                "name a folder outside it"
            )
    sources = {key: found.path for found in inputs.pictures if (key := _identity(found.path))}
    taken: dict[str, Job] = {}
    jobs, skipped, there = list[Job](), list[Job](), list[Job]()
    failures = list(inputs.failures)
    plain = str if _tells_cases_apart(out) else _folded
    for path, inside in inputs.pictures:
        job = Job(path, out / inside / name(path))
        earlier = taken.setdefault(plain(str(job.target)), job)
        if earlier is not job:
            if os.path.realpath(earlier.source) == os.path.realpath(path):
                continue
            raise InputError(
                f"{earlier.source} and {path} would both be written to {job.target}: tell them apart by --name, or "
                "write them into different folders"
            )
        place = os.path.realpath(job.target)
        identity = _identity(job.target)
        if identity in sources:
            raise InputError(
                f"{job.target} is the input {sources[identity]}, which is never replaced: choose another --name"
            )
        if os.path.dirname(place) in walked:
            folder = walked[os.path.dirname(place)]
            raise InputError(
                f"{job.target} would lie in the input folder {folder}: name another folder for the results"
            )
        if not _is_below(place, real):
            reason = f"{job.target} would leave the folder {out} through a link: remove it, or name another folder"
            failures.append(Failure(path, reason))
        elif existing is not Existing.overwrite and os.path.isfile(job.target):
            (skipped if existing is Existing.skip else there).append(job)
        else:
            jobs.append(job)
    if there:
        more = f", like {counted(len(there) - 1, 'other result')}" if len(there) > 1 else ""
        raise InputError(
            f"{there[0].target} exists already{more}: --existing skip leaves what is there and does the rest, "
            "--existing overwrite replaces it"
        )
    return Plan(tuple(jobs), tuple(skipped), tuple(failures), existing)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from all others, whatever its names; None where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _nearest(folder: Path) -> Path:
    """The nearest of *folder* and its parents that exists."""
    return next(path for path in _upwards(Path(os.path.abspath(folder))) if os.path.lexists(path))


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents


def _check_folder(out: Path) -> None:
    """Raise InputError unless files can be written into the folder *out*, or it can be made."""
    there = _nearest(out)
    if not os.path.isdir(there):
        kind = "a file" if os.path.exists(there) else "a link to nothing"
        raise InputError(f"{there} is {kind}, and the results need a folder: give --out another name")
    check_writable(there / "result", out)


def _tells_cases_apart(out: Path) -> bool:
    """Whether the disk of the folder *out* has A.png beside a.png."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".A", dir=_nearest(out)) as probe:
            folder, name = os.path.split(probe.name)
            return not os.path.exists(os.path.join(folder, name.swapcase()))
    except OSError as error:
        raise InputError(system_sentence(error)) from None


def check_replaced(source: Path, target: Path) -> None:
    """Raise InputError where *target* is the file *source* itself, by whatever name."""
    if _identity(source) is not None and _identity(source) == _identity(target):
        raise InputError(f"{target} is the input itself, which is never replaced: name another file for the result")
