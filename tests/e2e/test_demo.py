"""`squidkeeper demo`: the tour runs, the status page is reachable from the host, and
nothing is left at the end.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

REPOSITORY = Path(__file__).parents[2]


class Demo:
    """A running demo, and the lines that it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def read_until(self, text: str) -> str:
        """Read lines up to one that contains `text`, and return that one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"the demo ended without {text!r}:\n{''.join(self.lines)}")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += self.process.stdout
        return self.process.wait(60)


@contextmanager
def running(prototype: Path, folder: Path) -> Iterator[Demo]:
    command: list[str | Path] = [
        prototype / "bin/squidkeeper",
        "demo",
        "--source",
        REPOSITORY,
        "--keep",
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(folder)},
    )
    try:
        yield Demo(process)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that Squid's account can enter."""
    with tempfile.TemporaryDirectory(prefix="squidkeeper-tests-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def is_clean(folder: Path) -> bool:
    """Whether no file and no process of a demo in this folder is left."""
    commands = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    return list(folder.iterdir()) == [] and f"{folder}/" not in commands


@pytest.mark.long
def test_the_tour_shows_the_walkthrough_and_leaves_nothing(
    internet: None, prototype: Path, folder: Path
) -> None:
    with running(prototype, folder) as demo:
        page = demo.read_until("The status page of the gateway: ").split()[-1]
        demo.read_until("Press Ctrl-C")
        with urlopen(page) as response:
            status = response.read().decode()
        assert demo.end(signal.SIGTERM) == 0
    printed = "".join(demo.lines)
    assert (
        "vm$ curl -sS https://example.com/\n    Hello from example.com, this is /\n"
        in printed
    )
    assert (
        "Rule: no-wikipedia\n    Reason: Wikipedia is closed to sandboxes.\n" in printed
    )
    [token] = re.findall(r"Authorization: Bearer (demo-[0-9a-f]+)", printed)
    assert token not in status
    assert re.search(
        r"deny +default +403 +GET +\d+ +403:ERR_SQUIDKEEPER_TEXT +https://git\.example/other/app\n",
        printed,
    )
    assert "no-wikipedia" in status
    assert is_clean(folder)


@pytest.mark.long
@pytest.mark.parametrize("line", ["Installs the gateway", "vm$ curl"])
def test_an_interrupted_demo_leaves_nothing(
    internet: None, prototype: Path, folder: Path, line: str
) -> None:
    with running(prototype, folder) as demo:
        demo.read_until(line)
        assert demo.end(signal.SIGINT) == 1
    assert is_clean(folder)
