"""The OpenAPI document of the calls, made of their models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from squidkeeper.base.release import release
from squidkeeper.services.sessions.models import (
    NAME,
    ExchangeAsked,
    ListedSession,
    ListTaken,
    SessionAsked,
    SessionChange,
    SessionPage,
    SessionsEnded,
    SessionShown,
    TicketAnswered,
    TicketList,
    TicketShown,
)
from squidkeeper.services.sessions.problems import TYPE
from squidkeeper.serving.tickets.ticket import NUMBER

_VERSION: Final = "3.1.0"
_SCHEMA: Final = "#/components/schemas/{model}"
_TAKEN: Final = (
    SessionAsked,
    ListedSession,
    SessionChange,
    ExchangeAsked,
    TicketAnswered,
)
_SHOWN: Final = (
    SessionShown,
    SessionPage,
    SessionsEnded,
    ListTaken,
    TicketList,
    TicketShown,
)
_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
_LIST: Final = {
    "type": "object",
    "required": ["sessions"],
    "additionalProperties": False,
    "properties": {
        "sessions": {
            "type": "array",
            "items": {"$ref": _SCHEMA.format(model="ListedSession")},
        }
    },
}
_NAME: Final = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{NAME.pattern}$"},
}
_TICKET: Final = {
    "name": "number",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{NUMBER.pattern}$"},
}
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "required": True,
    "description": "The ETag of the session that the caller has seen.",
    "schema": {"type": "string"},
}


@cache
def openapi_document() -> Mapping[str, Any]:
    """Make the document."""
    _, schemas = models_json_schema(
        [
            *((model, "validation") for model in _TAKEN),
            *((model, "serialization") for model in _SHOWN),
        ],
        ref_template=_SCHEMA,
    )
    components = {**schemas["$defs"], "Problem": _PROBLEM, "SessionList": _LIST}
    return {
        "openapi": _VERSION,
        "info": {"title": "Sessions of squidkeeper", "version": release()},
        "paths": _paths(),
        "components": {"schemas": components},
    }


def _paths() -> dict[str, Any]:
    one = "/v1/sessions/{name}"
    reports = {
        "effective": "What the session may reach.",
        "usage": "What it has used of its quotas.",
        "requests": "Its last denials.",
    }
    return {
        "/v1/sessions": {
            "get": _call(
                "List active sessions of the caller.",
                {200: SessionPage},
                _query("label", "after", "limit"),
            ),
            "put": _call(
                "Make the sessions of the caller those of a list.",
                {200: ListTaken},
                taken="SessionList",
            ),
            "delete": _call(
                "End the sessions of the caller with a label.",
                {204: None, 200: SessionsEnded},
                _query("label"),
            ),
        },
        "/v1/sessions/exchange": {
            "post": _call(
                "Make a session of a signed token.",
                {201: SessionShown, 200: SessionShown},
                taken="ExchangeAsked",
            )
        },
        "/v1/tickets": {
            "get": _call(
                "List the tickets of a session that wait.",
                {200: TicketList},
                [{**_NAME, "name": "session", "in": "query"}],
            )
        },
        "/v1/tickets/{number}": {
            "parameters": [_TICKET],
            "post": _call(
                "Answer a ticket.", {200: TicketShown}, taken="TicketAnswered"
            ),
        },
        one: {
            "parameters": [_NAME],
            "get": _call("Show a session.", {200: SessionShown}),
            "put": _call(
                "Make a session.",
                {201: SessionShown, 200: SessionShown},
                taken="SessionAsked",
            ),
            "patch": _call(
                "Change a session.",
                {200: SessionShown},
                [_IF_MATCH],
                taken="SessionChange",
            ),
            "delete": _call("End a session.", {204: None, 200: SessionsEnded}),
        },
        **{
            f"{one}/{name}": {
                "parameters": [_NAME],
                "get": _call(summary, {200: None}),
            }
            for name, summary in reports.items()
        },
    }


def _query(*names: str) -> list[dict[str, Any]]:
    kinds = {"label": {"type": "array", "items": {"type": "string"}}}
    return [
        {"name": name, "in": "query", "schema": kinds.get(name, {"type": "integer"})}
        for name in names
    ]


def _call(
    summary: str,
    answers: Mapping[int, type[BaseModel] | None],
    parameters: list[dict[str, Any]] | None = None,
    taken: str = "",
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": summary,
        "responses": {
            **{str(status): _answer(model) for status, model in answers.items()},
            "default": _content("A problem (RFC 9457).", "Problem", TYPE),
        },
    }
    if parameters:
        made["parameters"] = parameters
    if taken:
        made["requestBody"] = {"required": True, **_content("", taken)}
    return made


def _answer(model: type[BaseModel] | None) -> dict[str, Any]:
    if model is None:
        return {"description": "Done."}
    return _content(str(model.__doc__), model.__name__)


def _content(
    description: str, model: str, kind: str = "application/json"
) -> dict[str, Any]:
    schema = {"$ref": _SCHEMA.format(model=model)}
    found: dict[str, Any] = {"content": {kind: {"schema": schema}}}
    return {"description": description, **found} if description else found
