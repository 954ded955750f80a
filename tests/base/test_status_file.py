"""A status file is read where it is one of ours, and whatever else is there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from squidkeeper.base import squid_counters
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_counters import SquidSample, read_samples, write_samples
from squidkeeper.base.status_file import StatusFile
from squidkeeper.operate.doctor.deep_result import (
    DeepFinding,
    DeepResult,
    keep_deep_result,
    read_deep_result,
)
from squidkeeper.policy.policy_store.reload_gate import (
    Edit,
    GateVerdict,
    read_verdict,
    write_verdict,
)
from squidkeeper.policy.published.places import state_file
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.policy.published.state_file import StateWriter, read_state
from squidkeeper.record import archive_status, export_status
from squidkeeper.record.archive_status import (
    ArchiveStatus,
    DeletedLogs,
    archive_status_file,
    deleted_logs_file,
    read_archive_status,
    read_deleted_logs,
)
from squidkeeper.record.export_status import ExportState, ExportStore, read_exports
from squidkeeper.services.maintenance import process as maintenance
from squidkeeper.services.maintenance.process import (
    TaskRunner,
    read_maintenance_status,
)
from squidkeeper.services.pulling import settings as pulling
from squidkeeper.services.pulling.settings import (
    PullStatus,
    read_pull_status,
    write_pull_status,
)
from squidkeeper.serving import squid_crashes
from squidkeeper.serving.credentials import fetch_status
from squidkeeper.serving.credentials.fetch_status import (
    FetchReport,
    SecretStatus,
    fetch_status_file,
    read_fetch_status,
)
from squidkeeper.serving.squid_crashes import note_crash, read_crashes

NOT_OURS = {
    "empty": b"",
    "cut": b'{"at":',
    "another type": b"5",
    "no UTF-8": b"\xff",
    "deep": b'{"x":' + b"[" * 30_000,
    "deep list": b"[" * 30_000,
}


def write_export(folder: Path) -> None:
    with ExportStore(folder, "siem") as store:
        store.write(ExportState(sent=3))


def write_samples_of_one_run(folder: Path) -> None:
    write_samples(folder, (SquidSample(run="7", asked=1.0, answered=2.0, requests=3),))


def write_deep_result(folder: Path) -> None:
    result = DeepResult(1.0, (DeepFinding("code", "what", "where"),))
    layout = Layout.of(folder)
    layout.deep_result.parent.mkdir(parents=True, exist_ok=True)
    keep_deep_result(layout, result)


EDIT = Edit("0" * 12, "1" * 12)
# where it is in a folder, what writes it, and what reads it
STATUSES: dict[
    str, tuple[str, Callable[[Path], object], Callable[[Path, float], object]]
] = {
    "maintenance": (
        maintenance.FILE,
        lambda folder: TaskRunner((), folder).check(),
        read_maintenance_status,
    ),
    "secrets": (
        fetch_status.FILE,
        lambda folder: fetch_status_file(folder).write(
            FetchReport({"token": SecretStatus("command")}, "full")
        ),
        read_fetch_status,
    ),
    "pull": (
        pulling.FILE,
        lambda folder: write_pull_status(folder, PullStatus(source="here")),
        lambda folder, _: read_pull_status(folder),
    ),
    "archive": (
        archive_status.FILE,
        lambda folder: archive_status_file(folder).write(ArchiveStatus(failure="x")),
        lambda folder, _: (read_archive_status(folder) or ArchiveStatus()).failure,
    ),
    "deleted logs": (
        archive_status.DELETED,
        lambda folder: deleted_logs_file(folder).write(DeletedLogs(files=2)),
        lambda folder, _: read_deleted_logs(folder),
    ),
    "export": (
        f"{export_status.FOLDER}/siem{export_status.SUFFIX}",
        write_export,
        read_exports,
    ),
    "samples": (
        squid_counters.FILE,
        write_samples_of_one_run,
        lambda folder, _: read_samples(folder),
    ),
    "crashes": (
        squid_crashes.FILE,
        lambda folder: note_crash(folder, 1.0, "signal 6", 2),
        lambda folder, _: read_crashes(folder),
    ),
    "verdict": (
        "verdict.json",
        lambda folder: write_verdict(folder, GateVerdict(EDIT.old, EDIT.new, 1.0)),
        lambda folder, _: read_verdict(folder, EDIT),
    ),
    "publisher": (
        str(state_file(Path("/")).relative_to("/")),
        lambda folder: StateWriter(folder).write(PolicyState("1" * 12, 1.0, ok=True)),
        lambda folder, _: read_state(folder),
    ),
    "deep checks": (
        str(Layout.of(Path("/")).deep_result.relative_to("/")),
        write_deep_result,
        lambda folder, _: read_deep_result(Layout.of(folder)),
    ),
}
BEATING = ("maintenance", "secrets", "export")


@pytest.mark.parametrize("name", STATUSES)
@pytest.mark.parametrize("kind", NOT_OURS)
def test_a_file_that_is_none_of_ours_is_as_if_there_were_none(
    tmp_path: Path, name: str, kind: str
) -> None:
    place, write, read = STATUSES[name]
    file = tmp_path / place
    missing = read(tmp_path, 0.0)
    write(tmp_path)
    now = file.stat().st_mtime
    assert read(tmp_path, now) != missing
    file.write_bytes(NOT_OURS[kind])
    assert read(tmp_path, now) == missing


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", STATUSES)
def test_no_reader_waits_for_a_pipe_or_follows_a_link(
    tmp_path: Path, name: str
) -> None:
    place, write, read = STATUSES[name]
    file = tmp_path / place
    missing = read(tmp_path, 0.0)
    write(tmp_path)
    now = file.stat().st_mtime
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path, now) == missing
    file.unlink()
    os.mkfifo(file)
    held = os.open(file, os.O_RDWR)
    try:
        assert read(tmp_path, now) == missing
    finally:
        os.close(held)


@pytest.mark.parametrize("name", BEATING)
def test_a_process_that_has_not_written_for_long_does_not_run(
    tmp_path: Path, name: str
) -> None:
    place, write, read = STATUSES[name]
    write(tmp_path)
    now = (tmp_path / place).stat().st_mtime
    for later, runs in ((5.0, "runs=True"), (121.0, "runs=False")):
        assert runs in str(read(tmp_path, now + later))


def test_a_status_that_stays_sets_the_time_and_comes_back_once_it_is_removed(
    tmp_path: Path,
) -> None:
    file = StatusFile(tmp_path / "status.json", dict[str, int], patience_seconds=10)
    file.write({"a": 1})
    number = file.path.stat().st_ino
    os.utime(file.path, (0, 0))
    file.write({"a": 1})
    assert file.path.stat().st_ino == number
    assert file.is_alive(file.path.stat().st_mtime + 9)
    assert not file.is_alive(20)
    file.path.unlink()
    file.write({"a": 1})
    assert file.load() == {"a": 1}
    file.write({"a": 2})
    assert file.read() == {"a": 2}


def test_the_writer_of_a_damaged_file_is_told_that_it_is_damaged(
    tmp_path: Path,
) -> None:
    file = StatusFile(tmp_path / "status.json", dict[str, int])
    with pytest.raises(FileNotFoundError):
        file.load()
    for content in NOT_OURS.values():
        file.path.write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            file.load()
