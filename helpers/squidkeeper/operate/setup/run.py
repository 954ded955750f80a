"""A run of `squidkeeper setup`: to its end, or back to what was there before."""

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.entries import remove
from squidkeeper.operate.setup.options import SetupOptions, SetupStage, complain
from squidkeeper.operate.setup.uninstall import uninstall

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# what follows a success, after which nothing is put back any more
Finish = Callable[[], None]
Undo = Callable[[], list[str]]  # puts everything back, and lists what could not be


class Interrupted(BaseException):
    """A signal that ends the run."""

    advice = "it was interrupted: run it again"

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run_setup(options: SetupOptions) -> int:
    """Install or uninstall; give the exit status.

    A failure is told with its stage and what to do.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    os.umask(0o022)
    os.chdir("/")
    try:
        return _run(options, Layout.of(options.root), SetupStage())
    finally:
        remove(options.work)


def remove_prepared(work: Path, made: Iterable[Path]) -> None:
    """Remove what install.sh has prepared and made in this run."""
    for path in (work, *reversed([*made])):
        remove(path)


def _run(options: SetupOptions, layout: Layout, stage: SetupStage) -> int:
    def remove_gateway(_: list[Undo]) -> Finish:
        uninstall(layout)
        return lambda: None

    def install(undo: list[Undo]) -> Finish:
        # an uninstall does without its dependencies
        from squidkeeper.operate.setup.installation import (
            Installation,
        )

        installation = Installation(options, layout, stage)
        undo.append(installation.roll_back)
        installation.run()
        return installation.finish

    stage.name = "uninstall"
    return _attempt(remove_gateway if options.uninstall else install, options, stage)


def _attempt(
    run: Callable[[list[Undo]], Finish], options: SetupOptions, stage: SetupStage
) -> int:
    undo: list[Undo] = []
    try:
        finish = run(undo)
        _ignore_signals()
    except BaseException as error:
        _ignore_signals()
        complain(_failure(error, stage))
        _roll_back(undo, options)
        if isinstance(error, Interrupted):
            return 128 + error.number
        if isinstance(error, SetupFailed | OSError):
            return 1
        raise  # a fault of ours, which Python shows
    finish()
    if options.uninstall or options.dry_run:
        remove_prepared(options.work, options.made)
    return 0


def _roll_back(undo: list[Undo], options: SetupOptions) -> None:
    problems = [problem for roll_back in undo for problem in roll_back()]
    remove_prepared(options.work, options.made)
    if problems:
        complain(
            "\n".join(
                [
                    "  What was in place before is as it was, but:",
                    *(f"  {one}" for one in problems),
                ]
            )
        )
    elif not options.uninstall:
        complain("  What was in place before is as it was.")


def _failure(error: BaseException, stage: SetupStage) -> str:
    said = f"install.sh: {error}\n" if str(error) else ""
    details, advice = (
        getattr(error, "details", ""),
        getattr(error, "advice", "") or stage.advice,
    )
    return (
        f'{details}{said}\ninstall.sh: step "{stage.name}" failed.\n  to do: {advice}'
    )


def _interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - signal calls it so
    raise Interrupted(number)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, _ignore)


def _ignore(number: int, frame: object) -> None:
    """Let a rollback end.

    Children get the default of the signal, which they would not if it were ignored.
    """
