"""`squidkeeper learn`."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from squidkeeper.base.formatting import quantity
from squidkeeper.cli.arguments import table_options
from squidkeeper.cli.failures import UnusableInput
from squidkeeper.cli.helper_options import (
    path_option,
    policy_option,
    state_option,
)
from squidkeeper.cli.options import json_option
from squidkeeper.cli.output import check_new_file, open_new_file, progress

if TYPE_CHECKING:
    from squidkeeper.change.learning.askers import Askers
    from squidkeeper.change.learning.draft import Draft
    from squidkeeper.change.learning.learner import Support
    from squidkeeper.change.learning.uses import UseTable
    from squidkeeper.cli.arguments import TableOptions
    from squidkeeper.policy.engine import CompiledPolicy


_OF_ALL: Final = 2  # so that no client learns itself anything
_READABLE: Final = 0o644
_OF_ONE: Final = 1  # the one that is named is trusted by that


@click.command()
@table_options
@click.option(
    "--client",
    metavar="NAME",
    help="Learn only for this client, or this role, of the policy.",
)
@click.option(
    "--min-days",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    help="Propose what was used on N days. [default: 1]",
)
@click.option(
    "--min-clients",
    metavar="N",
    type=click.IntRange(1),
    help="Propose what N machines and logins used. [default: 2; with --client: 1]",
)
@click.option("--no-presets", is_flag=True, help="Propose rules only, no presets.")
@policy_option
@state_option()
@json_option
@path_option(
    "--output",
    metavar="FILE",
    callback=check_new_file,
    help="Write to a new file of mode 0640, or of the mode of policy files beside it.",
)
def learn(
    read: TableOptions,
    client: str | None,
    min_days: int,
    min_clients: int | None,
    no_presets: bool,
    directory: Path,
    state: Path,
    as_json: bool,
    output: Path | None,
) -> None:
    """Draft a policy: few, readable rules for what clients used.

    The draft also covers what clients asked for while the policy observed. Each rule is
    for the clients that used it.

    These become comments instead of rules: what one client alone used, new hosts,
    addresses, mostly uploads. So a single misbehaving client cannot teach the draft its
    own requests.

    FILEs are access logs, also compressed, or archived parts; `-` is standard input.
    Without FILE: the archive, the access log and its rotated files. Records before
    --since show which hosts are new.

    \b
    Examples:
      squidkeeper learn --since 7d --output draft.yaml
      squidkeeper learn --client builders

    \b
    Exit status:
      2  There is nothing to propose, or a log cannot be read.
    """
    from squidkeeper.change.learning.askers import Askers
    from squidkeeper.change.learning.draft import json_of, yaml_of
    from squidkeeper.change.learning.learner import Support
    from squidkeeper.record.log.recorded_sessions import RecordedSessions

    sessions = RecordedSessions.of_gateway(state)
    askers = Askers(_policy(directory, client), client, sessions)
    support = Support(min_days, min_clients or (_OF_ALL if client is None else _OF_ONE))
    draft, notes = _learned(read, askers, support, presets=not no_presets)
    if output is not None:
        draft, left_out = _beside(draft, output.parent)
        notes = (*notes, *left_out)
    text = f"{json_of(draft, notes)}\n" if as_json else yaml_of(draft, notes)
    if output is None:
        click.echo(text, nl=False)
    else:
        beside, others = _policy_file(output.parent), _policy_file(directory)
        with open_new_file(output) as file:
            file.write(text.encode())
            _make_readable(
                file.fileno(),
                beside or others,
                stat.S_IMODE(beside.st_mode) if beside else None,
            )


def _beside(draft: Draft, folder: Path) -> tuple[Draft, tuple[str, ...]]:
    """Leave out what the files of a policy in a folder define already, which would be a
    fault; tell what that is.
    """
    from squidkeeper.cli.arguments import policy_on_disk

    policy = policy_on_disk(folder) if _policy_file(folder) else None
    if policy is None:
        return draft, ()
    clients = {*_names(policy)} & draft.defined.keys()
    presets = {preset.name for preset in policy.source.presets} & {
        preset.name for preset in draft.presets
    }
    kept = replace(
        draft,
        defined={
            name: asker for name, asker in draft.defined.items() if name not in clients
        },
        presets=tuple(preset for preset in draft.presets if preset.name not in presets),
    )
    named = ", ".join(sorted(clients | presets))
    return kept, (
        f"Left out, as another file of the folder defines it: {named}.",
    ) if named else ()


def _policy_file(folder: Path) -> os.stat_result | None:
    from squidkeeper.policy.policy_store.sources import own_files

    return next((path.stat() for path in own_files(folder)), None)


def _make_readable(file: int, like: os.stat_result | None, mode: int | None) -> None:
    """Set for a file the group of another one, so that Squid's account can read both,
    and a mode.
    """
    with suppress(PermissionError):  # a group that this account is not in
        if like is not None:
            os.fchown(file, -1, like.st_gid)
        if mode is not None:
            os.fchmod(file, mode & _READABLE)


def _policy(directory: Path, client: str | None) -> CompiledPolicy | None:
    """Load the policy that names clients; without it, each address is a client."""
    from squidkeeper.cli.arguments import policy_on_disk

    policy = policy_on_disk(directory)
    names = _names(policy) if policy else []
    if client is not None and client not in names:
        known = (
            f"expected one of {', '.join(names)}"
            if names
            else f"there is none in {directory}"
        )
        raise click.BadParameter(
            f"{client} is no client of the policy, {known}", param_hint="--client"
        )
    if policy is None:
        click.echo(
            f"{directory} does not load: each address is a client of the draft",
            err=True,
        )
    return policy


def _names(policy: CompiledPolicy) -> list[str]:
    roles = [role.name for role in policy.source.roles]
    return [*(client.name for client in policy.source.clients), *roles]


def _learned(
    read: TableOptions, askers: Askers, support: Support, *, presets: bool
) -> tuple[Draft, tuple[str, ...]]:
    from squidkeeper.change.learning.learner import learn as learned
    from squidkeeper.change.learning.uses import (
        COLUMNS,
        PresetCover,
        UseTable,
        newest_presets,
    )

    cover = PresetCover(newest_presets() if presets else ())
    with (
        progress("learning from the recorded requests"),
        read.open(COLUMNS, with_earlier=True) as table,
    ):
        uses = UseTable(table.connection, *read.period, askers.sessions)
        draft = learned(uses.each(cover.hosts), askers, cover.covering, support)
        if draft.used is None:
            raise UnusableInput(
                "0 requests were used, or asked for while the policy observed: nothing to propose"
            )
        return draft, (
            *_notes(uses),
            *_few(draft, support),
            *_of_unknown_roles(askers.unknown_roles),
            *_hints(askers.divided(draft.defined)),
        )


def _notes(uses: UseTable) -> Iterator[str]:
    from squidkeeper.record.table.questions import SET_APART

    if not uses.tells_new:
        yield "The access log is too short to tell which hosts are new: that takes two days."
    for reason, count in uses.set_apart.items():
        yield f"Left out: {quantity(count, 'request')}: {SET_APART[reason]}."


def _of_unknown_roles(names: Collection[str]) -> Iterator[str]:
    if names:
        roles = ", ".join(sorted(names))
        yield f"Left out: what sessions asked for whose role the policy does not have: {roles}."


def _few(draft: Draft, support: Support) -> Iterator[str]:
    from squidkeeper.change.learning.draft import Unproposed

    few = sum(
        unproposed.evidence.count
        for unproposed in draft.listed
        if unproposed.reason is Unproposed.FEW_CLIENTS
    )
    if few:
        why = f"no {quantity(support.clients, 'client')} used the same"
        yield f"{quantity(few, 'request')} listed as few-clients, because {why}: --client NAME drafts for one client."


def _hints(divided: Mapping[str, int]) -> Iterator[str]:
    for name, count in divided.items():
        machines = quantity(count, "address", "addresses")
        yield f"{machines} of client {name} used different things: --client {name} --min-clients 2 drafts one list."
