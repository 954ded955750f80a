"""The programs that Squid starts, as processes on pipes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest


class Program:
    """A command of squidkeeper on pipes, as Squid runs it."""

    def __init__(self, *arguments: str) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "squidkeeper", *arguments]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.stdin, self.stdout, self.stderr = (
            self.process.stdin,
            self.process.stdout,
            self.process.stderr,
        )

    def send(self, *lines: str | bytes) -> None:
        for line in lines:
            self.stdin.write((line.encode() if isinstance(line, str) else line) + b"\n")
        self.stdin.flush()

    def answer(self) -> str:
        return self.stdout.readline().decode()

    def ask(self, line: str | bytes) -> str:
        self.send(line)
        return self.answer()

    def end(self) -> tuple[bytes, str]:
        """End its input; return what else it has written to each output."""
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return out, err.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    """Start commands that end with the test."""
    started: list[Program] = []

    def start(*arguments: str) -> Program:
        started.append(Program(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a program."""
    for item in items:
        if "program" in getattr(item, "fixturenames", ()):
            item.add_marker("system")
