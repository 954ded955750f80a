"""What the tests of the modules share."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from squidkeeper.base import gateway_commands
from squidkeeper.policy.engine import CompiledPolicy, Decision, decide
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.protocol.request import Malformed, Request, request_to

# Without a deadline: what is slow here may be somebody else's load.
# `--hypothesis-profile thorough` tries much more.
settings.register_profile("every run", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("every run")

# Whoever starts the tests in the background may have them ignored, and so every process
# that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# in the environment, which the processes of a run have in common
SHARED_FOLDER = "SQUIDKEEPER_TESTS_FOLDER"
WORKERS = "SQUIDKEEPER_TESTS_WORKERS"  # and how many workers each gateway has
# and whether each gateway bumps as `--bump documented` does
DOCUMENTED = "SQUIDKEEPER_TESTS_DOCUMENTED"
# in the environment too: whether every gateway has canary secrets
CANARIES = "SQUIDKEEPER_TESTS_CANARIES"
HUNTED = "hunted"  # the file in that folder: how many canaries each gateway has sent
TESTS = Path(__file__).parent
_CLONE_NEWNS = 0x20000
# What a gateway of this machine has, and commands read without options.
OF_THE_MACHINE = (
    *(
        "/etc/squid",
        "/etc/squidkeeper",
        "/opt/squidkeeper",
        "/run/squidkeeper",
        "/var/log/squid",
    ),
    *(
        "/var/lib/squidkeeper",
        "/var/lib/squidkeeper-archive",
        "/var/lib/squidkeeper-pull",
    ),
)
# all tests in these have the mark "system"
SYSTEM_FOLDERS = (
    "containers",
    "e2e",
    "faults",
    "fleet",
    "machines",
)
# What takes longest starts first, so that all processes of a run end together.
LONGEST_FIRST = (
    "e2e/test_walk.py",
    "operate/test_install",
    "e2e/test_alerts.py",
    "serving/test_helpers.py",
    "e2e",
    "faults",
)
# What no unit test does, by the event that Python raises for it.
NOT_IN_A_UNIT_TEST = {
    "subprocess.Popen": "starts a process",
    "os.fork": "starts a process",
    "socket.bind": "opens a server",
    "time.sleep": "waits",
}
STARTED_BY_UNIT_TESTS = {
    ("git", "ls-files"),  # for the files of this repository
    ("squid", "-v"),  # for the account of Squid, in ten milliseconds
}
WHEELS = Path(sys.prefix) / "wheels"  # made by tests/run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--canaries",
        action="store_true",
        help="give every gateway of the end-to-end tests canary secrets, and hunt them",
    )
    parser.addoption(
        "--workers",
        type=int,
        help="give every gateway of the end-to-end tests so many workers",
    )
    parser.addoption(
        "--documented",
        action="store_true",
        help="install these gateways with `--bump documented`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that all processes of a run share; Squid's account can
    enter it.
    """
    if not hasattr(config, "workerinput"):
        _hide_gateway()
        if WHEELS.is_dir():  # no package index is asked
            os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}
        os.environ[SHARED_FOLDER] = tempfile.mkdtemp(prefix="squidkeeper-run-")
        Path(os.environ[SHARED_FOLDER]).chmod(0o755)
        if config.getoption("--canaries"):
            os.environ[CANARIES] = "yes"
        if config.getoption("--workers"):
            os.environ[WORKERS] = str(config.getoption("--workers"))
        if config.getoption("--documented"):
            os.environ[DOCUMENTED] = "yes"


def _hide_gateway() -> None:
    """Make for this run a view of the machine in which these folders are empty: a test
    sees only what it made.
    """
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS):
        return  # an account, or a container, that has no right to mount
    # of the package: Squid complains without it
    style = Path("/etc/squid/errorpage.css")
    kept = style.read_bytes() if style.exists() else b""
    mount("--make-rprivate", "/")
    for place in filter(os.path.isdir, OF_THE_MACHINE):
        about = os.stat(place)
        owner = f"mode={stat.S_IMODE(about.st_mode):o},uid={about.st_uid},gid={about.st_gid}"
        mount("-t", "tmpfs", "-o", owner, "tests", place)
    if kept:
        style.write_bytes(kept)
    mount("--make-rshared", "/")  # as it was, for the containers of tests


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a hunt in which no gateway sent a canary: it shows nothing."""
    if (
        session.config.getoption("--canaries")
        and not hasattr(session.config, "workerinput")
        and not any(_hunted())
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how far a hunt went."""
    if terminalreporter.config.getoption("--canaries"):
        sent = _hunted()
        told = f"canaries: {len(sent)} gateways, {sum(map(bool, sent))} of them sent {sum(sent)} requests with canaries"
        terminalreporter.write_line(
            told
            if any(sent)
            else f"{told}: failed, as a hunt without any shows nothing"
        )


def _hunted() -> list[int]:
    """How many canaries each gateway has sent."""
    file = Path(os.environ[SHARED_FOLDER]) / HUNTED
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(SHARED_FOLDER))
        os.environ.pop(CANARIES, None)
        os.environ.pop(WORKERS, None)
        os.environ.pop(DOCUMENTED, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of whole folders.

    Start with the longest files: then all processes end together.
    """
    for item in items:
        if (mark := item.get_closest_marker("one_worker")) and os.environ.get(
            WORKERS, "1"
        ) != "1":
            item.add_marker(pytest.mark.skip(reason=mark.args[0]))
        if item.path.relative_to(TESTS).parts[0] in SYSTEM_FOLDERS:
            item.add_marker("system")
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    path = str(item.path.relative_to(TESTS))
    return next(
        (turn for turn, part in enumerate(LONGEST_FIRST) if path.startswith(part)),
        len(LONGEST_FIRST),
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with _guarded(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with _guarded(item):
        return (yield)


@contextmanager
def _guarded(item: pytest.Item) -> Iterator[None]:
    _guard["on"] = item.get_closest_marker("system") is None
    try:
        yield
    finally:
        _guard["on"] = False


def _fail_unit_test(event: str, arguments: tuple[Any, ...]) -> None:
    does = NOT_IN_A_UNIT_TEST.get(event)
    if does and _guard["on"] and threading.current_thread() is threading.main_thread():
        if event == "socket.bind" and arguments[1] == ("::1", 0):
            return  # urllib3, when it is imported, tests whether there is IPv6
        if event == "subprocess.Popen":
            program, *words = map(str, arguments[1])
            if (Path(program).name, *words[:1]) in STARTED_BY_UNIT_TESTS:
                return
        pytest.fail(f'a unit test {does} ({event}): give it the mark "system"')


_guard = {"on": False}
sys.addaudithook(_fail_unit_test)


@pytest.fixture(autouse=True)
def _systemd_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts name the commands of a machine with systemd, whatever this one has."""
    monkeypatch.setattr(gateway_commands, "uses_systemd", lambda root: root is None)


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The folder of every wheel that install.sh can need."""
    assert WHEELS.is_dir(), "run tests/run first: it makes this folder"
    return WHEELS


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder that all processes of a run share."""
    return Path(os.environ[SHARED_FOLDER])


def few_and_many(few: int, many: int) -> pytest.MarkDecorator:
    """Run a property with few examples, and with many where `-m long` asks for them."""
    return pytest.mark.parametrize(
        "examples", [few, pytest.param(many, marks=pytest.mark.long)]
    )


def hold_for(
    check: Callable[..., None], *drawn: SearchStrategy[Any], examples: int
) -> None:
    """Check so many drawn examples."""
    settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck)
    )(given(*drawn)(check))()


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
Ask = Callable[..., Decision]


def write_policy(directory: Path, text: str, name: str = "policy.yaml") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("version: 1\n" + textwrap.dedent(text))
    return directory


def compiled_of(directory: Path, text: str) -> CompiledPolicy:
    return load(write_policy(directory, text), NOW).compiled


def decided(
    compiled: CompiledPolicy, request: Request | Malformed, at: datetime
) -> Decision:
    return decide(compiled, compiled.match(request), at)


@pytest.fixture
def asker(tmp_path: Path) -> Callable[[str], Ask]:
    """Make a function that asks a policy, given as text, about a method and a URL."""

    def make(text: str) -> Ask:
        compiled = compiled_of(tmp_path / "policy", text)

        def ask(
            asked: str,
            client: str | None = None,
            user: str | None = None,
            at: datetime = NOW,
        ) -> Decision:
            method, _, target = asked.partition(" ")
            return decided(compiled, request_to(method, target, client, user), at)

        return ask

    return make
