"""One client of a policy: which entries are for it, who it is on the network, which
URLs show the policy.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, product

from squidkeeper.base.errors import InvalidSetting, InvalidUrl
from squidkeeper.policy.engine import CompiledPolicy, decide
from squidkeeper.policy.engine.session_values import EntryT, bound_for
from squidkeeper.policy.language.hosts import sample_host
from squidkeeper.policy.language.model import Client, Entry, Policy, Rule, Token
from squidkeeper.policy.language.paths import sample_path
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol.request import Malformed, Request, request_to
from squidkeeper.policy.url import parse_url

ANY_CLIENT = "any client"  # one that the policy does not name
_UNLISTED = "https://unlisted.example/"


@dataclass(frozen=True, slots=True)
class KitClient:
    """A client of a policy, or without `client` one that the policy does not name."""

    client: Client | None = None
    user: str | None = None
    session: Session | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which entries are for it: of the client, of the role."""
        client = (self.client.name,) if self.client else ()
        return (*client, self.session.role) if self.session else client

    @property
    def name(self) -> str:
        """The name of the client, or of the role."""
        return self.names[0] if self.names else ANY_CLIENT

    @property
    def address(self) -> str | None:
        """An address of the client's networks, None where it has none."""
        if self.client is None or not self.client.networks:
            return None
        network = self.client.networks[0]
        return str(network[min(1, network.num_addresses - 1)])

    def concerns(self, entry: Entry) -> bool:
        """Whether an entry is for this client: it names the client, or no client."""
        names = entry.match.clients
        return names is None or not names.isdisjoint(self.names)

    def own(self, entries: Iterable[EntryT]) -> Iterator[EntryT]:
        """Yield the entries that are for this client, with the values of its
        session.
        """
        for entry in filter(self.concerns, entries):
            yield bound_for(entry, self.session) if self.session else entry


def client_of(policy: Policy, name: str | None, user: str | None = None) -> KitClient:
    """Find a client by its name; of several proxy users, `user` chooses one."""
    if name is None:
        return KitClient(None, user)
    client = next((client for client in policy.clients if client.name == name), None)
    if client is None:
        known = (
            ", ".join(client.name for client in policy.clients)
            or "none: leave --client out"
        )
        raise InvalidSetting(
            f"{name!r} is not a client of the policy, which has {known}"
        )
    users = [client.name] if client.tokens is not None else sorted(client.users or ())
    if user is not None and users and user not in users:
        raise InvalidSetting(
            f"{user!r} is not a user of the client {name}, which has {', '.join(users)}"
        )
    if user is None and len(users) > 1:
        raise InvalidSetting(
            f"the client {name} has {len(users)} users, name one: {', '.join(users)}"
        )
    return KitClient(client, user if user is not None else next(iter(users), None))


def parse_token(client: Client | None, text: str, at: datetime) -> str:
    """Check that a text, which is never shown, is a token of the client that has not
    expired.
    """
    token = Token.of(text)
    known = {token.sha256: token for token in (client.tokens if client else None) or ()}
    if token.sha256 not in known:
        name = client.name if client else "that --client names"
        raise InvalidSetting(
            f"this is no token of the client {name}: make one by `squidkeeper client add`"
        )
    if known[token.sha256].lapsed(at):
        raise InvalidSetting(
            f"the token {token.id} has expired: make one by `squidkeeper client add`"
        )
    return text


def parse_probed_url(text: str) -> str:
    """Check a URL that the probe is to try, and write it without spaces: the probe
    separates URLs by them.
    """
    try:
        return str(parse_url(text))
    except InvalidUrl as error:
        raise InvalidSetting(
            f"{text!r} is not a URL to try, expected http:// or https://: {error}"
        ) from error


def allowed_url(policy: CompiledPolicy, client: KitClient, at: datetime) -> str | None:
    """Return a URL that the policy allows this client to GET; None where no rule names
    one.

    A URL without a credential comes first: it is fetched for a test.
    """
    tried = (
        (url, decide(policy, policy.match(_get(url, client)), at))
        for url in _urls(policy.source, client)
    )
    open_to_all = (
        (url, decision)
        for url, decision in tried
        if decision.allowed and not decision.by_body
    )
    allowed = [
        (len(decision.credentials), decision.private, url)
        for url, decision in open_to_all
    ]
    return min(allowed, key=lambda choice: choice[:2])[2] if allowed else None


def denied_url(policy: CompiledPolicy, client: KitClient, at: datetime) -> str | None:
    """Return a URL that the policy denies this client; None where it denies none that a
    rule names.
    """
    for url in chain(_urls(policy.source, client), [_UNLISTED]):
        if not decide(policy, policy.match(_get(url, client)), at).allowed:
            return url
    return None


def _get(url: str, client: KitClient) -> Request | Malformed:
    request = request_to("GET", url, client.address, client.user)
    if isinstance(request, Malformed):
        return request
    return request._replace(session=client.session)


def _urls(policy: Policy, client: KitClient) -> Iterator[str]:
    """Yield URLs for the rules of a client, in the policy's order; denies and allows.

    Not for rules that pass tunnels through: what answers there shows a certificate of
    its own.
    """
    for rule in client.own(policy.rules):
        if not rule.passthrough:
            yield from _urls_of(rule)


def _urls_of(rule: Rule) -> Iterator[str]:
    match = rule.match
    scheme = "https" if match.schemes is None or "https" in match.schemes else "http"
    usual = 443 if scheme == "https" else 80
    ports = match.ports
    port = (
        ""
        if ports is None or any(usual in port for port in ports)
        else f":{ports[0][0]}"
    )
    paths = [pattern.text for pattern in match.paths or ()] or ["/"]
    for host, path in product(
        map(sample_host, match.hosts or ()), map(sample_path, paths)
    ):
        if host and path:
            with suppress(InvalidSetting):  # a pattern can be for what no client sends
                yield parse_probed_url(f"{scheme}://{host}{port}{path}")
