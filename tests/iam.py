"""Policies of IAM before an S3 server: moto itself reads neither their resources nor
their conditions.

It knows what the documented policy has, and fails at anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.s3_server import Application

_KEY = re.compile(r"Credential=([^/]+)/")
_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request to S3 needs: an action on a resource, and the values of condition
    keys.
    """

    action: str
    resource: str
    values: Mapping[str, str]


@dataclass(slots=True)
class Gate:
    """Lets a key do what its policy allows.

    A key without a policy is the administrator's.
    """

    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[Asked] = field(default_factory=list)

    def around(self, inner: Application) -> Application:
        def application(environ: dict[str, Any], start: Any) -> Any:
            found = _KEY.search(environ.get("HTTP_AUTHORIZATION", ""))
            policy, asked = (
                self.policies.get(found[1] if found else ""),
                asked_of(environ),
            )
            if policy is None or allows(policy, asked):
                return inner(environ, start)
            self.refused.append(asked)
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(
                "403 Forbidden",
                [
                    ("Content-Type", "application/xml"),
                    ("Content-Length", str(len(_DENIED))),
                ],
            )
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else _DENIED]

        return application


def asked_of(environ: dict[str, Any]) -> Asked:
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    method, resource = (
        environ["REQUEST_METHOD"],
        f"arn:aws:s3:::{bucket}/{key}".rstrip("/"),
    )
    values = {"s3:prefix": query["prefix"][0]} if "prefix" in query else {}
    if "HTTP_IF_NONE_MATCH" in environ:
        values["s3:if-none-match"] = environ["HTTP_IF_NONE_MATCH"]
    if not key:
        return Asked(
            "s3:ListBucket" if method in ("GET", "HEAD") else f"s3:{method}Bucket",
            resource,
            values,
        )
    parts = method in ("PUT", "POST") and ("uploads" in query or "partNumber" in query)
    values["s3:ObjectCreationOperation"] = str(
        method in ("PUT", "POST") and not parts
    ).lower()
    actions = {
        "GET": "GetObject",
        "HEAD": "GetObject",
        "PUT": "PutObject",
        "POST": "PutObject",
    }
    return Asked(
        f"s3:{actions.get(method, f'{method.title()}Object')}", resource, values
    )


def allows(policy: dict[str, Any], asked: Asked) -> bool:
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if _holds(statement, asked)
    }
    return effects == {"Allow"}


def _holds(statement: dict[str, Any], asked: Asked) -> bool:
    actions, resources = _listed(statement["Action"]), _listed(statement["Resource"])
    assert statement.keys() <= {"Effect", "Action", "Resource", "Condition"}
    return (
        asked.action in actions
        and any(fnmatchcase(asked.resource, resource) for resource in resources)
        and all(_conditions(statement.get("Condition", {}), asked.values))
    )


def _conditions(
    conditions: dict[str, dict[str, Any]], values: Mapping[str, str]
) -> Iterator[bool]:
    for operator, wanted in conditions.items():
        for key, expected in wanted.items():
            if operator == "Null":
                yield (key not in values) == (expected == "true")
            elif operator == "Bool":
                yield values.get(key) == expected
            else:
                assert operator == "StringLike"
                yield key in values and any(
                    fnmatchcase(values[key], pattern) for pattern in _listed(expected)
                )


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]
