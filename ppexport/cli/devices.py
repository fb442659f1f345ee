"""What commands share that have something done on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from ppexport.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from ppexport.remote.detached import DetachedWork, Telling


@contextmanager
def following(what: str) -> Iterator[Telling]:
    """Tells people on standard error what happens: sentences, and a line that says what is being done now."""
    from ppexport.remote.detached import Telling

    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    with console.status(what) as status:
        yield Telling(console.print, lambda doing: status.update(escape(f"{what}: {doing}")))


@contextmanager
def taken_up_later(work: DetachedWork[Any]) -> Iterator[None]:
    """After Ctrl-C in the block: says what continues, and ends the program."""
    try:
        yield
    except KeyboardInterrupt:
        continues = f"the {work.noun} continues on {work.transport.name}; " if work.running else ""
        work.telling.notice(f"interrupted: {continues}the same command again takes it up, --clean ends and removes it")
        raise typer.Exit(EXIT_INTERRUPTED) from None
