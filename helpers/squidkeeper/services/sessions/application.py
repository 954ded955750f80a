"""The calls over HTTP: which one a request is, its caller, and its answer."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from pydantic import BaseModel

from squidkeeper.services.sessions.audit import AuditLog
from squidkeeper.services.sessions.exchange import TokenExchange
from squidkeeper.services.sessions.keeper import Kept, SessionKeeper
from squidkeeper.services.sessions.models import (
    ListTaken,
    SessionsEnded,
    SessionShown,
    parse_object,
)
from squidkeeper.services.sessions.openapi import openapi_document
from squidkeeper.services.sessions.orchestrators import (
    Orchestrator,
    OrchestratorsInForce,
)
from squidkeeper.services.sessions.problems import (
    TYPE,
    CallRefused,
    ProblemCode,
)
from squidkeeper.services.sessions.tickets import SessionTickets
from squidkeeper.serving.sessions.store import SessionRow
from squidkeeper.serving.tickets.ticket import NUMBER

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_log = logging.getLogger(__name__)
_JSON: Final = "application/json"
_SESSION: Final = re.compile(r"/v1/sessions/([^/]+)(?:/(effective|usage|requests))?")
_TICKET: Final = re.compile(rf"/v1/tickets/({NUMBER.pattern})")
_CHANGING: Final = frozenset({"PUT", "PATCH", "DELETE", "POST"})
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_LIMIT: Final = 1000
_SHOWN: Final = 200  # characters of a path
_SECURITY: Final = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
)
Report = Callable[[SessionRow], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Reports:
    """What a caller reads about one session, beside its row."""

    effective: Report
    usage: Report
    requests: Report


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """An answer; `entries` are for the audit log: one for each session."""

    status: int
    body: bytes = b""
    content_type: str = _JSON
    headers: tuple[tuple[str, str], ...] = ()
    entries: tuple[Mapping[str, object], ...] = ({},)


class SessionsApplication:
    """The WSGI application."""

    def __init__(
        self,
        keeper: SessionKeeper,
        orchestrators: OrchestratorsInForce,
        audit: AuditLog,
        reports: Reports,
        tickets: SessionTickets,
    ) -> None:
        self._keeper = keeper
        self._exchange = TokenExchange(keeper)
        self._orchestrators = orchestrators
        self._audit = audit
        self._reports = reports
        self._tickets = tickets

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """CallAnswer a request (PEP 3333)."""
        call = _Call(environ)
        caller, answer = self._answered(call)
        # Whoever is no orchestrator cannot fill the log.
        if caller is not None and call.method in _CHANGING:
            self._audit.write(
                answer.entries,
                orchestrator=caller.name,
                uid=call.uid,
                call=call.method,
                path=call.path[:_SHOWN],
                query=call.query[:_SHOWN] or None,
                status=answer.status,
            )
        reason = HTTPStatus(answer.status).phrase
        length = (
            () if answer.status == 204 else (("Content-Length", str(len(answer.body))),)
        )
        kind = (("Content-Type", answer.content_type),) if answer.body else ()
        start_response(
            f"{answer.status} {reason}", [*length, *kind, *answer.headers, *_SECURITY]
        )
        return [answer.body] if answer.body and call.method != "HEAD" else []

    def _answered(self, call: _Call) -> tuple[Orchestrator | None, CallAnswer]:
        caller = None
        try:
            caller = self._caller(call)
            return caller, self._answer(caller, call)
        except CallRefused as error:
            if isinstance(error.__cause__, OSError):
                _log.error("%s", error.__cause__)
            return caller, _refused(error)

    def _caller(self, call: _Call) -> Orchestrator:
        known = self._orchestrators.current()
        if known is None:
            raise CallRefused(
                ProblemCode.SETTINGS_FAULTY, "the log of this service has its faults"
            )
        caller = known.of_user(call.uid)
        if caller is None:
            raise CallRefused(
                ProblemCode.UNKNOWN_CALLER,
                f"no orchestrator of sessions.yaml is the user {call.uid}",
            )
        return caller

    def _answer(self, caller: Orchestrator, call: _Call) -> CallAnswer:
        if call.path == "/v1/openapi.json":
            call.check_method("GET")
            return _json(openapi_document())
        if call.path == "/v1/sessions":
            return self._of_all(caller, call)
        if (call.method, call.path) == ("POST", "/v1/sessions/exchange"):
            made = self._exchange.take(caller, parse_object(call.body()))
            answer = _kept(made.kept, 201 if made.kept.is_new else 200)
            entries = tuple({**entry, **made.facts} for entry in answer.entries)
            return replace(answer, entries=entries)
        if call.path == "/v1/tickets":
            call.check_method("GET")
            return _json(self._tickets.waiting(caller, _session(call)))
        if ticket := _TICKET.fullmatch(call.path):
            call.check_method("POST")
            return self._of_ticket(caller, call, ticket[1])
        found = _SESSION.fullmatch(call.path)
        if found is None:
            raise CallRefused(
                ProblemCode.NO_SUCH_CALL, "GET /v1/openapi.json lists the calls"
            )
        name, report = found.groups()
        if report is None:
            return self._of_one(caller, call, name)
        call.check_method("GET")
        row = self._keeper.row_of(caller, name)
        return _json(getattr(self._reports, report)(row))

    def _of_ticket(self, caller: Orchestrator, call: _Call, number: str) -> CallAnswer:
        shown = self._tickets.answer(caller, number, parse_object(call.body()))
        facts = {
            "session": shown.session,
            "number": shown.number,
            "ticket": shown.ticket,
            "state": shown.state,
            "until": shown.until,
            "by": shown.by,
        }
        return _json(shown, [facts])

    def _of_all(self, caller: Orchestrator, call: _Call) -> CallAnswer:
        match call.method:
            case "GET":
                asked = call.parameters("label", "after", "limit")
                page = self._keeper.page(
                    caller,
                    _labels(asked),
                    _number(asked, "after", 0),
                    min(_number(asked, "limit", 0), _LIMIT),
                )
                return _json(page)
            case "PUT":
                taken = self._keeper.take_list(caller, parse_object(call.body()))
                return _json(taken, (*_entries_ended(taken), *_entries_listed(taken)))
            case "DELETE":
                labels = _labels(call.parameters("label"))
                if not labels:
                    raise CallRefused(
                        ProblemCode.INVALID_QUERY,
                        "expected ?label=NAME=VALUE, which says what ends",
                    )
                return _ended(self._keeper.end_labelled(caller, labels))
        raise _wrong_method("GET, PUT, DELETE")

    def _of_one(self, caller: Orchestrator, call: _Call, name: str) -> CallAnswer:
        match call.method:
            case "GET":
                return _kept(self._keeper.get(caller, name))
            case "PUT":
                kept = self._keeper.put(caller, name, parse_object(call.body()))
                return _kept(kept, 201 if kept.is_new else 200)
            case "PATCH":
                data = parse_object(call.body())
                return _kept(self._keeper.change(caller, name, data, call.if_match))
            case "DELETE":
                return _ended(self._keeper.end(caller, name, call.if_match))
        raise _wrong_method("GET, PUT, PATCH, DELETE")


class _Call:
    """A request, as the application reads it."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"]
        self.query: str = environ.get("QUERY_STRING", "")
        self.uid = int(environ["REMOTE_ADDR"])
        self.if_match: str | None = environ.get("HTTP_IF_MATCH")

    def body(self) -> bytes:
        """Read the body, which waitress has bounded."""
        read: bytes = self._environ["wsgi.input"].read()
        return read

    def check_method(self, expected: str) -> None:
        """Refuse another method."""
        if self.method != expected:
            raise _wrong_method(expected)

    def parameters(self, *known: str) -> list[tuple[str, str]]:
        """Read the query; `CallRefused` for a parameter that is not known."""
        try:
            found = parse_qsl(
                self.query,
                keep_blank_values=True,
                strict_parsing=bool(self.query),
                max_num_fields=20,
                errors="strict",
            )
        except ValueError as error:
            raise CallRefused(ProblemCode.INVALID_QUERY, str(error)) from error
        for name, _ in found:
            if name not in known:
                expected = ", ".join(known)
                raise CallRefused(
                    ProblemCode.INVALID_QUERY,
                    f"unknown parameter {name[:100]!r}, expected {expected}",
                )
        return found


def _labels(asked: list[tuple[str, str]]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for value in (value for name, value in asked if name == "label"):
        label, equals, wanted = value.partition("=")
        if not equals or not wanted or labels.get(label, wanted) != wanted:
            raise CallRefused(
                ProblemCode.INVALID_QUERY, "expected label=NAME=VALUE, each name once"
            )
        labels[label] = wanted
    return labels


def _session(call: _Call) -> str:
    names = [name for _, name in call.parameters("session")]
    if len(names) != 1:
        raise CallRefused(ProblemCode.INVALID_QUERY, "expected one ?session=NAME")
    return names[0]


def _number(asked: list[tuple[str, str]], name: str, default: int) -> int:
    found = [value for key, value in asked if key == name]
    if not found:
        return default
    if len(found) > 1 or not _NUMBER.fullmatch(found[0]):
        raise CallRefused(ProblemCode.INVALID_QUERY, f"{name}: expected one number")
    return int(found[0])


def _wrong_method(allow: str) -> CallRefused:
    detail = f"expected one of: {allow}"
    return CallRefused(ProblemCode.WRONG_METHOD, detail, allow=allow)


def _json(
    made: BaseModel | Mapping[str, Any], entries: Iterable[Mapping[str, object]] = ()
) -> CallAnswer:
    shown = (
        made.model_dump(mode="json", exclude_none=True)
        if isinstance(made, BaseModel)
        else made
    )
    body = json.dumps(shown).encode() + b"\n"
    return CallAnswer(200, body, entries=tuple(entries) or ({},))


def _kept(kept: Kept, status: int = 200) -> CallAnswer:
    body = kept.shown.model_dump_json(exclude_none=True).encode() + b"\n"
    entries = (_entry(kept.shown),)
    return CallAnswer(status, body, headers=(("ETag", kept.version),), entries=entries)


def _ended(ended: SessionsEnded) -> CallAnswer:
    entries = [*_entries_ended(ended)]
    if not ended.left and ended.problem is None and ended.note is None:
        return CallAnswer(204, entries=tuple(entries) or ({},))
    return _json(ended, entries)


def _entry(shown: SessionShown) -> Mapping[str, object]:
    return {
        "session": shown.name,
        "number": shown.number,
        "role": shown.role,
        "address": shown.address,
        "expires": shown.expires,
    }


def _entries_ended(ended: SessionsEnded) -> Iterator[Mapping[str, object]]:
    """Yield an entry for each; `left` is that of all together."""
    for one in ended.ended:
        yield {
            "session": one.name,
            "number": one.number,
            "result": "ended",
            "left": ended.left,
        }


def _entries_listed(taken: ListTaken) -> Iterator[Mapping[str, object]]:
    for one in taken.sessions:
        if one.session is not None and one.result != "kept":
            yield {**_entry(one.session), "result": one.result}
        elif one.problem is not None:
            problem = one.problem["code"]
            yield {"session": one.name, "result": one.result, "problem": problem}


def _refused(error: CallRefused) -> CallAnswer:
    problem = error.problem
    return CallAnswer(
        problem.status,
        problem.document(),
        TYPE,
        (("Allow", problem.allow),) if problem.allow else (),
        entries=({"problem": str(problem.code), **error.facts},),
    )
