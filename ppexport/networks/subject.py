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

from ppexport.errors import InputError
from ppexport.networks.architecture import architectures
from ppexport.networks.card import CARD, SUFFIXES, bundled_cards
from ppexport.networks.load import load_network, load_untrained
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

    def load(
        self,
        arch: str | None = None,
        scale: int | None = None,
        options: Mapping[str, str] | None = None,
        *,
        trained: bool = False,
    ) -> Network:
        """The network. What is given here counts where the subject has no setting of its own.

        Args:
            arch: a registered architecture.
            scale: upscaling factor.
            options: of the network, as texts.
            trained: False where the weights do not matter: they are then loaded from weights files alone.

        Raises:
            InputError: this is no subject, or a setting is not one.
            CardError, CheckpointError, UnavailableError: as `load_network`.
        """
        chosen = {**(options or {}), **self.options}
        arch = self.settings.get("arch", arch)
        if "scale" in self.settings:
            if not re.fullmatch(r"\d{1,3}", self.settings["scale"]):
                raise InputError(f"{self.text}: the scale is a whole number, not {self.settings['scale']!r}")
            scale = int(self.settings["scale"])
        target = self.target
        if self.is_file:
            return load_network(arch=arch, scale=scale, checkpoint=target, **chosen)
        if target in architectures():
            if trained:
                raise InputError(
                    f"{target} is an architecture, which has no weights: give a weights file, as FILE,arch={target}"
                )
            return load_untrained(None, target, scale, chosen)
        if target not in bundled_cards() and not (Path(target) / CARD).is_file():
            raise InputError(
                f"{target!r} is not {KINDS}; models: {', '.join(bundled_cards())}; "
                f"architectures: {', '.join(architectures())}"
            )
        return (
            load_network(target, arch=arch, scale=scale, **chosen)
            if trained
            else load_untrained(target, arch, scale, chosen)
        )

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

    Raises InputError for a setting that is given twice.
    """
    target, settings = text, dict[str, str]()
    while not Path(target).exists() and (match := SETTING.fullmatch(target)):
        target, name, value = match.groups()
        if name in settings:
            raise InputError(f"{text}: {name} is given twice")
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
