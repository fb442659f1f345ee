"""Finds what is registered: in this package's own folders, and by other installed packages through entry points."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ppexport.errors import UnavailableError, first_line


def discover(package: str, attribute: str, group: str) -> list[Any]:
    """The *attribute* of every folder in *package* that has it, then what other packages name in the entry points.

    Args:
        package: dotted name, such as "ppexport.networks"; each of its sub-packages is imported.
        attribute: what a sub-package defines, such as "ARCHITECTURES".
        group: the group of entry points, such as "ppexport.architectures"; each names an object of the same kind.

    Raises:
        UnavailableError: an installed package names an entry point that cannot be loaded.
    """
    found = []
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        if module.ispkg:
            value = getattr(import_module(module.name), attribute, None)
            if value is not None:
                found.append(value)
    return [*found, *loaded_entries(group)]


def loaded_entries(group: str) -> list[Any]:
    """What other installed packages name in the entry points of *group*.

    Raises:
        UnavailableError: an entry point cannot be loaded.
    """
    known: Any = entry_points()
    # Before Python 3.10 a mapping, and boards have 3.8.
    entries = known.select(group=group) if hasattr(known, "select") else known.get(group, ())
    found = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        try:
            found.append(entry.load())
        except Exception as error:  # whatever another package's code raises
            raise UnavailableError(
                f"the entry point {entry.name!r} of {group} cannot be loaded from {entry.value}: {first_line(error)}"
            ) from error
    return found
