"""What the caller of install.sh asked for, whose values install.sh has checked, and
what the caller is told.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

NO_EXPORTER: Final = "none"
SQUID: Final = "squid"
SQUIDKEEPER: Final = "squidkeeper"
# whose program makes the certificates of hosts; the first is the default
GENERATORS: Final = (
    SQUIDKEEPER,
    SQUID,
)
# whether tunnels share connections to origins
SHARED, DOCUMENTED = BUMPS = (
    "shared",
    "documented",
)
# one exporter reads the log of all, and one process on two cores takes 12,000 lines a
# second
MOST_WORKERS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupOptions:
    """The options of one run."""

    source: Path  # a checkout, with squid/ and policy/
    venv: Path  # the environment that the program's link leads to
    # a folder for what is prepared, which Squid's account can read; it is removed at
    # the end
    work: Path
    made: tuple[
        Path, ...
    ] = ()  # what install.sh has made in this run, for a failed run to remove
    root: Path | None = None
    open: bool = False
    policy: Path | None = None
    ca_dir: Path | None = None
    # the options that change gateway.yaml, by name; of a switch, any value
    settings: Mapping[str, str] = field(default_factory=dict)
    no_start: bool = False
    dry_run: bool = False
    uninstall: bool = False
    # completion and manual pages, each with its text
    shell_files: Mapping[Path, str] = field(default_factory=dict)


def reachable(listen: str) -> str:
    """Return the ADDRESS:PORT at which this machine reaches what listens on PORT or
    ADDRESS:PORT.
    """
    host, _, port = listen.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("", "0.0.0.0", "[::]") else listen  # noqa: S104 - compared, not bound


def port_of(listen: str) -> int:
    """Return the port of PORT or ADDRESS:PORT."""
    return int(listen.rpartition(":")[2])


def say(label: str, text: str) -> None:
    """Print a line."""
    show(f"{label:<13} {text}")


def show(text: str) -> None:
    """Print a text.

    A reader that went away (install.sh | head) is no reason to stop half-way.
    """
    try:
        print(text, flush=True)  # noqa: T201 - this is the one place that prints
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str, end: str = "\n") -> None:
    """Print a text to standard error, if somebody reads it."""
    with suppress(BrokenPipeError):
        print(text.rstrip(), end=end, file=sys.stderr, flush=True)  # noqa: T201 - as above


class SetupStage:
    """The part of an installation that goes on: what a failure is reported under, and
    what to do then.
    """

    def __init__(self) -> None:
        self._name = "start"
        self.advices: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        """Its name. A terminal shows the name until the stage has a result to tell."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name
        if sys.stderr.isatty():
            complain(f"{name} …", end="\r")

    @property
    def advice(self) -> str:
        """What to do where this stage fails."""
        return self.advices.get(self.name, "see the lines above")
