"""Sessions that tests make, and a clock that they set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from squidkeeper.serving.sessions.clock import TimeNow
from squidkeeper.serving.sessions.store import NewSession

START = TimeNow(1_800_000_000.0, 1_000.0, "boot-1")


def let_others_in(folder: Path) -> None:
    """Let other accounts come to a folder of a test."""
    for path in folder.parents:
        if "pytest-of" in str(path):
            path.chmod(0o755)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> TimeNow:
        return self.at

    def set(self, **values: float | str) -> None:
        self.at = dataclasses.replace(self.at, **values)  # type: ignore[arg-type]


def new(name: str, network: str | None = None, **values: object) -> NewSession:
    """Describe a session: at an address, else with a token."""
    given: dict[str, object] = {
        "role": "agent",
        "token_sha256": None if network else "0" * 64,
        "variables": {"repo": ("acme/app",)},
        "labels": {"task": "1"},
        "secrets": (),
        "orchestrator": "platform",
        "lifetime": 600.0,
        "content": "",
    }
    return NewSession(name, network=network, **given | values)  # type: ignore[arg-type]
