"""`squidkeeper ask`: questions of clients that wait for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from squidkeeper.base.errors import InvalidUrl, PolicyError, UnreadableLog
from squidkeeper.base.formatting import ago, printable, quantity, utc_seconds
from squidkeeper.cli import helper_options, options
from squidkeeper.cli.output import confirm, show_json

if TYPE_CHECKING:
    from squidkeeper.change.approvals import Granted
    from squidkeeper.change.approvals.answers import Approval
    from squidkeeper.policy.engine import CompiledPolicy
    from squidkeeper.policy.language.approvals import ApprovalScope
    from squidkeeper.serving.tickets.store import Ticket

_SCOPES: Final = ("url", "path", "host")
_DAY: Final = timedelta(days=1)
_INDENT: Final = " " * 14
_state_option = helper_options.state_option()


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a person approves of a question."""

    scope: str
    valid: timedelta
    uses: int | None
    clients: tuple[str, ...]
    any_client: bool
    reason: str

    def approval(self) -> Approval:
        """Make the approval."""
        from squidkeeper.change.approvals.answers import Approval

        return Approval(
            _scope(self.scope),
            self.valid,
            self.uses,
            self.clients,
            self.any_client,
            self.reason,
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the policy, the questions and the access log are, and how far back that is
    read.
    """

    directory: Path
    state: Path
    access_log: Path
    since: datetime | None

    def policy_now(self) -> CompiledPolicy:
        """Load the policy that helpers go by, which the one on disk may not be."""
        from squidkeeper.change.approvals.decisions import policies_now

        try:
            return policies_now(self.directory, self.state, datetime.now(UTC))[0]
        except PolicyError as error:
            raise click.ClickException(
                f"{error}\n{self.directory} does not load: fix it first"
            ) from error

    def reach(
        self, policy: CompiledPolicy, waiting: Sequence[Ticket]
    ) -> Mapping[str, Counter[ApprovalScope]]:
        """Read the access log for what else approvals would have let through; nothing
        where it cannot be read.
        """
        from squidkeeper.change.approvals.scopes import hosts_of, reach
        from squidkeeper.record.table.database import quoted
        from squidkeeper.record.table.questions import COLUMNS, QuestionTable
        from squidkeeper.record.table.sources import TableSources
        from squidkeeper.record.table.table import open_table

        if not waiting or options.is_missing(self.access_log):
            return {}
        now, sources = datetime.now(UTC), TableSources(log=self.access_log)
        hosts = ", ".join(map(quoted, hosts_of(waiting)))
        try:
            with open_table(
                sources, self.since or now - _DAY, columns={*COLUMNS, "verdict"}
            ) as table:
                questions = QuestionTable(table.connection).each(
                    f"verdict = 'deny' AND host IN ({hosts})"
                )
                return reach(policy, waiting, questions, now)
        except UnreadableLog as error:
            click.echo(printable(str(error)), err=True)
            return {}


def _place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    with_since = click.option(
        "--since",
        metavar="TIME",
        type=options.Moment(),
        help="The start of what is read of it. [default: a day ago]",
    )(options.packed("place", _Place)(command))
    text = "The access log; its rotated files are read too."
    return helper_options.policy_option(
        _state_option(
            options.file_option("--access-log", options.DEFAULT_LOG, text)(with_since)
        )
    )


@click.group(invoke_without_command=True)
@options.json_option
@_place_options
@click.pass_context
def ask(context: click.Context, as_json: bool, place: _Place) -> None:
    """List the questions of clients that wait for a person.

    A question is a request that the policy asks about. It stays denied until somebody
    approves it. The list shows what else an approval would have allowed, by the access
    log.

    \b
    Examples:
      squidkeeper ask
      squidkeeper ask approve gtmnjcbk6jde --for 2h
      squidkeeper ask deny gtmnjcbk6jde --reason "Use the mirror"
    """
    if context.invoked_subcommand is not None:
        return
    from squidkeeper.change.approvals.waiting import waiting_tickets

    policy, found = place.policy_now(), waiting_tickets(place.state)
    waiting = [
        ticket
        for ticket in found.tickets
        if _is_asked_about(policy, place.state, ticket)
    ]
    more = place.reach(policy, waiting)
    shown = [
        _Shown(ticket, _clients(policy, ticket), more.get(ticket.number))
        for ticket in waiting
    ]
    decided = len(found.tickets) - len(waiting)
    if as_json:
        questions = {
            "waiting": [ticket.as_object() for ticket in shown],
            "unreadable": [*found.unreadable],
        }
        show_json({**questions, "decided_by_policy": decided})
        return
    now = datetime.now(UTC)
    for one in shown:
        click.echo("\n".join(one.lines(now)))
    for number in found.unreadable:
        click.echo(
            f"{printable(number)}  cannot be read: it holds what no helper writes"
        )
    click.echo(
        f"{quantity(len(waiting), 'question')} waiting.{_decided_otherwise(decided)}"
    )


@ask.command()
@click.argument("number")
@click.option(
    "--for",
    "valid",
    metavar="TIME",
    type=options.Duration(),
    required=True,
    help="How long: 30m, 2h or 7d.",
)
@click.option(
    "--uses", type=click.IntRange(1), metavar="N", help="Allow at most N requests."
)
@helper_options.shown_option(
    "--scope",
    type=click.Choice(_SCOPES),
    default=_SCOPES[0],
    help="Allow this URL, its path with any query, or its host; by this method only.",
)
@click.option(
    "--client",
    "clients",
    multiple=True,
    metavar="NAME",
    help="The client, if several match.",
)
@click.option("--any-client", is_flag=True, help="Grant it to every client.")
@click.option(
    "--reason",
    default="",
    metavar="TEXT",
    help="Why, for people. [default: the ticket's number]",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@options.json_option
@_place_options
@options.packed("terms", _Terms)
def approve(
    number: str, terms: _Terms, yes: bool, as_json: bool, place: _Place
) -> None:
    """Approve a question: show the grant, and make it.

    The request is allowed within 3 seconds, for the client that asked. If several
    clients match, the narrowest gets it. An approval never overrides a rule that
    denies.
    """
    from squidkeeper.change.approvals.answers import approve_ticket
    from squidkeeper.change.approvals.decisions import waits_for_edit
    from squidkeeper.change.approvals.granting import preview_grant
    from squidkeeper.change.approvals.waiting import find_ticket
    from squidkeeper.change.approvals.wording import granted_lines
    from squidkeeper.policy.grant_uses import GrantUses

    now, approval = datetime.now(UTC).replace(microsecond=0), terms.approval()
    policy, ticket = place.policy_now(), find_ticket(place.state, number)
    planned = preview_grant(
        place.directory,
        approval.grant(policy, ticket, now),
        now,
        GrantUses(place.state),
    )
    if not yes and planned.file is not None:
        if not as_json:
            found = place.reach(policy, [ticket]).get(ticket.number)
            _show_planned(ticket, planned, _more(found, terms.scope), now)
        confirm("Approve this?", yes="--yes approves it", err=as_json)
    granted = approve_ticket(
        place.directory, place.state, policy, ticket, approval, now
    )
    waits = waits_for_edit(place.directory, place.state)
    if as_json:
        show_json({**_granted_object(ticket, granted), "waits_for_edit": waits})
    else:
        click.echo("\n".join(granted_lines(granted, now, waits=waits)))


def _show_planned(ticket: Ticket, planned: Granted, more: str, now: datetime) -> None:
    from squidkeeper.change.approvals.wording import described

    click.echo(f"Ticket {ticket.number}, asked {_often(ticket, now)}:")
    for name, text in (*described(planned.grant), ("also opens", more)):
        click.echo(f"  {name:<11} {text}")


def _granted_object(ticket: Ticket, granted: Granted) -> dict[str, object]:
    return {
        "ticket": ticket.number,
        "grant": granted.grant.name if granted.file else None,
        "open_before": [found.rule for found in granted.effect.openers],
        "warnings": granted.warnings,
    }


@ask.command()
@click.argument("number")
@click.option(
    "--reason", required=True, metavar="TEXT", help="Why; the client reads it."
)
@helper_options.policy_option
@_state_option
def deny(number: str, reason: str, directory: Path, state: Path) -> None:
    """Deny a question: its client reads the reason, and the request stays denied."""
    from squidkeeper.change.approvals.answers import deny_ticket

    ticket = deny_ticket(directory, state, number, reason)
    click.echo(f"Denied {ticket.number}: {_request(ticket)}")


def _is_asked_about(policy: CompiledPolicy, state: Path, ticket: Ticket) -> bool:
    from squidkeeper.policy.grant_uses import GrantUses
    from squidkeeper.serving.sessions.following import Following
    from squidkeeper.serving.tickets.judgement import decide_again, waits

    spent, now, sessions = (
        GrantUses(state).is_spent,
        datetime.now(UTC),
        Following(state),
    )
    try:
        return waits(decide_again(policy, spent, ticket.asked, now, sessions.numbered))
    finally:
        sessions.close()


def _decided_otherwise(count: int) -> str:
    return f" The policy opens or denies {count} more by now." if count else ""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A question, the clients of the policy that it belongs to, and what else approvals
    would have let through.
    """

    ticket: Ticket
    clients: tuple[str, ...]
    more: Mapping[ApprovalScope, int] | None

    def lines(self, now: datetime) -> Iterator[str]:
        """Write it for a terminal."""
        ticket = self.ticket
        who = " ".join(filter(None, (ticket.client, ticket.user)))
        who += f" session {ticket.session}" if ticket.session else ""
        named = f" ({', '.join(self.clients)})" if self.clients else ""
        yield f"{ticket.number}  {printable(who + named)}  {_request(ticket)}"
        yield f"{_INDENT}{_often(ticket, now)}, by {printable(ticket.rule)}"
        yield f"{_INDENT}also opens: {'; '.join(f'{scope}: {_more(self.more, scope)}' for scope in _SCOPES)}"

    def as_object(self) -> dict[str, Any]:
        """Write it for a program."""
        kept = ("client", "user", "method", "url", "rule", "times")
        fields = {
            name: value for name, value in asdict(self.ticket).items() if name in kept
        }
        more = (
            None
            if self.more is None
            else {scope: self.more.get(_scope(scope), 0) for scope in _SCOPES}
        )
        times = {
            "first": utc_seconds(self.ticket.first),
            "last": utc_seconds(self.ticket.last),
        }
        number = {"ticket": self.ticket.number, "session": self.ticket.session or None}
        return {
            **number,
            **fields,
            **times,
            "clients": [*self.clients],
            "also_opens": more,
        }


def _clients(policy: CompiledPolicy, ticket: Ticket) -> tuple[str, ...]:
    from squidkeeper.change.approvals.scopes import clients_that_asked

    return clients_that_asked(policy, ticket)


def _more(found: Mapping[ApprovalScope, int] | None, scope: str) -> str:
    if found is None:
        return "unknown, without an access log"
    return f"{quantity(found.get(_scope(scope), 0), 'other request')}"


def _scope(text: str) -> ApprovalScope:
    from squidkeeper.policy.language.approvals import ApprovalScope

    return ApprovalScope(text)


def _request(ticket: Ticket) -> str:
    from squidkeeper.policy.url import parse_url

    try:
        return printable(f"{ticket.method} {parse_url(ticket.url)}")
    except InvalidUrl:
        return printable(f"{ticket.method} {ticket.url}")


def _often(ticket: Ticket, now: datetime) -> str:
    first, last = (
        ago(datetime.fromtimestamp(at, UTC), now) for at in (ticket.first, ticket.last)
    )
    return f"{quantity(ticket.times, 'time')}, first {first}, last {last}"
