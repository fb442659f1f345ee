"""LiteRT on a phone without Python: Google's `benchmark_model`, played by a stand-in that follows its sources."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from conftest import exported_once
from hypothesis import given
from hypothesis import strategies as st
from small_networks import small_network
from test_litert import CAPACITIES, SIZE, with_file
from test_profile_phone import root_of, work_of

from ppexport.backends.litert import benchmark_model
from ppexport.backends.litert.convert_litert import MODEL
from ppexport.errors import UnavailableError
from ppexport.profile.remote import Settings
from ppexport.remote.address import TransferError

pytest.importorskip("litert_torch")
pytest_plugins = ["adb_fixtures", "profile_fixtures"]
TIMES = (
    "Inference timings in us: Init: 45600, First inference: 102343, Warmup (avg): 99000.5, Inference (avg): 1.5e+05\n"
)
PROGRAM = rf"""#!/bin/sh
echo "$@" >> ../arguments
if [ -e ../fail ]; then echo "ERROR: Op builtin_code out of range: 206." >&2; exit 1; fi
for argument; do
    case $argument in --graph=*) [ -s "${{argument#--graph=}}" ] || exit 2 ;; esac
    case $argument in --input_layer_value_files=*) cp "${{argument##*:}}" ../input || exit 3 ;; esac
done
echo "INFO: Log parameter values verbosely: [0]"
echo "count=8 first=150100 curr=149900 min=149000 max=151000 avg=150000 std=400"
printf '%s' '{TIMES}'
echo
echo "Overall peak memory footprint (MB) via periodic monitoring: 70"
"""


@pytest.fixture
def artifact(tmp_path_factory, tmp_path):
    """Of one capacity, as far as a benchmark program looks."""
    made = exported_once(tmp_path_factory, small_network(2, 2), backend="litert", size=SIZE, capacities=CAPACITIES)
    return with_file(made, tmp_path / "one", (made / MODEL).read_bytes(), capacities=[512])


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "benchmark_model"
    path.write_text(PROGRAM)
    return path


def test_means_of_a_few_runs_are_the_samples(phone, program, artifact, tmp_path):
    _, run = work_of(artifact, tmp_path / "run", program, Settings(cores=(0, 1)))
    found = run()
    subject = found.subjects[0]
    assert subject["summary"]["count"] >= 2
    assert subject["summary"]["p50_ms"] == 150
    assert (subject["load_ms"], subject["first_ms"]) == (45.6, 102.343)
    assert subject["memory"]["peak"] == 70 * 2**20
    assert found.data["protocol"]["inside_the_clock"].startswith("benchmark_model: the mean of 8 runs")
    lines = (root_of(phone) / "arguments").read_text().splitlines()
    assert "--num_threads=0" not in lines[0]
    assert "--input_layer=capacity_256_lr --input_layer_shape=1,3,16,32" in lines[0]
    assert "set-0.bin" in lines[0]
    assert "set-1.bin" in lines[1]
    pictures = np.load(tmp_path / "run" / "images.npy")
    read = np.frombuffer((root_of(phone) / "input").read_bytes(), np.float32).reshape(1, 3, *SIZE)
    assert any(np.array_equal((read[0].transpose(1, 2, 0) * 255).round(), picture) for picture in pictures)


def test_a_program_that_fails_is_quoted(phone, program, artifact, tmp_path):
    root_of(phone).mkdir(parents=True)
    (root_of(phone) / "fail").touch()
    _, run = work_of(artifact, tmp_path / "run", program)
    with pytest.raises(UnavailableError, match="exit code 1: ERROR: Op builtin_code out of range: 206"):
        run()


def test_another_device_than_the_cpu_is_refused(phone, program, artifact, tmp_path):
    _, run = work_of(artifact, tmp_path / "run", program, runtime="litert:gpu")
    with pytest.raises(UnavailableError, match="benchmark_model is run on the CPU alone"):
        run()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "printed no timings"),
        (TIMES.replace("1.5e+05", "0"), "took 0 us"),
        (TIMES.replace("1.5e+05", "1e99"), "took 1e\\+99 us"),
        (TIMES.replace("Init: ", "Init: nan"), "printed no timings"),
    ],
)
def test_what_tells_no_time(text, says):
    with pytest.raises(TransferError, match=says):
        benchmark_model.read(text, "")


@given(st.text(), st.text(alphabet="0123456789.e+-\n ", max_size=30))
def test_no_output_breaks_the_reader(noise, number):
    with suppress(TransferError):
        found = benchmark_model.read(noise + TIMES.replace("45600", number) + noise, noise)
        assert all(ns > 0 for ns in found.ns)
