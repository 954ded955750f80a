"""`squidkeeper demo`."""

import signal
import sys
from contextlib import suppress
from pathlib import Path

import click


@click.command()
@click.option(
    "--source",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=Path(),
    help="The folder with install.sh. [default: the current folder]",
)
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    default=0,
    help="The status page's port on 127.0.0.1. [default: a free one]",
)
@click.option(
    "--keep", is_flag=True, help="Wait for Ctrl-C at the end, also without a terminal."
)
def demo(source: Path, port: int, keep: bool) -> None:
    """Show the gateway at work on this machine, without internet. Needs root.

    The demo makes network namespaces with an origin, a stand-in for a VM and a
    temporary gateway. It runs the commands of the walkthrough. In a terminal it then
    waits for Enter, so that you can open the status page. At the end it removes
    everything.

    \b
    Exit status:
      1  A step failed.
    """
    from squidkeeper.operate.demo.demonstration import demonstrate

    wait = _until_enter if sys.stdin.isatty() and not keep else _until_interrupted
    demonstrate(source, port, click.echo, wait if keep or sys.stdin.isatty() else None)


def _until_enter() -> None:
    with suppress(KeyboardInterrupt, EOFError):
        input("Press Enter to end the demo. ")


def _until_interrupted() -> None:
    click.echo("Press Ctrl-C to end the demo.")
    with suppress(KeyboardInterrupt):
        signal.pause()
