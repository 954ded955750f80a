"""The rule that opens a denied request and little else.

It is tried before it is shown.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.errors import PolicyError
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.decide import decide
from squidkeeper.policy.engine.decision import Decision
from squidkeeper.policy.language.builder import build
from squidkeeper.policy.language.document import parse_document
from squidkeeper.policy.language.file_contents import PolicyContents
from squidkeeper.policy.language.model import Rule
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol.request import CONNECT, Malformed, Request
from squidkeeper.policy.url import DEFAULT_PORTS
from squidkeeper.record.log.host_judging import clients_of
from squidkeeper.record.log.record import (
    NONE,
    Record,
    decode_field,
    parse_time,
    redacted_url,
    truncated_fields,
)
from squidkeeper.record.log.requests import request_of, tunnel_of

_LONGEST_PATH: Final = 200
_PLAIN_PATH = re.compile(r"/(?:[A-Za-z0-9._~/@:+,=-]|%[0-9A-Fa-f]{2})*")
_PLAIN = re.compile(
    r"[a-z][a-z0-9-]*\.[a-z0-9.-]*[a-z]|/[A-Za-z0-9._~/%-]*|GET|HEAD|POST|PUT|PATCH|DELETE"
)
_METHOD = re.compile(r"[A-Z]{1,20}")
_NOT_LISTED: Final = frozenset({CONNECT, "TRACE", "TRACK"})


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rule as a line of YAML, and whether it is `private: true`; or why no rule opens
    the request.

    `unknown_client`: the policy has clients, and this is none of them. A rule without
    `clients` would open the host to everybody.
    """

    line: str | None
    private: bool = False
    obstacle: str = ""
    unknown_client: bool = False


def propose(
    record: Record, policy: CompiledPolicy, session: Session | None = None
) -> Proposal | None:
    """Propose a rule, for the role of a session where one asked; None where the record
    holds only the beginning of what decides.

    It goes above the rule that denied, or below all where none did. It is `private:
    true` where it has to be, and where the rule below the one that denied is.
    """
    asked = _in_an_open_tunnel(record)
    if truncated_fields(asked) or asked.url == NONE:
        return None
    request = request_of(asked, session)
    if isinstance(request, Malformed):
        return Proposal(None, obstacle=request.reason)
    if rules := decide(policy, policy.match(request), parse_time(record)).by_body:
        names = ", ".join(rule.name for rule in rules if rule.body is not None)
        return Proposal(
            None,
            obstacle=f"its body is judged by {names}, and such a rule would open it for every body",
        )
    clients = (session.role,) if session else clients_of(policy, asked)
    if policy.source.clients and not clients:
        return Proposal(None, unknown_client=True)
    return _tried(
        dict(_fields(asked, request, policy, clients)), record, request, policy
    )


def _tried(
    fields: dict[str, str], record: Record, request: Request, policy: CompiledPolicy
) -> Proposal | None:
    if _is_private_below(policy, record, request):
        fields["private"] = "true"
    try:
        denial = _denial(policy, fields, record, request)
        if denial and denial.rule == "private-address":
            fields["private"] = "true"
            denial = _denial(policy, fields, record, request)
    except PolicyError:  # no policy can name the host
        return None
    if denial:
        return Proposal(None, obstacle=denial.reason or denial.rule)
    return Proposal(f"- {_flow(fields)}", "private" in fields)


def _in_an_open_tunnel(record: Record) -> Record:
    return msgspec.structs.replace(record, tunnel=tunnel_of(record))


# --- the line -------------------------------------------------------------------------


def _fields(
    record: Record,
    request: Request,
    policy: CompiledPolicy,
    clients: tuple[str, ...],
) -> Iterator[tuple[str, str]]:
    host = request.host.text
    yield "name", _new_name(host, policy)
    yield "action", "allow"
    if clients:
        yield "clients", f"[{_yaml(clients[0])}]"
    yield "hosts", f"[{_yaml(host)}]"
    if request.port != DEFAULT_PORTS[request.scheme]:
        yield "ports", f"[{request.port}]"
    if _METHOD.fullmatch(request.method) and request.method not in _NOT_LISTED:
        yield "methods", f"[{_yaml(request.method)}]"
    path = _path(record)
    if path:
        yield "paths", f"[{_yaml(path)}]"


def _new_name(host: str, policy: CompiledPolicy) -> str:
    taken = {rule.name for rule in policy.source.rules_and_grants}
    stem = f"allow-{re.sub(r'[^a-z0-9]+', '-', host)[:60].strip('-')}"
    numbered = (
        f"{stem}-{number}" if number else stem for number in range(len(taken) + 1)
    )
    return next(name for name in numbered if name not in taken)


def _path(record: Record) -> str | None:
    _, slashes, rest = redacted_url(record.url).partition("://")
    path = f"/{rest.partition('/')[2]}"
    return (
        path
        if slashes and len(path) <= _LONGEST_PATH and _PLAIN_PATH.fullmatch(path)
        else None
    )


def _yaml(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _flow(fields: dict[str, str]) -> str:
    return f"{{{', '.join(f'{name}: {value}' for name, value in fields.items())}}}"


# --- the trial ------------------------------------------------------------------------


def _denial(
    policy: CompiledPolicy, fields: dict[str, str], record: Record, request: Request
) -> Decision | None:
    rules, denied_by = policy.source.rules, decode_field(record.rule)
    place = next(
        (place for place, rule in enumerate(rules) if rule.name == denied_by),
        len(rules),
    )
    opened = CompiledPolicy(
        replace(policy.source, rules=(*rules[:place], _rule(fields), *rules[place:]))
    )
    decision = decide(opened, opened.match(request), parse_time(record))
    return None if decision.allowed else decision


def _is_private_below(policy: CompiledPolicy, record: Record, request: Request) -> bool:
    """Whether a rule with `private: true` would allow the request, if the rule that
    denied were missing.
    """
    denied_by = decode_field(record.rule)
    below = CompiledPolicy(
        replace(
            policy.source,
            rules=tuple(r for r in policy.source.rules if r.name != denied_by),
        )
    )
    decision = decide(below, below.match(request), parse_time(record))
    return decision.allowed and decision.private and decision.rewritten is None


def _rule(fields: dict[str, str]) -> Rule:
    clients = (
        f"clients: {{? {fields['clients'][1:-1]} : {{networks: [0.0.0.0/0]}}}}\n"
        if "clients" in fields
        else ""
    )
    text = f"version: 1\n{clients}rules:\n  - {_flow(fields)}\n"
    document = parse_document(Path("proposal"), text.encode())
    return build(PolicyContents("", (document,), {}, {}, frozenset())).policy.rules[0]
