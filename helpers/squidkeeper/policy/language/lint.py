"""Warnings that need the whole policy: what is legal in it and probably a mistake."""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import datetime
from difflib import get_close_matches
from itertools import product
from pathlib import PurePath

from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language.body_warnings import narrowing_nothing
from squidkeeper.policy.language.grants import FLEET_GRANTS
from squidkeeper.policy.language.host_index import HostIndex
from squidkeeper.policy.language.hosts import HostForm
from squidkeeper.policy.language.matching.covering_index import CoveringIndex
from squidkeeper.policy.language.matching.host_fields import is_for_every_host
from squidkeeper.policy.language.matching.port_ranges import (
    EVERY_PORT,
    common,
    contain,
    joined,
    ports_of,
)
from squidkeeper.policy.language.matching.table import covers_by, outlasts
from squidkeeper.policy.language.meter_faults import (
    below_a_reserve,
    never_used,
    shadowed_prices,
    uncounted,
)
from squidkeeper.policy.language.model import (
    Action,
    Match,
    Policy,
    Rewrite,
    Rule,
)
from squidkeeper.policy.language.public_suffixes import is_public_suffix
from squidkeeper.policy.language.queries import QueryPattern
from squidkeeper.policy.language.quotas import Counted
from squidkeeper.policy.language.secret_sources import needed_secrets
from squidkeeper.policy.language.sharing import not_shared
from squidkeeper.policy.url import DEFAULT_PORTS, is_private, parse_authority


def lint(policy: Policy, now: datetime) -> tuple[Fault, ...]:
    """List the warnings about a policy at a time, in the order of their positions."""
    return tuple(
        sorted(
            {
                *_lapsed(policy, now),
                *_observing_default(policy),
                *_never_in_force(policy, now),
                *_shadowed(policy, now),
                *narrowing_nothing(policy, now),
                *_unused(policy),
                *_unused_variables(policy),
                *_hidden_clients(policy),
                *_every_host(policy),
                *_public_suffixes(policy),
                *_unopened_addresses(policy),
                *_unknown_methods(policy),
                *_strange_expressions(policy),
                *_never(policy),
                *_upgrades(policy),
                *_grpc_paths(policy),
                *_git_paths(policy),
                *_upstreams(policy),
                *not_shared(policy),
                *never_used(policy),
                *below_a_reserve(policy),
                *uncounted(policy),
                *shadowed_prices(policy),
            }
        )
    )


def open_to_any_client(
    policy: Policy, directory: str, now: datetime
) -> tuple[Fault, ...]:
    """List the rules that allow any client, and the default if it does; its location is
    the policy's directory.
    """
    found = [
        Fault(
            rule.location,
            FaultCode.ANY_CLIENT,
            f"rule {rule.name!r} allows any client, as it names no clients",
        )
        for rule in policy.rules
        if _opens(rule)
        and rule.match.clients is None
        and rule.preset is None
        and not rule.lapsed(now)
    ]
    for preset in policy.presets:
        if preset.clients is None:
            message = f"preset {preset.name!r} allows any client, expected {{preset: {preset.name}, clients: [...]}}"
            found.append(Fault(preset.location, FaultCode.ANY_CLIENT, message))
    for grant in policy.grants:
        if grant.match.clients is None and not grant.lapsed(now):
            message = f"grant {grant.name!r} is for any client (any_client: true)"
            found.append(Fault(grant.location, FaultCode.ANY_CLIENT, message))
    if policy.default_action is Action.ALLOW or policy.observe_default:
        how = "observe: true" if policy.observe_default else "action: allow"
        message = f"the default allows any client (defaults: {{{how}}})"
        found.append(
            Fault(
                policy.observe_default or Location(directory),
                FaultCode.ANY_CLIENT,
                message,
            )
        )
    return tuple(found)


def _opens(rule: Rule) -> bool:
    """Whether a rule allows: one that observes decides nothing."""
    return rule.action is Action.ALLOW and not rule.observe


def _closes(rule: Rule) -> bool:
    """Whether a rule denies: one that observes decides nothing."""
    return rule.action is Action.DENY and not rule.observe


def _observing_default(policy: Policy) -> Iterator[Fault]:
    if policy.observe_default is not None:
        message = "what no rule decides is ALLOWED, and recorded as what would be denied (ports 80 and 443, public"
        remedy = (
            "addresses): remove 'observe' from 'defaults' once the rules are complete"
        )
        yield Fault(
            policy.observe_default, FaultCode.OBSERVING_DEFAULT, f"{message} {remedy}"
        )


def _lapsed(policy: Policy, now: datetime) -> Iterator[Fault]:
    for rule in policy.rules:
        if rule.expires is not None and rule.lapsed(now):
            message = f"rule {rule.name!r} lapsed at {rule.expires.isoformat()} and no longer matches"
            yield Fault(rule.location, FaultCode.RULE_LAPSED, message)
    for grant in policy.grants:
        if grant.expires is not None and grant.lapsed(now):
            fleet = (
                " --fleet REPOSITORY"
                if PurePath(grant.location.file).name == FLEET_GRANTS
                else ""
            )
            message = f"grant {grant.name!r} lapsed at {grant.expires.isoformat()} (`squidkeeper grant{fleet} --prune`)"
            yield Fault(grant.location, FaultCode.RULE_LAPSED, message)


def _never_in_force(policy: Policy, now: datetime) -> Iterator[Fault]:
    for rule in policy.rules:
        if rule.when is None or rule.expires is None or rule.lapsed(now):
            continue
        if not rule.when.holds_between(now, rule.expires):
            message = f"rule {rule.name!r} no longer matches: its 'when' does not hold before it expires"
            yield Fault(rule.location, FaultCode.WHEN_NEVER, message)


def _unused(policy: Policy) -> Iterator[Fault]:
    matches = [entry.match for entry in (*policy.entries, *policy.upstreams)]
    secrets = _all(credential.form.secrets for credential in policy.credentials)
    secrets |= {
        route.parent.password
        for route in policy.upstreams
        if route.parent and route.parent.password
    }
    secrets |= _all(needed_secrets(secret.source) for secret in policy.secrets.values())
    secrets |= {*policy.sealing_keys} | ({*policy.secrets} if policy.watch else set())
    clients = _all(m.clients for m in matches) | _all(
        quota.clients for quota in policy.quotas
    )
    if any(
        quota.per is Counted.CLIENT and quota.clients is None for quota in policy.quotas
    ):
        clients |= {
            client.name
            for client in policy.clients
            if client.users or client.tokens is not None
        }
    sections: tuple[tuple[str, Mapping[str, Location], set[str]], ...] = (
        (
            "client",
            {client.name: client.location for client in policy.clients},
            clients,
        ),
        ("role", {role.name: role.location for role in policy.roles}, clients),
        (
            "list",
            {name: hosts.location for name, hosts in policy.lists.items()},
            _all(m.lists for m in matches),
        ),
        (
            "secret",
            {source.name: source.location for source in policy.secrets.values()},
            secrets,
        ),
    )
    for kind, defined, used in sections:
        for name, location in defined.items():
            if name not in used:
                yield Fault(location, FaultCode.UNUSED, f"{kind} {name!r} is not used")


def _unused_variables(policy: Policy) -> Iterator[Fault]:
    for role in policy.roles:
        used = {
            name
            for entry in policy.entries
            if role.name in (entry.match.clients or ())
            for name in entry.variables
        }
        for variable in role.variables:
            if variable.name not in used:
                message = (
                    f"variable {variable.name!r} of role {role.name!r} is not used"
                )
                yield Fault(role.location, FaultCode.UNUSED, message)


def _hidden_clients(policy: Policy) -> Iterator[Fault]:
    """Find the clients by address alone where only sessions open anything."""
    for client in policy.clients:
        if client.users is not None or client.tokens is not None:
            continue
        hidden = [
            network
            for network in client.networks or ()
            if any(
                network.version == own.version and network.overlaps(own)
                for own in policy.session_networks
            )
        ]
        if hidden:
            message = f"client {client.name!r} has addresses of session_networks ({hidden[0]})"
            effect = "where nothing is open without a session"
            yield Fault(
                client.location, FaultCode.CLIENT_HIDDEN, f"{message}, {effect}"
            )


def _all(groups: Iterable[Iterable[str] | None]) -> set[str]:
    return {name for group in groups for name in group or ()}


def _never(policy: Policy) -> Iterator[Fault]:
    for credential in policy.credentials:
        if (
            credential.match.schemes is not None
            and "https" not in credential.match.schemes
        ):
            message = f"credential {credential.name!r} is never sent: its schemes leave out https"
            yield Fault(credential.location, FaultCode.NEVER_SENT, message)


def _upgrades(policy: Policy) -> Iterator[Fault]:
    for rule in policy.rules:
        if (
            rule.websocket
            and rule.match.methods is not None
            and "GET" not in rule.match.methods
        ):
            message = f"rule {rule.name!r} never passes a WebSocket, which begins with a GET: its methods leave out GET"
            yield Fault(rule.location, FaultCode.WEBSOCKET_NEVER, message)


def _grpc_paths(policy: Policy) -> Iterator[Fault]:
    for rule in policy.rules:
        for pattern in rule.match.paths or () if rule.action is Action.ALLOW else ():
            if _GRPC_PATH.fullmatch(pattern.text):
                message = f"rule {rule.name!r}: {pattern.text!r} names a gRPC service. gRPC needs HTTP/2, which passes"
                remedy = "only with tls: passthrough and without paths (gRPC-Web and Connect pass over HTTP/1.1)"
                yield Fault(rule.location, FaultCode.GRPC_PATH, f"{message} {remedy}")


_GRPC_PATH = re.compile(r"/[a-z]\w*(\.\w+)*\.[A-Z]\w*/([A-Z]\w*|\*|\*\*)", re.ASCII)


def _git_paths(policy: Policy) -> Iterator[Fault]:
    """Find the denies of git's own paths without one of the request before them, the
    only one whose page git shows.

    A deny with a `body` is not one of them: git shows its report, and it does not deny
    the request before.
    """
    found = [
        (rule, service)
        for rule in policy.rules
        if _closes(rule)
        for service in _git_services(rule)
    ]
    for service in dict.fromkeys(service for _, service in found):
        refused = CoveringIndex((), policy.lists)
        deniers = [
            rule
            for rule in policy.rules
            if _closes(rule) and _denies_service(rule, service)
        ]
        for position, rule in enumerate(deniers):
            refused.add(position, rule.match)
        for rule in (rule for rule, named in found if named == service):
            clients = (None, rule.match.clients)
            if any(
                deniers[position].match.clients in clients
                for position in refused.covering(rule.match)
            ):
                continue
            message = f"rule {rule.name!r}: git shows no page for a denied {service}, only for the request before it"
            remedy = f"expected a deny with query: {{service: {service}}} for the same hosts, too"
            yield Fault(rule.location, FaultCode.GIT_PATH, f"{message}: {remedy}")


def _git_services(rule: Rule) -> Iterator[str]:
    if rule.match.query is None and rule.body is None:
        ends = {pattern.text.rpartition("/")[2] for pattern in rule.match.paths or ()}
        yield from (
            service
            for service in _GIT_SERVICES
            if service in ends and "refs" not in ends
        )


def _denies_service(rule: Rule, service: str) -> bool:
    """Whether a deny without other conditions refuses the request with which git
    begins.
    """
    match = rule.match
    named = [pattern for pattern in match.query or () if pattern.key == "service"]
    if (
        rule.body is not None
        or not match.any_path
        or "GET" not in (match.methods or {"GET"})
    ):
        return False
    if len(named) != len(match.query or ()):
        return False
    return all(any(pattern.match_each([service])) for pattern in named)


_GIT_SERVICES = ("git-receive-pack", "git-upload-pack")


def _upstreams(policy: Policy) -> Iterator[Fault]:
    for upstream in policy.upstreams:
        if upstream.resolve:
            message = "resolves names that the gateway cannot resolve, so no check of private addresses holds for these"
            yield Fault(
                upstream.location,
                FaultCode.RESOLVED_UPSTREAM,
                f"upstream {upstream.name!r} {message}",
            )
    yield from _rewrites_through_parents(policy)


def _rewrites_through_parents(policy: Policy) -> Iterator[Fault]:
    """Find the rewrites to one https host that a parent is for, whatever its other
    fields: Squid denies these.
    """
    index = HostIndex(policy.upstreams, policy.lists)
    for rewrite in policy.rewrites:
        target = rewrite.target
        if (
            target.scheme != "https"
            or "{" in target.authority
            or rewrite.redirect is not None
        ):
            continue
        first = next(
            (
                policy.upstreams[n]
                for n in index.positions(parse_authority(target.authority)[0])
            ),
            None,
        )
        if first is not None and first.parent is not None:
            message = (
                f"rewrite {rewrite.name!r} leads through the upstream {first.name!r}, which denies it: Squid would show"
                f" the request's headers to the parent. Expected an upstream with direct: true for {target.authority}"
            )
            yield Fault(rewrite.location, FaultCode.REWRITE_UPSTREAM, message)


def _every_host(policy: Policy) -> Iterator[Fault]:
    """Find the allows and rewrites of paths and queries for every host, as they name
    none; and passthrough of all.
    """
    allows = (rule for rule in policy.rules if rule.action is Action.ALLOW)
    entries: tuple[tuple[str, Iterable[Rule | Rewrite]], ...] = (
        ("rule", allows),
        ("rewrite", policy.rewrites),
    )
    for what, group in entries:
        for entry in group:
            match = entry.match
            if match.any_host and not match.any_url:
                holds = "holds for every host, as it names none: if that is meant, write hosts: ['*']"
                yield Fault(
                    entry.location,
                    FaultCode.EVERY_HOST,
                    f"{what} {entry.name!r} {holds}",
                )
            if (
                isinstance(entry, Rule)
                and entry.passthrough
                and is_for_every_host(match)
            ):
                passes = "passes the tunnels to every host through, unseen: expected the hosts that need it"
                yield Fault(
                    entry.location,
                    FaultCode.EVERY_HOST,
                    f"{what} {entry.name!r} {passes}",
                )


def _unopened_addresses(policy: Policy) -> Iterator[Fault]:
    for rule in policy.rules:
        if not _opens(rule) or rule.private:
            continue
        for pattern in rule.match.hosts or ():
            if pattern.network is not None and is_private(
                pattern.network.network_address
            ):
                message = f"rule {rule.name!r}: {pattern.text} is private and stays closed, expected private: true"
                yield Fault(rule.location, FaultCode.PRIVATE_CLOSED, message)


def _unknown_methods(policy: Policy) -> Iterator[Fault]:
    for entry in policy.entries:
        for method in sorted((entry.match.methods or frozenset()) - _METHODS):
            meant = get_close_matches(method, _METHODS, 1)
            hint = f", did you mean {meant[0]}" if meant else ""
            message = f"{entry.name!r}: there is no method {method} in HTTP{hint}"
            yield Fault(entry.location, FaultCode.UNKNOWN_METHOD, message)


def _strange_expressions(policy: Policy) -> Iterator[Fault]:
    for entry in policy.entries:
        for pattern in entry.match.paths or ():
            if not pattern.text.startswith("regex:"):
                continue
            escape = _LOWER_CASE_ESCAPE.search(_CLASS.sub("", pattern.text))
            if escape is not None and "(?i" not in pattern.text:
                message = f"holds {escape[0]}, and the escapes of a path are upper-case, expected {escape[0].upper()}"
                yield Fault(
                    entry.location,
                    FaultCode.UNMATCHABLE_REGEX,
                    f"{entry.name!r}: {pattern.text!r} {message}",
                )
            if "\\?" in pattern.text:
                message = "asks for a '?', which no path holds (use query: for a query)"
                yield Fault(
                    entry.location,
                    FaultCode.UNMATCHABLE_REGEX,
                    f"{entry.name!r}: {pattern.text!r} {message}",
                )


_LOWER_CASE_ESCAPE = re.compile(r"%(?:[a-f][0-9A-Fa-f]|[0-9A-F][a-f])")
_CLASS = re.compile(r"\[[^\]]*\]")
# Of https://www.iana.org/assignments/http-methods, what a policy can list.
_REGISTERED = """
ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT COPY DELETE GET HEAD LABEL LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL
MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PROPFIND PROPPATCH PUT QUERY REBIND REPORT SEARCH UNBIND
UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL
"""
_METHODS = frozenset(_REGISTERED.split())


def _public_suffixes(policy: Policy) -> Iterator[Fault]:
    rules = [
        (rule.location, f"rule {rule.name!r}", rule.match)
        for rule in policy.rules
        if rule.action is Action.ALLOW
    ]
    rules += [
        (grant.location, f"grant {grant.name!r}", grant.match)
        for grant in policy.grants
    ]
    rules += [
        (held.location, f"credential {held.name!r}", held.match)
        for held in policy.credentials
    ]
    wild = [
        (location, what, pattern)
        for location, what, match in rules
        for pattern in match.hosts or ()
        if pattern.form in _WILDCARDS and "." in pattern.name
    ]
    for location, what, pattern in wild:
        if is_public_suffix(pattern.name):
            message = f"{what}: {pattern.text!r} covers a public suffix, under which anyone can have a host"
            yield Fault(location, FaultCode.PUBLIC_SUFFIX, message)


_WILDCARDS = (HostForm.TREE, HostForm.LABEL, HostForm.UNDER)

# --- shadowed rules -------------------------------------------------------------------


_Ports = Mapping[str, list[range]]  # of each scheme


def _shadowed(policy: Policy, now: datetime) -> Iterator[Fault]:
    """Find the rules to which an earlier one, for the same requests or more, leaves
    nothing to decide or to deny.
    """
    deciders: dict[_Narrowed, CoveringIndex] = {}
    unreachable: set[str] = set()  # of presets
    opened = _opened(policy)
    for position, rule in enumerate(policy.rules):
        if rule.lapsed(now):
            continue
        earlier = (
            policy.rules[first]
            for narrowed in _as_wide(rule.match)
            if narrowed in deciders
            for first in deciders[narrowed].covering(rule.match)
        )
        covering = (
            first
            for first in earlier
            if outlasts(first, rule) and covers_by(_NOT_INDEXED, first, rule)
        )
        found = next(
            filter(None, (_leaves_nothing(first, rule, opened) for first in covering)),
            None,
        )
        if found is None and (rule.observe or rule.body is not None):
            continue
        if found is None:
            deciders.setdefault(
                _narrowed(rule.match), CoveringIndex((), policy.lists)
            ).add(position, rule.match)
        elif rule.preset is not None:
            unreachable.add(rule.name)
        else:
            code, message = found
            yield Fault(rule.location, code, f"rule {rule.name!r} {message}")
    yield from _shadowed_presets(policy, unreachable)


def _shadowed_presets(policy: Policy, unreachable: Set[str]) -> Iterator[Fault]:
    """Find the presets of which no rule can decide.

    One rule alone is no mistake: an operator may close it above.
    """
    for preset in policy.presets:
        if all(
            rule.name in unreachable
            for rule in policy.rules
            if rule.preset == preset.name
        ):
            message = f"preset {preset.name!r} can never decide: rules above it decide all it could match"
            yield Fault(preset.location, FaultCode.RULE_UNREACHABLE, message)


def _leaves_nothing(
    first: Rule, rule: Rule, opened: _Ports
) -> tuple[FaultCode, str] | None:
    """Tell why an earlier rule, which covers a later one, leaves it nothing; None if it
    leaves some ports.
    """
    if _reaches(first, rule, _ANY_PORT):
        return (
            FaultCode.RULE_UNREACHABLE,
            f"can never decide: {first.name!r} ({first.location}) decides all it could match",
        )
    is_late_deny = (
        first.action is not Action.DENY
        and rule.action is Action.DENY
        and _touches(rule, opened)
    )
    if is_late_deny and _reaches(first, rule, opened):
        does = "asks about" if first.action is Action.ASK else "opens"
        message = f"closes nothing: {first.name!r} ({first.location}), above it, {does} all it could close"
        return FaultCode.DENY_TOO_LATE, message
    return None


# What narrows a rule on its hosts, methods aside: clients, paths and query. None: it is
# not narrowed.
_Narrowed = tuple[Set[str] | None, Set[str] | None, tuple[QueryPattern, ...] | None]


# what the index of deciders does not compare
_NOT_INDEXED = ("methods", "query")


def _narrowed(match: Match) -> _Narrowed:
    paths = (
        None
        if match.any_path
        else frozenset(pattern.text for pattern in match.paths or ())
    )
    return match.clients, paths, match.query


def _as_wide(match: Match) -> Iterator[_Narrowed]:
    """List what may narrow a rule that covers this one: the same, or nothing."""
    clients, paths, query = _narrowed(match)
    return product(
        dict.fromkeys((None, clients)),
        dict.fromkeys((None, paths)),
        dict.fromkeys((None, query)),
    )


def _reaches(decider: Rule, rule: Rule, among: _Ports) -> bool:
    return all(
        contain(ports_of(decider, scheme), asked)
        for scheme in DEFAULT_PORTS
        for asked in common(ports_of(rule, scheme), among[scheme])
    )


def _touches(rule: Rule, among: _Ports) -> bool:
    return any(
        any(common(ports_of(rule, scheme), among[scheme])) for scheme in DEFAULT_PORTS
    )


def _opened(policy: Policy) -> _Ports:
    if (
        policy.default_action is Action.ALLOW
        or policy.observe_default
        or policy.ask_default
    ):
        return _ANY_PORT
    allows = [
        rule
        for rule in policy.rules_and_grants
        if rule.action is not Action.DENY and not rule.observe
    ]
    return {
        scheme: joined(ports for rule in allows for ports in ports_of(rule, scheme))
        for scheme in DEFAULT_PORTS
    }


_ANY_PORT = {scheme: [EVERY_PORT] for scheme in DEFAULT_PORTS}
