"""What cannot stand beside what in one entry of a file: one table.

Conflicts between entries, and inside of `body`, are in the modules of their subject.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, entries


class Given(Enum):
    """What is asked of a key, where its value makes no difference."""

    PRESENT = auto()
    ABSENT = auto()


@dataclass(frozen=True, slots=True)
class Conflict:
    """A key of a section that is at fault where all keys of `beside` are as given.

    `message` may name the key as `{key!r}`. The fault is at the key, or at its value.
    """

    section: str
    key: str
    beside: Mapping[str, object]
    code: FaultCode
    message: str
    given: object = Given.PRESENT
    at_key: bool = True


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find the keys that cannot stand where they stand."""
    for document in documents:
        for section, conflicts in _BY_SECTION.items():
            for entry, steps in _entries(document, section):
                for conflict in conflicts:
                    if _applies(conflict, entry):
                        yield Fault(
                            document.locate(
                                (*steps, conflict.key), key=conflict.at_key
                            ),
                            conflict.code,
                            conflict.message.format(key=conflict.key),
                        )


def _entries(
    document: Document, section: str
) -> Iterator[tuple[Mapping[str, object], tuple[str | int, ...]]]:
    if section == _DEFAULTS:
        defaults = document.data.get(section)
        if isinstance(defaults, dict):
            yield defaults, (section,)
        return
    for _, entry, steps in entries(document, section):
        yield entry, steps


def _applies(conflict: Conflict, entry: Mapping[str, object]) -> bool:
    return _is_given(entry, conflict.key, conflict.given) and all(
        _is_given(entry, key, value) for key, value in conflict.beside.items()
    )


def _is_given(entry: Mapping[str, object], key: str, expected: object) -> bool:
    if isinstance(expected, Given):
        return (key in entry) is (expected is Given.PRESENT)
    value: Any = entry.get(key)
    return type(value) is type(expected) and value == expected


def _each(
    section: str,
    beside: Mapping[str, object],
    code: FaultCode,
    message: str,
    keys: Iterable[str],
) -> Iterator[Conflict]:
    """List a conflict for each of some keys."""
    return (Conflict(section, key, beside, code, message) for key in keys)


def _each_with_reason(
    beside: Mapping[str, object],
    code: FaultCode,
    message: str,
    reasons: Mapping[str, str],
) -> Iterator[Conflict]:
    """List a conflict for each key of a rule; its reason replaces `WHY`."""
    return (
        Conflict("rules", key, beside, code, message.replace("WHY", reason))
        for key, reason in reasons.items()
    )


_DEFAULTS: Final = "defaults"
_OF_ALLOWS: Final = ("tls", "websocket", "connections", "headers", "meter")
_EXPECTED_IN_ALLOW: Final = "expected it in an allow only"

BESIDE_OBSERVE: Final = {
    "private": "it opens no private address",
    "strip": "it removes no header",
    "headers": "it removes no header",
    "tls": "it passes no tunnel through",
    "websocket": "it passes no WebSocket",
    "connections": "it uses no connection",
    "meter": "it counts nothing",
}
BESIDE_PASSTHROUGH: Final = {
    "paths": "no path is seen in the tunnel",
    "query": "no query is seen in the tunnel",
    "methods": "no method is seen in the tunnel",
    "schemes": "only https has a tunnel, so it says nothing",
    "lists": "expected the hosts themselves, in hosts",
    "strip": "no header is seen in the tunnel",
    "headers": "no header is seen in the tunnel",
    "connections": "no request is seen in the tunnel",
    "websocket": "upgrades in the tunnel pass unseen",
    "body": "no body is seen in the tunnel",
    "meter": "no answer is seen in the tunnel",
}
_PASSES_THROUGH: Final = {"tls": Given.PRESENT, "action": "allow"}

CONFLICTS: Final[tuple[Conflict, ...]] = (
    # --- defaults
    Conflict(
        section=_DEFAULTS,
        key="ask",
        given=True,
        beside={"action": "allow"},
        code=FaultCode.KEY_CHOICE,
        message="ask: true beside action: allow, expected one of them: what is allowed is not asked about",
        at_key=False,
    ),
    Conflict(
        section=_DEFAULTS,
        key="ask",
        given=True,
        beside={"observe": True},
        code=FaultCode.OBSERVE_CONFLICT,
        message="ask: true beside observe: true, which allows what would be asked about; expected one of them",
    ),
    Conflict(
        section=_DEFAULTS,
        key="observe",
        given=True,
        beside={"action": "allow"},
        code=FaultCode.OBSERVE_CONFLICT,
        message="observe: true beside action: allow, which denies nothing that could be observed; expected action: deny"
        " (or 'action' left out)",
    ),
    # --- clients
    Conflict(
        section="clients",
        key="users",
        beside={"token_sha256": Given.PRESENT},
        code=FaultCode.INVALID_TOKEN,
        message="'users' beside 'token_sha256', expected one of them: who logs in by token is the client",
    ),
    # --- rules
    *_each(
        "rules",
        {"action": "deny"},
        FaultCode.ALLOW_ONLY,
        f"{{key!r}} in a deny, {_EXPECTED_IN_ALLOW}",
        _OF_ALLOWS,
    ),
    *_each(
        "rules",
        {"action": "ask"},
        FaultCode.ALLOW_ONLY,
        f"{{key!r}} in an ask, {_EXPECTED_IN_ALLOW}",
        (*_OF_ALLOWS, "strip", "private"),
    ),
    Conflict(
        section="rules",
        key="body",
        beside={"action": "ask"},
        code=FaultCode.BODY_CONFLICT,
        message="'body' in an ask, which a person decides without the body; expected it in an allow or a deny",
    ),
    *_each_with_reason(
        {"observe": True},
        FaultCode.OBSERVE_CONFLICT,
        "{key!r} beside observe: true: a rule that observes decides nothing, so WHY;"
        " remove {key!r} until the rule decides",
        BESIDE_OBSERVE,
    ),
    *_each_with_reason(
        _PASSES_THROUGH,
        FaultCode.PASSTHROUGH_CONFLICT,
        "{key!r} beside tls: passthrough: WHY; remove {key!r}, or remove 'tls' so that each request is decided",
        BESIDE_PASSTHROUGH,
    ),
    Conflict(
        section="rules",
        key="hosts",
        given=Given.ABSENT,
        beside=_PASSES_THROUGH,
        code=FaultCode.PASSTHROUGH_CONFLICT,
        message="tls: passthrough without 'hosts', expected the hosts whose tunnels pass through",
    ),
    Conflict(
        section="rules",
        key="websocket",
        given=True,
        beside={"body": Given.PRESENT},
        code=FaultCode.BODY_CONFLICT,
        message="'websocket' beside 'body': no frame of a WebSocket is read; expected a rule of its own for it",
    ),
    Conflict(
        section="rules",
        key="connections",
        given="shared",
        beside={"body": Given.PRESENT},
        code=FaultCode.BODY_CONFLICT,
        message="'connections' beside 'body': a host whose bodies are read shares no connection; expected 'shared' left"
        " out",
    ),
    Conflict(
        section="rules",
        key="websocket",
        given=True,
        beside={"meter": Given.PRESENT},
        code=FaultCode.METER_CONFLICT,
        message="'websocket' beside 'meter': no frame of a WebSocket is read; expected a rule of its own for it",
    ),
    *_each(
        "rules",
        {"meter": Given.ABSENT},
        FaultCode.KEY_CHOICE,
        "{key!r} is for 'meter', expected both, or {key!r} left out",
        ("reserve", "ask_usage"),
    ),
    # --- grants
    *_each(
        "grants",
        {"urls": Given.PRESENT},
        FaultCode.KEY_CHOICE,
        "{key!r} beside 'urls', which have their own, expected one of them",
        ("paths", "schemes", "ports"),
    ),
    # --- credentials
    *(
        Conflict(
            section="credentials",
            key="header",
            beside={other: Given.PRESENT},
            code=FaultCode.KEY_CHOICE,
            message="'header' is for bearer, basic and value, expected it left out, or every header in 'headers'",
        )
        for other in ("headers", "parameters")
    ),
    Conflict(
        section="credentials",
        key="header",
        beside={"aws_sigv4": Given.PRESENT},
        code=FaultCode.KEY_CHOICE,
        message="'header' is for bearer, basic and value: a signature has its own headers",
    ),
    # --- upstreams
    *_each(
        "upstreams",
        {"direct": Given.PRESENT},
        FaultCode.INVALID_UPSTREAM,
        "{key!r} needs a parent (url), expected no 'direct'",
        ("basic", "resolve"),
    ),
    # --- tests
    Conflict(
        section="tests",
        key="push",
        beside={"body": Given.PRESENT},
        code=FaultCode.KEY_CHOICE,
        message="'push' beside 'body', expected one of them",
    ),
)
_BY_SECTION: Final = {
    section: [conflict for conflict in CONFLICTS if conflict.section == section]
    for section in dict.fromkeys(conflict.section for conflict in CONFLICTS)
}
