"""Refuse Python files of more than 400 lines, for pre-commit: python tools/file_length.py FILE..."""

import sys
from pathlib import Path

MOST = 400

if __name__ == "__main__":
    counted = {name: Path(name).read_text(encoding="utf-8").count("\n") for name in sys.argv[1:]}
    sys.exit("\n".join(f"{name} has {n} lines, and {MOST} at most" for name, n in counted.items() if n > MOST) or 0)
