"""Sessions as `log` and `report` name them, and what requests are counted by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from squidkeeper.base.formatting import printable
from squidkeeper.base.places import sessions_folder

OF_SESSIONS: Final = ("session", "role", "label:NAME")


class CountKey(click.Choice):  # type: ignore[type-arg] # as in options.py
    """What `--by` counts by: a word, or `label:` with the name of any label."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Parse the value."""
        from squidkeeper.record.table.sessions import LABEL

        return value if LABEL.fullmatch(value) else super().convert(value, param, ctx)


def check_sessions(state: Path, by: str | None, names: Iterable[str] = ()) -> None:
    """Report on stderr the names that no session has or had; `UnreadableSessions` where
    that, or what `by` counts by, cannot be read.
    """
    from squidkeeper.record.table.sessions import is_of_sessions
    from squidkeeper.serving.sessions.stored import last_session

    folder = sessions_folder(state)
    if is_of_sessions(by):
        last_session(folder, "")
    for name in names:
        if not name.isdecimal() and last_session(folder, name) is None:
            what = f"--session {name}: {folder} knows no session of this name"
            why = "Those that ended are forgotten after the days of the archive"
            click.echo(printable(f"{what}. {why}: give its number."), err=True)
