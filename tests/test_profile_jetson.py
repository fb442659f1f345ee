"""Parsers of what Jetsons and phones print.

No text here was recorded: all are written from the formats in NVIDIA's Jetson Linux developer guides (tegrastats,
nvpmodel, jetson_clocks) and in Android's sources (dumpsys thermalservice, getprop).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sshd import wait_until

from ppexport.device import jetson, machine, sensors
from ppexport.device import jetson as power
from ppexport.device.sensors import Tegrastats, joules, parse_line

NANO_JP4 = (
    "RAM 2136/3956MB (lfb 1x1MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [10%@1428,off,off,5%@1428] "
    "EMC_FREQ 3%@1600 GR3D_FREQ 12%@921 APE 25 PLL@33C CPU@36.5C PMIC@100C GPU@34C AO@41.5C thermal@35.25C "
    "POM_5V_IN 2145/2100 POM_5V_GPU 40/40 POM_5V_CPU 286/286"
)
XAVIER_JP4 = (
    "RAM 2136/31918MB (lfb 6000x4MB) SWAP 0/15959MB (cached 0MB) CPU [1%@1190,2%@1190,off,off] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 0%@318 APE 150 MTS fg 0% bg 0% AO@35C GPU@35.5C Tboard@33C PMIC@100C "
    "GPU 500/500 CPU 300/300 SOC 900/900 CV 0/0 VDDRQ 300/300 SYS5V 1500/1500"
)
ORIN_JP5 = (
    "RAM 1903/30536MB (lfb 6770x4MB) SWAP 0/15268MB (cached 0MB) CPU [0%@1190,3%@1190,off] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 0%@[305,305] VIC_FREQ 729 APE 174 CV0@-256C CPU@43.531C Tboard@32C SOC2@40.25C GPU@-256C tj@43.531C "
    "VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 3200mW/3150mW NC 0mW/0mW VDDQ_VDD2_1V8AO 500mW/500mW"
)
NANO_JP6 = (
    "11-23-2026 03:00:00 RAM 2948/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [2%@1510,1%@1510,off,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 99%@[624] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@46.75C soc2@45.875C "
    "gpu@46.093C tj@46.75C VDD_IN 4537mW/4500mW VDD_CPU_GPU_CV 1046mW/1046mW VDD_SOC 1408mW/1408mW"
)


@pytest.mark.parametrize(
    ("line", "watts", "gpu", "celsius"),
    [
        (NANO_JP4, 2.145, 921, {"PLL", "CPU", "GPU", "AO", "thermal"}),
        (XAVIER_JP4, 3.5, 318, {"AO", "GPU", "Tboard"}),
        (ORIN_JP5, 6.0, 305, {"CPU", "Tboard", "SOC2", "tj"}),
        (NANO_JP6, 4.537, 624, {"cpu", "soc2", "gpu", "tj"}),
    ],
)
def test_tegrastats(line, watts, gpu, celsius):
    found = parse_line(line)
    assert found["watts.total"] == pytest.approx(watts)
    assert found["mhz.gpu"] == gpu
    assert {name.partition(".")[2] for name in found if name.startswith("celsius.")} == celsius
    assert "watts.NC" not in found
    assert all(isinstance(value, float) for value in found.values())


def test_tegrastats_in_full():
    assert parse_line(NANO_JP6) == {
        "bytes.ram": 2948 * 2**20, "mhz.cpu0": 1510, "mhz.cpu1": 1510, "share.memory": 0, "mhz.memory": 2133,
        "share.gpu": 0.99, "mhz.gpu": 624, "celsius.cpu": 46.75, "celsius.soc2": 45.875, "celsius.gpu": 46.093,
        "celsius.tj": 46.75, "watts.VDD_IN": 4.537, "watts.VDD_CPU_GPU_CV": 1.046, "watts.VDD_SOC": 1.408,
        "watts.total": 4.537,
    }  # fmt: skip
    # Without the rail of the whole module there is no total.
    assert "watts.total" not in parse_line(NANO_JP6.replace("VDD_IN 4537mW/4500mW", ""))


@given(st.one_of(st.text(), st.text(alphabet="RAM 0123456789/MBCPU[]%@,offCmW_.-", max_size=300)))
def test_no_line_breaks_the_parsers(text):
    parse_line("RAM 1/2MB " + text)
    jetson.power_mode(text)
    jetson.power_modes(text)
    jetson.clocks(text)
    jetson.l4t(text)
    sensors.thermal(text)


def test_the_sensor_reads_and_ends_its_program():
    program = f"import time; print({NANO_JP6!r}, flush=True); time.sleep(600)"
    sensor = Tegrastats((sys.executable, "-c", program))
    wait_until(sensor)
    assert sensor()["watts.total"] == 4.537
    sensor.close()
    assert sensor() == {}
    with pytest.raises(OSError, match="no-such"):
        Tegrastats(("no-such-program",))


def test_a_sensor_whose_program_died_shows_nothing():
    sensor = Tegrastats((sys.executable, "-c", f"print({NANO_JP6!r})"))
    wait_until(lambda: not sensor._thread.is_alive())
    assert sensor() == {}
    sensor.close()


def test_joules():
    second = 10**9
    assert joules([0, second, 2 * second], [4.0, 6.0, 4.0], 0, 2 * second) == pytest.approx(10)
    # Uneven readings and a missing one.
    assert joules([0, second, 2 * second, 4 * second], [2.0, None, 2.0, 4.0], 0, 4 * second) == pytest.approx(10)
    assert joules([0, second], [5.0, 5.0], 0, 4 * second) is None
    assert joules([0], [5.0], 0, second) is None
    assert joules([0, second], [None, None], 0, second) is None


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, DATE: Sat Feb 19", "32.7.1"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1", "35.4.1"),
        ("# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic, EABI: aarch64, DATE: Fri Jul 19", "36.3.0"),
        ("# R36 (release), REVISION: 3, GCID: 1", "36.3.0"),
        ("something else", None),
        (None, None),
    ],
)
def test_l4t(text, release):
    assert jetson.l4t(text) == release


def test_jetpack_of_releases():
    assert (jetson.JETPACK["36.3.0"], jetson.JETPACK["35.4.1"], jetson.JETPACK["32.7.1"]) == ("6.0", "5.1.2", "4.6.1")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MODE_15W\n0\n", (0, "MODE_15W")),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", (0, "MAXN")),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_30W_ALL\n3\n", (3, "MODE_30W_ALL")),
        ("NV Power Mode: MAXN_SUPER\n2\n", (2, "MAXN_SUPER")),
        ("NVPM ERROR: Error opening /etc/nvpmodel.conf", None),
    ],
)
def test_nvpmodel(text, mode):
    assert jetson.power_mode(text) == mode


SHOW = """SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
Online CPUs: 0-1
cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1 c7=1
cpu1: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=1420800 IdleStates: WFI=1 c7=1
cpu2: Online=0 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=0 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed control=active hwmon0_pwm=66
NV Power Mode: MODE_30W
"""


def test_jetson_clocks():
    found = jetson.clocks(SHOW)
    assert set(found) == {"cpu0", "cpu1", "GPU", "EMC", "locked"}
    assert found["cpu1"] == {"min": 729_600_000, "max": 2_201_600_000, "now": 1_420_800_000}
    assert found["GPU"]["max"] == 1_300_500_000
    assert found["locked"] is False
    locked = SHOW.replace("MinFreq=729600", "MinFreq=2201600").replace("MinFreq=306000000", "MinFreq=1300500000")
    assert jetson.clocks(locked)["locked"] is True
    assert jetson.clocks("")["locked"] is None


class Board:
    """Plays nvpmodel behind sudo."""

    def __init__(self, mode=0, said="", code=0, sticks=True):
        self.mode, self.said, self.code, self.sticks = mode, said, code, sticks
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, command):
        self.calls.append(tuple(command))
        if command[0] == "sudo":
            if self.code == 0 and self.sticks:
                self.mode = int(command[-1])
            return subprocess.CompletedProcess(command, self.code, "", self.said)
        return subprocess.CompletedProcess(command, 0, f"NV Power Mode: M{self.mode}\n{self.mode}\n", "")


def test_a_power_mode_is_set_and_restored():
    board = Board(mode=2)
    kept = []
    jetson.set_power_mode(0, board, kept.append)
    assert kept == [(2, "M2")]
    assert ("sudo", "-n", "nvpmodel", "-m", "0") in board.calls
    jetson.set_power_mode(kept[0].number, board)
    assert board.mode == 2
    jetson.set_power_mode(2, board, pytest.fail)


SUPER = """# FORMAT:
# < POWER_MODEL ID=id_num NAME=mode_name >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
"""As NVIDIA's header of the file describes it; which modes a board has is from third-party pages."""


def test_a_power_mode_is_chosen_by_its_name(tmp_path):
    assert jetson.power_modes(SUPER) == [(0, "15W"), (1, "25W"), (2, "MAXN_SUPER")]
    board, root = Board(mode=0), str(tmp_path)
    with (
        pytest.raises(jetson.Refused, match="MAXN_SUPER cannot be looked up in .*nvpmodel.conf: No such file"),
        power.power_mode_set("MAXN_SUPER", root, pytest.fail, board, root),
    ):
        pytest.fail("it was refused")
    (tmp_path / "etc").mkdir()
    # The modes may come after many lines.
    (tmp_path / "etc" / "nvpmodel.conf").write_text("# a comment\n" * 5000 + SUPER)
    with power.power_mode_set("MAXN_SUPER", root, pytest.fail, board, root):
        assert board.mode == 2
    assert board.mode == 0
    with pytest.raises(jetson.Refused, match=r"no power mode MAXN; .* has 15W \(0\), 25W \(1\), MAXN_SUPER \(2\)"):
        jetson.number_of_mode("MAXN", root)
    assert jetson.number_of_mode(7, root) == 7


@pytest.mark.parametrize(
    ("board", "message"),
    [
        (Board(1, "sudo: a password is required", 1), "allow `nvpmodel` in sudoers"),
        (Board(1, "me is not in the sudoers file.", 1), "needs root"),
        (Board(1, "NVPM WARN: Reboot required for changing to this power mode: 0", sticks=False), "after a restart"),
        (Board(1, "NVPM ERROR: invalid power mode", 255), "invalid power mode"),
        (Board(1, "", sticks=False), "was not set: no reason given"),
    ],
)
def test_a_power_mode_that_is_refused(board, message):
    with pytest.raises(jetson.Refused, match=message):
        jetson.set_power_mode(0, board)


def test_a_mode_that_is_refused_leaves_nothing_to_put_back(tmp_path):
    board = Board(1, "sudo: a password is required", 1)
    with pytest.raises(jetson.Refused), power.power_mode_set(0, str(tmp_path), pytest.fail, board):
        pytest.fail("it was refused")
    assert list(tmp_path.iterdir()) == []


def test_clocks_that_were_locked_half_way_are_put_back(tmp_path):
    calls = []

    def run(command):
        calls.append(command[3:])
        if "--store" in command:
            Path(command[-1]).write_text("before")
        return subprocess.CompletedProcess(command, 1 if command[3:] == () else 0, "", "no such file")

    with pytest.raises(jetson.Refused, match="not locked"), power.clocks_locked(True, str(tmp_path), pytest.fail, run):
        pytest.fail("it was refused")
    store = str(tmp_path / power.CLOCKS)
    assert calls == [("--store", store), (), ("--restore", store)]
    assert list(tmp_path.iterdir()) == []


def test_no_jetson(tmp_path):
    def missing(command):
        raise FileNotFoundError(2, "no such program", command[0])

    assert jetson.describe_jetson(str(tmp_path), missing) is None
    with pytest.raises(jetson.Refused, match="no Jetson"):
        jetson.set_power_mode(0, missing)


def test_a_description(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 3.0, GCID: 1\n# KERNEL_VARIANT: oot")

    def run(command):
        # The clocks are for root only.
        code = 1 if command[0] == "jetson_clocks" else 0
        text = SHOW if "jetson_clocks" in command else "NV Power Mode: MAXN\n0\n"
        return subprocess.CompletedProcess(command, code, text, "")

    found = jetson.describe_jetson(str(tmp_path), run)
    assert (found["l4t"], found["jetpack"]) == ("36.3.0", "6.0")
    assert found["power_mode"] == {"number": 0, "name": "MAXN"}
    assert found["clocks"]["locked"] is False


THERMAL = """IsStatusOverride: false
ThermalEventListeners:
	callbacks: 2
Thermal Status: 2
Cached temperatures:
	Temperature{mValue=31.0, mType=3, mName=skin, mStatus=0}
	Temperature{mValue=29.5, mType=2, mName=battery, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
	Temperature{mValue=41.25, mType=3, mName=skin, mStatus=2}
	Temperature{mValue=NaN, mType=0, mName=CPU0, mStatus=0}
Current cooling devices from HAL:
	CoolingDevice{mValue=1, mType=2, mName=cpu0}
"""


def test_android():
    assert sensors.thermal(THERMAL) == {"throttling": 2, "celsius.skin": 41.25, "celsius.battery": 29.5}


def test_a_phone_is_not_asked_at_every_reading(monkeypatch):
    asked: list[str] = []
    sensor = sensors.Thermal(lambda: asked.append("now") or THERMAL)
    assert sensor() == sensor() == {"throttling": 2, "celsius.skin": 41.25, "celsius.battery": 29.5}
    assert asked == ["now"]
    monkeypatch.setattr(sensors, "SECONDS", 0.0)
    sensor._next = 0.0
    sensor()
    assert len(asked) == 2


def test_a_phone_that_answers_slowly_is_asked_less_often(monkeypatch):
    now, asked = [0.0], []

    def slow():
        asked.append(now[0])
        now[0] += 30.0
        return ""

    monkeypatch.setattr(sensors.time, "monotonic", lambda: now[0])
    sensor = sensors.Thermal(slow)
    while now[0] < 1500:
        assert sensor() == {}
        now[0] += 1.0
    assert len(asked) == 3


def test_it_does_not_take_long_to_time_out(monkeypatch):
    monkeypatch.setattr(machine, "SECONDS", 0.2)
    begin = time.monotonic()
    assert machine.said_by((sys.executable, "-c", "import time; time.sleep(60)")) == ""
    assert time.monotonic() - begin < 30
