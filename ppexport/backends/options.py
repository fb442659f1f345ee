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


def describe_options(backend: Backend) -> dict[str, str]:
    """{name: what it takes, its default and what it is for}."""
    found, words = {}, {None: "", True: " [default: yes]", False: " [default: no]"}
    for name, field in backend.options().model_fields.items():
        kind = " or ".join(_choices(field)) or ("yes or no" if field.annotation is bool else "PATH")
        found[name] = f"{kind}{words.get(field.default, f' [default: {field.default}]')}: {field.description}"
    return found


def _choices(field: FieldInfo | None) -> list[str]:
    """The values that an option may have, where it is one of a few texts."""
    return [] if field is None else [value for value in get_args(field.annotation) if isinstance(value, str)]


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
                    f"{name} is an option of --backend {' and '.join(owners)}, not of {backend.name}: leave it out"
                )
            known = ", ".join(model.model_fields) or "none"
            raise InputError(f"no backend has an option {name!r}; those of {backend.name}: {known}")
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else "option"
        choices = _choices(model.model_fields.get(name))
        takes = f"one of {', '.join(choices)}" if choices else problem["msg"]
        raise InputError(f"{name} of --backend {backend.name} is {takes}, not {problem['input']!r}") from None


def parse_pairs(texts: list[str]) -> dict[str, str]:
    """Texts KEY=VALUE -> {key: value}. Raises InputError for another form, or a key that is given twice."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(f"-O takes KEY=VALUE, such as -O flavour=ort, not {text!r}")
        if key in found:
            raise InputError(f"-O {key} is given twice")
        found[key] = value.strip()
    return found
