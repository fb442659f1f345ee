"""The main program of the archive that `ppexport.profile.archive` packs, where its name is `__main__.py`.

`python3 agent.pyz` measures. `python3 agent.pyz check MODULE...` imports the modules as a measurement would, and prints
one line: `has MODULE VERSION` for the last of them, or `lacks MODULE REASON` for the first that cannot be imported.
"""

from __future__ import annotations

import sys
from importlib import import_module


def check(names: list[str]) -> str:
    """The line that says whether this Python can import the modules *names*."""
    said = ""
    for name in names:
        try:
            module = import_module(name)
        # A runtime that was compiled for another NumPy raises SystemError, and others end the interpreter.
        except BaseException as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            return f"lacks {name} {type(error).__name__}: {reason}"
        said = f"has {name} {getattr(module, '__version__', '')}"
    return said


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        print(check(sys.argv[2:]))
        sys.exit(0)
    sys.exit(import_module("ppexport.device.onboard").main())
