"""The systemd units hold together, as far as systemd can say without starting them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mathtune import gpus

UNITS = Path(__file__).parents[1] / "deployments" / "systemd"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("name", ["mathtune-worker", "mathtune-server"])
def test_systemd_finds_nothing_wrong_in_a_unit(name, tmp_path):
    text = (UNITS / f"{name}.service").read_text()
    assert "/opt/mathtune/bin/python" in text  # of the machine that it is for
    unit = tmp_path / f"{name}.service"
    unit.write_text(text.replace("/opt/mathtune/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def settings_of_the_worker() -> dict[str, str]:
    lines = (UNITS / "mathtune-worker.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_a_worker_has_more_time_to_stop_than_it_takes():
    from deployments.worker import STOP_SECONDS
    from mathtune.engine_client import STOP_SECONDS as SAVE_SECONDS

    settings = settings_of_the_worker()
    assert settings["KillMode"] == "mixed"  # the worker tells its runs itself
    assert SAVE_SECONDS < STOP_SECONDS < int(settings["TimeoutStopSec"])


def test_a_worker_may_write_where_the_locks_of_the_gpus_lie(monkeypatch):
    """Everything else but its home is read-only for it, and its /tmp its own."""
    monkeypatch.delenv(gpus.FOLDER, raising=False)
    folder = str(gpus._folder())
    if folder == "/tmp":
        pytest.skip("/run/lock is not world-writable here: the unit says what to do then")
    assert folder in settings_of_the_worker()["ReadWritePaths"].split()
