"""`git:`, the form of a push: which request is one, whether its commands are allowed,
and git's report of a denial.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.bodies.git_push import Command, Push, read_push
from squidkeeper.policy.bodies.sent_request import (
    HOLDS,
    BodyOutcome,
    Fit,
    FormAnswer,
    SentRequest,
)
from squidkeeper.policy.language.bodies import GitBody
from squidkeeper.policy.language.globs import ANYTHING, Matcher, glob_matcher
from squidkeeper.policy.url import readings, sent

_FAILS: Final = BodyOutcome(Fit.FAILS)


def may_hold(method: str, path: str, query: str | None) -> bool:
    """Return whether a `git:` can hold for a request, by its method and URL. `path` is
    in its `sent` reading.
    """
    return _leads_to_push(path) or _asks_for_refs(method, path, query)


def examine(body: GitBody, request: SentRequest, *, deny: bool) -> BodyOutcome:
    """Return whether a `git:` holds for a request.

    In an allow it holds for a push whose every command and option is allowed, and for
    the request ahead of a push. In a deny it holds for a push with a command for one of
    its refs.
    """
    if body.variables:
        return BodyOutcome(Fit.UNREADABLE, "no session has given its variables values")
    judge = _judge_deny if deny else _judge_allow
    try:
        return judge(body, request, *_path_and_query(request.target))
    except InvalidUrl:
        return BodyOutcome(Fit.UNREADABLE, "the path cannot be read")


def _judge_allow(
    body: GitBody, request: SentRequest, path: str, query: str | None
) -> BodyOutcome:
    if not request.has_body:
        return HOLDS if _asks_for_refs(request.method, path, query) else _FAILS
    if request.method != "POST" or query is not None or not _leads_only_to(path, _PUSH):
        return _FAILS
    push = read_push(request, body.max_bytes)
    return _allowed(body, push) if push.outcome is HOLDS else push.outcome


def _judge_deny(
    body: GitBody, request: SentRequest, path: str, _query: str | None
) -> BodyOutcome:
    if not request.has_body or not _leads_to_push(path):
        return _FAILS
    push = read_push(request, body.max_bytes)
    return _denied(body, push) if push.outcome is HOLDS else push.outcome


# --- which request --------------------------------------------------------------------

_PUSH: Final = "/git-receive-pack"
_REFS: Final = "/info/refs"
# where some servers end a path, or a part of it
_ENDS_PATHS: Final = frozenset("\\#;?")
_QUERY_OF_REFS: Final = "service=git-receive-pack"


def _path_and_query(target: str) -> tuple[str, str | None]:
    path, mark, query = target.partition("?")
    return sent(path or "/"), query if mark else None


def _leads_to_push(path: str) -> bool:
    """Return whether some server can take a path for that of a push."""
    return any(_PUSH in reading.path.lower() for reading in readings(path))


def _asks_for_refs(method: str, path: str, query: str | None) -> bool:
    """Return whether this is the request ahead of a push.

    The server answers with its refs.
    """
    return method == "GET" and query == _QUERY_OF_REFS and _leads_only_to(path, _REFS)


def _leads_only_to(path: str, ending: str) -> bool:
    paths = [reading.path for reading in readings(path)]
    return all(path.endswith(ending) and _ENDS_PATHS.isdisjoint(path) for path in paths)


# --- what is allowed ------------------------------------------------------------------


def _allowed(body: GitBody, push: Push) -> BodyOutcome:
    refusals = filter(None, (_refusal(body, command) for command in push.commands))
    refusal = next(refusals, None)
    if refusal is None and not all(
        map(_any_of(body.options, in_parts=False), push.options)
    ):
        refusal = "an option of the push is not allowed"
    return HOLDS if refusal is None else BodyOutcome(Fit.FAILS, refusal)


def _refusal(body: GitBody, command: Command) -> str | None:
    """Say why a command is not allowed.

    The record keeps this, so the ref is not named.
    """
    if not _any_of(body.push)(command.ref):
        return "the push is for a ref that the rule does not list"
    if command.deletes and not body.delete:
        return "the push deletes a ref"
    return "the push creates a ref" if command.creates and not body.create else None


def _denied(body: GitBody, push: Push) -> BodyOutcome:
    """Compare without case.

    A server whose file system has none changes `main` by `Main`.
    """
    is_ref = _any_of(tuple(glob.casefold() for glob in body.push))
    return (
        HOLDS
        if any(is_ref(command.ref.casefold()) for command in push.commands)
        else _FAILS
    )


_IN_REFS: Final = {"*": "[^/]*", "**": ANYTHING}
_IN_OPTIONS: Final = {"*": ANYTHING, "**": ANYTHING}
_PART: Final = re.compile(r"\*\*|\*|[^*]+")


@lru_cache(maxsize=1024)
def _any_of(globs: tuple[str, ...], *, in_parts: bool = True) -> Callable[[str], bool]:
    """Return whether a text matches one of some globs.

    A ref has parts; a push option has none.
    """
    wildcards = _IN_REFS if in_parts else _IN_OPTIONS
    matchers: list[Matcher] = [
        glob_matcher(tuple(_PART.findall(glob)), wildcards) for glob in globs
    ]
    return lambda text: any(matches(text) for matches in matchers)


# --- the report of a denial -----------------------------------------------------------

_REPORTS: Final = frozenset({"report-status", "report-status-v2"})
_RESULT_TYPE: Final = "application/x-git-receive-pack-result"
_MAX_DATA: Final = 65_515  # of a packet with a band
_REPORT_BAND, _MESSAGE_BAND = b"\x01", b"\x02"
_FLUSH: Final = b"0000"


def answer(
    body: GitBody, request: SentRequest, rule: str, reason: str
) -> FormAnswer | None:
    """Return the report of a server that rejects each ref; None where the client does
    not read a report.

    git shows the rule beside each ref, and the reason in lines of `remote:`. It ends
    with 1.
    """
    push = read_push(request, body.max_bytes)
    if not push.capabilities & _REPORTS:
        return None
    report = _report(push, f"squidkeeper: rule {_printable(rule)}")
    if "side-band-64k" in push.capabilities:
        message = _message(rule, reason).encode()
        report = b"".join(
            (*_in_band(_MESSAGE_BAND, message), *_in_band(_REPORT_BAND, report), _FLUSH)
        )
    return FormAnswer(200, _RESULT_TYPE, report)


def _report(push: Push, verdict: str) -> bytes:
    # of an unreadable push git does not know every ref
    unpacked = "ok" if push.outcome is HOLDS else verdict
    lines = (
        f"unpack {unpacked}\n",
        *(f"ng {command.ref} {verdict}\n" for command in push.commands),
    )
    return b"".join((*(_packet(line.encode()) for line in lines), _FLUSH))


def _message(rule: str, reason: str) -> str:
    lines = (f"squidkeeper: rule {rule} denies this push.", *reason.splitlines())
    return "".join(f"{_printable(line)}\n" for line in lines)


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


def _in_band(band: bytes, data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _MAX_DATA):
        yield _packet(band + data[start : start + _MAX_DATA])


def _packet(data: bytes) -> bytes:
    return b"%04x%b" % (len(data) + len(_FLUSH), data)
