"""Networks as a command line names several of them: TARGET, or TARGET,NAME=VALUE,... with settings of its own.

A target is a bundled model, a folder with a card, an architecture or a weights file. Settings are `arch`, `scale` and
the options of the network, so that one weights file can be several subjects:

    CAMixerSR_S.pth   CAMixerSR_S.pth,ratio=0.25   atd_light.pth,arch=pp_atd_light,colors=6
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.errors import InputError
from ppexport.networks.architecture import architectures
from ppexport.networks.card import CARD, SUFFIXES, Card, bundled_cards

if TYPE_CHECKING:
    from ppexport.networks.network import Network

SETTING = re.compile(r"(.+),([A-Za-z]\w*)=([^,]*)", re.DOTALL)
KINDS = f"a bundled model, a folder with a {CARD}, an architecture with --scale, or a weights file"


@dataclass(frozen=True)
class Subject:
    """One of the networks that a command compares."""

    text: str
    """As it was given."""
    target: str
    settings: Mapping[str, str]

    @property
    def options(self) -> dict[str, str]:
        """Its own options, as texts."""
        return {name: value for name, value in self.settings.items() if name not in ("arch", "scale")}

    def card_and_weights(
        self, arch: str | None = None, scale: int | None = None, options: Mapping[str, str] | None = None
    ) -> tuple[Card, Path]:
        """The card of the network and its weights file. What is given counts where the subject has no own setting.

        Args:
            arch: a registered architecture.
            scale: upscaling factor.
            options: of the network, as texts.

        Raises:
            InputError: this is no subject, or an architecture alone.
            CardError, CheckpointError, UnavailableError: as `load_network`.
        """
        from ppexport.networks.load import find_weights

        arch, scale, options = self._chosen(arch, scale, options)
        if self.is_file:
            return find_weights(None, arch, scale, self.target, options)
        if self._is_architecture():
            raise InputError(
                f"{self.target} is an architecture, which has no weights: give its weights file, as "
                f"FILE,arch={self.target}"
            )
        return find_weights(self.target, arch, scale, None, options)

    def network(
        self, arch: str | None = None, scale: int | None = None, options: Mapping[str, str] | None = None
    ) -> Network:
        """The network, without its weights unless they are what tells it. Arguments and errors as above."""
        from ppexport.networks.load import load_card, load_untrained

        if self.is_file:
            return load_card(*self.card_and_weights(arch, scale, options))
        arch, scale, options = self._chosen(arch, scale, options)
        if self._is_architecture():
            if scale is None:
                scales = ", ".join(map(str, architectures()[self.target].scales))
                raise InputError(f"{self.target} is an architecture and needs a scale: --scale N, of {scales}")
            return load_untrained(None, self.target, scale, options)
        return load_untrained(self.target, arch, scale, options)

    def _chosen(
        self, arch: str | None, scale: int | None, options: Mapping[str, str] | None
    ) -> tuple[str | None, int | None, dict[str, str]]:
        """Architecture, scale and options: the subject's own, else those given."""
        own = self.settings.get("scale")
        if own is not None and not re.fullmatch(r"[0-9]{1,3}", own):
            raise InputError(f"{self.text}: the scale is a whole number, not {own!r}")
        return (
            self.settings.get("arch", arch),
            scale if own is None else int(own),
            {**(options or {}), **self.options},
        )

    def _is_architecture(self) -> bool:
        """Whether the target is an architecture, not a model. Raises InputError where it is nothing that is known."""
        if self.target in bundled_cards() or (Path(self.target) / CARD).is_file():
            return False
        if self.target not in architectures():
            raise InputError(
                f"{self.target!r} is not {KINDS}; models: {', '.join(bundled_cards())}; "
                f"architectures: {', '.join(architectures())}"
            )
        return True

    @property
    def is_file(self) -> bool:
        """Whether the target is a weights file, which may be missing."""
        path = Path(self.target)
        return path.suffix.lower() in SUFFIXES and self.target not in bundled_cards() and not path.is_dir()

    def label(self, arch: str) -> str:
        """A short name of the subject, whose network is of *arch*: that of its model, or *arch*; and its options."""
        name = arch if self.is_file else Path(self.target).resolve().name
        return " ".join([name, *(f"{name}={value}" for name, value in self.options.items())])


def parse_subject(text: str) -> Subject:
    """TARGET,NAME=VALUE,... -> Subject. A path that exists is the target, also where it reads like settings.

    Raises InputError for a setting that is given twice, or without a value.
    """
    target, settings = text, dict[str, str]()
    while not Path(target).exists() and (match := SETTING.fullmatch(target)):
        target, name, value = match.groups()
        if name in settings:
            raise InputError(f"{text}: {name} is given twice")
        if not value:
            raise InputError(f"{text}: {name} has no value")
        settings[name] = value
    return Subject(text, target, dict(reversed(settings.items())))


def parse_subjects(texts: Sequence[str]) -> list[Subject]:
    """The subjects of *texts*. Raises InputError for one that is given twice."""
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice")
    return [parse_subject(text) for text in texts]


def told_apart(labels: Sequence[str], subjects: Sequence[Subject]) -> list[str]:
    """*labels* of *subjects*, with the file's name or all of the text where several have the same."""
    names = [f"{label} ({Path(s.target).name})" for label, s in zip(labels, subjects, strict=True)]
    found = list(labels)
    for longer in (names, [s.text for s in subjects]):
        counts = Counter(found)
        found = [new if counts[old] > 1 else old for old, new in zip(found, longer, strict=True)]
    return found
