"""`squidkeeper grant`: allows for a time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from squidkeeper.base.errors import PatternError, PolicyError
from squidkeeper.base.formatting import printable, quantity
from squidkeeper.cli.grant_fleet import (
    Change,
    FleetOptions,
    change_for_fleet,
    fleet_options,
    granted,
    listed,
    pruned,
    revoked,
)
from squidkeeper.cli.helper_options import policy_option, state_option
from squidkeeper.cli.options import Duration, json_option, packed
from squidkeeper.cli.output import show_json

if TYPE_CHECKING:
    from squidkeeper.change.approvals import Granted, NewGrant
    from squidkeeper.policy.grant_uses import GrantUses
    from squidkeeper.policy.language.model import Rule

_AN_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a new grant is to say, beside its target."""

    clients: tuple[str, ...]
    any_client: bool
    valid: timedelta | None
    uses: int | None
    methods: tuple[str, ...]
    reason: str | None


@click.command()
@click.argument("target", required=False, metavar="[HOST[:PORT][/PATH]|URL]")
@click.option(
    "--client",
    "clients",
    multiple=True,
    metavar="NAME",
    help="A client of the policy. Repeatable.",
)
@click.option("--any-client", is_flag=True, help="Grant it to every client.")
@click.option(
    "--for", "valid", metavar="TIME", type=Duration(), help="How long: 30m, 2h or 7d."
)
@click.option(
    "--uses", type=click.IntRange(1), metavar="N", help="Allow at most N requests."
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    help="Only this method. Repeatable.",
)
@click.option("--reason", metavar="TEXT", help="Why, for people.")
@click.option(
    "--list", "lists", is_flag=True, help="List the grants with their remaining uses."
)
@click.option("--revoke", metavar="NAME", help="Revoke a grant.")
@click.option("--prune", is_flag=True, help="Remove lapsed grants.")
@policy_option
@state_option()
@json_option
@fleet_options
@packed("fleet", FleetOptions)
@packed("wanted", _Wanted)
def grant(
    target: str | None,
    wanted: _Wanted,
    fleet: FleetOptions,
    lists: bool,
    revoke: str | None,
    prune: bool,
    directory: Path,
    state: Path,
    as_json: bool,
) -> None:
    """Allow requests for a time, where no rule decides about them.

    HOST and PATH are patterns, as in a policy. Without PATH, every path is allowed. A
    URL (https://...) is allowed exactly, with its query. The grant is in force within 3
    seconds. It opens no private address.

    Grants are in grants.yaml, beside the policy's folder. Those of a fleet are in
    fleet-grants.yaml, in the repository.

    \b
    Examples:
      sudo squidkeeper grant docs.example --client agents --for 2h --reason Docs
      squidkeeper grant --list

    \b
    Exit status:
      1  Nothing was granted: no grant overrides a rule that denies.
    """
    now = datetime.now(UTC)
    if [bool(target), lists, bool(revoke), prune].count(True) != 1:
        raise click.UsageError(
            "expected one of HOST[/PATH], --list, --revoke NAME and --prune"
        )
    if not fleet.fleet and (
        fleet.key
        or fleet.allowed_signers
        or (fleet.branch, fleet.folder) != ("main", "policy")
    ):
        raise click.UsageError(
            "expected --fleet REPOSITORY with --branch, --path, --key and --allowed-signers"
        )
    if fleet.fleet:
        new = _new_grant(target, wanted, now) if target else None
        change_for_fleet(
            fleet, _change(new, revoke, now, lists=lists), now, as_json=as_json
        )
    elif lists:
        _show(directory, state, now, as_json=as_json)
    elif revoke:
        _revoke(directory, state, revoke, now, as_json=as_json)
    elif prune:
        _prune(directory, state, now, as_json=as_json)
    else:
        _grant(
            directory,
            state,
            _new_grant(target or "", wanted, now),
            now,
            as_json=as_json,
        )


def _change(
    new: NewGrant | None, revoke: str | None, now: datetime, *, lists: bool
) -> Change:
    if new:
        return granted(new, now.replace(microsecond=0))
    if revoke:
        return revoked(revoke, now)
    return listed(now) if lists else pruned(now)


def _new_grant(target: str, wanted: _Wanted, now: datetime) -> NewGrant:
    from squidkeeper.change.approvals import NewGrant
    from squidkeeper.change.approvals.decisions import who_decides
    from squidkeeper.change.approvals.new_grant import parse_target

    if bool(wanted.clients) == wanted.any_client:
        raise click.UsageError("expected --client NAME, or --any-client")
    if wanted.valid is None or not wanted.reason:
        raise click.UsageError("expected --for TIME and --reason TEXT")
    try:
        return NewGrant(
            **parse_target(target),
            clients=wanted.clients,
            methods=wanted.methods,
            uses=wanted.uses,
            reason=wanted.reason,
            expires=now.replace(microsecond=0) + wanted.valid,
            by=who_decides(),
        )
    except PatternError as error:
        raise click.BadParameter(str(error), param_hint="HOST[/PATH]") from error


def _grant(
    directory: Path, state: Path, new: NewGrant, now: datetime, *, as_json: bool
) -> None:
    from squidkeeper.change.approvals import add_grant
    from squidkeeper.change.approvals.decisions import waits_for_edit
    from squidkeeper.change.approvals.wording import granted_lines
    from squidkeeper.policy.grant_uses import GrantUses

    now = now.replace(microsecond=0)
    granted = add_grant(directory, new, now, GrantUses(state))
    waits = waits_for_edit(directory, state)
    if as_json:
        show_json({**_granted_object(granted), "waits_for_edit": waits})
        return
    click.echo("\n".join(granted_lines(granted, now, waits=waits)))


def _show(directory: Path, state: Path, now: datetime, *, as_json: bool) -> None:
    from squidkeeper.change.approvals.wording import described, until
    from squidkeeper.policy.grant_uses import GrantUses

    grants, counts = _grants(directory, state, now), GrantUses(state)
    if as_json:
        show_json({"grants": [_object(grant, counts, now) for grant in grants]})
        return
    for one in grants:
        ends = "lapsed" if one.lapsed(now) else until(one, now)
        click.echo(
            f"{printable(one.name)}: {ends}{_left(one, counts)} ({one.location})"
        )
        for name, text in described(one):
            click.echo(f"  {name:<11} {text}")
    if not grants:
        click.echo("There are no grants.")


def _grants(directory: Path, state: Path, now: datetime) -> tuple[Rule, ...]:
    """Return the grants of the policy on disk; if that does not load, those
    in force.
    """
    from squidkeeper.change.approvals.decisions import policy_in_force
    from squidkeeper.policy.policy_store.loading import load

    try:
        return load(directory, now).compiled.source.grants
    except PolicyError as error:
        in_force = policy_in_force(directory, state)
        if in_force is None:
            raise click.ClickException(
                f"{error}\n{directory} does not load: fix it first"
            ) from error
        click.echo(
            f"{directory} does not load (squidkeeper check). These are the grants in force:",
            err=True,
        )
        return in_force.source.grants


def _left(rule: Rule, counts: GrantUses) -> str:
    try:
        left = counts.left(rule)
    except OSError as error:
        return f", uses left unknown ({error.strerror})"
    return (
        "" if left is None else f", {left:,} of {quantity(rule.uses or 0, 'use')} left"
    )


def _revoke(
    directory: Path, state: Path, name: str, now: datetime, *, as_json: bool
) -> None:
    from squidkeeper.change.approvals import remove_grant
    from squidkeeper.change.approvals.decisions import waits_for_edit
    from squidkeeper.change.approvals.wording import WAITS

    waits = not remove_grant(directory, name, now) or waits_for_edit(directory, state)
    if as_json:
        show_json({"revoked": name, "waits_for_edit": waits})
    else:
        ends = WAITS if waits else "It ends within 3 seconds."
        click.echo(f"Revoked {printable(name)}. {ends}")


def _prune(directory: Path, state: Path, now: datetime, *, as_json: bool) -> None:
    from squidkeeper.change.approvals import prune_grants
    from squidkeeper.change.approvals.decisions import policy_in_force
    from squidkeeper.policy.grant_uses import GrantUses

    lapsed, left = prune_grants(directory, now)
    in_force = policy_in_force(directory, state)
    if in_force is not None:  # else the counts may be those of another policy
        GrantUses(state).forget(
            (*left, *in_force.source.grants), (now - _AN_HOUR).timestamp()
        )
    if as_json:
        show_json({"removed": [grant.name for grant in lapsed], "left": len(left)})
        return
    names = (
        f": {', '.join(printable(grant.name) for grant in lapsed)}" if lapsed else ""
    )
    click.echo(
        f"Removed {quantity(len(lapsed), 'lapsed grant')}{names}. {quantity(len(left), 'grant')} left."
    )


def _granted_object(granted: Granted) -> dict[str, object]:
    effect = granted.effect
    closed = (
        *(found.rule for found in effect.deniers),
        *(grant.name for grant in effect.closing),
    )
    return {
        "granted": granted.file is not None,
        "name": granted.grant.name if granted.file else None,
        "expires": granted.grant.expires.isoformat()
        if granted.file and granted.grant.expires
        else None,
        "file": str(granted.file) if granted.file else None,
        "credentials": [*effect.credentials],
        "open_before": [found.rule for found in effect.openers],
        "warnings": [*granted.warnings],
        "not_opened": [*dict.fromkeys(closed)],
    }


_WRITTEN = ("schemes", "ports", "paths", "urls", "methods")


def _object(rule: Rule, counts: GrantUses, now: datetime) -> dict[str, object]:
    from squidkeeper.change.approvals.new_grant import spelled
    from squidkeeper.policy.language.matching.table import written

    fields, left = written(rule.match), None
    with suppress(OSError):
        left = counts.left(rule)
    return {
        "name": rule.name,
        "location": str(rule.location),
        "clients": fields.get("clients"),
        "hosts": [spelled(pattern) for pattern in rule.match.hosts or ()],
        **{name: fields.get(name) for name in _WRITTEN},
        "expires": rule.expires.isoformat() if rule.expires else None,
        "lapsed": rule.lapsed(now),
        "uses": rule.uses,
        "left": left,
        "reason": rule.reason,
        "by": rule.owner,
        "made": rule.made.isoformat() if rule.made else None,
    }
