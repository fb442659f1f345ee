"""A phone behind adb: our agent where it has Python, else a benchmark program.

Stand-ins play adb, the phone's programs and onnxruntime_perf_test, whose output follows its sources
(onnxruntime/test/perftest/performance_runner.cc); none of it was recorded.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from sshd_profiles import BRIEF, SIZE, refused
from test_profile_jetson import THERMAL

from ppexport.backends.onnx import perf_test
from ppexport.device.target import choose
from ppexport.errors import InputError, UnavailableError
from ppexport.profile import perf_binary
from ppexport.profile.perf_binary import PerfBinary
from ppexport.profile.remote import RemoteProfile, Settings, prepare_remote
from ppexport.profile.result import Profile
from ppexport.remote.address import TransferError
from ppexport.remote.detached import Pace, Telling
from ppexport.remote.ssh import open_device

pytest_plugins = ["adb_fixtures", "profile_fixtures"]
# Plays onnxruntime_perf_test: 20 runs for a duration, as many as asked for otherwise.
PERF = r"""#!/bin/sh
echo "$@" >> ../arguments
last=; runs=20
for argument; do
    if [ "$last" = -r ]; then runs=$argument; fi
    model=$result; result=$argument; last=$argument
done
if [ -e ../fail ]; then printf 'terminating: \033[31mno kernel for Resize\n' >&2; exit 1; fi
[ -s "$model" ] && [ -s test_data_set_9/input_0.pb ] || exit 2
cp test_data_set_0/input_0.pb ..
echo "Session creation time cost: 0.25 s"
echo "First inference time cost: 31 ms"
number=0
while [ "$number" -lt "$runs" ]; do
    echo "profile,0.0$((30 + number % 3)),73400320,97,$number" >> "$result"
    number=$((number + 1))
done
printf '\nMin Latency: 0.030 s\nMax Latency: 0.032 s\n' >> "$result"
"""


@pytest.fixture
def program(phone, tmp_path):
    path = tmp_path / "onnxruntime_perf_test"
    path.write_text(PERF)
    (phone / "phone-bin" / "dumpsys").write_text(f"#!/bin/sh\ncat <<'END'\n{THERMAL}END\n")
    (phone / "phone-bin" / "dumpsys").chmod(0o755)
    return path


def work_of(artifact, folder, program=None, settings=None, plan=BRIEF, runtime=None):
    """(lines told, the work) on the phone."""
    told: list[str] = []
    request = prepare_remote(
        choose(artifact, runtime, None, False), plan, folder, None, "adb://SERIAL1", settings or Settings()
    )
    telling, pace = Telling(told.append, lambda doing: None), Pace(0.05, (0.05,) * 5)

    def run(timeout=None):
        with open_device("adb://SERIAL1") as transport:
            if program is None:
                return RemoteProfile(transport, request, telling, pace).run(timeout)
            return PerfBinary(transport, request, program, telling, pace).run(timeout)

    return told, run


def root_of(phone):
    return phone / "phone" / ".cache" / "ppexport"


def test_a_phone_with_python(phone, program, enlarger, tmp_path, device_python):
    _, run = work_of(enlarger, tmp_path / "run", settings=Settings(python=str(device_python), cores=(1,)))
    found = run()
    assert found.data["machine"]["phone"]["android"] == "15"
    assert found.data["machine"]["usable_cores"] == 1
    assert found.data["sensors"]["throttling"][-1] == 2
    assert found.data["sensors"]["celsius.skin"][-1] == 41.25
    assert not list(root_of(phone).glob("*"))


def test_a_benchmark_program(phone, program, enlarger, tmp_path):
    _, run = work_of(enlarger, tmp_path / "run", program, Settings(cores=(0, 1)))
    found = run()
    subject = found.subjects[0]
    assert subject["summary"]["count"] == 20
    assert (subject["summary"]["p50_ms"], subject["summary"]["max_ms"]) == (31, 32)
    assert (subject["load_ms"], subject["first_ms"]) == (250, 31)
    assert subject["memory"]["peak"] == 73_400_320
    machine = found.data["machine"]
    assert machine["cpu"] == "Maker Phone 9 SM1"
    assert (machine["system"], machine["usable_cores"]) == ("Android 15", 2)
    assert found.data["sensors"]["throttling"][0] == 2
    assert found.data["protocol"]["inside_the_clock"].startswith("onnxruntime_perf_test")
    (line,) = (root_of(phone) / "arguments").read_text().splitlines()
    assert line == (
        "-m duration -t 1 -e cpu -c 1 -x 0 -y 1 -o 99 -C session.set_denormal_as_zero|1 ./model.onnx result"
    )
    # What the program read is a picture, in ONNX's own format.
    proto = onnx.TensorProto.FromString((root_of(phone) / "input_0.pb").read_bytes())
    values = numpy_helper.to_array(proto)
    assert (proto.name, values.shape, values.dtype) == ("lr", (1, 3, *SIZE), np.float32)
    pictures = np.load(tmp_path / "run" / "images.npy")
    assert np.array_equal((values[0].transpose(1, 2, 0) * 255).round().astype(np.uint8), pictures[0])
    assert not [path for path in root_of(phone).iterdir() if path.is_dir()]
    again, run = work_of(enlarger, tmp_path / "run", program, Settings(cores=(0, 1)))
    assert run().subjects == found.subjects
    assert "nothing was measured again" in again[0]


def test_a_benchmark_program_that_was_too_fast_runs_on(phone, program, enlarger, tmp_path):
    plan = replace(BRIEF, queries=50)
    _, run = work_of(enlarger, tmp_path / "run", program, plan=plan, runtime="onnxruntime:XNNPACK")
    assert run().subjects[0]["summary"]["count"] == 50
    _, second = (root_of(phone) / "arguments").read_text().splitlines()
    assert second.startswith("-m times -r 30 -e xnnpack")


def test_a_benchmark_program_without_the_provider(phone, program, enlarger, tmp_path):
    # What the program does with a provider that it was not compiled with (ort_test_session.cc).
    program.write_text("#!/bin/sh\necho 'terminate called: QNN is not supported in this build' >&2\nexit 134\n")
    _, run = work_of(enlarger, tmp_path / "run", program, runtime="onnxruntime:QNN")
    with pytest.raises(UnavailableError, match="exit code 134: terminate called: QNN is not supported in this build"):
        run()
    assert not (tmp_path / "run" / "latency.jsonl").exists()
    with pytest.raises(InputError, match="did you mean onnxruntime:QNN"):
        work_of(enlarger, tmp_path / "run", program, runtime="onnxruntime:QN")


def test_a_benchmark_program_that_fails(phone, program, enlarger, tmp_path):
    root_of(phone).mkdir(parents=True)
    (root_of(phone) / "fail").touch()
    told, run = work_of(enlarger, tmp_path / "run", program)
    with pytest.raises(UnavailableError, match="exit code 1: terminating: no kernel for Resize"):
        run()
    (root_of(phone) / "fail").unlink()
    assert isinstance(run(), Profile)
    assert "failed: starting it again" in told[-1]


def test_what_a_benchmark_program_cannot_time(phone, program, enlarger, tmp_path):
    sentence = refused(
        enlarger, "--on", "adb://SERIAL1", "--quick", "-o", tmp_path / "run", "--perf-binary", tmp_path / "none", code=2
    )
    assert "is not a file" in sentence
    _, run = work_of(enlarger, tmp_path / "both", program, runtime="onnxruntime,openvino")
    with pytest.raises(InputError, match="one runtime alone, .*onnxruntime"):
        run()
    for number, settings in enumerate(
        (Settings(power_mode="0"), Settings(lock_clocks=True), Settings(python="python3"))
    ):
        _, run = work_of(enlarger, tmp_path / str(number), program, settings)
        with pytest.raises(InputError, match="leave the power mode, the clocks and the Python out"):
            run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m,0.03,1,2,0\nm,nonsense,1,2,1\n", "a line that is no result"),
        ("m,0.0.3,1,2,0\n", "a line that is no result"),
        ("m,1e99,1,2,0\n", "took 1e99 s"),
        ("m,0,1,2,0\n", "took 0 s"),
        ("\nMin Latency: 1 s\n", "no query"),
    ],
)
def test_results_that_are_none(text, message):
    with pytest.raises(TransferError, match=message):
        perf_test.read_result(text)


@given(st.text(), st.text(alphabet="@ 0123456789./cpuscaling_freq\n", max_size=200))
def test_no_output_breaks_the_readers(text, readings):
    list(perf_binary.read_sensors(text))
    for moment, reading in perf_binary.read_sensors(readings):
        assert moment >= 0
        assert all(isinstance(value, float) for value in reading.values())
    assert perf_test.figure("load", "Session creation time cost: " + text) >= 0
    with suppress(TransferError):
        assert all(ns > 0 for ns in perf_test.read_result(text)[0])


def test_readings():
    core = "/sys/devices/system/cpu/cpu4/cpufreq/scaling_cur_freq"
    found = list(perf_binary.read_sensors(f"@ 100.5\n{core} 1800000\n{THERMAL}@ 102.75\n{core} 600000\n"))
    assert [moment for moment, _ in found] == [0, 2_250_000_000]
    assert found[0][1] == {"mhz.cpu4": 1800, "throttling": 2, "celsius.skin": 41.25, "celsius.battery": 29.5}
    assert found[1][1] == {"mhz.cpu4": 600}
    assert perf_binary.settled([100] * 16)
    assert not perf_binary.settled([120] * 8 + [100] * 8)
