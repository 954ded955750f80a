"""A decision: a denial is a value, never an exception."""

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from squidkeeper.base.faults import Location
from squidkeeper.policy.language.forms import QueryParameters
from squidkeeper.policy.language.model import (
    POLICY_UNAVAILABLE,
    Action,
    Credential,
    Rewrite,
    Route,
    Rule,
    Strip,
    Unavailable,
)
from squidkeeper.policy.language.prices import Metering
from squidkeeper.policy.protocol.request import TunnelMode
from squidkeeper.policy.url import Url

_LONGEST_REASON = 1_000  # characters, as of the reasons that a policy gives


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A rewrite that applies, and the URL it leads to."""

    rewrite: Rewrite
    url: Url


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a decision about a host tells of the requests to it.

    `needs_url` means that the URL decides, `may_ask` that a URL can be asked about.
    `may_rewrite` and `may_inject` mean that a rewrite or a credential could apply,
    `may_add_parameters` that a credential could add to the query, so that the rewriter
    is asked, and `needs_headers` that the credential helper has to see the client's
    headers. `unrestricted` means that the host is open for every method and path and
    has no rewrite, and `credential_varies` that its methods and paths can get different
    credentials. `under_quota` means that a quota may count a request. `mode` is the
    mode of the tunnel that an allowed request needs, and `mode_reason` says why. Over
    plain http `SHARED` means that the request may share a connection.
    """

    needs_url: bool = False
    may_ask: bool = False
    may_rewrite: bool = False
    may_inject: bool = False
    may_add_parameters: bool = False
    needs_headers: bool = False
    unrestricted: bool = False
    credential_varies: bool = False
    under_quota: bool = False
    mode: TunnelMode = TunnelMode.OWN
    mode_reason: str = ""

    @property
    def asks_more(self) -> bool:
        """Whether anything is still asked about a request."""
        by_url = self.needs_url or self.may_ask
        return (
            by_url
            or self.may_rewrite
            or self.may_inject
            or self.needs_headers
            or self.under_quota
        )


NOTHING_MORE = Outlook()


class Forwarded(NamedTuple):
    """How an allowed request is forwarded."""

    websocket: bool
    connections: str | None
    strip: Strip | None
    meter: Metering | None


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """An action, the rule that decided and the reason.

    `rule` is a rule's name or a built-in rule such as `default`; `location` is where
    the policy has that rule. `private` allows a private address. `outlook` is what a
    decision at host scope tells of the requests. `asks` is a denial that a person may
    grant, at host scope that every URL is one. `counted` is the grant that allows,
    where it has a number of uses. `passthrough` means that the tunnel is spliced,
    `websocket` that the request may become a WebSocket. `connections` is how
    connections to the origin are used, as the rule says. At request scope `rewritten`
    and `credentials` are what applies. `strip` is what is removed from a request.
    `upstream` is where a request is forwarded: at host scope, and where it is
    rewritten. `observed` is what a rule that observes would have decided, as it is
    recorded: `allow:RULE` or `deny:RULE`. At host scope `observes_url` means that this
    depends on the URL. `by_body` are the rules that the body decides among: the first
    that holds. The last is the first without `body`; where the last has one, the
    default decides if none holds. `rule` is the first of them that allows. `found` is
    why a body was denied, for the record. `meter` is set where `squidkeeper bodies`
    counts what is used. Of the rules `by_body`, the one that holds has its own. A
    decision is equal to itself alone.
    """

    action: Action
    rule: str
    reason: str | None = None
    location: Location | None = None
    private: bool = False
    outlook: Outlook = NOTHING_MORE
    passthrough: bool = False
    websocket: bool = False
    connections: str | None = None
    rewritten: Rewritten | None = None
    credentials: tuple[Credential, ...] = ()
    strip: Strip | None = None
    upstream: Route | None = None
    observed: str | None = None
    observes_url: bool = False
    asks: bool = False
    counted: Rule | None = None
    by_body: tuple[Rule, ...] = ()
    found: str | None = None
    meter: Metering | None = None

    @property
    def allowed(self) -> bool:
        """Whether the request may pass."""
        return self.action is Action.ALLOW

    @property
    def mode(self) -> TunnelMode:
        """The mode of the tunnel, for a decision about a host.

        What is denied is denied request by request.
        """
        return self.outlook.mode if self.allowed else TunnelMode.FIRST

    @property
    def forwarded(self) -> Forwarded:
        """How an allowed request is forwarded, wherever it goes."""
        return Forwarded(self.websocket, self.connections, self.strip, self.meter)

    @property
    def redirects(self) -> bool:
        """Whether the client is told to ask elsewhere, so that nothing is fetched."""
        return (
            self.rewritten is not None and self.rewritten.rewrite.redirect is not None
        )

    @property
    def parameters(self) -> list[tuple[str, QueryParameters]]:
        """The parameters of the query that credentials add, with the names of these."""
        forms = ((credential.name, credential.form) for credential in self.credentials)
        return [
            (name, form) for name, form in forms if isinstance(form, QueryParameters)
        ]

    @property
    def reads_body(self) -> bool:
        """Whether `squidkeeper bodies` is asked about the request."""
        return bool(self.by_body) or self.meter is not None

    @property
    def final(self) -> bool:
        """Whether an allow at host scope leaves nothing to ask about the request."""
        asks_more = self.outlook.asks_more or self.observes_url
        return self.allowed and not (
            asks_more or self.by_body or self.strip or self.upstream
        )


def deny(rule: str, reason: str) -> Decision:
    """Deny by a built-in rule; the reason, which may hold what a client sent, is cut at
    1,000 characters.
    """
    return Decision(Action.DENY, rule, reason[:_LONGEST_REASON])


def unavailable(why: Unavailable, reason: str) -> Decision:
    """Deny because nothing can decide; `why` is for the record."""
    return replace(deny(POLICY_UNAVAILABLE, reason), found=why)


OUTDATED: Final = deny(
    "tunnel-outdated",
    "The policy has changed since this connection was opened. Open a new one.",
)


class TunnelUse(NamedTuple):
    """The mode of a tunnel, and the reason for people."""

    mode: TunnelMode
    reason: str
