"""`body:`: what cannot stand beside it, in a rule and in a policy.

A body is read after everything else has been decided. So the rules that may still
decide then have to agree on all that was decided before, and nothing may change the
request in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.agreement import AGREED
from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.language.forms import QueryParameters
from squidkeeper.policy.language.matching.host_fields import HostNeighbours
from squidkeeper.policy.language.matching.table import covers, overlap
from squidkeeper.policy.language.model import Action, Credential, Policy, Rewrite, Rule

_Entry = Mapping[str, Any]
_Steps = tuple[str | int, ...]
# where, whether at its key, and what
_Found = Iterator[tuple[_Steps, bool, FaultCode, str]]

_TELLING = ("content-", "mcp-")  # how headers begin that tell how a body is to be read
_OTHERS = "other hosts, paths, methods or clients"
_CLOSED_BELOW = "expected a rule below it that denies them"
_APART = f"expected {_OTHERS}"
_BY_HEADER = (
    f"{_APART}, or a header in place of the parameters (Gemini takes x-goog-api-key)"
)

# --- in a rule ------------------------------------------------------------------------


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find headers that a rule with `body` has to leave, and what the parts of a body
    cannot have beside each other.
    """
    for document in documents:
        for _, entry, steps in entries(document, "rules"):
            for inner, key, code, message in _of_rule(entry):
                yield Fault(document.locate((*steps, *inner), key=key), code, message)


def _of_rule(entry: _Entry) -> _Found:
    body = entry.get("body")
    if body is not None:
        yield from _of_strip(entry)
    if isinstance(body, dict):
        for check in (_of_body, _of_places, _of_git, _of_mcp):
            yield from check(body, entry.get("action"))


def _of_strip(entry: _Entry) -> _Found:
    for position, header in enumerate(
        stripped if isinstance(stripped := entry.get("strip"), list) else ()
    ):
        if isinstance(header, str) and header.lower().replace("_", "-").startswith(
            _TELLING
        ):
            message = (
                f"{header!r} in 'strip' beside 'body': without it the server "
                f"may read another body than was judged"
            )
            yield (
                ("strip", position),
                False,
                FaultCode.BODY_CONFLICT,
                f"{message}; expected it left out",
            )


def _of_body(body: _Entry, action: object) -> _Found:
    if "only" in body and "json" not in body:
        yield (
            ("body", "only"),
            True,
            FaultCode.KEY_CHOICE,
            "'only' is for 'json', expected both, or 'only' left out",
        )
    if "only" in body and action == Action.DENY:
        yield (
            ("body", "only"),
            True,
            FaultCode.ALLOW_ONLY,
            "'only' in a deny, expected it in an allow only",
        )
    only, places = body.get("only"), body.get("json")
    if isinstance(only, list) and isinstance(places, dict):
        listed = [pointer for pointer in only if isinstance(pointer, str)]
        for pointer in places:
            if not any(
                _within(pointer, wide) or _within(wide, pointer) for wide in listed
            ):
                message = f"'only' does not allow {pointer}, expected it there too"
                yield ("body", "json", pointer), True, FaultCode.BODY_CONFLICT, message


def _within(pointer: str, wide: str) -> bool:
    return pointer == wide or pointer.startswith(f"{wide}/")


def _of_places(body: _Entry, _action: object) -> _Found:
    for steps, place in _places(body):
        values, least, most = (place.get(key) for key in ("values", "min", "max"))
        if values is not None and (least, most) != (None, None):
            message = "'values' beside 'min' or 'max', expected one of them"
            yield (*steps, "values"), True, FaultCode.KEY_CHOICE, message
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield (
                (*steps, "min"),
                False,
                FaultCode.INVALID_BODY,
                f"'min' is {least}, expected 'max' ({most}) at most",
            )


def _places(body: _Entry) -> Iterator[tuple[_Steps, _Entry]]:
    mcp = body.get("mcp")
    arguments = mcp.get("arguments") if isinstance(mcp, dict) else None
    tools = arguments.items() if isinstance(arguments, dict) else ()
    for steps, places in (
        (("json",), body.get("json")),
        *((("mcp", "arguments", name), each) for name, each in tools),
    ):
        for pointer, place in places.items() if isinstance(places, dict) else ():
            if isinstance(place, dict):
                yield ("body", *steps, pointer), place


def _of_git(body: _Entry, action: object) -> _Found:
    git = body.get("git")
    for key in ("delete", "create", "options"):
        if isinstance(git, dict) and action == Action.DENY and key in git:
            message = f"{key!r} in a deny, which holds for every command on the refs of 'push'; expected it in an allow"
            yield ("body", "git", key), True, FaultCode.ALLOW_ONLY, message


def _of_mcp(body: _Entry, _action: object) -> _Found:
    mcp = body.get("mcp")
    if not isinstance(mcp, dict) or not isinstance(
        arguments := mcp.get("arguments"), dict
    ):
        return
    tools = mcp.get("tools")
    listed = (
        [tool for tool in tools if isinstance(tool, str)]
        if isinstance(tools, list)
        else []
    )
    for name in arguments:
        if not any(_matches(tool, name) for tool in listed):
            message = f"'tools' does not list {name!r}, so nothing asks for its arguments; expected it there too"
            yield (
                ("body", "mcp", "arguments", name),
                True,
                FaultCode.BODY_CONFLICT,
                message,
            )


def _matches(glob: str, name: str) -> bool:
    first, *rest = glob.split("*")
    if not rest:
        return glob == name
    if (
        not name.startswith(first)
        or not name.endswith(rest[-1])
        or len(name) < len(first) + len(rest[-1])
    ):
        return False
    at = len(first)
    for part in rest[:-1]:
        at = name.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return at <= len(name) - len(rest[-1])


# --- in a policy ----------------------------------------------------------------------


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find what may change a request that the service of bodies is asked about, and
    rules that may decide by one body and do not agree.
    """
    reading = [
        (position, rule)
        for position, rule in enumerate(policy.rules)
        if rule.asks_service
    ]
    neighbours = HostNeighbours(policy.rules if reading else ())
    for position, rule in reading:
        yield from _changed(policy, rule)
        if rule.body is None:
            continue
        if rule.action is Action.ALLOW and not rule.observe:
            below = (
                policy.rules[other] for other in neighbours.of(rule) if other > position
            )
            yield from _disagreeing(policy, rule, below)


def _changed(policy: Policy, rule: Rule) -> Iterator[Fault]:
    """Find rewrites, and parameters beside `body`: they come after the body was read,
    and could deny what was already sent.
    """
    credentials = (
        one
        for one in policy.credentials
        if rule.body is not None and isinstance(one.form, QueryParameters)
    )
    changing: tuple[tuple[str, Iterable[Rewrite | Credential], str], ...] = (
        ("rewrite", policy.rewrites, _APART),
        ("credential with parameters", credentials, _BY_HEADER),
    )
    does = "reads bodies" if rule.body is not None else "has meter"
    for what, group, remedy in changing:
        for entry in group:
            if overlap(rule, entry, policy.lists):
                message = f"rule {rule.name!r} {does}, and the {what} {entry.name!r} ({entry.location}) is for"
                yield _fault(rule, f"{message} some of its requests; {remedy}")


def _disagreeing(policy: Policy, rule: Rule, below: Iterable[Rule]) -> Iterator[Fault]:
    """Find the later allows that may decide where this rule's body does not hold, and
    that decide more otherwise.
    """
    for other in below:
        if other.observe or not overlap(rule, other, policy.lists):
            continue
        different = [
            name for name, value in AGREED.items() if value(rule) != value(other)
        ]
        if other.action is Action.ALLOW and different:
            message = (
                f"rule {rule.name!r} and the rule {other.name!r} "
                f"({other.location}) may decide about one body, but"
            )
            yield _fault(
                rule,
                f"{message} differ in {', '.join(different)}; expected the same in both, or {_OTHERS}",
            )
        if other.body is None and covers(other, rule):
            return
    yield from _unlike_default(policy, rule)


def _unlike_default(policy: Policy, rule: Rule) -> Iterator[Fault]:
    if policy.default is not Action.ALLOW:
        return
    different = [name for name, value in AGREED.items() if value(rule)]
    if different:
        message = f"rule {rule.name!r} has {', '.join(different)}, and the default allows other bodies without"
        yield _fault(rule, f"{message}; {_CLOSED_BELOW}")
    if policy.observe_default and any(
        overlap(rule, one, policy.lists) for one in policy.credentials
    ):
        message = (
            f"rule {rule.name!r} is for requests with a credential, and the "
            f"default, which observes, would send it"
        )
        yield _fault(rule, f"{message} with other bodies; {_CLOSED_BELOW}")


def _fault(rule: Rule, message: str) -> Fault:
    return Fault(rule.location, FaultCode.BODY_CONFLICT, message)
