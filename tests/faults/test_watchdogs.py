"""The two watchdogs as processes: what they end, and what they must not end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from squidkeeper.services.exporter.stopped_watchdog import (
    STOPPED_CHECKS,
    StoppedWatchdog,
    helper_processes,
    uncounted_helpers,
)
from squidkeeper.serving.counters.layout import HelperStatus
from squidkeeper.serving.counters.reader import CounterFile
from tests.waiting import pause, wait_for

LOOP = """
import os, re, signal, sys, threading
from pathlib import Path
from squidkeeper.serving.helpers.helper_counters import HelperCounters
from squidkeeper.serving.helpers.cache_log import write_to_cache_log
from squidkeeper.serving.helpers.loop import take_output
from squidkeeper.serving.helpers.policy_helper import serve
from squidkeeper.serving.helpers.helper_counters import StuckWatchdog
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.policy.protocol.lines import Reply, Result

def answer(request):
    {at_line}
    return Reply(Result.OK)

output = take_output()
write_to_cache_log()
counting = HelperCounters("host", Path(sys.argv[1]), PolicyState)
StuckWatchdog(lambda: counting.at, every_seconds=0.1, silent_seconds=float(sys.argv[2])).start()
counting.start()
serve(answer, output, 0, counting)
"""
Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a loop with a watchdog that looks ten times a second; each line does what it
    is told.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(at_line: str, silent_seconds: float = 60) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-c",
            LOOP.format(at_line=at_line),
            str(tmp_path),
            str(silent_seconds),
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ask(process: "subprocess.Popen[bytes]", line: bytes = b"line\n") -> None:
    assert process.stdin
    process.stdin.write(line)
    process.stdin.flush()


def test_a_helper_that_waits_in_a_line_ends_and_says_where(run: Run) -> None:
    assert "stuck for 10 s" in said_at_its_end(run("signal.pause()"))


def test_a_helper_whose_interpreter_gives_no_thread_a_turn_ends_and_says_where(
    run: Run,
) -> None:
    """For years, and Python's own re lets no other thread run."""
    assert "Timeout" in said_at_its_end(run("re.match(r'(a+)+$', 'a' * 64 + 'b')", 2))


def said_at_its_end(process: "subprocess.Popen[bytes]") -> str:
    """Ask a helper that does not answer; return what it says when it ends."""
    ask(process)
    out, told = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, b"")
    assert b"in answer" in told
    return told.decode()


def test_a_helper_that_answers_or_waits_for_lines_goes_on(run: Run) -> None:
    process = run("threading.Event().wait(0.3)")
    assert process.stdout
    for _ in range(5):  # more than a deadline in all
        ask(process)
        assert process.stdout.readline() == b"OK\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    ask(process)
    assert process.stdout.readline() == b"OK\n"


def test_a_helper_that_answers_line_after_line_of_what_it_read_at_once_goes_on(
    run: Run,
) -> None:
    process = run("threading.Event().wait(0.3)")
    assert process.stdout
    ask(process, b"line\n" * 5)  # more than a deadline in all
    assert [process.stdout.readline() for _ in range(5)] == [b"OK\n"] * 5
    assert process.poll() is None


def test_a_helper_that_was_stopped_for_longer_than_the_deadline_goes_on(
    run: Run,
) -> None:
    process = run("threading.Event().wait(0.2)")
    assert process.stdout
    ask(process)
    assert process.stdout.readline() == b"OK\n"
    ask(process)
    os.kill(process.pid, signal.SIGSTOP)
    pause(2, "twice the deadline")
    os.kill(process.pid, signal.SIGCONT)
    assert process.stdout.readline() == b"OK\n"


# --- the exporter's -------------------------------------------------------------------


@contextmanager
def started(folder: Path, *by: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A helper whose state folder cannot be written: it is a file."""
    (folder / "state").touch()
    program = folder / "squidkeeper"
    program.write_text(
        f"#!{sys.executable}\nfrom squidkeeper.cli import main\nmain()\n"
    )
    program.chmod(0o755)
    command = [*by, program, "certificate", "--state", folder / "state"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"new_certificate 1 x\n")
        assert process.stdout.read(3) == b"ERR"
        yield process
        process.kill()


@pytest.fixture
def helper(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with started(tmp_path) as process:
        yield process


def look(watchdog: StoppedWatchdog, times: int) -> None:
    for _ in range(times):
        watchdog.check()
        pause(0.1, "the time between two looks")


def stop(process: "subprocess.Popen[bytes]") -> None:
    os.kill(process.pid, signal.SIGSTOP)
    # each stops at its own next turn
    threads = list(Path(f"/proc/{process.pid}/task").iterdir())
    wait_for(
        lambda: all(
            (thread / "stat").read_text().split()[2] == "T" for thread in threads
        ),
        "the process to stop",
    )


def test_a_process_that_has_stopped_is_ended_after_twelve_looks(
    tmp_path: Path, helper: "subprocess.Popen[bytes]"
) -> None:
    stop(helper)
    watchdog = StoppedWatchdog(tmp_path / "state")
    look(watchdog, STOPPED_CHECKS)
    assert helper.poll() is None
    watchdog.check()
    assert helper.wait(10) == -signal.SIGKILL


def test_a_process_that_runs_is_not_ended(
    tmp_path: Path, helper: "subprocess.Popen[bytes]"
) -> None:
    look(StoppedWatchdog(tmp_path / "state"), 2 * STOPPED_CHECKS)
    assert [*helper_processes(tmp_path / "state", os.geteuid())] == [helper.pid]
    assert helper.poll() is None


def test_a_process_that_goes_on_in_time_is_not_ended(
    tmp_path: Path, helper: "subprocess.Popen[bytes]"
) -> None:
    stop(helper)
    watchdog = StoppedWatchdog(tmp_path / "state")
    look(watchdog, STOPPED_CHECKS)
    os.kill(helper.pid, signal.SIGCONT)
    pause(0.2, "it runs for a moment")
    look(watchdog, STOPPED_CHECKS)
    assert helper.poll() is None


def test_a_process_that_is_no_helper_of_this_state_folder_is_not_ended(
    tmp_path: Path, helper: "subprocess.Popen[bytes]"
) -> None:
    stop(helper)
    for other in (tmp_path / "other", tmp_path):
        look(StoppedWatchdog(other), 2 * STOPPED_CHECKS)
    assert helper.poll() is None
    assert [*helper_processes(tmp_path / "state", 12345)] == []


ELSEWHERE = {
    "mount": (
        "--mount",
        "sh",
        "-c",
        'mount --bind "$1/another" "$1/$0" && shift && exec "$@"',
    ),
    "PID": ("--pid", "--fork", "--kill-child", "sh", "-c", 'shift; "$@"'),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("kind", "at"), [("mount", "state"), ("mount", "squidkeeper"), ("PID", "")]
)
def test_a_helper_in_another_namespace_is_another_gateways(
    tmp_path: Path, kind: str, at: str
) -> None:
    """Its command line and account are the same."""
    state, user = tmp_path / "state", os.geteuid()
    (tmp_path / "another").write_text(
        f"#!{sys.executable}\nfrom squidkeeper.cli import main\nmain()\n"
    )
    (tmp_path / "another").chmod(0o755)
    with started(tmp_path, "unshare", *ELSEWHERE[kind], at, tmp_path) as process:
        assert [*helper_processes(state, user)] == []
        assert uncounted_helpers(state, user, (), time.time() + 60) == ()
        assert process.poll() is None


def test_a_helper_that_cannot_count_is_told_once_it_has_had_the_time_to_start(
    tmp_path: Path, helper: "subprocess.Popen[bytes]"
) -> None:
    state, user, now = tmp_path / "state", os.geteuid(), time.time()
    assert uncounted_helpers(state, user, (), now) == ()
    assert uncounted_helpers(state, user, (), now + 60) == (helper.pid,)
    status = HelperStatus("certificate", helper.pid, now, now)
    assert (
        uncounted_helpers(state, user, [CounterFile(0, True, "x", status)], now + 60)
        == ()
    )
