"""Places in files that programs write into: <!-- NAME --> ... <!-- /NAME --> in Markdown, and the hash in a card."""

from __future__ import annotations

import re
from pathlib import Path

from ppexport.errors import InputError
from ppexport.files import write_text
from ppexport.networks.card import CARD


def with_hash(card: str, sha256: str) -> str:
    """The text of a *card* that names its weights by *sha256*. Raises InputError where it has no one place for it."""
    text, count = re.subn(r"(?m)^(  sha256:) *\w*$", rf"\1 {sha256}", card)
    if count != 1:
        raise InputError(f"{CARD} needs one line `  sha256: {'f' * 64}` below `weights:`")
    return text


class Place:
    """What lies between the two comments that bear *name* in the file *path*."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises InputError unless the file can be read and has the place once."""
        self.path, self.begin, self.end = path, f"<!-- {name} -->", f"<!-- /{name} -->"
        self._around()

    def _around(self) -> tuple[str, str]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path} cannot be read: {' '.join(str(error).split())}") from None
        before, _, rest = text.partition(self.begin)
        _, _, after = rest.partition(self.end)
        if text.count(self.begin) != 1 or text.count(self.end) != 1 or self.end in before:
            needed = f"it needs one {self.begin} and after it one {self.end}"
            raise InputError(f"{self.path} has no place for the table: {needed}")
        return before, after

    def read(self) -> str:
        """What lies in the place."""
        text = self.path.read_text(encoding="utf-8")
        return text.partition(self.begin)[2].partition(self.end)[0].strip()

    def write(self, content: str) -> bool:
        """Replace what lies in the place, which is looked up anew, by *content*; returns whether that changed it."""
        before, after = self._around()
        text = f"{before}{self.begin}\n\n{content}\n\n{self.end}{after}"
        if text == self.path.read_text(encoding="utf-8"):
            return False
        write_text(self.path, text)
        return True
