"""Once a day the maintenance process has `doctor --deep` try the helpers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from squidkeeper.base.layout import Layout
from squidkeeper.cli.maintain import examining
from squidkeeper.services.maintenance.examination import DailyExamination

from ..waiting import wait_for

pytestmark = pytest.mark.system


def checked(result: Path, start_seconds: float = 0.0) -> DailyExamination:
    """Check once, with a command that makes the file."""
    daily = DailyExamination(("touch", str(result)), result, start_seconds)
    daily.check()
    return daily


def test_the_command_runs_where_there_is_no_result(tmp_path: Path) -> None:
    daily = checked(tmp_path / "doctor.json")
    wait_for((tmp_path / "doctor.json").exists, "the result")
    daily.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_command_has_no_capability_of_the_process() -> None:
    """As the maintenance process, which may use port 53."""
    program = """
import sys
from pathlib import Path
from squidkeeper.services.maintenance.examination import DailyExamination
show = ("grep", "-H", "CapAmb", "/proc/self/status")
print(Path("/proc/self/status").read_text().split("CapAmb:")[1].split()[0], flush=True)
daily = DailyExamination(("sh", "-c", " ".join(show) + " >&2"), Path("/nowhere"), 0)
daily.check()
daily._process.wait()
"""
    capability = ("--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service")
    done = subprocess.run(
        ["setpriv", *capability, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout, 16) != 0
    assert int(done.stderr.split()[1], 16) == 0


@pytest.mark.parametrize(("days", "runs"), [(0.5, False), (1.5, True)])
def test_the_command_runs_where_the_result_is_a_day_old(
    tmp_path: Path, days: float, runs: bool
) -> None:
    result = tmp_path / "doctor.json"
    result.write_text("{}")
    at = time.time() - days * 24 * 3600
    os.utime(result, (at, at))
    daily = checked(result)
    assert (daily._process is not None) is runs
    daily.stop()


def test_a_gateway_that_starts_is_left_alone(tmp_path: Path) -> None:
    daily = checked(tmp_path / "doctor.json", start_seconds=600)
    assert daily._process is None


def test_a_command_that_gave_no_result_is_not_run_again_at_once(tmp_path: Path) -> None:
    daily = DailyExamination(("false",), tmp_path / "doctor.json", 0.0)
    daily.check()
    assert daily._process is not None
    process = daily._process
    process.wait()
    daily.check()
    assert daily._process is process


def test_the_command_names_the_gateway(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "squidkeeper", "doctor", "--deep"]
    root = Layout.of(tmp_path)
    assert examining(root) == [*program, "--root", str(tmp_path)]
    assert examining(Layout.of(None)) == program
