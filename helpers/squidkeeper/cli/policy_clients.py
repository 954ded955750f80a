"""The policy on disk, its clients that --client names, and past policies: for readers of the access log."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.base.errors import PolicyError
from squidkeeper.record.log.drift import PastPolicies
from squidkeeper.record.log.filters import network_of
from squidkeeper.record.log.listing import printable

if TYPE_CHECKING:
    from squidkeeper.policy.engine import CompiledPolicy
    from squidkeeper.policy.language.model import Client


def policy_on_disk(directory: Path) -> CompiledPolicy | None:
    """Load the policy; None if it does not load: `check` reports why, and the stored revisions decide."""
    from squidkeeper.policy.policy_store.loading import load

    try:
        return load(directory, datetime.now(UTC)).compiled
    except PolicyError:
        return None


def past_policies(directory: Path, state: Path) -> PastPolicies:
    """Return the policies that were in force; the one on disk is loaded on demand."""
    return PastPolicies(state / "revisions", cache(partial(policy_on_disk, directory)))


def clients_named(directory: Path, given: tuple[str, ...]) -> tuple[Client, ...]:
    """Read the policy's clients if --client has a name; report on stderr the names that the policy does not have."""
    names = [one for one in given if network_of(one) is None]
    if not names:
        return ()
    compiled = policy_on_disk(directory)
    if compiled is None:
        click.echo(f"{directory} does not load: --client finds proxy users only, no clients of it.", err=True)
        return ()
    clients = compiled.source.clients
    known = {name for client in clients for name in (client.name, *(client.users or ()))}
    for name in names:
        if name not in known:
            unknown = f"--client {name}: not an address, network, client or user of the policy in {directory}."
            click.echo(printable(f"{unknown} Only a proxy user of this name matches."), err=True)
    return clients
