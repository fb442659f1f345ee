"""What keeps `ppexport build` from building: keys, logins, addresses, full disks, no TensorRT."""

from __future__ import annotations

import subprocess

import pytest
from sshd import make_key
from sshd_builds import Told, build, error_of, write_source
from typer.testing import CliRunner

from ppexport.cli import app
from ppexport.errors import InputError
from ppexport.remote.address import DiskFullError

pytest_plugins = ["sshd_fixtures"]


def test_no_tensorrt_on_the_device(device, source, tmp_path):
    done = build(source, *device.arguments, "-o", tmp_path / "engine", code=3)
    assert "has no TensorRT" in error_of(done)
    assert device.jobs() == []


def test_unknown_and_wrong_host_keys_are_refused(device, source, tmp_path):
    device.install_trtexec()
    out = ["-o", tmp_path / "engine"]
    device.trust(None)
    assert "is not known" in error_of(build(source, *device.arguments, *out, code=3))
    device.trust(make_key(tmp_path / "other_key"))
    for more in ([], ["--accept-new-host-key"]):
        assert "another host key" in error_of(build(source, *device.arguments, *out, *more, code=3))
    assert device.lines("runs") == []
    assert device.jobs() == []
    device.trust(None)
    build(source, *device.arguments, *out, "--accept-new-host-key")
    assert f"[127.0.0.1]:{device.port} ssh-ed25519" in device.known_hosts.read_text()


def test_a_login_that_is_refused_and_a_device_that_is_off(device, source, tmp_path):
    other = make_key(tmp_path / "other_key")
    arguments = [str(other) if a == str(device.identity) else a for a in device.arguments]
    assert "refuses the login" in error_of(build(source, *arguments, "-o", tmp_path / "engine", code=3))
    device.go_away()
    done = build(source, *device.arguments, "-o", tmp_path / "engine", code=3)
    assert "cannot be reached" in error_of(done)
    assert "refused" in error_of(done)


def test_an_address_is_no_option(source, tmp_path):
    trap = tmp_path / "trap"
    for address in (f"ssh://-oProxyCommand=touch {trap}", f"-oProxyCommand=touch {trap}", "ssh://a@-b", "elsewhere"):
        arguments = ["build", str(source), "--on", address, "-o", str(tmp_path / "engine")]
        with pytest.raises(InputError, match=r"ssh://\[user@\]host\[:port\]"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not trap.exists()


@pytest.fixture
def small_disk(device):
    """The device's home on a disk of 256 KiB."""
    home = device.home
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs"]
    if subprocess.run(["mount", *options, str(home)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_disk_that_the_model_does_not_fit_on(device, small_disk, tmp_path):
    device.install_trtexec()
    large = write_source(tmp_path / "large", 400_000)
    done = build(large, *device.arguments, "-o", tmp_path / "engine", code=3)
    assert "is full" in error_of(done)
    assert not [path for job in device.jobs() for path in job.iterdir() if path.name.startswith((".", "model"))]


@pytest.mark.slow
def test_a_disk_that_fills_up_during_the_build(device, small_disk, source, tmp_path):
    device.install_trtexec()
    device.steer("fill")
    told = Told(device, write_source(tmp_path / "small", 50_000))
    with pytest.raises(DiskFullError):
        told.run(tmp_path / "engine")
    device.steer("fill", False)
    next(small_disk.glob(".cache/ppexport/*/filler")).unlink()
    told.run(tmp_path / "engine")
    assert device.jobs() == []


def test_the_target_is_checked_before_anything_is_sent(device, source, tmp_path):
    out = tmp_path / "full"
    out.mkdir()
    (out / "file").touch()
    assert "holds no artifact" in error_of(build(source, *device.arguments, "-o", out, code=2))
    assert "not an artifact" in error_of(build(tmp_path / "none", *device.arguments, code=2))
    assert device.jobs() == []
