"""`squidkeeper pull`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Final, NoReturn

import click

from squidkeeper.base.errors import PullRefused
from squidkeeper.base.formatting import ago, printable
from squidkeeper.base.gateway_commands import with_commands
from squidkeeper.cli.helper_options import DEFAULT_POLICY, path_option, state_option
from squidkeeper.cli.options import DEFAULT_LAYOUT, json_option
from squidkeeper.cli.output import progress, show_json

if TYPE_CHECKING:
    from squidkeeper.services.pulling.settings import PullStatus

_FAILED: Final = 1
Write = Callable[[str], str]  # names commands with the options that name this gateway


@click.group(invoke_without_command=True)
@click.option("--once", is_flag=True, help="Pull once. [default: repeat until SIGTERM]")
@click.option(
    "--status",
    "shows",
    is_flag=True,
    help="Show the last pull's result, and pull nothing.",
)
@click.option(
    "--accept",
    metavar="COMMIT",
    default="",
    help="With --once: accept this commit, or bundle (the end of its name), out of order.",
)
@path_option(
    "--config",
    metavar="FILE",
    default=DEFAULT_LAYOUT.pull_settings,
    help="The settings.",
)
@path_option(
    "--folder",
    default=DEFAULT_LAYOUT.pulled,
    help="The folder of the versions and the report.",
)
@path_option(
    "--policy",
    default=DEFAULT_POLICY,
    help="The policy's folder: a link to `current` in --folder.",
)
@state_option("With --status: the state folder.")
@json_option
@click.pass_context
def pull(
    context: click.Context,
    once: bool,
    shows: bool,
    accept: str,
    config: Path,
    folder: Path,
    policy: Path,
    state: Path,
    as_json: bool,
) -> None:
    """Pull the policy from git or as a signed bundle, and put it in place.

    The tip must be signed by an allowed signer, come after the version in place, load
    here, and stay within the ceiling. Otherwise the version in place stays.
    policy/PULL.md explains the setup.

    \b
    Example:
      squidkeeper pull --status

    \b
    Exit status of --once and --status:
      1  The source cannot be read, its tip is refused, or other files than
         the source's are in place. --status: what is in place is not in force.
    """
    if context.invoked_subcommand:
        return
    if accept and not once:
        raise click.UsageError("--accept is for one pull: add --once")
    if not os.path.isdir(folder):
        raise click.ClickException(
            f"{folder}: no such folder. Write {config}, then run install.sh, which makes it"
        )
    here = replace(
        DEFAULT_LAYOUT, policy=policy, state=state, pulled=folder, pull_settings=config
    )
    write = partial(with_commands, layout=here)
    if shows:
        _show_status(folder, policy, state, write, as_json=as_json)
    else:
        _pull(config, folder, policy, accept, write, once=once, as_json=as_json)


@pull.command()
@click.argument(
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
)
@click.option(
    "--number",
    metavar="N",
    type=click.IntRange(1),
    required=True,
    help="Must be higher than the last bundle's.",
)
@path_option("--output", metavar="FILE", required=True, help="The bundle to make.")
def bundle(folder: Path, number: int, output: Path) -> None:
    """Make a bundle of a policy's folder: its policy files and lists.

    The files must be regular files, and must load as on a gateway. A local.yaml beside
    FOLDER is loaded too. Sign the bundle, then publish it with its .sig:

    \b
      squidkeeper pull bundle policy --number 41 --output policy.bundle
      ssh-keygen -Y sign -f KEY -n squidkeeper-policy policy.bundle
    """
    from squidkeeper.services.pulling.judgement import make_bundle

    try:
        content = make_bundle(folder, number)
        output.write_bytes(content)
    except (PullRefused, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(
            printable(f"{folder} makes no bundle: {error}")
        ) from None
    click.echo(f"{output}: bundle {number}, {len(content):,} bytes. Sign it:")
    click.echo(f"ssh-keygen -Y sign -f KEY -n squidkeeper-policy {quote(str(output))}")


def _pull(
    config: Path,
    folder: Path,
    policy: Path,
    accept: str,
    write: Write,
    *,
    once: bool,
    as_json: bool,
) -> None:
    from squidkeeper.base.squid_account import become_owner
    from squidkeeper.services.pulling.puller import Puller, run_pulling

    become_owner(folder)  # what a stranger sends is never read as root
    puller = Puller(config, folder, policy)
    if not once:
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s"
        )
        run_pulling(puller)
    try:
        with progress("pulling"):
            status = puller.pull(accept)
    except OSError as error:
        raise click.ClickException(
            f"{folder} cannot be written: {error.strerror}"
        ) from None
    _tell(status, write, as_json=as_json)


def _show_status(
    folder: Path, policy: Path, state: Path, write: Write, *, as_json: bool
) -> None:
    from squidkeeper.services.pulling.settings import CURRENT, read_pull_status

    status = read_pull_status(folder)
    if status is None:
        raise click.ClickException(
            f"nothing was pulled yet, as far as this account can read {folder}"
        )
    if os.path.realpath(policy) == os.path.realpath(folder / CURRENT):
        in_force, told = _in_force(policy, state)
    else:
        in_force, told = (
            False,
            f"no: {policy} is no link to {folder / CURRENT}, the gateway reads another policy",
        )
    _tell(status, write, in_force, told, as_json=as_json)


def _in_force(policy: Path, state: Path) -> tuple[bool | None, str]:
    """Return whether the version in place is in force or loading, and a text; None: the
    state does not say.
    """
    from squidkeeper.cli.failures import UnusableInput
    from squidkeeper.cli.reload import WAITS_OR_FAILS, how_it_stands

    try:
        found = how_it_stands(policy, state)
    except UnusableInput as error:
        return None, f"unknown: {error.message}"
    faults = [f"{fault.location}: {fault.text}" for fault in found.faults[:1]]
    told = "; ".join((found.told, *faults))
    return (False, f"no: {told}") if found.standing in WAITS_OR_FAILS else (True, told)


def _tell(
    status: PullStatus,
    write: Write,
    in_force: bool | None = None,
    told: str = "",
    *,
    as_json: bool,
) -> NoReturn:
    from squidkeeper.services.pulling.puller import outcome

    if as_json:
        show_json({**asdict(status), "in_force": in_force})
    else:
        click.echo(printable(write(outcome(status, is_in_force=in_force is not False))))
        for name, text in (*_rows(status), *([("in force", told)] if told else [])):
            click.echo(f"  {name:<10} {printable(write(text))}")
    raise SystemExit(
        _FAILED
        if status.failure or status.refused or status.altered or in_force is False
        else 0
    )


def _rows(status: PullStatus) -> list[tuple[str, str]]:
    now = datetime.now(UTC)
    times = (
        ("placed", status.placed),
        ("succeeded", status.succeeded),
        ("ended", status.ended),
    )
    rows = [("source", status.source)] if status.source else []
    rows += [
        (name, ago(datetime.fromtimestamp(at, UTC), now))
        for name, at in times
        if at is not None
    ]
    return [
        *rows,
        (
            "ceiling",
            "yes" if status.has_ceiling else "none: whoever signs may open everything",
        ),
    ]
