"""How the maintenance process asks for Squid's configuration to be rendered."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from squidkeeper.base.layout import Layout
from squidkeeper.services.maintenance.edits import RenderRequest
from tests.conftest import write_policy
from tests.waiting import files_at_rest, wait_for

pytestmark = pytest.mark.system

RULE = "rules: [{name: a, action: allow, hosts: [a.example]}]"


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    return tmp_path / "render"


@pytest.fixture
def task(tmp_path: Path, request_file: Path) -> RenderRequest:
    write_policy(tmp_path / "policy", RULE)
    files_at_rest()
    return RenderRequest(tmp_path / "policy", request_file, tmp_path / "values.json")


def asked(task: RenderRequest, request_file: Path) -> bool:
    """Check once; tell whether that asks, and take the request as root does."""
    task.check()
    there = request_file.exists()
    request_file.unlink(missing_ok=True)
    return there


def test_it_asks_once_at_its_start_and_after_each_edit(
    task: RenderRequest, request_file: Path, tmp_path: Path
) -> None:
    assert [asked(task, request_file) for _ in range(3)] == [True, False, False]
    write_policy(tmp_path / "policy", RULE.replace("a.example", "b.example"))
    files_at_rest()
    assert [asked(task, request_file) for _ in range(2)] == [True, False]


def test_a_policy_behind_a_link_and_a_grant_beside_it_are_followed(
    task: RenderRequest, request_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "policy").rename(tmp_path / "one")
    write_policy(tmp_path / "two", RULE)
    (tmp_path / "policy").symlink_to("one")
    files_at_rest()
    assert asked(task, request_file)
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "policy")
    assert [asked(task, request_file) for _ in range(2)] == [True, False]
    (tmp_path / "grants.yaml").write_text("version: 1\ngrants: []\n")
    files_at_rest()
    assert [asked(task, request_file) for _ in range(2)] == [True, False]


def test_the_password_of_a_parent_is_followed(
    task: RenderRequest, request_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("one\n")
    (tmp_path / "values.json").write_text(
        f'{{"password_files": ["{tmp_path}/password"]}}'
    )
    files_at_rest()
    assert [asked(task, request_file) for _ in range(2)] == [True, False]
    (tmp_path / "password").write_text("two\n")
    files_at_rest()
    assert [asked(task, request_file) for _ in range(2)] == [True, False]


def test_the_store_of_quotas_is_followed(
    task: RenderRequest, request_file: Path, tmp_path: Path
) -> None:
    """The processes that count tokens reach its address alone."""
    assert asked(task, request_file)
    (tmp_path / "quota-store.yaml").write_text("address: 192.0.2.1:6379\n")
    files_at_rest()
    assert [asked(task, request_file) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("values", ["", "{", "[]", '{"password_files": 1}'])
def test_values_that_are_none_change_nothing(
    task: RenderRequest, request_file: Path, tmp_path: Path, values: str
) -> None:
    (tmp_path / "values.json").write_text(values)
    assert asked(task, request_file)


def test_it_follows_no_link_to_make_the_file(
    task: RenderRequest, request_file: Path, tmp_path: Path
) -> None:
    request_file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=os.strerror(40)):
        task.check()
    assert not (tmp_path / "elsewhere").exists()


# --- the loop without systemd ---------------------------------------------------------


@contextmanager
def followed(layout: Layout) -> Iterator[int]:
    """A gateway of which nothing is installed: each run of the command fails, and says
    so in `told`.
    """
    command = (
        sys.executable,
        "-m",
        "squidkeeper",
        "render",
        "--root",
        layout.prefix,
        "--follow",
    )
    with (
        (layout.prefix / "told").open("wb") as told,
        subprocess.Popen(command, stderr=told) as process,
    ):
        try:
            yield process.pid
        finally:
            process.terminate()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.of(tmp_path)
    layout.render_request.parent.mkdir()
    return layout


def failures(layout: Layout) -> int:
    return (layout.prefix / "told").read_text().count("stays as it was")


def test_it_runs_at_its_start_and_an_edit_after_a_failure_waits_for_nothing(
    layout: Layout,
) -> None:
    with followed(layout):
        wait_for(lambda: failures(layout) == 1, "the run at its start")
        for number in (2, 3):
            layout.render_request.touch()
            began = time.monotonic()
            wait_for(lambda: not layout.render_request.exists(), "the run to begin")
            assert time.monotonic() - began < 8
            wait_for(lambda number=number: failures(layout) == number, "its failure")  # type: ignore[misc]


def test_a_run_that_was_killed_is_made_again(layout: Layout) -> None:
    lock = os.open(layout.prefix, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with followed(layout) as loop:
        for child in wait_for(psutil.Process(loop).children, "the first run"):
            child.kill()
        os.close(lock)
        wait_for(lambda: failures(layout) == 1, "another run")
