"""Checks a request as AWS does, by its documentation alone: nothing of botocore, and
nothing of the program.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import quote, unquote

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<scope>[^,]+), ?SignedHeaders=(?P<names>[^,]+), ?"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)


def signature(
    secret: str,
    scope: str,
    method: str,
    target: str,
    headers: Mapping[str, str],
    names: str,
    payload: str,
) -> str:
    """The signature of a request: `target` as it was sent, `headers` by lower-case
    names.

    `names` are those that are signed, `scope` is DATE/REGION/SERVICE/aws4_request.
    """
    path, _, query = target.partition("?")
    service = scope.split("/")[2]
    canonical_path = (
        _encoded(unquote(path), "/") if service == "s3" else _encoded(path, "/")
    )
    pairs = sorted(
        (_encoded(unquote(key)), _encoded(unquote(value)))
        for key, _, value in (pair.partition("=") for pair in query.split("&") if pair)
    )
    signed = [
        f"{name}:{' '.join(headers[name].split())}\n" for name in names.split(";")
    ]
    request = "\n".join(
        [
            method,
            canonical_path,
            "&".join(f"{k}={v}" for k, v in pairs),
            "".join(signed),
            names,
            payload,
        ]
    )
    text = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            headers["x-amz-date"],
            scope,
            sha256(request.encode()).hexdigest(),
        ],
    )
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, text.encode(), sha256).hexdigest()


def problem(
    secret: str,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> str | None:
    """Say what AWS would refuse about a request; None if it would take it."""
    match = AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if match is None:
        return "no signature"
    names = match["names"].split(";")
    _, _, scope = match["scope"].partition("/")
    payload = headers.get("x-amz-content-sha256") or sha256(body or b"").hexdigest()
    unsigned = sorted(
        name for name in headers if name.startswith("x-amz-") and name not in names
    )
    if unsigned or "host" not in names:
        return f"not signed: {unsigned or 'host'}"
    if len(payload) == 64 and body is not None and payload != sha256(body).hexdigest():
        return "the body is another one"
    expected = signature(
        secret, scope, method, target, headers, match["names"], payload
    )
    return None if expected == match["signature"] else "another signature"


def _encoded(text: str, safe: str = "") -> str:
    return quote(text, safe="-_.~" + safe)
