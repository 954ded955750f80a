"""Where a command cannot write, or a file is not there, it says so in a line, and
leaves nothing half-written.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from squidkeeper.cli import output

from ..archives import make_archive
from ..records import record_line
from ..waiting import wait_for

pytestmark = pytest.mark.system

PROGRAM = (sys.executable, "-m", "squidkeeper")
FULL = Path("/dev/full")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "access.log"
    file.write_bytes(record_line() + b"\n")
    return file


def told(
    *arguments: object, redirection: str = "", environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a command; return its exit status and what it says on stderr."""
    script = f'exec "$@" {redirection}'
    command = ["bash", "-c", script, "-", *PROGRAM, *map(str, arguments)]
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "log {log}",
        "query FROM\trequests {log}",
        "report --html - {log}",
        "archive list",
    ],
)
def test_a_full_disk_is_told(log: Path, tmp_path: Path, command: str) -> None:
    make_archive(tmp_path / "archive", None)
    arguments = [word.format(log=log).replace("\t", " ") for word in command.split(" ")]
    if command == "archive list":
        arguments += ["--archive", str(tmp_path / "archive")]
    code, error = told(*arguments, redirection=f">{FULL}")
    assert (code, error.splitlines()[-1]) == (
        1,
        "Error: cannot write: no space left on device",
    )
    assert "Traceback" not in error


def test_a_closed_standard_output_is_told(log: Path) -> None:
    text = "Error: standard output is closed: give it a file, a pipe or /dev/null\n"
    assert told("log", log, redirection=">&-") == (1, text)


def test_a_page_in_a_folder_that_is_not_there_or_at_a_folder_is_told(
    log: Path, tmp_path: Path
) -> None:
    for page in (tmp_path / "no" / "r.html", tmp_path):
        code, error = told("report", "--html", page, log)
        text = f"Error: --html {page}: expected the name of a page in a folder that is there"
        assert (code, error.splitlines()[-1]) == (2, text)


def test_a_folder_for_temporary_files_that_is_not_there_is_told(
    log: Path, tmp_path: Path
) -> None:
    code, error = told("log", log, environment={"TMPDIR": str(tmp_path / "no")})
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith(f"Error: {tmp_path}/no/squidkeeper-")


def test_a_page_that_cannot_be_written_whole_leaves_the_one_before(
    log: Path, tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    assert told("report", "--html", page, log)[0] == 0
    page.chmod(0o644)
    before = page.read_bytes()
    done = subprocess.run(
        [*PROGRAM, "report", "--html", page, log],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "Error: cannot write: file too large",
    )
    assert page.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [log, page]
    assert told("report", "--html", page, log)[0] == 0
    assert page.stat().st_mode & 0o777 == 0o644  # as the operator has it


@pytest.mark.parametrize(
    "command", ["log", "why", "report --json", "query FROM\trequests"]
)
def test_an_object_store_without_its_extra_names_the_command_that_installs_it(
    command: str,
) -> None:
    without = (
        "import sys; sys.modules.update(s3fs=None, botocore=None); from "
        "importlib import util; find = util.find_spec;"
    )
    without += (
        "util.find_spec = lambda name, package=None: None if name in "
        "('s3fs', 'botocore') else find(name, package);"
    )
    without += "from squidkeeper.cli import main; main()"
    arguments = [word.replace("\t", " ") for word in command.split(" ")]
    done = subprocess.run(
        [sys.executable, "-c", without, *arguments, "--archive", "s3://bucket/gateway"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the extra 's3' is not installed: run ./install.sh --extras" in done.stderr
    assert "Traceback" not in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def holds(stream: io.StringIO, text: str) -> bool:
    return stream.getvalue() == text


def test_a_terminal_alone_shows_that_a_command_works_until_it_has_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "_SILENT_SECONDS", 0.01)
    for stream, shown in ((Terminal(), "\rreading: 0 s"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        with output.progress("reading"):
            assert bool(output._shown) == stream.isatty()
            wait_for(partial(holds, stream, shown), "the progress")
            output.end_progress()
            assert stream.getvalue() == (shown and f"{shown}\r            \r")


def test_a_terminal_gets_long_lines_wrapped_below_their_last_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    output.show_text(
        f"rule         {'word ' * 12}\n\n  a url  https://host.example/{'a' * 60}"
    )
    indented = f"{'':13}word word word\n\n  a url\n         https://host.example/aaa"
    assert terminal.getvalue().startswith(
        f"rule         {'word ' * 9}".rstrip() + f"\n{indented}"
    )
