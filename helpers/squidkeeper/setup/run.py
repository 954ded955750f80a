"""A run of `squidkeeper setup` (floor 8): to its end, or back to what was there before."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

from squidkeeper.errors import SetupFailed
from squidkeeper.setup.console import Stage, complain
from squidkeeper.setup.entries import remove
from squidkeeper.setup.layout import Layout
from squidkeeper.setup.options import Options
from squidkeeper.setup.uninstall import uninstall

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


Undo = Callable[[], bool]


class Interrupted(BaseException):
    """A signal that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_setup(options: Options) -> int:
    """Install or uninstall; give the exit status. A failure is told with its stage and what to do."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    os.umask(0o022)
    os.chdir("/")
    try:
        return _run(options, Layout.of(options.root), Stage())
    finally:
        remove(options.work)


def _run(options: Options, layout: Layout, stage: Stage) -> int:
    if options.uninstall:
        stage.name = "uninstall"
        return _attempt(lambda _: uninstall(layout), options, layout, stage)

    from squidkeeper.setup.installation import Installation  # an uninstall does without its dependencies

    def install(undo: list[Undo]) -> None:
        installation = Installation(options, layout, stage)
        undo.append(installation.roll_back)
        installation.run()

    return _attempt(install, options, layout, stage)


def _attempt(run: Callable[[list[Undo]], None], options: Options, layout: Layout, stage: Stage) -> int:
    undo: list[Undo] = []
    try:
        run(undo)
    except SetupFailed as error:
        complain(_failure(error, stage))
    except OSError as error:
        complain(_failure(SetupFailed(str(error)), stage))
    except Interrupted as interrupted:
        complain(_failure(SetupFailed("", "it was interrupted: run it again"), stage))
        _roll_back(undo, options, layout)
        return 128 + interrupted.number
    except BaseException:  # a fault of ours, which Python shows
        _roll_back(undo, options, layout)
        raise
    else:
        if options.uninstall or options.dry_run:
            _remove_made(options)
        return 0
    _roll_back(undo, options, layout)
    return 1


def _roll_back(undo: list[Undo], options: Options, layout: Layout) -> None:
    for number in _SIGNALS:
        signal.signal(number, _ignore)
    good = all(roll_back() for roll_back in undo)
    _remove_made(options)
    if options.uninstall:
        return
    complain(
        "  What was in place before is as it was."
        if good
        else f"  The files are as they were, but Squid does not start with them any more: read {layout.cache_log}"
    )


def _remove_made(options: Options) -> None:
    for path in reversed(options.made):
        remove(path)


def _failure(error: SetupFailed, stage: Stage) -> str:
    said = f"install.sh: {error}\n" if str(error) else ""
    advice = error.advice or stage.advice
    return f'{error.details}{said}\ninstall.sh: step "{stage.name}" failed.\n  to do: {advice}'


def _interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - signal calls it so
    raise Interrupted(number)


def _ignore(number: int, frame: object) -> None:
    """Let a rollback end: children have the signal's default, which they would not have had it been ignored."""
