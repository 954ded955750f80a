"""The policy as the engine sees it: frozen, checked, everything parsed.

Only `builder.py` makes these; nothing in here can be wrong any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final, NamedTuple, Self

from squidkeeper.base.faults import Location
from squidkeeper.policy.language.bodies import Body, GitBody, WrittenPush
from squidkeeper.policy.language.exact_urls import ExactUrl
from squidkeeper.policy.language.forms import Form
from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.hosts import HostPattern, Network
from squidkeeper.policy.language.paths import PathPattern
from squidkeeper.policy.language.prices import NO_PRICES, Metering, Prices
from squidkeeper.policy.language.queries import QueryPattern
from squidkeeper.policy.language.quotas import Quota
from squidkeeper.policy.language.roles import Role, Session
from squidkeeper.policy.language.schedules import Schedule
from squidkeeper.policy.language.secret_sources import NamedSecret
from squidkeeper.policy.url import Address, Host

BUILT_IN_REASONS: Final[Mapping[str, str]] = {
    "default": "No rule matches.",
    "login-refused": "The token of the login was revoked or has expired.",
    "session-required": "Only sessions may use the address, and none was active.",
    "session-invalid": "The policy no longer has the session's role, or no longer takes its values.",
    "sessions-unavailable": "The sessions could not be read.",
    "authority-mismatch": "Tunnel, SNI and request name different hosts or ports.",
    "ambiguous-path": "Servers may read the path in different ways, with different decisions.",
    "private-address": "The host is, or resolves to, an address of a private network.",
    "invalid-request": "No rule can allow such a request.",
    "credential-unavailable": "The value of a credential was unavailable.",
    "sealed-token-refused": "A sealed token was presented elsewhere than it is for, had expired, or was altered.",
    "secret-leaving": "The request held a value that must not leave the gateway.",
    "placeholder-misdirected": "The request held the placeholder of a credential that is not for it.",
    "ticket-page": "The gateway has no such page for this client.",
    "quota": "A quota was used up, or could not be counted.",
    "header-too-long": "URL and headers were too long to be read.",
    "policy-unavailable": "No helper replied, or the helper had no policy.",
    "not-rendered": "Squid's configuration lacks lines that the policy needs.",
    "tunnel-outdated": "The policy, or who asked, had changed since the tunnel was opened.",
}
VERDICT_NAMES = frozenset(BUILT_IN_REASONS)

# characters of a value that requests are searched for; shorter ones are in many
# requests
SHORTEST_WATCHED = 8
_HEADER_KEY_LENGTH = 8
_KEY_LENGTH = 12  # hexadecimal digits of the key of an upstream
TOKEN_ID_LENGTH = 12  # hexadecimal digits of the hash
SHARED: Final = "shared"  # `connections` of a rule
DIRECT = "direct"  # the key of what goes past every parent
SEALED_TOKEN = "sealed-token"  # noqa: S105 - as what the credential of a sealed token is counted and logged
SEALED_REFUSED = "sealed-token-refused"
OPENS_NONE = (
    "this gateway opens none"  # how the reason begins where the extra is missing
)
# in `found` of a record: how it begins where the body decided, with what did not hold
BY_BODY = "body:"
# in `found` of a record: how it begins where one was refused, with the reason
SEALED = "sealed-token:"
SESSION_REQUIRED: Final = "session-required"
# the rule that allows what was approved for a session
SESSION_APPROVAL: Final = "session-approval"
POLICY_UNAVAILABLE = "policy-unavailable"
# in `found` of a record: how it begins where nothing could decide
UNAVAILABLE = "unavailable:"
NOT_OBSERVED = ""  # in a test: nothing is observed
NO_REWRITE = ""  # in a test: no rewrite applies


class Unavailable(StrEnum):
    """Why nothing could decide a request, in `found` of its record."""

    NO_POLICY = "unavailable:no-policy"
    NOT_PASSED_ON = "unavailable:not-passed-on"
    POLICY_CHANGED = "unavailable:policy-changed"
    BODY_UNANSWERED = "unavailable:body-unanswered"
    BODY_OVER_SHARE = "unavailable:body-over-share"
    BODY_LATE = "unavailable:body-late"


class Action(StrEnum):
    """What a rule, or the default, does with a request.

    `ASK` denies it, and a person may grant it later.
    """

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"

    @property
    def verdict(self) -> Action:
        """What is logged where it decides: an ask denies."""
        return Action.DENY if self is Action.ASK else self


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a client: the SHA-256 of its text, in hexadecimal digits.

    `id` names it for Squid and for people.

    The hash needs no salt and no slow function: the text has 128 random bits or more,
    so nobody can try them all.
    """

    sha256: str
    expires: datetime | None = None

    @classmethod
    def of(cls, text: str, expires: datetime | None = None) -> Self:
        """Make the entry for a token's text."""
        return cls(sha256(text.encode("utf-8", "surrogateescape")).hexdigest(), expires)

    @property
    def id(self) -> str:
        """The first digits of the hash, which are no secret."""
        return self.sha256[:TOKEN_ID_LENGTH]

    def lapsed(self, at: datetime) -> bool:
        """Whether the token opens nothing any longer."""
        return self.expires is not None and at >= self.expires


@dataclass(frozen=True, slots=True)
class Client:
    """A client: networks, users or tokens, or networks and one of these, which must
    both match.

    None: left out.

    The proxy user of a login by token is the client's name.
    """

    name: str
    location: Location
    networks: tuple[Network, ...] | None = None
    users: frozenset[str] | None = None
    tokens: tuple[Token, ...] | None = None
    connections: str | None = (
        None  # "own": no connection to an origin is shared with another client
    )

    @property
    def size(self) -> int:
        """How many addresses it has; a login counts as one."""
        if self.users or self.tokens is not None:
            return 1
        return sum(network.num_addresses for network in self.networks or ())

    @property
    def single_addresses(self) -> tuple[Network, ...]:
        """What it lists, where that is single addresses and nothing else: the addresses
        of one machine.
        """
        networks = self.networks or ()
        is_machine = (
            self.users is None
            and self.tokens is None
            and all(one.num_addresses == 1 for one in networks)
        )
        return networks if is_machine else ()

    def matches(self, address: Address | None, user: str | None) -> bool:
        """Whether a request from this address, as this proxy user, belongs to the
        client.

        That a user who is the name of a client with tokens has shown one of them is for
        `CompiledPolicy` to check.
        """
        if not self.within_networks(address):
            return False
        if self.tokens is not None:
            return user == self.name
        return self.users is None or user in self.users

    def within_networks(self, address: Address | None) -> bool:
        """Whether a request from this address can belong to the client."""
        return self.networks is None or any(
            address in network for network in self.networks if address
        )


class HostFacts(NamedTuple):  # cheaper to make than a dataclass, and made for each line
    """What the fields that need no URL are matched with.

    `method` is None for the CONNECT of a tunnel, where any may follow, and empty for
    one that no entry names; one that differs from a named one only in its case is in
    lower case. The role of a `session` is one of the clients.
    """

    clients: tuple[str, ...]
    method: str | None
    scheme: str
    host: Host
    port: int
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """The matching fields of an entry; one that is None always holds, but `ports` in an
    allow (engine/fields.py).
    """

    clients: frozenset[str] | None = None
    hosts: tuple[HostPattern, ...] | None = None
    lists: tuple[str, ...] | None = None
    schemes: frozenset[str] | None = None
    ports: tuple[range, ...] | None = None
    methods: frozenset[str] | None = None
    paths: tuple[PathPattern, ...] | None = None
    query: tuple[QueryPattern, ...] | None = None
    urls: tuple[ExactUrl, ...] | None = None  # of a grant alone

    @property
    def variables(self) -> frozenset[str]:
        """The variables of sessions that its hosts and paths name."""
        hosts = (pattern.variable for pattern in self.hosts or ())
        paths = (name for pattern in self.paths or () for name in pattern.variables)
        return frozenset((*filter(None, hosts), *paths))

    @property
    def any_host(self) -> bool:
        """Whether it holds for every host because it names none."""
        return self.hosts is None and self.lists is None

    @property
    def any_path(self) -> bool:
        """Whether every path holds, so that only `query` can still depend on
        the URL.
        """
        return self.paths is None or any(pattern.everything for pattern in self.paths)

    @property
    def any_url(self) -> bool:
        """Whether it holds for every path and query of a host: it can be decided
        without the URL.
        """
        return self.any_path and self.query is None and self.urls is None

    @property
    def any_request(self) -> bool:
        """Whether it holds for every method, path and query of a host."""
        return self.methods is None and self.any_url


@dataclass(frozen=True, slots=True)
class Strip:
    """The client's headers that a rule removes, in their order.

    A key names each header for Squid.
    """

    headers: tuple[str, ...]
    header_keys: tuple[str, ...]

    @classmethod
    def of(cls, headers: Iterable[str]) -> Self:
        """Make the set of these headers, of which a case or an order makes no
        difference.
        """
        kept = sorted(
            {header.lower(): header for header in headers}.values(), key=str.lower
        )
        keys = (
            sha256(header.lower().encode()).hexdigest()[:_HEADER_KEY_LENGTH]
            for header in kept
        )
        return cls(tuple(kept), tuple(keys))


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: the first that matches decides.

    `passthrough` is `tls: passthrough`; such a rule is for https alone.

    With `observe` it decides nothing: what it would have decided is recorded. With
    `body` it decides only once the body of a request has been read. With `meter`, what
    its requests use is counted by `squidkeeper bodies`. A grant is an allow that
    expires. It may have a number of `uses`; `owner` is who made it, at `made`.
    """

    name: str
    location: Location
    action: Action
    match: Match
    reason: str | None = None
    private: bool = False
    expires: datetime | None = None
    owner: str | None = None
    strip: Strip | None = None
    passthrough: bool = False
    websocket: bool = False
    # "single": a request with a body is the last on its connection to the origin.
    # "shared": the origin is trusted with connections that clients share. "own", as
    # without a word: no connection is shared with another client.
    connections: str | None = None
    preset: str | None = None  # the preset that it is of
    observe: bool = False
    uses: int | None = None
    made: datetime | None = None
    when: Schedule | None = None
    body: Body | None = None
    meter: Metering | None = None

    @property
    def variables(self) -> frozenset[str]:
        """The variables of sessions that it names."""
        refs = self.body.variables if isinstance(self.body, GitBody) else frozenset()
        return self.match.variables | refs

    @property
    def certain(self) -> bool:
        """Whether it decides a tunnel, and makes a host unrestricted where it
        allows.
        """
        return self.match.any_request and not self.asks_service

    @property
    def any_url(self) -> bool:
        """Whether it decides every request of its methods to a host, whatever path,
        query and body.
        """
        return self.match.any_url and self.body is None

    @property
    def asks_service(self) -> bool:
        """Whether requests that it matches may go to the service of bodies, to be
        decided or counted there.
        """
        return self.body is not None or self.meter is not None

    @property
    def verdict(self) -> Action:
        """What is logged where it decides."""
        return self.action.verdict

    @property
    def needs_url(self) -> bool:
        """Whether it decides no request without its URL: by its fields or body, for a
        count, or as a person decides.
        """
        return (
            not self.any_url
            or self.asks_service
            or self.action is Action.ASK
            or self.uses is not None
        )

    def lapsed(self, at: datetime) -> bool:
        """Whether the rule no longer matches."""
        return self.expires is not None and at >= self.expires

    def in_force(self, at: datetime) -> bool:
        """Whether the rule matches at a time: it has not expired, and its schedule
        holds.
        """
        return not self.lapsed(at) and (self.when is None or self.when.holds(at))


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset that the policy names; its rules are for these clients alone, or for
    every client.
    """

    name: str
    location: Location
    clients: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a rewrite leads: the parts of `to`, each still with its placeholders
    ({host}, {path}, {query}, {group}).

    `authority` is `HOST` or `HOST:PORT`; `query` starts with `?`, or with `{query}`, or
    is empty.
    """

    text: str
    scheme: str
    authority: str
    path: str
    query: str


# The rule of every approval for a session. Its decision depends on nothing else.
APPROVED: Final = Rule(
    SESSION_APPROVAL, Location("an approval for the session"), Action.ALLOW, Match()
)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewrite of an allowed request; with `redirect`, a status that sends the client
    to the target instead.
    """

    name: str
    location: Location
    match: Match
    target: Target
    redirect: int | None = None
    private: bool = False

    @property
    def variables(self) -> frozenset[str]:
        """The variables of sessions that it names."""
        return self.match.variables


@dataclass(frozen=True, slots=True)
class Parent:
    """A parent proxy: where it listens, and the credential that it asks for."""

    host: Host
    port: int
    username: str | None = None
    password: str | None = None  # the name of the secret


@dataclass(frozen=True, slots=True)
class Route:
    """An entry of `upstreams`: where an allowed request is forwarded.

    Without a parent, straight to the origin.

    With `resolve`, names that the gateway cannot resolve are the parent's to resolve.
    `key` names it for Squid: another parent of the same name has another one.
    """

    name: str
    location: Location
    match: Match
    key: str
    parent: Parent | None = None
    resolve: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        location: Location,
        match: Match,
        parent: Parent | None,
        *,
        resolve: bool,
    ) -> Self:
        """Make an entry with its key."""
        if parent is None:
            return cls(name, location, match, DIRECT)
        digest = sha256(
            f"{parent.host.text} {parent.port} {parent.username} {parent.password}".encode()
        ).hexdigest()
        return cls(
            name, location, match, f"{name}:{digest[:_KEY_LENGTH]}", parent, resolve
        )


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential: `form` is what it puts into a request."""

    name: str
    location: Location
    match: Match
    form: Form
    placeholder: str | None = None  # what clients send instead of the value

    @property
    def variables(self) -> frozenset[str]:
        """The variables of sessions that it names."""
        return self.match.variables


Entry = Rule | Rewrite | Credential
AnyEntry = Entry | Route


def is_deny(entry: AnyEntry) -> bool:
    """Whether an entry is a deny: left out, `ports` then holds for more ports than in
    an allow.
    """
    return isinstance(entry, Rule) and entry.action is Action.DENY


def covers_every_port(entry: AnyEntry) -> bool:
    """Whether `ports`, left out, holds for every port: no request gets past a parent by
    its port.
    """
    return isinstance(entry, Route) or is_deny(entry)


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """An entry of `tests:`; what is None is not checked.

    `rewrite` is `NO_REWRITE` if none may apply, `observed` is `NOT_OBSERVED` if nothing
    may be observed. Without `body` the request has none.
    """

    location: Location
    method: str
    url: str
    expect: Action
    client: Address | None = None
    user: str | None = None
    at: datetime | None = None
    rule: str | None = None
    rewrite: str | None = None
    credentials: tuple[str, ...] | None = None
    observed: str | None = None
    body: bytes | WrittenPush | None = None
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class ReloadGate:
    """How many denials an edit may bring: of distinct (client, rule, host) that were
    used in the time before it.
    """

    since_seconds: int
    denials: int


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy. `revision` is the hash of the files that it was built from.

    At an address of `session_networks` only sessions may ask. `grants` are asked where
    the default or an ask rule would decide. `ask_default` has
    the default ask. `watch` is where it says that requests are searched for its secrets
    and canaries; None where they are not. `observe_default` is where it says that what
    no rule decides is allowed, and recorded as what would be denied.
    """

    revision: str
    default_action: Action = Action.DENY
    default_reason: str | None = None
    ask_default: bool = False
    observe_default: Location | None = None
    contact: str | None = None
    clients: tuple[Client, ...] = ()
    roles: tuple[Role, ...] = ()
    session_networks: tuple[Network, ...] = ()
    rules: Sequence[Rule] = ()  # the operator's, and below them those of presets
    presets: tuple[Preset, ...] = ()
    grants: tuple[Rule, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    credentials: tuple[Credential, ...] = ()
    upstreams: tuple[Route, ...] = ()
    sealing_keys: tuple[
        str, ...
    ] = ()  # the names of the secrets that open sealed tokens
    lists: Mapping[str, HostList] = field(default_factory=dict)
    secrets: Mapping[str, NamedSecret] = field(default_factory=dict)
    canaries: Mapping[str, NamedSecret] = field(default_factory=dict)
    watch: Location | None = None
    quotas: tuple[Quota, ...] = ()
    prices: Prices = NO_PRICES
    tests: tuple[PolicyTest, ...] = ()
    reload_gate: ReloadGate | None = (
        None  # which edits of this policy are refused for what they would deny
    )

    @property
    def watches_requests(self) -> bool:
        """Whether requests are searched: for secrets and canaries, or for
        placeholders.
        """
        return self.watch is not None or any(
            credential.placeholder for credential in self.credentials
        )

    @property
    def has_sessions(self) -> bool:
        """Whether a request can belong to a session."""
        return bool(self.roles or self.session_networks)

    @property
    def meters(self) -> bool:
        """Whether `squidkeeper bodies` counts what the requests of a rule use."""
        return any(rule.meter is not None for rule in self.rules)

    @property
    def client_names(self) -> tuple[str, ...]:
        """The names that may stand in `clients`: those of clients, then of roles."""
        return (
            *(client.name for client in self.clients),
            *(role.name for role in self.roles),
        )

    @property
    def users(self) -> frozenset[str]:
        """The proxy users that it names: with `users`, or as clients with tokens."""
        named = (
            client.users or () if client.tokens is None else (client.name,)
            for client in self.clients
        )
        return frozenset(user for users in named for user in users)

    @property
    def default(self) -> Action:
        """What the default does; one that observes allows."""
        if self.observe_default:
            return Action.ALLOW
        return Action.ASK if self.ask_default else self.default_action

    @property
    def rules_and_grants(self) -> tuple[Rule, ...]:
        """The rules and grants: each is recorded as the rule that decided."""
        return (*self.rules, *self.grants)

    @property
    def entries(self) -> tuple[Rule | Rewrite | Credential, ...]:
        """The rules, grants, rewrites and credentials."""
        return (*self.rules_and_grants, *self.rewrites, *self.credentials)
