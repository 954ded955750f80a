"""What of a policy goes into Squid's configuration, as values that check themselves.

An account that root does not trust names them, as JSON. Root decodes them: each type is
closed, so that no text of a policy becomes a directive.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Self
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from squidkeeper.base.errors import SecretUnavailable
from squidkeeper.policy.language.forms import signs
from squidkeeper.policy.language.hosts import HostForm
from squidkeeper.policy.language.model import Parent, Policy, Route
from squidkeeper.policy.language.quotas import LARGEST_SIZE, QuotaUnit, largest_answer
from squidkeeper.policy.language.secret_sources import FileSource
from squidkeeper.policy.language.upstreams import DEFAULT, parse_upstream_url
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.parts import Part, named_parts, needed_keys

HeaderName = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9]+([-_][A-Za-z0-9]+)*\Z", max_length=64)
]
HeaderKey = Annotated[str, Meta(pattern=r"\A[0-9a-f]{1,16}\Z")]
UpstreamName = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,31}(:[0-9a-f]{1,16})?\Z")
]
HostName = Annotated[
    str,
    Meta(
        pattern=r"\A([a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])\Z",
        max_length=253,
    ),
]
HostTree = Annotated[
    str, Meta(pattern=r"\A\.?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?\Z", max_length=254)
]
Port = Annotated[int, Meta(ge=1, le=65535)]
Login = Annotated[
    str, Meta(pattern=r"\A([A-Za-z0-9_.~%-]+:[A-Za-z0-9_.~%-]*)?\Z", max_length=4096)
]
Size = Annotated[int, Meta(ge=1, le=LARGEST_SIZE)]
Key = Annotated[
    str, Meta(pattern=r"\A[a-z0-9]+([a-z0-9-]*)(\.[A-Za-z0-9_.:-]{1,100})?\Z")
]
_MOST: Final = 4096  # of anything


class Peer(Struct, frozen=True, forbid_unknown_fields=True):
    """A parent proxy, and the credential that it asks for, as `login=` takes it."""

    key: UpstreamName
    host: HostName
    port: Port
    login: Login = ""

    @property
    def name(self) -> str:
        """The name of the upstream."""
        return self.key.partition(":")[0]

    def __repr__(self) -> str:
        """Show no password."""
        return f"Peer({self.key} {self.host}:{self.port})"


class Values(Struct, frozen=True, forbid_unknown_fields=True):
    """The parts, and what is filled into them.

    `strips` has the key of each header that a rule removes, in lower case. `injects`
    are the headers of credentials. `signs` and `searches`: the policy signs requests,
    and searches them for secrets. `bytes_out` is the largest limit of such a quota,
    `largest_answer` what an answer of unknown length may have under one of `bytes_in`.
    `asked_hosts` are those of requests that may go to the service of bodies,
    `.example.com` with the hosts under it; None: every host. `default` is the parent of
    install.sh's --upstream. `documented`: no tunnel shares connections to origins
    (install.sh --bump). `password_files` stand in no line: a change of one is an edit.
    """

    keys: Annotated[frozenset[Key], Meta(max_length=_MOST)] = frozenset()
    strips: Annotated[dict[HeaderName, HeaderKey], Meta(max_length=_MOST)] = {}
    injects: Annotated[tuple[HeaderName, ...], Meta(max_length=_MOST)] = ()
    peers: Annotated[tuple[Peer, ...], Meta(max_length=_MOST)] = ()
    signs: bool = False
    searches: bool = False
    bytes_out: Size | None = None
    largest_answer: Size | None = None
    asked_hosts: Annotated[tuple[HostTree, ...], Meta(max_length=_MOST)] | None = ()
    default: Peer | None = None
    documented: bool = False
    password_files: Annotated[
        tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(max_length=_MOST)
    ] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are needed, in their order.

        A default parent would see what a shared tunnel hides from it.
        """
        keys = self.keys | {Part.UPSTREAMS} if self.default else self.keys
        removed = {Part.SHARED} if self.default or self.documented else set()
        return named_parts(keys - removed)

    @property
    def inspects_bodies(self) -> bool:
        """Whether a rule has a `body`, so that `squidkeeper bodies` has to run."""
        return Part.BODIES in self.keys

    @property
    def in_force(self) -> tuple[str, ...]:
        """The keys that the helpers are told."""
        return ("core", *sorted({*(self.keys - {"core", *Part}), *self.parts}))

    def with_default(self, url: str) -> Self:
        """Add the parent of --upstream; an empty URL: none."""
        if not url:
            return msgspec.structs.replace(self, default=None)
        host, port = parse_upstream_url(url)
        return msgspec.structs.replace(self, default=Peer(DEFAULT, host.text, port))


def values_of(policy: Policy, secrets: SecretStore) -> tuple[Values, tuple[str, ...]]:
    """Make the values of a policy; also what keeps a parent's password from being read.

    Such a parent is left out.
    """
    found = [
        _peer(route, route.parent, secrets)
        for route in policy.upstreams
        if route.parent is not None
    ]
    problems = tuple(peer for peer in found if isinstance(peer, str))
    peers = {peer.key: peer for peer in found if isinstance(peer, Peer)}
    lacking = {
        f"upstream.{one.key}"
        for one in policy.upstreams
        if one.parent is not None and one.key not in peers
    }
    limits = [
        quota.limit for quota in policy.quotas if quota.unit is QuotaUnit.BYTES_OUT
    ]
    values = Values(
        keys=needed_keys(policy) - lacking,
        strips=dict(_strips(policy)),
        injects=tuple(
            dict.fromkeys(
                name
                for credential in policy.credentials
                for name in credential.form.rendered
            )
        ),
        peers=tuple(peers.values()),
        signs=any(signs(credential.form) for credential in policy.credentials),
        searches=policy.watch is not None,
        bytes_out=max(limits, default=None),
        largest_answer=largest_answer(policy.quotas),
        asked_hosts=_asked_hosts(policy),
        password_files=tuple(_password_files(policy)),
    )
    return values, problems


def _password_files(policy: Policy) -> Iterator[str]:
    for route in policy.upstreams:
        source = (
            policy.secrets[route.parent.password].source
            if route.parent and route.parent.password
            else None
        )
        if isinstance(source, FileSource):
            yield str(source.path)


def _strips(policy: Policy) -> Iterator[tuple[str, str]]:
    for rule in policy.rules_and_grants:
        if rule.strip:
            yield from zip(
                map(str.lower, rule.strip.headers), rule.strip.header_keys, strict=True
            )


def _asked_hosts(policy: Policy) -> tuple[str, ...] | None:
    """List the hosts of the rules that ask the service of bodies; None where one cannot
    be written as names.
    """
    matches = [rule.match for rule in policy.rules if rule.asks_service]
    patterns = [pattern for match in matches for pattern in match.hosts or ()]
    if any(match.hosts is None or match.lists for match in matches) or not all(
        one.name for one in patterns
    ):
        return None
    names = {
        one.name if one.form is HostForm.EXACT else f".{one.name}" for one in patterns
    }
    return tuple(sorted(names)) if len(names) <= _MOST else None


def _peer(route: Route, parent: Parent, secrets: SecretStore) -> Peer | str:
    login = ""
    if parent.username is not None and parent.password is not None:
        try:
            login = ":".join(
                quote(text, safe="")
                for text in (parent.username, secrets.get(parent.password).reveal())
            )
        except SecretUnavailable as error:
            return str(error)
    return Peer(route.key, parent.host.text, parent.port, login)


def encode_values(values: Values) -> str:
    """Write values as JSON. It holds passwords."""
    return msgspec.json.encode(values, order="deterministic").decode()


def decode_values(text: str | bytes) -> Values:
    """Read values from JSON, and check each; ValueError, without the value, where one
    is not what it may be.
    """
    try:
        return msgspec.json.decode(text, type=Values)
    except msgspec.DecodeError as error:  # names the field and what was expected of it
        raise ValueError(
            f"the values of the policy are not what may stand in Squid's configuration: {error}"
        ) from None


def merge(former: Values, new: Values) -> Values:
    """Add to what is there: nothing is removed while Squid runs, so that an edit that
    is taken back changes nothing.

    A number, a password and --upstream are replaced.
    """
    peers = {peer.key: peer for peer in (*former.peers, *new.peers)}
    bound = {key for key in former.keys if key.startswith(_BOUNDS)}
    return Values(
        keys=(former.keys - bound) | new.keys,
        strips=former.strips | new.strips,
        injects=tuple(dict.fromkeys((*former.injects, *new.injects))),
        peers=tuple(peers.values()),
        signs=former.signs or new.signs,
        searches=former.searches or new.searches,
        bytes_out=new.bytes_out,
        largest_answer=new.largest_answer,
        asked_hosts=_both(former.asked_hosts, new.asked_hosts),
        default=new.default or former.default,
        documented=former.documented,
        password_files=new.password_files,
    )


def _both(
    former: tuple[str, ...] | None, new: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    if former is None or new is None or len(hosts := {*former, *new}) > _MOST:
        return None
    return tuple(sorted(hosts))


_BOUNDS: Final = (f"{Part.QUOTAS}.bytes_out-", f"{Part.QUOTAS}.bytes_in-")
