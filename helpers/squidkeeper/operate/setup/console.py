"""What an installation tells its caller."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field


def say(label: str, text: str) -> None:
    """Print a line."""
    show(f"{label:<13} {text}")


def show(text: str) -> None:
    """Print a text. A reader that went away (install.sh | head) is no reason to stop half-way."""
    try:
        print(text, flush=True)  # noqa: T201 - this is the one place that prints
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """Print a text to standard error, if somebody reads it."""
    with suppress(BrokenPipeError):
        sys.stderr.write(f"{text.rstrip()}\n")


@dataclass(slots=True)
class SetupStage:
    """The part of an installation that goes on: what a failure is reported under, and what to do then."""

    name: str = "start"
    advices: Mapping[str, str] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """What to do where this stage fails."""
        return self.advices.get(self.name, "see the lines above")
