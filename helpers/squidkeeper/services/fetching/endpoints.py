"""Tokens of OAuth2 token endpoints and of GitHub Apps, and when they expire.

Each is one bounded POST over verified https: no redirects, no proxy, no compression.
httpx, authlib and joserfc are imported late: they belong to the extra `oauth2`.
"""

import asyncio
import json
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final, TypeGuard

from squidkeeper.base.errors import SourceFailed
from squidkeeper.base.verified_tls import verified_tls, why_unusable
from squidkeeper.policy.extras import require
from squidkeeper.policy.language.secret_sources import (
    ClientAuth,
    GitHubAppSource,
    Grant,
    OAuth2Source,
)
from squidkeeper.serving.credentials.fetched_values import FetchedValue

SECONDS: Final = 10  # for the whole exchange
_ANSWER_BYTES: Final = 1024 * 1024  # GitHub describes each repository


async def post_for_json(
    url: str,
    tls: ssl.SSLContext,
    expected: int,
    headers: Mapping[str, str],
    body: bytes,
) -> dict[str, Any]:
    """POST a body and parse the JSON object of the answer.

    `SourceFailed` if there is none with the expected status, without a word of the
    answer.
    """
    require("oauth2")
    import httpx

    try:
        async with asyncio.timeout(SECONDS):
            async with httpx.AsyncClient(
                verify=tls, trust_env=False, follow_redirects=False, timeout=SECONDS
            ) as client:
                status, content = await _exchange(client, url, headers, body)
    except (TimeoutError, httpx.TimeoutException):
        raise SourceFailed(f"no whole answer within {SECONDS} s") from None
    except httpx.ConnectError as error:
        raise SourceFailed(f"the connection failed: {error}") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
        raise SourceFailed("the connection broke, or the answer is not HTTP") from None
    _check_status(status, expected)
    return _parsed(content)


async def _exchange(
    client: Any, url: str, headers: Mapping[str, str], body: bytes
) -> tuple[int, bytes]:
    sent = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "squidkeeper",
        **headers,
    }
    content = b""
    async with client.stream("POST", url, headers=sent, content=body) as answer:
        if answer.status_code < 300:  # the body of an error is not read
            async for data in answer.aiter_raw():  # a compressed one is no JSON
                content += data
                if len(content) > _ANSWER_BYTES:
                    raise SourceFailed(
                        f"the answer is longer than {_ANSWER_BYTES >> 20} MB"
                    )
        return answer.status_code, content


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Trust the authorities of a file, or the system's; `SourceFailed` for a file that
    cannot be used.
    """
    try:
        return verified_tls(ca)
    except OSError as error:
        raise SourceFailed(
            f"the file of 'ca' cannot be used ({ca}): {why_unusable(error)}"
        ) from error


def _check_status(status: int, expected: int) -> None:
    if 300 <= status < 400:
        raise SourceFailed(
            f"status {status}, expected {expected}: redirects are not followed, name the URL itself"
        )
    if status != expected:
        raise SourceFailed(f"status {status}, expected {expected}")


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise SourceFailed("the answer is not a JSON object")
    return answer


_YEARS_100_SECONDS: Final = 100 * 365 * 86400.0


def parse_expires_in(value: object, asked: float) -> float | None:
    """Parse `expires_in`, a number of seconds that some servers send as text; None: the
    answer has none.
    """
    if value is None:
        return None
    if (
        isinstance(value, str)
        and value.isascii()
        and value.isdigit()
        and len(value) <= len("3153600000")
    ):
        value = int(value)
    if not _is_number(value) or not 0 < value <= _YEARS_100_SECONDS:
        raise SourceFailed("expires_in is not a number of seconds to come")
    return asked + value


def parse_expires_at(value: object, now: float) -> float | None:
    """Parse `expires_at`: a time with its zone such as 2026-12-01T18:00:00Z, or seconds
    since 1970.

    None: there is none. A time that has passed is an error.
    """
    if value is None:
        return None
    expires = _timestamp(value)
    if (
        expires is None
        or not now - _YEARS_100_SECONDS < expires < now + _YEARS_100_SECONDS
    ):
        raise SourceFailed(
            "expires_at is not a time, expected one such as 2026-12-01T18:00:00Z or seconds since 1970"
        )
    if expires <= now:
        raise SourceFailed(
            "the value has expired already: is the clock of this machine right?"
        )
    return float(expires)


def _timestamp(value: object) -> float | None:
    if _is_number(value):
        return value
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time.timestamp() if time and time.tzinfo else None


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number; JSON has integers that no float can hold."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


_METHODS = {
    ClientAuth.BASIC: "client_secret_basic",
    ClientAuth.FORM: "client_secret_post",
}


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token, and the refresh token that replaces the one that was used, if
    the answer has one.
    """

    access: FetchedValue
    refresh_token: str | None = field(default=None, repr=False)


async def fetch_token(
    source: OAuth2Source,
    tls: SSLContext,
    client_secret: str | None,
    refresh_token: str | None,
    now: float,
) -> AccessToken:
    """Ask for a token; `SourceFailed` if there is none."""
    headers, body = token_request(source, client_secret, refresh_token)
    return parse_token(
        await post_for_json(source.token_url, tls, 200, headers, body), now
    )


def token_request(
    source: OAuth2Source, client_secret: str | None, refresh_token: str | None
) -> tuple[dict[str, str], bytes]:
    """Make the header fields and the form of a request."""
    require("oauth2")
    from authlib.oauth2.auth import ClientAuth as Authentication
    from authlib.oauth2.rfc6749.parameters import prepare_token_request

    fields = {"scope": source.scope, "audience": source.audience}
    if source.grant is Grant.REFRESH_TOKEN:
        fields["refresh_token"] = refresh_token
    body = prepare_token_request(
        source.grant.value, **{key: value for key, value in fields.items() if value}
    )
    method = _METHODS[source.client_auth] if client_secret else "none"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    client = Authentication(source.client_id, client_secret or "", method)
    _, headers, body = client.prepare("POST", source.token_url, headers, body)
    return dict(headers), body.encode()


def parse_token(answer: dict[str, object], now: float) -> AccessToken:
    """Read the answer of a token endpoint (RFC 6749, 5.1)."""
    token, refresh = answer.get("access_token"), answer.get("refresh_token")
    if not isinstance(token, str) or not token:
        raise SourceFailed("the answer holds no text 'access_token'")
    if refresh is not None and not (
        isinstance(refresh, str) and refresh.isascii() and refresh.isprintable()
    ):
        raise SourceFailed(
            "the answer's 'refresh_token' is not a text of printable ASCII"
        )
    return AccessToken(
        FetchedValue(token, parse_expires_in(answer.get("expires_in"), now)),
        refresh or None,
    )


_BEFORE_SECONDS: Final = 60  # GitHub's clock may be behind
_VALID_SECONDS: Final = 540  # GitHub takes ten minutes at most


async def fetch_installation_token(
    source: GitHubAppSource, tls: SSLContext, private_key: bytes, now: float
) -> FetchedValue:
    """Ask for a token with these repositories and permissions alone; `SourceFailed` if
    there is none.
    """
    url = f"{source.api_url.rstrip('/')}/app/installations/{source.installation_id}/access_tokens"
    headers = {
        "Authorization": f"Bearer {app_token(source.app_id, private_key, now)}",
        "Accept": "application/vnd.github+json",
        "Content-Type": "application/json",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    narrowed = {
        "repositories": source.repositories,
        "permissions": dict(source.permissions),
    }
    answer = await post_for_json(url, tls, 201, headers, json.dumps(narrowed).encode())
    token = answer.get("token")
    if not isinstance(token, str) or not token:
        raise SourceFailed("the answer holds no text 'token'")
    return FetchedValue(token, parse_expires_at(answer.get("expires_at"), now))


def app_token(app_id: str, private_key: bytes, now: float) -> str:
    """Sign what proves to GitHub which app asks."""
    require("oauth2")
    from joserfc import jwt
    from joserfc.errors import JoseError
    from joserfc.jwk import RSAKey

    claims = {
        "iat": int(now) - _BEFORE_SECONDS,
        "exp": int(now) + _VALID_SECONDS,
        "iss": app_id,
    }
    try:
        return jwt.encode({"alg": "RS256"}, claims, RSAKey.import_key(private_key))
    except (ValueError, TypeError, JoseError):
        raise SourceFailed(
            "the private key is not an RSA key in PEM, as GitHub gives it"
        ) from None
