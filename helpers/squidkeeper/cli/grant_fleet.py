"""`squidkeeper grant --fleet`: grants for all gateways that pull from a repository."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.base.errors import EditRefused
from squidkeeper.base.formatting import printable, quantity
from squidkeeper.cli import helper_options, options
from squidkeeper.cli.output import show_json

if TYPE_CHECKING:
    from squidkeeper.change.approvals import NewGrant
    from squidkeeper.operate.fleet.fleet_grants import Checkout

_IN_FORCE = "Each gateway whose ceiling allows it has it in force once it has pulled this commit."


# Changes the grants of a checkout; gives the title of the commit, empty where nothing
# has changed, and what is shown.
Change = Callable[["Checkout"], tuple[str, list[str]]]


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """The options that name the repository of a fleet."""

    fleet: str | None
    branch: str
    folder: str
    key: Path | None
    allowed_signers: Path | None


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
fleet_options = options.combined(  # of `FleetOptions`
    click.option(
        "--fleet",
        metavar="REPOSITORY",
        help="Change the grants of all gateways that pull from this git repository.",
    ),
    helper_options.shown_option(
        "--branch", default="main", help="With --fleet: the branch."
    ),
    helper_options.shown_option(
        "--path",
        "folder",
        metavar="FOLDER",
        default="policy",
        help="With --fleet: the policy's folder in the repository.",
    ),
    click.option(
        "--key",
        metavar="FILE",
        type=_FILE,
        help="With --fleet: the SSH key that signs. [default: git's user.signingKey]",
    ),
    click.option(
        "--allowed-signers",
        metavar="FILE",
        type=_FILE,
        help="With --fleet: who may have signed the branch's tip. [default: git's gpg.ssh.allowedSignersFile]",
    ),
)


def change_for_fleet(
    fleet: FleetOptions, change: Change, now: datetime, *, as_json: bool
) -> None:
    """Change the grants of all gateways, and tell what was done; `EditRefused` if
    nothing was.
    """
    from squidkeeper.operate.fleet.fleet_grants import FleetRepository, checked_out

    repository = FleetRepository(
        fleet.fleet or "", fleet.branch, fleet.folder, fleet.key, fleet.allowed_signers
    )
    with checked_out(repository) as checkout:
        try:
            title, lines = change(checkout)
            commit = checkout.publish(title, now) if title else ""
        except EditRefused as error:
            raise EditRefused(_in_repository(str(error), checkout)) from error
    if as_json:
        show_json({"commit": commit or None, "told": lines})
        return
    for line in lines:
        click.echo(printable(_in_repository(line, checkout)))
    if commit:
        click.echo(f"Pushed {commit}. {_IN_FORCE}")


def granted(new: NewGrant, now: datetime) -> Change:
    """Make a grant."""
    from squidkeeper.change.approvals import add_grant
    from squidkeeper.change.approvals.wording import granted_lines

    def change(checkout: Checkout) -> tuple[str, list[str]]:
        made = add_grant(checkout.policy, replace(new, by=checkout.person), now)
        # the last says when it is in force on one gateway
        *lines, _ = granted_lines(made, now)
        return (
            (f"Grant {made.grant.name}", lines)
            if made.file
            else ("", [*granted_lines(made, now)])
        )

    return change


def revoked(name: str, now: datetime) -> Change:
    """Revoke a grant."""
    from squidkeeper.change.approvals import remove_grant

    def change(checkout: Checkout) -> tuple[str, list[str]]:
        remove_grant(checkout.policy, name, now)
        return f"Revoke {name}", [f"Revoked {name}."]

    return change


def pruned(now: datetime) -> Change:
    """Remove the grants that have lapsed."""
    from squidkeeper.change.approvals import prune_grants

    def change(checkout: Checkout) -> tuple[str, list[str]]:
        lapsed, left = prune_grants(checkout.policy, now)
        told = f"Removed {quantity(len(lapsed), 'lapsed grant')}. {quantity(len(left), 'grant')} left."
        return ("Remove lapsed grants" if lapsed else ""), [told]

    return change


def listed(now: datetime) -> Change:
    """List the grants."""
    from squidkeeper.change.approvals.wording import described, until
    from squidkeeper.policy.policy_edit import load_or_refuse
    from squidkeeper.policy.policy_store.sources import read_sources

    def change(checkout: Checkout) -> tuple[str, list[str]]:
        loaded = load_or_refuse(read_sources(checkout.policy), now, "does not load")
        lines = []
        for grant in loaded.compiled.source.grants:
            ends = "lapsed" if grant.lapsed(now) else until(grant, now)
            lines += [
                f"{grant.name}: {ends}",
                *(f"  {name:<11} {text}" for name, text in described(grant)),
            ]
        return "", lines or ["There are no grants."]

    return change


def _in_repository(text: str, checkout: Checkout) -> str:
    from squidkeeper.policy.language.grants import FLEET_GRANTS
    from squidkeeper.policy.policy_store.sources import grants_file

    text = text.replace(
        str(grants_file(checkout.policy)),
        f"{checkout.repository.folder}/{FLEET_GRANTS}",
    )
    for place in (checkout.policy, checkout.clone / checkout.repository.folder):
        text = text.replace(str(place), checkout.repository.folder)
    return text
