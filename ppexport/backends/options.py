"""Options that are a backend's own: a pydantic model, values as texts, and errors that say where an option belongs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ppexport.backends.backend import Backend, backends
from ppexport.errors import InputError


class NoOptions(BaseModel):
    """The options of a backend that has none; others are subclasses of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OnnxGraphOptions(NoOptions):
    """What every backend has that starts from an ONNX graph."""

    keep: Path | None = Field(default=None, description="folder for the intermediate graphs")


KINDS: dict[Any, str] = {bool: "yes or no", int: "NUMBER", float: "NUMBER", Path: "PATH"}
"""What an option takes, by its type."""


def describe_options(model: type[BaseModel]) -> dict[str, str]:
    """{name: what it takes, its default and what it is for}, of the options of a backend or a network."""
    found = {}
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        kind = " or ".join(_choices(field)) or KINDS.get(kinds[0], "VALUE")
        default = "" if field.default is None else f" [default: {_shown(field.default)}]"
        found[name] = f"{kind}{default}: {field.description or 'not described'}"
    return found


def _shown(default: Any) -> str:
    return ("no", "yes")[default] if isinstance(default, bool) else str(default)


def _choices(field: FieldInfo | None) -> list[str]:
    """The values that an option may have, where it is one of a few texts or numbers."""
    return [] if field is None else [str(value) for value in get_args(field.annotation) if type(value) in (str, int)]


def parse_options(backend: Backend, given: Mapping[str, Any]) -> BaseModel:
    """The options of *backend* with *given* values, which may be texts from a command line.

    Raises:
        InputError: a value is not one that the option takes, or the option is unknown or belongs to another backend.
    """
    model = backend.options()
    for name in given:
        if name not in model.model_fields:
            owners = [other.name for other in backends().values() if name in other.options().model_fields]
            if owners:
                raise InputError(
                    f"{name} is an option of --backend {', '.join(owners)}, not of {backend.name}: leave it out"
                )
            known = ", ".join(model.model_fields) or "none"
            raise InputError(f"no backend has an option {name!r}; those of {backend.name}: {known}")
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else "option"
        choices = _choices(model.model_fields.get(name))
        field = model.model_fields.get(name)
        yes_or_no = field is not None and field.annotation is bool
        takes = f"one of {', '.join(choices)}" if choices else "yes or no" if yes_or_no else problem["msg"]
        raise InputError(f"{name} of --backend {backend.name} is {takes}, not {problem['input']!r}") from None
