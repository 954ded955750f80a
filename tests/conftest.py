"""What the tests of the modules share."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings

from squidkeeper.engine import CompiledPolicy, Decision, decide
from squidkeeper.policy_store.loading import load
from squidkeeper.protocol.request import Malformed, Request, request_to

settings.register_profile("shared machine", deadline=None)  # what is slow here may be somebody else's load
settings.load_profile("shared machine")

# Whoever starts the tests in the background may have them ignored, and so every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SHARED_FOLDER = "SQUIDKEEPER_TESTS_FOLDER"  # in the environment, which the processes of a run have in common
CANARIES = "SQUIDKEEPER_TESTS_CANARIES"  # in the environment too: whether every gateway has canary secrets
HUNTED = "hunted"  # the file in that folder: how many canaries each gateway has sent
TESTS = Path(__file__).parent
SYSTEM = ("e2e", "faults", "test_install.py", "test_own_addresses.py")  # all tests in these have the mark "system"
LONGEST_FIRST = ("test_install.py", "e2e", "faults", "test_helpers.py", "test_counters.py", "test_cli.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--canaries",
        action="store_true",
        help="give every gateway of the end-to-end tests canary secrets, and hunt them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that all processes of a run share; Squid's account can enter it."""
    if not hasattr(config, "workerinput"):
        os.environ[SHARED_FOLDER] = tempfile.mkdtemp(prefix="squidkeeper-run-")
        Path(os.environ[SHARED_FOLDER]).chmod(0o755)
        if config.getoption("--canaries"):
            os.environ[CANARIES] = "yes"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a hunt in which no gateway sent a canary: it shows nothing."""
    if session.config.getoption("--canaries") and not hasattr(session.config, "workerinput") and not any(_hunted()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how far a hunt went."""
    if terminalreporter.config.getoption("--canaries"):
        sent = _hunted()
        told = f"canaries: {len(sent)} gateways, {sum(map(bool, sent))} of them sent {sum(sent)} requests with canaries"
        terminalreporter.write_line(told if any(sent) else f"{told}: failed, as a hunt without any shows nothing")


def _hunted() -> list[int]:
    """How many canaries each gateway has sent."""
    file = Path(os.environ[SHARED_FOLDER]) / HUNTED
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(SHARED_FOLDER))
        os.environ.pop(CANARIES, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of whole files and folders. Start with the longest files: then all processes end together."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in SYSTEM:
            item.add_marker("system")
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    part = item.path.relative_to(TESTS).parts[0]
    return LONGEST_FIRST.index(part) if part in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder that all processes of a run share."""
    return Path(os.environ[SHARED_FOLDER])


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
Ask = Callable[..., Decision]


def write_policy(directory: Path, text: str, name: str = "policy.yaml") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("version: 1\n" + textwrap.dedent(text))
    return directory


def compiled_of(directory: Path, text: str) -> CompiledPolicy:
    return load(write_policy(directory, text), NOW).compiled


def decided(compiled: CompiledPolicy, request: Request | Malformed, at: datetime) -> Decision:
    return decide(compiled, compiled.match(request), at)


@pytest.fixture
def asker(tmp_path: Path) -> Callable[[str], Ask]:
    """Make a function that asks a policy, given as text, about a method and a URL."""

    def make(text: str) -> Ask:
        compiled = compiled_of(tmp_path / "policy", text)

        def ask(asked: str, client: str | None = None, user: str | None = None, at: datetime = NOW) -> Decision:
            method, _, target = asked.partition(" ")
            return decided(compiled, request_to(method, target, client, user), at)

        return ask

    return make
