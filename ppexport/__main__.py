"""The program `ppexport`, and `python -m ppexport`."""

from __future__ import annotations

import sys

from ppexport.errors import EXIT_INTERRUPTED


def main() -> None:
    """Import the command line, which takes half a second on a slow machine, and run it."""
    try:
        from ppexport.cli import run
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
