"""The figures of a report (floor 5): what went through the gateway in a span of time.

`survey.py` makes a `Report` of the record; `page.py` writes it as a page, or as JSON with the names here as its
keys. Times are in UTC, None (null) is "not known". URLs are without query, fragment and password.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class SummaryFigures:
    """All requests of the span."""

    requests: int
    """Allowed and denied. The CONNECT of an opened tunnel is none; a denied one and the request inside are one."""
    allowed: int
    denied: int
    tunnels: int
    """Tunnels opened."""
    failed: int
    """Allowed requests that were answered by 5xx, or by Squid because of an error that is not the client's."""
    response_bytes: int
    """Sent to clients in answer to these, headers included."""
    clients: int
    hosts: int
    """Different hosts asked for."""
    hosts_allowed: int
    """Of these, those that at least one request was allowed to."""
    median_ms: int | None
    """Of allowed requests, from the first byte of the request to the last of the answer; within 5 %."""
    p95_ms: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of time."""

    start: datetime
    allowed: int
    denied: int
    new_hosts: int
    """Hosts that were first asked for in it."""


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """Who asked: an address, and a proxy user where there is one."""

    client: str
    allowed: int
    denied: int


@dataclass(frozen=True, slots=True)
class Visits:
    """What one client asked of one host."""

    allowed: int
    denied: int


@dataclass(frozen=True, slots=True)
class HostFigures:
    """A host that was asked for."""

    host: str
    allowed: int
    denied: int
    response_bytes: int
    by_client: tuple[Visits, ...]
    """In the order of `traffic.clients`; those that are not listed there are summed up as the last."""


@dataclass(frozen=True, slots=True)
class TrafficFigures:
    """Who went where: the busiest clients and hosts, and the rest as a sum."""

    clients: tuple[ClientFigures, ...]
    other_clients: int
    hosts: tuple[HostFigures, ...]
    other_hosts: int
    rest: HostFigures | None
    """The hosts that are not listed, as one; `host` is empty. None where all are listed."""


@dataclass(frozen=True, slots=True)
class Count:
    """How often something was."""

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class RuleDenials:
    """What one rule, or one verdict that is no rule's, denied."""

    rule: str
    reason: str | None
    """As the policy has it; None where the rule has none, or the policy was not at hand."""
    denied: int
    retried: int
    """Of these, those that asked again for what the same client had been denied (method and URL without query)."""
    hosts: tuple[Count, ...]
    """The hosts most denied."""
    other_hosts: int
    """Denials of hosts that are not listed."""
    over_time: tuple[int, ...]
    """Denials in each of `timeline.steps`."""


@dataclass(frozen=True, slots=True)
class Retried:
    """A request that was denied more than once."""

    client: str
    method: str
    url: str
    cut: int
    """Characters that are missing at the URL's end."""
    rule: str
    denied: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class DenialFigures:
    """What was denied."""

    rules: tuple[RuleDenials, ...]
    retried: int
    """Denials of what had been denied before."""
    retries: tuple[Retried, ...]
    """The requests most often denied again."""


@dataclass(frozen=True, slots=True)
class CredentialUse:
    """A credential, and a host that it was sent to."""

    credential: str
    host: str
    requests: int
    refused: int
    """Of these, those that the host answered by 401 or 403."""
    failed: int
    """Of these, those that ended in 5xx or an error."""


@dataclass(frozen=True, slots=True)
class CredentialFigures:
    """What the gateway put in."""

    uses: tuple[CredentialUse, ...]
    other_uses: int
    """Requests of pairs of credential and host that are not listed."""
    unavailable: tuple[Count, ...]
    """Requests that were denied because a credential's value could not be had, by host."""


@dataclass(frozen=True, slots=True)
class NewHost:
    """A host that was asked for in this span for the first time."""

    host: str
    first: datetime
    client: str
    """Who asked first."""
    allowed: int
    denied: int


@dataclass(frozen=True, slots=True)
class FirstSeen:
    """Hosts that had not been asked for before."""

    compared: int
    """Records from before the span that they were compared with; 0: new is what is new within the span."""
    compared_since: datetime | None
    """Time of the oldest of these."""
    total: int
    allowed: int
    """Of all, those that at least one request was allowed to."""
    hosts: tuple[NewHost, ...]
    """Those that were allowed first, of each kind the newest first."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A host that requests were sent on to, as they were answered."""

    host: str
    requests: int
    median_ms: int | None
    """Time that Squid waited for it; within 5 %."""
    p95_ms: int | None
    longest_ms: int
    server_errors: int
    """Answers of 5xx by the host itself."""
    errors: tuple[Count, ...]
    """Squid's errors by name: `ERR_CONNECT_FAIL`, …"""


@dataclass(frozen=True, slots=True)
class UpstreamFigures:
    """Hosts that were slow or failed."""

    slowest: tuple[Upstream, ...]
    """By p95, of those with at least `least_requests` answers."""
    least_requests: int
    failing: tuple[Upstream, ...]
    """Those with a 5xx or an error, by their number."""


@dataclass(frozen=True, slots=True)
class ClientError:
    """Requests and tunnels that a client ended itself: no host has failed, and nothing was denied."""

    client: str
    error: str
    """Squid's name for it: `ERR_SECURE_ACCEPT_FAIL`, …"""
    meaning: str
    requests: int
    last: datetime
    host: str
    """The host that the last of them asked for."""


@dataclass(frozen=True, slots=True)
class ClientErrorFigures:
    """Clients whose own doing ended requests: most often, they do not trust the CA."""

    total: int
    rows: tuple[ClientError, ...]
    """The most frequent, by client and error."""


@dataclass(frozen=True, slots=True)
class DriftRow:
    """A request that was not answered as the policy of its time has it."""

    time: datetime
    client: str
    method: str
    url: str
    cut: int
    """Characters that are missing at the URL's end."""
    rule: str
    """What the policy says."""
    reason: str
    kind: str


@dataclass(frozen=True, slots=True)
class DriftFigures:
    """The record held against the policy that was in force."""

    total: int
    unchecked: int
    """Requests whose revision is no longer kept."""
    cut: int
    """Requests of which the record holds only the beginning of a URL that decides."""
    kinds: tuple[Count, ...]
    latest: tuple[DriftRow, ...]


@dataclass(frozen=True, slots=True)
class TimelineFigures:
    """Requests over time."""

    step_seconds: int
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All of it."""

    format: int
    """Changes when a key changes its meaning or goes."""
    made_at: datetime
    files: tuple[str, ...]
    since: datetime | None
    """Start of the span: as asked, or the first request; None where there is neither."""
    until: datetime | None
    """End of the span."""
    summary: SummaryFigures
    timeline: TimelineFigures
    traffic: TrafficFigures
    denials: DenialFigures
    credentials: CredentialFigures
    first_seen: FirstSeen
    upstreams: UpstreamFigures
    client_errors: ClientErrorFigures
    drift: DriftFigures | None
    """None where it was not looked for."""
    left_out: tuple[Count, ...]
    """What was read and is not in the figures."""
    limits: tuple[str, ...]
    """What there was more of than is kept: the number of different ones is too high, a rare one's may be too low."""
