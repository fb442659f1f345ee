"""Data sets: folders of HR pictures with or without LR files, or the pictures that a training run held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data import find_images, split_holdout

from ppexport.errors import InputError
from ppexport.files import sha256_file, sha256_text
from ppexport.parity.evaluation import Pair, find_pairs


@dataclass(frozen=True)
class DataSet:
    """Pictures under one name; *sha256* is that of the hashes of their files, wherever these lie."""

    name: str
    pairs: tuple[Pair, ...]
    sha256: str


def make_data_set(name: str, pairs: Sequence[Pair]) -> DataSet:
    """*pairs* with the hash of their files."""
    lines = [f"{sha256_file(p.hr)} {'-' if p.lr is None else sha256_file(p.lr)}\n" for p in pairs]
    return DataSet(name, tuple(pairs), sha256_text("".join(lines)))


def parse_data_set(text: str, scale: int) -> DataSet:
    """`NAME=HR_DIR[:LR_DIR]`; without LR files these are made by bicubic. Raises InputError."""
    name, _, folders = text.partition("=")
    high, _, low = folders.partition(":")
    if not name.isidentifier() or not high:
        raise InputError(f"a data set is NAME=HR_DIR or NAME=HR_DIR:LR_DIR, the name without spaces, not {text!r}")
    return make_data_set(name, find_pairs(Path(high), Path(low) if low else None, scale))


def held_out(folders: Sequence[Path], count: int) -> list[DataSet]:
    """The *count* pictures of *folders* that `tools/train.py --holdout` leaves out, as `holdout8`; none for 0.

    Folders are those of the training run, in its order. Raises InputError for a count without folders or the reverse.
    """
    if bool(folders) != bool(count):
        raise InputError("--holdout and --train-data belong together: the number, and the folders of the training run")
    if not count:
        return []
    _, held = split_holdout(find_images(folders), count)
    return [make_data_set(f"holdout{count}", [Pair(path.stem, path, None) for path in held])]


def check_names(sets: Sequence[DataSet]) -> None:
    """Raise InputError where there is no data set, or two have one name."""
    names = [data.name for data in sets]
    if not names:
        raise InputError("there is nothing to measure on: give --data NAME=HR_DIR, or --holdout with --train-data")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two data sets are called {name}: a name stands for one")
