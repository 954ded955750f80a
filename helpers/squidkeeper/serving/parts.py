"""The parts of Squid's configuration: what a policy needs, what a decision needs, and
what is in force.

A key names a part (`strip`), or a line of one (`strip.x-debug`). Squid's configuration
states the keys that are in force to its helpers (`--in-force`). A request that needs
another one is denied until it is there.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.engine import CompiledPolicy, Decision, deny
from squidkeeper.policy.engine.tunnels import may_share
from squidkeeper.policy.language.forms import AwsSigV4, QueryParameters, signs
from squidkeeper.policy.language.model import (
    DIRECT,
    Action,
    Credential,
    Policy,
    Route,
    Strip,
)
from squidkeeper.policy.language.quotas import QuotaUnit, largest_answer
from squidkeeper.policy.language.upstreams import DEFAULT

NOT_RENDERED: Final = "not-rendered"
CORE: Final = "core"
SESSIONS: Final = "sessions"  # where the policy has roles
_IN_FORCE: Final = re.compile(r"--in-force ([\w.,:-]+)", re.ASCII)
_POLICY: Final = re.compile(r"--policy (\S+)")


class Part(StrEnum):
    """A file of squid/parts/, without its suffix."""

    ASK = "ask"
    BODIES = "bodies"
    CERTIFICATES = "certificates"
    CREDENTIALS = "credentials"
    CREDENTIALS_BY_HEADERS = "credentials-by-headers"
    LOGIN = "login"
    METER = "meter"
    OVERRIDE_HEADERS = "override-headers"
    PAGES = "pages"
    PASSTHROUGH = "passthrough"
    PRIVATE = "private"
    QUOTAS = "quotas"
    READ_HEADERS = "read-headers"
    REWRITES = "rewrites"
    SHARED = "shared"
    SINGLE = "single"
    STRIP = "strip"
    UPSTREAMS = "upstreams"
    WATCH = "watch"
    WEBSOCKET = "websocket"


def _reads_headers(policy: Policy) -> bool:
    return bool(policy.sealing_keys) or any(
        signs(credential.form) for credential in policy.credentials
    )


def _opens_private(policy: Policy) -> bool:
    return any(rule.private for rule in policy.rules_and_grants) or any(
        rewrite.private for rewrite in policy.rewrites
    )


def _has_websockets(policy: Policy) -> bool:
    """Whether a WebSocket is allowed: by a rule that names it, or on a host that is
    open for every request.
    """
    opened = (
        rule.websocket or (rule.certain and rule.action is Action.ALLOW)
        for rule in policy.rules_and_grants
    )
    return policy.default_action is Action.ALLOW or any(opened)


TOKENS_COUNTED: Final = f"{Part.METER}.quotas"
# Whether a policy needs a part.
NEEDED: Final[Mapping[Part, Callable[[Policy], bool]]] = {
    Part.ASK: lambda policy: (
        policy.ask_default or any(rule.action is Action.ASK for rule in policy.rules)
    ),
    Part.BODIES: lambda policy: any(rule.asks_service for rule in policy.rules),
    Part.CERTIFICATES: lambda _: True,
    Part.CREDENTIALS: lambda policy: bool(
        policy.credentials or policy.sealing_keys or policy.rewrites
    ),
    Part.CREDENTIALS_BY_HEADERS: _reads_headers,
    Part.LOGIN: lambda policy: (
        any(client.tokens is not None for client in policy.clients)
        or bool(policy.roles)
    ),
    Part.METER: lambda policy: policy.meters,
    Part.OVERRIDE_HEADERS: lambda _: True,
    Part.PAGES: lambda _: True,
    Part.PASSTHROUGH: lambda policy: any(
        rule.passthrough for rule in policy.rules_and_grants
    ),
    Part.PRIVATE: _opens_private,
    Part.QUOTAS: lambda policy: (
        not all(quota.unit.is_tokens for quota in policy.quotas)
    ),
    Part.READ_HEADERS: lambda policy: policy.watches_requests or _reads_headers(policy),
    Part.REWRITES: lambda policy: (
        bool(policy.rewrites)
        or any(
            isinstance(credential.form, QueryParameters)
            for credential in policy.credentials
        )
    ),
    Part.SHARED: may_share,
    Part.SINGLE: lambda policy: any(
        rule.connections == "single" for rule in policy.rules_and_grants
    ),
    Part.STRIP: lambda policy: any(rule.strip for rule in policy.rules_and_grants),
    Part.UPSTREAMS: lambda policy: bool(policy.upstreams),
    Part.WATCH: lambda policy: policy.watches_requests,
    Part.WEBSOCKET: _has_websockets,
}


def needed_keys(policy: Policy) -> frozenset[str]:
    """List the keys that a policy needs."""
    parts = (part for part, is_needed in NEEDED.items() if is_needed(policy))
    strips = (key for rule in policy.rules_and_grants for key in _of_strip(rule.strip))
    upstreams = (key for route in policy.upstreams for key in _of_upstream(route))
    return frozenset(
        (
            CORE,
            *parts,
            *strips,
            *_of_credentials(policy.credentials),
            *upstreams,
            *_of_policy(policy),
        )
    )


def needed_by(policy: CompiledPolicy) -> frozenset[str]:
    """List the keys that a policy needs; one that is published has them listed."""
    known = policy.index.needs
    return needed_keys(policy.source) if known is None else known


def keys_of(decision: Decision) -> frozenset[str]:
    """List the keys that a decision needs, beside those of every request under its
    policy.
    """
    outlook = decision.outlook
    flags = (
        (Part.BODIES, bool(decision.by_body or decision.meter)),
        (
            Part.CREDENTIALS,
            outlook.may_inject or outlook.may_rewrite or bool(decision.credentials),
        ),
        (Part.CREDENTIALS_BY_HEADERS, outlook.needs_headers),
        (
            Part.METER,
            bool(decision.meter) or any(rule.meter for rule in decision.by_body),
        ),
        (Part.READ_HEADERS, outlook.needs_headers),
        (Part.PASSTHROUGH, decision.passthrough),
        (Part.PRIVATE, decision.private),
        (Part.QUOTAS, outlook.under_quota),
        (
            Part.REWRITES,
            outlook.may_rewrite
            or outlook.may_add_parameters
            or decision.rewritten is not None,
        ),
        (Part.SINGLE, decision.connections == "single"),
        (Part.WEBSOCKET, decision.websocket),
    )
    parts = (part for part, holds in flags if holds)
    return frozenset(
        (
            *parts,
            *_of_strip(decision.strip),
            *_of_credentials(decision.credentials),
            *_of_upstream(decision.upstream),
        )
    )


def _of_policy(policy: Policy) -> Iterator[str]:
    if policy.has_sessions:
        yield SESSIONS
    if policy.watch:
        yield f"{Part.WATCH}.secrets"
    if any(quota.unit.is_tokens for quota in policy.quotas):
        yield TOKENS_COUNTED
    limits = [
        quota.limit for quota in policy.quotas if quota.unit is QuotaUnit.BYTES_OUT
    ]
    if limits:
        yield f"{Part.QUOTAS}.bytes_out-{max(limits)}"
    if largest := largest_answer(policy.quotas):
        yield f"{Part.QUOTAS}.bytes_in-{largest}"


def _of_strip(strip: Strip | None) -> Iterator[str]:
    if strip is not None:
        yield Part.STRIP
        yield from (f"{Part.STRIP}.{header.lower()}" for header in strip.headers)


def _of_credentials(credentials: Iterable[Credential]) -> Iterator[str]:
    for credential in credentials:
        yield from (f"inject.{header.lower()}" for header in credential.form.rendered)
        if isinstance(credential.form, AwsSigV4):
            yield "inject.aws_sigv4"


def _of_upstream(route: Route | None) -> Iterator[str]:
    if route is not None and route.key not in (DIRECT, DEFAULT):
        yield from (Part.UPSTREAMS, f"upstream.{route.key}")


def read_in_force(fragment: str) -> frozenset[str]:
    """Read the keys that an installed squidkeeper.conf states to the helpers."""
    return parse_in_force(_IN_FORCE.findall(fragment))


def is_draft(directory: Path, fragment: str) -> bool:
    """Whether a policy is another than the one that an installed squidkeeper.conf names
    to the helpers.
    """
    named = _POLICY.search(fragment)
    return named is not None and directory.resolve() != Path(named[1]).resolve()


def named_parts(keys: Iterable[str]) -> tuple[Part, ...]:
    """List the parts among keys, in their order."""
    present = frozenset(keys)
    return tuple(part for part in Part if part in present)


def not_in_force(policy: Policy, keys: frozenset[str], place: str) -> Iterator[Fault]:
    """Warn about what a policy needs and Squid's configuration, which is at `place`,
    does not have.
    """
    missing = PartsInForce(needed_keys(policy), keys).missing
    if missing:
        message = (
            f"Squid's configuration does not have "
            f"{', '.join(sorted(missing))} yet: requests that need it are denied"
        )
        yield Fault(Location(place), FaultCode.NOT_RENDERED, message)


def parse_in_force(options: Iterable[str]) -> frozenset[str]:
    """Read the values of `--in-force`."""
    return frozenset(key for keys in options for key in keys.split(",") if key)


class PartsInForce:
    """What a policy needs and Squid's configuration does not have; nothing where no
    configuration is asked (None).
    """

    def __init__(self, needed: frozenset[str], keys: frozenset[str] | None) -> None:
        # Without the part `shared`, each tunnel has a connection of its own.
        optional = {CORE, Part.SHARED, SESSIONS}
        self.missing = frozenset[str]() if keys is None else needed - keys - optional
        self._everywhere = self.missing & {Part.WATCH, f"{Part.WATCH}.secrets"}
        self._upstreams = frozenset(
            key for key in self.missing if key.startswith("upstream")
        )
        self._denials: dict[frozenset[str], Decision] = {}

    def checked(self, decision: Decision) -> Decision:
        """Deny what a decision allows and Squid's configuration cannot do yet."""
        if not self.missing or not decision.allowed:
            return decision
        lacking = self.lacking(decision)
        if not lacking:
            return decision
        known = self._denials.get(lacking)
        if known is None:
            # there are as many as combinations of keys in use; the next policy begins
            # again
            known = self._denials[lacking] = not_rendered(lacking)
        return known

    def lacking(self, decision: Decision) -> frozenset[str]:
        """List the keys that a decision needs and that are not in force.

        A rewrite can lead to any upstream.
        """
        led = self._upstreams if decision.outlook.may_rewrite else frozenset()
        return (keys_of(decision) & self.missing) | self._everywhere | led


def not_rendered(lacking: Iterable[str]) -> Decision:
    """Deny a request that needs keys which are not in force."""
    names = ", ".join(sorted(lacking))
    return deny(
        NOT_RENDERED,
        f"The policy allows this request, and Squid does not have what it needs yet: {names}. It comes within seconds:"
        " repeat the request.",
    )
