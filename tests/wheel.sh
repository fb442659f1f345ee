#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment without torch and onnx, and there upscales a
# photograph and compares with a saved parity run, with an artifact and a run that the full environment makes.
#   tests/wheel.sh PYTHON_WITH_EXPORT
set -euo pipefail
cd "$(dirname "$0")/.."
full=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# From a copy, so that no build folder is left in the checkout.
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -cf - | (mkdir "$work/src" && tar -xf - -C "$work/src")
"$full" -m pip wheel --quiet --no-deps -w "$work/dist" "$work/src"
"${PYTHON:-python3}" -m venv "$work/device"
device=$work/device/bin
"$device/python" -m pip install --quiet "$(ls "$work"/dist/ppexport-*.whl)[onnx]"
"$full" -m ppexport export pp_atd_light_x2 --size 48x64 -o "$work/artifact"
"$full" -m ppexport parity "$work/artifact" -o "$work/run"
cd "$work"
"$device/python" - <<'PY'
import importlib.util

import ppexport

for name in ("torch", "onnx", "yaml"):
    assert importlib.util.find_spec(name) is None, f"the device environment must not have {name}"
try:
    ppexport.load_network
except ImportError as error:
    assert "whl[export]" in str(error), error
else:
    raise SystemExit("load_network worked without torch")
PY
photo=$("$device/python" -c "from importlib.resources import files; print(files('ppexport.calibration') / 'images' / 'chelsea.png')")
"$device/ppexport" upscale artifact "$photo" result.png --json report.json
"$device/python" - <<'PY'
import json

from PIL import Image

report = json.load(open("report.json"))
with Image.open("result.png") as image:
    assert image.size == (902, 600), image.size
    image.load()
assert report["tiles"] > 1 and report["tiles_over_capacity"] == 0, report
PY
"$device/ppexport" parity artifact --against run --json against.json || [ $? -eq 1 ]
"$device/python" - <<'PY'
import json

(pair,) = json.load(open("against.json"))["pairs"]
assert len(pair["rows"]) == 14, pair
for row in pair["rows"]:
    # A near tie may fall the other way on another processor, and without onnx nothing can look into the file.
    assert row["passed"] or "near ties of this input" in row["reason"], row
assert any(row["passed"] for row in pair["rows"])
PY
if "$device/ppexport" parity artifact 2> message; then
  echo "parity without a saved run worked without torch" >&2
  exit 1
elif [ $? -ne 3 ]; then
  echo "parity without torch: wrong exit code" >&2
  exit 1
fi
grep -q -- "--against RUN" message
if "$device/ppexport" export pp_atd_light_x2 -o nothing 2> message; then
  echo "export worked without torch" >&2
  exit 1
elif [ $? -ne 3 ]; then
  echo "export without torch: wrong exit code" >&2
  exit 1
fi
grep -q "whl\[export\]" message
echo "wheel: upscale and parity --against work without torch"
