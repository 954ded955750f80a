"""Once a day the maintenance process has `doctor --deep` try the helpers."""

import os
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
    """Check once with a command that writes what capabilities it could hand on."""
    show = f"grep CapAmb /proc/self/status >{result}.new && mv {result}.new {result}"
    daily = DailyExamination(("sh", "-c", show), result, start_seconds)
    daily.check()
    return daily


def test_the_command_runs_without_a_capability_where_there_is_no_result(
    tmp_path: Path,
) -> None:
    result = tmp_path / "doctor.json"
    daily = checked(result)
    wait_for(result.exists, "the result")
    daily.stop()
    assert int(result.read_text().split()[1], 16) == 0


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
