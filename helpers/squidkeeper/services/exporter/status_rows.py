"""The rows of the status page's tables.

No field can hold the value of a secret. Times are in UTC.
"""

import os
from collections import Counter as Multiset
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from squidkeeper.base.formatting import ago
from squidkeeper.base.helper_metrics import (
    DECISIONS,
    LOADS_POLICY,
    PROTOCOL_ERRORS,
    TRANSPARENT_CONNECTIONS,
)
from squidkeeper.policy.language.model import VERDICT_NAMES, Action
from squidkeeper.policy.language.secret_sources import (
    EnvironmentSource,
    SessionSource,
    needed_secrets,
)
from squidkeeper.record.usage_ledger import UsageState
from squidkeeper.services.exporter.snapshot import Snapshot
from squidkeeper.serving.counters.layout import key_labels
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.fetch_status import SecretStatus

_TUNNEL: Final = "tunnel"
RESERVES: Final = "reserves, where no answer said what it used"
_REPLIES: Final = frozenset({DECISIONS.name, PROTOCOL_ERRORS.name})


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule of the policy in its order, or a built-in rule that decided a request."""

    name: str
    action: str
    """`allow`, `deny` or `ask`; for `default` what the policy's default does, for other
    built-in rules `deny`.
    """
    allowed: int = 0
    denied: int = 0
    last_matched: datetime | None = None
    """When it last decided a request, or denied a tunnel."""
    expires: datetime | None = None
    owner: str | None = None
    built_in: bool = False
    tunnels: int = 0
    """CONNECTs that it allowed. They do not count as requests."""
    observed: int | None = None
    """Requests that it would have decided; None: it does not observe."""

    @property
    def seen(self) -> bool:
        """Whether it decided anything."""
        return bool(self.allowed or self.denied or self.tunnels or self.observed)


@dataclass(frozen=True, slots=True)
class HelperRow:
    """A helper process that runs."""

    kind: str
    """The value of the metrics' label `helper`."""
    pid: int
    started: datetime
    revision: str | None
    """The revision that it decides by; None: it has none and denies everything."""
    outdated: bool
    stuck: bool
    last_beat: datetime
    answered: int
    """Lines that it and earlier processes with its counter file have answered."""
    has_policy: bool = True
    """Whether this kind of helper decides by the policy."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What requests used of one model. `cost` is in millionths of the currency."""

    model: str
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0

    @classmethod
    def total(cls, rows: Iterable["UsageRow"]) -> "UsageRow":
        """Add up rows of different models."""
        sums = ((row.requests, row.tokens_in, row.tokens_out, row.cost) for row in rows)
        return cls("", *map(sum, zip(*sums, strict=True)))


@dataclass(frozen=True, slots=True)
class SecretRow:
    """A secret that the policy names, and whether the exporter can read its value."""

    name: str
    source: str
    """`file /etc/…`, `env NAME`, `oauth2 https://…` and so on."""
    problem: str | None = None
    """Why it is unavailable; None: it is available, or was not checked."""
    used_by: tuple[str, ...] = ()
    """The credentials, parents and secrets that need it."""
    fetched: str | None = None
    """When it was fetched, is fetched again and expires, and why the last fetch failed;
    None: it is not fetched.
    """

    @property
    def checked(self) -> bool:
        """Whether it was read.

        A variable is not: it is set for Squid, not for the exporter. Nor is what each
        session brings.
        """
        unread = self.source.startswith("env ") or self.source == "session"
        return self.problem is not None or not unread


def rule_rows(view: Snapshot) -> Iterator[RuleRow]:
    """List the rules and grants of the policy, then the built-in rules that decided a
    request.
    """
    policy, counts = view.policies.policy, view.log.checkpoint.counts
    hits: Multiset[tuple[str, str]] = Multiset()
    for (_, name, verdict, _, _), number in counts.requests:
        hits[name, verdict] += number
    for (_, name), number in counts.tunnels:
        hits[name, _TUNNEL] += number
    observed: Multiset[str] = Multiset()
    for (name, _), number in counts.observed:
        observed[name] += number
    for rule in policy.rules_and_grants if policy else ():
        row = _rule_row(
            rule.name,
            rule.action,
            hits,
            counts.last_matched,
            expires=rule.expires,
            owner=rule.owner,
        )
        yield replace(row, observed=observed[rule.name]) if rule.observe else row
    for name in sorted(VERDICT_NAMES & {name for name, _ in hits}):
        action = policy.default if policy and name == "default" else Action.DENY
        yield _rule_row(name, action, hits, counts.last_matched, built_in=True)


def _rule_row(
    name: str,
    action: Action,
    hits: Mapping[tuple[str, str], int],
    last_matched: Mapping[str, str],
    *,
    expires: datetime | None = None,
    owner: str | None = None,
    built_in: bool = False,
) -> RuleRow:
    return RuleRow(
        name=name,
        action=str(action),
        allowed=hits.get((name, "allow"), 0),
        denied=hits.get((name, "deny"), 0),
        tunnels=hits.get((name, _TUNNEL), 0),
        last_matched=logged_time(last_matched.get(name, "")),
        expires=expires,
        owner=owner,
        built_in=built_in,
    )


def usage_rows(view: Snapshot) -> list[UsageRow]:
    """List the models that have answered metered requests, the dearest first, with the
    reserves of the others.
    """
    rows: dict[str, UsageRow] = {}
    for (_, _, model, state), (
        requests,
        tokens_in,
        tokens_out,
        cost,
    ) in view.log.checkpoint.usage.used:
        name = model if state == UsageState.METERED else RESERVES
        row = rows.get(name, UsageRow(name))
        used = (row.tokens_in + tokens_in, row.tokens_out + tokens_out, row.cost + cost)
        rows[name] = UsageRow(name, row.requests + requests, *used)
    return sorted(rows.values(), key=lambda row: (-row.cost, -row.tokens_in, row.model))


def transparent_rows(view: Snapshot) -> dict[str, int]:
    """Count the connections to the transparent ports by what became of them; empty
    without these ports.
    """
    name, label = TRANSPARENT_CONNECTIONS.name, TRANSPARENT_CONNECTIONS.labels[0]
    return {
        key_labels(key)[label]: round(number)
        for key, number in view.processes.totals.items()
        if key[0] == name
    }


def helper_rows(view: Snapshot) -> Iterator[HelperRow]:
    """List the helper processes that run."""
    for file in view.processes.counter_files:
        status = file.status
        if file.running and status:
            yield HelperRow(
                kind=status.helper,
                pid=status.pid,
                started=datetime.fromtimestamp(status.started, UTC),
                revision=status.revision,
                outdated=view.is_outdated(status),
                stuck=view.is_stuck(status),
                last_beat=datetime.fromtimestamp(status.beat, UTC),
                answered=round(
                    sum(value for name, _, value in file.samples if name in _REPLIES)
                ),
                has_policy=status.helper in LOADS_POLICY,
            )


def secret_rows(view: Snapshot) -> Iterator[SecretRow]:
    """List the secrets of the policy, and read those that are files or were fetched."""
    policy = view.policies.policy
    if policy is None:
        return
    store, fetched = (
        SecretStore(policy.secrets, os.environ, view.place.fetched),
        view.fetched_secrets,
    )
    for name, secret in policy.secrets.items():
        users = tuple(
            credential.name
            for credential in policy.credentials
            if name in credential.form.secrets
        )
        users += tuple(
            route.name
            for route in policy.upstreams
            if route.parent and route.parent.password == name
        )
        users += ("sealed_tokens",) if name in policy.sealing_keys else ()
        users += tuple(
            other
            for other, named in policy.secrets.items()
            if name in needed_secrets(named.source)
        )
        problem = (
            None
            if isinstance(secret.source, EnvironmentSource | SessionSource)
            else store.problem(name)
        )
        about = _about_fetching(fetched[name], view.at) if name in fetched else None
        yield SecretRow(
            name,
            str(secret.source),
            None if problem is None else str(problem),
            users,
            about,
        )


def _about_fetching(status: SecretStatus | None, now: datetime) -> str:
    if status is None:
        return "not fetched yet"
    times = (
        ("fetched", status.last_success),
        ("next fetch", status.next_fetch),
        ("expires", status.expires_at),
    )
    said = [
        f"{what} {ago(datetime.fromtimestamp(at, UTC), now)}"
        for what, at in times
        if at is not None
    ]
    said += [f"the last fetch failed: {status.failure}"] if status.failure else []
    return ", ".join(said) or "not fetched yet"


def logged_time(time: str) -> datetime | None:
    """Parse a time of the access log; empty: None."""
    return datetime.fromisoformat(time) if time else None
