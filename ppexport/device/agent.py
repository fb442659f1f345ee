"""The main program on a device: `__main__.py` of the archive that `ppexport.remote.archive` packs.

`python3 agent.pyz` does the job of its folder. `request.json` says which: {"work": "MODULE:FUNCTION", "id": names the
request, ...}. The function takes (request, folder) and returns a dict, which becomes `outcome.json` with the request's
"id". A job prints what it does as events, one JSON object a line, which `ppexport.remote.output` reads:
{"event": "progress", "phase", "step", "steps"}, {"event": "log", "severity", "text"}, {"event": "notice", "text"} for
people, and {"event": "failed", "kind", "message", "errors"}.

`python3 agent.pyz check MODULE...` imports the modules as a job would, and prints one line: `has MODULE VERSION` for
the last of them, or `lacks MODULE REASON` for the first that cannot be imported. MODULE:NAME must have that name too.

Standard library only: a build needs no NumPy.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ppexport.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_UNAVAILABLE, PpexportError
from ppexport.files import system_sentence, write_text

ARCHIVE = "agent.pyz"
"""The program, in a job's folder on a device."""
REQUEST = "request.json"
OUTCOME = "outcome.json"


class JobError(PpexportError):
    """What ends a job on a device. *kind* and *errors* are for the program that started the job."""

    def __init__(self, kind: str, message: str, errors: Any = ()) -> None:
        super().__init__(message)
        self.kind, self.errors = kind, list(errors)


def event(name: str, **fields: Any) -> None:
    """Print one event."""
    # A full disk takes no output; a job reports it in its own way.
    with suppress(OSError):
        # In one call: TensorRT reports its progress from several threads.
        sys.stdout.write(json.dumps({"event": name, **fields}) + "\n")
        sys.stdout.flush()


def check(names: list[str]) -> str:
    """Whether this Python can import the modules *names*, as the line that the module docstring describes."""
    said = ""
    for entry in names:
        name, _, attribute = entry.partition(":")
        try:
            module = import_module(name)
            # The wheels `tensorrt` of some package indexes are empty shells.
            if attribute:
                getattr(module, attribute)
        # A runtime that was compiled for another NumPy raises SystemError, and others end the interpreter.
        except BaseException as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            return f"lacks {name} {type(error).__name__}: {reason}"
        said = f"has {name} {getattr(module, '__version__', '')}"
    return said


def do_job(folder: Path) -> int:
    """Do the job of *folder*; returns the exit code."""
    try:
        request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        module, _, function = request["work"].partition(":")
        outcome = getattr(import_module(module), function)(request, folder)
        write_text(folder / OUTCOME, json.dumps({"id": request["id"], **outcome}) + "\n")
    except JobError as error:
        event("failed", kind=error.kind, message=str(error), errors=error.errors)
        return error.exit_code
    except PpexportError as error:
        event("failed", kind="refused", message=str(error), errors=[])
        return error.exit_code
    except OSError as error:
        event("failed", kind="system", message=system_sentence(error), errors=[])
        return EXIT_BAD_INPUT
    except MemoryError:
        event("failed", kind="memory", message="the memory of this machine ran out", errors=[])
        return EXIT_UNAVAILABLE
    except KeyboardInterrupt:
        event("failed", kind="ended", message="the job was ended from outside", errors=[])
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        print(check(sys.argv[2:]))
        sys.exit(0)
    # Imported anew, not called here: what a job imports must raise the same classes as are caught.
    sys.exit(import_module("ppexport.device.agent").do_job(Path.cwd()))
