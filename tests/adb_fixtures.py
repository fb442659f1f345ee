"""A stand-in for adb and the phone behind it; `pytest_plugins = ["adb_fixtures"]` brings them into a test module."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

STAND_IN = r"""#!/bin/sh
here=${0%/*}
for argument; do printf '%s\n' "$argument" | head -n 1; done >> "$here/arguments"
if [ "$3" = reverse ]; then set -- "$1" "$2" shell -T true; fi
if [ "$1" != -s ] || [ "$3" != shell ] || [ "$4" != -T ] || [ "$#" != 5 ]; then echo "adb: usage" >&2; exit 1; fi
if [ "$2" != SERIAL1 ]; then echo "adb: device '$2' not found" >&2; exit 1; fi
if [ -e "$here/unauthorized" ]; then echo "adb: device unauthorized." >&2; exit 1; fi
if [ -e "$here/offline" ]; then echo "adb: device offline" >&2; exit 1; fi
if [ -e "$here/hang" ]; then sleep 60; fi
if [ -e "$here/mute" ]; then exit 0; fi
# The phone: its home is where the stand-in's user may write.
line=$(printf '%s\n' "$5" | sed "1s|^HOME=/data/local/tmp;|HOME=$here/phone;|")
if [ -e "$here/cut" ]; then
    rm "$here/cut"
    head -c 1000 | sh -c "$line" > /dev/null 2>&1
    echo "error: closed" >&2
    exit 1
fi
PATH=$here/phone-bin:$PATH exec sh -c "$line"
"""
GETPROP = """#!/bin/sh
case $1 in
ro.product.model) echo 'Phone 9' ;;
ro.product.manufacturer) echo 'Maker' ;;
ro.soc.model) echo 'SM1' ;;
ro.build.version.sdk) echo 35 ;;
ro.build.version.release) echo 15 ;;
esac
"""


@pytest.fixture
def phone(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "tools"
    (folder / "phone").mkdir(parents=True)
    (folder / "phone-bin").mkdir()
    for path, text in ((folder / "adb", STAND_IN), (folder / "phone-bin" / "getprop", GETPROP)):
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder
