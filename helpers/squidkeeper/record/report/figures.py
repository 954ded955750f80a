"""The figures of a report: what went through the gateway in a period.

`builder.py` builds a `Report` from the access log; `page.py` writes it as a page,
`as_json` as JSON with the names here as keys. Times are in UTC; None (null) means
unknown. URLs are without query, fragment and password.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

FORMAT: Final = 2
NO_REQUEST: Final = "connections that ended without a request"
REFUSED: Final = "requests that Squid refused before a rule was asked"
CLIENT_LEFT: Final = "requests whose client disconnected before a decision"
# what no rule has decided is in no figure
UNDECIDED: Final = (
    NO_REQUEST,
    REFUSED,
    CLIENT_LEFT,
)


@dataclass(frozen=True, slots=True)
class SummaryFigures:
    """All requests of the period."""

    requests: int
    """Allowed and denied events: an opened tunnel is none, a denied CONNECT and the
    request inside it are one.
    """
    allowed: int
    denied: int
    tunnels: int
    """CONNECTs that the policy allowed: of those whose tunnel failed before a request
    came, each is also a request.
    """
    failed: int
    """Allowed requests that ended in 5xx, or in an error of Squid that the client did
    not cause.
    """
    response_bytes: int
    """Sent to clients for these, headers included."""
    clients: int
    hosts: int
    """Different hosts requested."""
    hosts_allowed: int
    """Those with at least one allowed request."""
    median_ms: int | None
    """Of allowed requests, from the first byte of the request to the last byte of the
    response: the smallest duration that at least half of them do not exceed.
    """
    p95_ms: int | None


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One step of time."""

    start: datetime
    allowed: int
    denied: int
    new_hosts: int
    """Hosts first requested in this step."""


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """A client: an address, and a proxy user if there is one."""

    client: str
    allowed: int
    denied: int


@dataclass(frozen=True, slots=True)
class Visits:
    """The requests of one client to one host."""

    allowed: int
    denied: int


@dataclass(frozen=True, slots=True)
class HostFigures:
    """A host that was requested, or the hosts of a domain."""

    host: str
    """`*.example.org`: of this domain, the hosts with few requests each."""
    allowed: int
    denied: int
    response_bytes: int
    by_client: tuple[Visits, ...]
    """In the order of `traffic.clients`; the last is the sum of the clients not listed
    there.
    """
    hosts: int
    """How many hosts it stands for."""


@dataclass(frozen=True, slots=True)
class TrafficFigures:
    """The busiest clients and hosts, and the sum of the rest."""

    clients: tuple[ClientFigures, ...]
    other_clients: int
    hosts: tuple[HostFigures, ...]
    other_hosts: int
    rest: HostFigures | None
    """The hosts that are not listed, as one; `host` is empty. None where all are
    listed.
    """


@dataclass(frozen=True, slots=True)
class Count:
    """A name and a number."""

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class RuleDenials:
    """The denials of one rule, or of one built-in rule."""

    rule: str
    reason: str | None
    """As the policy had it at its newest denial; None if the rule had none."""
    denied: int
    retried: int
    """Retries: the same client, method and URL (without query) had been
    denied before.
    """
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
    """Denials that are retries."""
    retries: tuple[Retried, ...]
    """The requests with the most retries."""


@dataclass(frozen=True, slots=True)
class ObservedRow:
    """Requests about which a rule with `observe: true`, or the default, would have
    decided the same.
    """

    observed: str
    """`allow:RULE` or `deny:RULE`; `deny:default` where the default observes."""
    requests: int
    clients: int
    hosts: int


@dataclass(frozen=True, slots=True)
class ObservedFigures:
    """What the policy observed, and what it asked about."""

    total: int
    """Requests about which anything was observed."""
    asked: int
    """Denials with a ticket, which a person can approve."""
    rows: tuple[ObservedRow, ...]
    """What the default would deny first, then by number."""


@dataclass(frozen=True, slots=True)
class CredentialUse:
    """A credential, and a host that it was sent to."""

    credential: str
    host: str
    requests: int
    refused: int
    """Those that the host answered with 401 or 403."""
    failed: int
    """Those that ended in 5xx or an error."""


@dataclass(frozen=True, slots=True)
class CredentialFigures:
    """Injected credentials."""

    uses: tuple[CredentialUse, ...]
    other_uses: int
    """Requests of pairs of credential and host that are not listed."""
    unavailable: tuple[Count, ...]
    """Requests that were denied because the value of a credential was unavailable, by
    host.
    """


@dataclass(frozen=True, slots=True)
class NewHost:
    """A host that was requested for the first time in this period."""

    host: str
    first: datetime
    client: str
    """The first client."""
    allowed: int
    denied: int


@dataclass(frozen=True, slots=True)
class FirstSeen:
    """Hosts that had not been requested before."""

    compared: int
    """Records from before the period to compare with; 0: new means first seen in the
    period.
    """
    compared_since: datetime | None
    """Time of the oldest of these."""
    total: int
    allowed: int
    """Those with at least one allowed request."""
    hosts: tuple[NewHost, ...]
    """Allowed hosts first, then denied ones; the newest first."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """An upstream host and its responses."""

    host: str
    requests: int
    median_ms: int | None
    """Time that Squid waited for the response."""
    p95_ms: int | None
    longest_ms: int
    server_errors: int
    """5xx responses of the host itself."""
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
    """Requests and tunnels that a client ended: no host failed, and nothing
    was denied.
    """

    client: str
    error: str
    """Squid's name for it: `ERR_SECURE_ACCEPT_FAIL`, …"""
    meaning: str
    requests: int
    last: datetime
    host: str
    """The host of the last one."""


@dataclass(frozen=True, slots=True)
class ClientErrorFigures:
    """Clients that ended their own requests: most often, they do not trust the CA."""

    total: int
    rows: tuple[ClientError, ...]
    """The most frequent, by client and error."""


@dataclass(frozen=True, slots=True)
class DriftRow:
    """A finding: a request that was served although the policy in force denied it."""

    time: datetime
    client: str
    method: str
    url: str
    cut: int
    """Characters that are missing at the URL's end."""
    rule: str
    """The rule of the policy that denies it."""
    reason: str
    kind: str


@dataclass(frozen=True, slots=True)
class DriftFigures:
    """Drift: requests compared with the policy that was in force."""

    total: int
    unchecked: int
    """Requests whose revision is no longer stored, or whose session is unknown."""
    cut: int
    """Requests whose URL is truncated in the access log, if the rest of it decides."""
    kinds: tuple[Count, ...]
    latest: tuple[DriftRow, ...]


@dataclass(frozen=True, slots=True)
class UsageSums:
    """What metered requests used: of a model, of a client, or all."""

    name: str
    requests: int
    reserved: int
    """Those that count for their reserve, because no answer said what it used."""
    tokens_in: int
    cached_in: int
    """Those of `tokens_in` that the API had cached."""
    tokens_out: int
    cost: int
    """In millionths of the currency of `prices`."""


@dataclass(frozen=True, slots=True)
class UsageFigures:
    """Tokens and their cost, as the ledger of usage has them."""

    total: UsageSums
    models: tuple[UsageSums, ...]
    """The dearest first."""
    clients: tuple[UsageSums, ...]
    over_time: tuple[int, ...]
    """Tokens, in and out, in each of `timeline.steps`."""


@dataclass(frozen=True, slots=True)
class TimelineFigures:
    """Requests over time."""

    step_seconds: int
    steps: tuple[TimelineStep, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The whole report."""

    format: int
    """Changes when a key changes its meaning or is removed."""
    made_at: datetime
    files: tuple[str, ...]
    since: datetime | None
    """Start of the period: as given, or the first request; None if there is neither."""
    until: datetime | None
    """End of the period."""
    clients_by: str
    """What a client is: `client`, an address and a proxy user; else as given by `--by`:
    `session`, `role` or `label:NAME`.
    """
    summary: SummaryFigures
    timeline: TimelineFigures
    traffic: TrafficFigures
    denials: DenialFigures
    observed: ObservedFigures
    credentials: CredentialFigures
    first_seen: FirstSeen
    upstreams: UpstreamFigures
    client_errors: ClientErrorFigures
    usage: UsageFigures | None
    """None where nothing was metered."""
    drift: DriftFigures | None
    """None without `--state`."""
    left_out: tuple[Count, ...]
    """What was read but is not in the figures."""
    damaged: tuple[str, ...]
    """Files that were read in part, and what is wrong with each."""

    @property
    def queried(self) -> int:
        """What `squidkeeper query` counts of the period: also the requests that are in
        no figure.
        """
        return self.summary.requests + sum(
            left_out.count for left_out in self.left_out if left_out.name in UNDECIDED
        )


def as_json(report: Report) -> str:
    """Write a report as one JSON object."""
    return msgspec.json.format(msgspec.json.encode(report)).decode()
