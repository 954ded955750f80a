"""One bounded POST over verified https: no redirects, no proxy, no compression.

httpx is imported late: it belongs to the extra `oauth2`.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from squidkeeper.base.errors import SourceFailed
from squidkeeper.base.verified_tls import verified_tls
from squidkeeper.policy.extras import require

SECONDS: Final = 10  # for the whole exchange
_ANSWER_BYTES: Final = 1024 * 1024  # GitHub describes each repository


async def post_for_json(
    url: str, tls: ssl.SSLContext, expected: int, headers: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    """POST a body and parse the JSON object of the answer.

    `SourceFailed` if there is none with the expected status, without a word of the answer.
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


async def _exchange(client: Any, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    sent = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "squidkeeper", **headers}
    content = b""
    async with client.stream("POST", url, headers=sent, content=body) as answer:
        if answer.status_code < 300:  # the body of an error is not read
            async for data in answer.aiter_raw():  # a compressed one is no JSON
                content += data
                if len(content) > _ANSWER_BYTES:
                    raise SourceFailed(f"the answer is longer than {_ANSWER_BYTES >> 20} MB")
        return answer.status_code, content


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Trust the authorities of a file, or the system's; `SourceFailed` for a file that cannot be used."""
    try:
        return verified_tls(ca)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise SourceFailed(f"the file of 'ca' cannot be used ({ca}): {reason}") from error


def _check_status(status: int, expected: int) -> None:
    if 300 <= status < 400:
        raise SourceFailed(f"status {status}, expected {expected}: redirects are not followed, name the URL itself")
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
