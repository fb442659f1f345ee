"""Model cards: what a network is, where its weights are, under which licence and how they were made."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from ppexport.errors import CardError, CheckpointError, InputError, UnavailableError
from ppexport.files import is_plain_name, read_limited_text, sha256_file, sha256_text
from ppexport.networks.architecture import Architecture, architectures, find_architecture

CARD = "card.yaml"
MAX_BYTES = 1 << 16
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""Of weights files, in any case; all but the first are PyTorch's."""
OWN_SUMMARY, OWN_LICENCE = "a checkpoint of the user's", "as the checkpoint's"
"""What a card says of weights that came without one."""


class Weights(BaseModel):
    """A weights file: a plain name beside the card, and its SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


Compensation = Literal["value", "zero", "normed"]
"""Branch output of a pure token: its own value vector v, nothing, or the normalised input z."""


class MaskOptions(BaseModel):
    """Options of the Pure-Pass mask: K colour centres, window in pixels, cross-shift mask fusion, whose centres."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    colors: int = Field(default=8, ge=2, le=16, description="colour centres of Pure-Pass, 2 to 16")
    window: Literal[2, 4, 8, 16] = Field(default=8, description="window of Pure-Pass, in pixels")
    csmf: bool = Field(default=True, description="cross-shift mask fusion of Pure-Pass")
    centres: Literal["fixed", "adaptive"] = Field(
        default="fixed", description="colour centres of Pure-Pass: fixed, or adaptive, chosen from the picture"
    )


class PurePassOptions(MaskOptions):
    """Options of Pure-Pass, with what pure pixels take."""

    compensation: Compensation = Field(default="value", description="what pure pixels take")


class CardGate(BaseModel):
    """What parity of this model must meet in place of ppexport's own gate; only a stricter limit is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    psnr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Least PSNR between the outputs, dB."""
    max_abs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Largest absolute error."""
    task_change: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Largest change of the mean PSNR-Y, dB."""


class Card(BaseModel):
    """One model. `options` is null for networks without Pure-Pass; `weights` is null where a user brings the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    summary: str
    arch: str
    scale: int
    options: SerializeAsAny[BaseModel] | None = None
    weights: Weights | None = None
    licence: str
    training: dict[str, Any] = Field(default_factory=dict)
    published: dict[str, Any] = Field(default_factory=dict)
    default_size: tuple[int, int] = (64, 64)
    gates: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")], CardGate] = Field(default_factory=dict)
    """By precision; "twin" is the gate between network and twin."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_architecture_says(cls, data: Any) -> Any:
        """Check the scale, and give the options the model that the architecture has for them."""
        known = architectures()
        if not isinstance(data, dict) or not isinstance(data.get("arch"), str):
            return data
        if data["arch"] not in known:
            raise ValueError(f"arch is one of {', '.join(known)}, not {data['arch']!r}")
        architecture, options = known[data["arch"]], data.get("options")
        if data.get("scale") not in architecture.scales:
            raise ValueError(f"{architecture.name} has scales {architecture.scales}, not {data.get('scale')!r}")
        model = architecture.options()
        if model is None:
            if options:
                raise ValueError(f"{architecture.name} takes no options")
            return {**data, "options": None}
        content = options.model_dump() if isinstance(options, BaseModel) else options
        return {**data, "options": model.model_validate(content or {})}

    def hash(self) -> str:
        """SHA-256 of the card as canonical JSON, without the gates, which change nothing that is computed."""
        content = self.model_dump(mode="json", exclude={"gates"})
        return sha256_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


def first_error(error: ValidationError) -> str:
    """The first problem pydantic found, as `field: what is wrong`."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'card'}: {problem['msg']}"


def make_card(**fields: Any) -> Card:
    """A card from *fields*; raises CardError naming the first bad one."""
    return _checked(fields, "bad model card")


def _checked(fields: dict[str, Any], what: str) -> Card:
    try:
        return Card.model_validate(fields)
    except ValidationError as error:
        raise CardError(f"{what}: {first_error(error)}") from None


def read_card(folder: Path) -> Card:
    """Read `card.yaml` in *folder*. Raises CardError."""
    path = folder / CARD
    if not os.path.exists(path):
        raise CardError(f"{folder} holds no {CARD}")
    try:
        text = read_limited_text(path, MAX_BYTES, "a model card")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise CardError(f"{path} uses YAML aliases, which a few lines of can fill any memory")
        data = yaml.safe_load(text)
    except InputError as error:
        raise CardError(str(error)) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CardError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise CardError(f"{path} is not a mapping of fields")
    card = _checked(data, str(path))
    if card.weights is not None and not is_plain_name(card.weights.file):
        raise CardError(f"{path}: weights.file {card.weights.file!r} is not a plain file name beside the card")
    return card


def models_folder() -> Path:
    """The folder of the bundled models, in a checkout and in an installed copy."""
    return Path(str(files("ppexport.models")))


def bundled_cards() -> dict[str, Path]:
    """Name -> folder of every bundled model."""
    return {path.parent.name: path.parent for path in sorted(models_folder().glob(f"*/{CARD}"))}


def find_card(name: str) -> tuple[Card, Path]:
    """The card called *name*, or in the folder *name*, and its folder. Raises CardError with the known names."""
    bundled = bundled_cards()
    if name in bundled:
        return read_card(bundled[name]), bundled[name]
    folder = Path(name)
    if (folder / CARD).is_file():
        return read_card(folder), folder
    raise CardError(f"no model is called {name!r} and it is no folder with a {CARD}; bundled: {', '.join(bundled)}")


def effective_card(name: str | None, arch: str | None, scale: int | None, options: dict[str, Any]) -> tuple[Card, Path]:
    """The card of *name* or a fresh one for *arch* and *scale*, with *options* in place of the card's; its folder.

    Raises CardError or InputError.
    """
    if name is not None:
        card, folder = find_card(name)
        for what, given, own in (("arch", arch, card.arch), ("scale", scale, card.scale)):
            if given is not None and given != own:
                raise InputError(f"model {name} has {what} {own}, not {given}: leave {what} out or name another model")
        fields = card.model_dump()
    else:
        names, folder = ", ".join(architectures()), Path()
        if arch is not None:
            find_architecture(arch)
        if arch is None and scale is None:
            raise InputError(
                f"name a model ({', '.join(bundled_cards())}, or a folder with a {CARD}), or give a checkpoint, whose "
                f"weights tell its arch ({names}) and scale"
            )
        if arch is None or scale is None:
            raise InputError(
                f"without a model's name and a checkpoint both --arch ({names}) and --scale are needed: "
                f"--{'arch' if arch is None else 'scale'} is missing"
            )
        fields = {"name": f"{arch}_x{scale}", "summary": OWN_SUMMARY, "licence": OWN_LICENCE}
        fields |= {"arch": arch, "scale": scale}
    known = find_architecture(fields["arch"])
    if fields["scale"] not in known.scales:
        raise InputError(
            f"the scale of {known.name} is one of {', '.join(map(str, known.scales))}, not {fields['scale']}"
        )
    fields["options"] = _with_options(known, fields.get("options") or {}, options)
    return make_card(**fields), folder


def _with_options(known: Architecture, own: dict[str, Any], given: dict[str, Any]) -> BaseModel | None:
    """The options of *known*: those *given*, which may be texts from a command line, in place of the card's *own*."""
    model = known.options()
    if model is None:
        if given:
            raise InputError(f"{known.name} has no options: leave {', '.join(given)} out")
        return None
    unknown = next((name for name in given if name not in model.model_fields), None)
    if unknown is not None:
        raise InputError(f"{known.name} has no option {unknown!r}: its options are {', '.join(model.model_fields)}")
    values = {**own, **given}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # The choice between 4 and 8, or a list, takes no text: there the number or the list that it stands for counts.
        refused = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
        values |= {name: _meant(value) for name, value in given.items() if name in refused}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise CardError(f"cannot use {first_error(error)}, not {error.errors()[0]['input']!r}") from None


def _meant(value: Any) -> Any:
    """The number or list that the text *value* stands for, in the notation of JSON; else *value* itself."""
    if not isinstance(value, str):
        return value
    try:
        meant = json.loads(value)
    except (ValueError, RecursionError):
        return value
    # A model would take yes for the number 1.
    return value if isinstance(meant, bool) else meant


def check_weights_file(path: Path) -> None:
    """Raise CheckpointError unless *path* is a file with the suffix of weights."""
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path}: weights are {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} files")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such weights file")


def card_with_weights(
    name: str | None, arch: str | None, scale: int | None, checkpoint: str | Path | None, options: dict[str, Any]
) -> tuple[Card, Path]:
    """The effective card of these weights, and their file, which is *checkpoint* or the card's own.

    Args:
        name: a bundled model or a folder with a card; without one *arch*, *scale* and *checkpoint* are needed.
        arch: a registered architecture.
        scale: upscaling factor.
        checkpoint: a weights file in place of the card's own.
        options: in place of the card's.

    Raises:
        CardError, InputError: the card is damaged, or this does not fit together.
        CheckpointError: the file is missing or is not what the card says.
        UnavailableError: the card has no weights of its own.
    """
    card, folder = effective_card(name, arch, scale, options)
    if checkpoint is not None:
        path = Path(checkpoint)
    elif card.weights is None:
        if name is None:
            raise InputError("without a model name, a checkpoint is needed")
        raise UnavailableError(
            f"no weights are bundled for {card.name}: give the .pth file its authors publish, or a .safetensors, with "
            f"--checkpoint FILE (checkpoint= in Python), such as: ppexport export {name} --checkpoint FILE.pth -o OUT"
        )
    else:
        path = folder / card.weights.file
    check_weights_file(path)
    digest = sha256_file(path)
    if card.weights is not None and digest != card.weights.sha256:
        if checkpoint is None:
            raise CheckpointError(f"{path} does not match the sha256 in the card of {card.name}")
        # What the card says of its own weights is not true of the user's.
        card = card.model_copy(update={"summary": OWN_SUMMARY, "licence": OWN_LICENCE, "training": {}})
    return card.model_copy(update={"weights": Weights(file=path.name, sha256=digest)}), path
