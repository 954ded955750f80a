"""What arguments of several commands name: recorded requests, and policies with their
clients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.formatting import printable
from squidkeeper.base.places import revisions_folder
from squidkeeper.cli.failures import UnusableInput
from squidkeeper.cli.options import (
    archive_read_option,
    gateway_option,
    since_option,
    table_sources,
    threads_option,
    until_option,
)
from squidkeeper.cli.output import report_skipped

if TYPE_CHECKING:
    from squidkeeper.policy.engine import CompiledPolicy
    from squidkeeper.policy.language.document import Document
    from squidkeeper.policy.language.model import Client
    from squidkeeper.record.log.drift import PastPolicies
    from squidkeeper.record.table.sources import TableSources
    from squidkeeper.record.table.table import Table


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What to read, of which period, and on how many cores; `files` are those that were
    named.
    """

    files: tuple[Path, ...]
    sources: TableSources
    since: datetime | None
    until: datetime | None
    threads: int | None

    @property
    def period(self) -> tuple[datetime | None, datetime | None]:
        """The period, from its start to its end."""
        return self.since, self.until

    @contextmanager
    def open(
        self, columns: Collection[str], *, with_earlier: bool = False
    ) -> Iterator[Table]:
        """Read it after what Squid needs, and report what was skipped; `UnreadableLog`
        if it cannot be read.

        `with_earlier` reads records of all times, which tell what is new in the period.
        """
        from squidkeeper.record.table.database import yield_to_squid
        from squidkeeper.record.table.table import open_table

        yield_to_squid()
        period = (None, None) if with_earlier else self.period
        with open_table(self.sources, *period, self.threads, columns) as table:
            report_skipped(table.skipped)
            yield table


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add FILEs, --archive, --gateway, a period and --threads to a command, which gets
    them as `read`.
    """

    @wraps(command)
    def with_table(
        files: tuple[Path, ...],
        archive: Path,
        since: datetime | None,
        until: datetime | None,
        threads: int | None,
        gateway: tuple[str, ...],
        **options: Any,
    ) -> Any:
        sources = table_sources(files, archive, gateways=gateway)
        return command(
            read=TableOptions(files, sources, since, until, threads), **options
        )

    kind = click.Path(path_type=Path, readable=False)
    with_files = click.argument("files", metavar="[FILE]...", nargs=-1, type=kind)(
        with_table
    )
    return threads_option(
        since_option(until_option(archive_read_option(gateway_option(with_files))))
    )


def check_judged(requests: int, files: Iterable[Path]) -> None:
    """Refuse to tell anything by an access log of which no request was judged."""
    if not requests:
        read = ", ".join(map(str, files)) or "the access log and the archive"
        raise UnusableInput(f"no request of {read} was judged: nothing can be told")


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy, how it is named for people, and what commands granted: the file beside
    its folder.
    """

    name: str
    compiled: CompiledPolicy
    granted: Document | None


def policy_named(
    text: str, state: Path, lender: NamedPolicy | None = None
) -> NamedPolicy:
    """Load the policy of a folder, or a revision that is stored in the state folder;
    `UnusableInput` if it does not.

    Commands write grants beside the folder in force, so a draft elsewhere has none: a
    folder without them is loaded with those of the lender, as if it were in force.
    """
    if not os.path.isdir(text):  # Path.is_dir raises in a folder that cannot be read
        return _revision(text, state, f"revision {text}")
    from squidkeeper.policy.policy_store.loading import load_sources
    from squidkeeper.policy.policy_store.sources import read_sources

    sources, lent = read_sources(Path(text)), ""
    if lender and lender.granted and sources.granted is None:
        sources, lent = (
            replace(sources, granted=lender.granted),
            ", with the grants of OLD",
        )
    compiled = _loaded(lambda: load_sources(sources, datetime.now(UTC)).compiled, text)
    return NamedPolicy(
        f"{text} (revision {compiled.revision}{lent})", compiled, sources.granted
    )


def policy_in_force(state: Path) -> NamedPolicy:
    """Load the policy that the helpers loaded last; `UnusableInput` if the state folder
    does not tell.
    """
    from squidkeeper.policy.policy_store.revisions import revision_in_force

    found = revision_in_force(revisions_folder(state))
    if found is None:
        raise UnusableInput(
            f"{state}: no policy is in force here, as far as this account can read: name OLD instead"
        )
    return _revision(found.revision, state, f"revision {found.revision}, in force")


def _revision(text: str, state: Path, name: str) -> NamedPolicy:
    from squidkeeper.policy.policy_store.loading import load_stored_revision
    from squidkeeper.policy.policy_store.revisions import read_revision

    folder = revisions_folder(state)
    try:
        compiled = _loaded(
            lambda: load_stored_revision(folder, text), f"revision {text}"
        )
        return NamedPolicy(name, compiled, read_revision(folder, text).granted)
    except OSError as error:
        if os.sep in text or os.path.exists(text):
            raise UnusableInput(
                f"{text} is no folder, as far as this account can read"
            ) from error
        why = (error.strerror or str(error)).lower()
        expected = f"neither a folder nor a revision that is stored in {folder} ({why})"
        raise UnusableInput(
            f"{text!r} is {expected}: `squidkeeper check DIR` prints the revision of a folder"
        ) from error


def _loaded(load: Callable[[], CompiledPolicy], name: str) -> CompiledPolicy:
    try:
        return load()
    except PolicyError as error:
        raise UnusableInput(f"{error}\n{name} does not load") from error


def policy_on_disk(directory: Path) -> CompiledPolicy | None:
    """Load the policy; None if it does not load: `check` reports why, and the stored
    revisions decide.
    """
    from squidkeeper.policy.policy_store.loading import load

    try:
        return load(directory, datetime.now(UTC)).compiled
    except PolicyError:
        return None


def past_policies(directory: Path, state: Path) -> PastPolicies:
    """Return the policies that were in force; the one on disk is loaded on demand."""
    from squidkeeper.record.log.drift import PastPolicies

    return PastPolicies(
        revisions_folder(state), cache(partial(policy_on_disk, directory))
    )


def clients_named(directory: Path, given: tuple[str, ...]) -> tuple[Client, ...]:
    """Read the policy's clients if --client has a name; report on stderr the names that
    the policy does not have.
    """
    from squidkeeper.record.log.filters import network_of

    names = [one for one in given if network_of(one) is None]
    if not names:
        return ()
    compiled = policy_on_disk(directory)
    if compiled is None:
        click.echo(
            f"{directory} does not load: --client finds proxy users only, no clients of it.",
            err=True,
        )
        return ()
    clients = compiled.source.clients
    known = {
        name for client in clients for name in (client.name, *(client.users or ()))
    }
    for name in names:
        if name not in known:
            unknown = f"--client {name}: not an address, network, client or user of the policy in {directory}."
            click.echo(
                printable(f"{unknown} Only a proxy user of this name matches."),
                err=True,
            )
    return clients
