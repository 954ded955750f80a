"""AWS Signature Version 4: signs what Squid forwards, from its head alone.

The body is never seen, so its hash is the one that the client declares. botocore, of
the extra `aws`, makes the signature; it is imported by `load_signer`, as that takes a
tenth of a second and 16 MB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

from squidkeeper.base.errors import SigningRefused
from squidkeeper.policy.extras import require

if TYPE_CHECKING:
    from botocore.auth import SigV4Auth

S3_SERVICES: Final = ("s3", "s3-object-lambda", "s3-outposts", "s3express")
_UNSIGNED = "UNSIGNED-PAYLOAD"
_HASH = re.compile(r"[0-9a-f]{64}")
_NOT_SIGNED = frozenset({_UNSIGNED, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"})
_CHUNK_SIGNED = "STREAMING-AWS4-"
# SHA-256 of nothing
_NO_BODY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})
_SIGNED_HEADERS = re.compile(r"AWS4-HMAC-SHA256 .*?SignedHeaders=([a-z0-9;_-]+)")
_OURS = frozenset(
    {"authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"}
)
_ALSO_SIGNED = frozenset({"content-type", "content-md5"})
_UNRESERVED = "-_.~"


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """The keys that sign, of which only the signature ever leaves; and the session's
    token, which is sent.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AwsScope:
    """What a signature is for."""

    region: str
    service: str

    @property
    def is_s3(self) -> bool:
        """Whether S3's own rules for paths and payloads hold."""
        return self.service in S3_SERVICES


def load_signer() -> None:
    """Import botocore; `ExtraMissing` if it is not installed.

    Helpers do so before a request needs it.
    """
    require("aws")
    import botocore.auth
    import botocore.awsrequest
    import botocore.credentials  # noqa: F401 - imported here, used below


def sign(
    keys: AwsKeys,
    scope: AwsScope,
    method: str,
    url: str,
    headers: Mapping[str, str],
    at: datetime,
) -> dict[str, str]:
    """Return the headers that sign a request: Authorization, X-Amz-Date, and what else
    AWS asks for.

    `url` is the one that is fetched, `headers` the client's, by their names in lower
    case, as far as they are known. `SigningRefused` for a request that cannot be signed
    from its head.
    """
    require("aws")
    from botocore.awsrequest import AWSRequest

    payload = _declared_payload(scope, method, headers)
    timestamp = at.strftime("%Y%m%dT%H%M%SZ")
    added = {"X-Amz-Date": timestamp}
    if scope.is_s3 or "x-amz-content-sha256" in headers:
        added["X-Amz-Content-Sha256"] = payload
    if keys.session_token is not None:
        added["X-Amz-Security-Token"] = keys.session_token
    signed = {**dict(_signed_too(headers)), **added}
    request = AWSRequest(
        method, _canonical_url(scope, url), headers=signed, auth_path=None
    )
    request.context["timestamp"] = timestamp
    signer = _signer(keys, scope)
    signer.payload = lambda _request: payload
    signature = signer.signature(
        signer.string_to_sign(request, signer.canonical_request(request)), request
    )
    names = signer.signed_headers(signer.headers_to_sign(request))
    credential = signer.scope(request)
    authorization = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return {"Authorization": authorization, **added}


def _signer(keys: AwsKeys, scope: AwsScope) -> SigV4Auth:
    from botocore.auth import S3SigV4Auth, SigV4Auth
    from botocore.credentials import Credentials

    credentials = Credentials(
        keys.access_key_id, keys.secret_access_key, keys.session_token
    )
    return (S3SigV4Auth if scope.is_s3 else SigV4Auth)(
        credentials, scope.service, scope.region
    )


def _declared_payload(scope: AwsScope, method: str, headers: Mapping[str, str]) -> str:
    declared = headers.get("x-amz-content-sha256")
    if declared is not None and declared.startswith(_CHUNK_SIGNED):
        reason = "the client signs each chunk of the body, and the gateway cannot replace such signatures"
        raise SigningRefused(
            f"{reason}: let it declare the hash of the body, or UNSIGNED-PAYLOAD"
        )
    is_hash = declared is not None and _HASH.fullmatch(declared) is not None
    if declared is not None and not is_hash and declared not in _NOT_SIGNED:
        raise SigningRefused(
            "X-Amz-Content-Sha256 is not a SHA-256 in hexadecimal digits, nor UNSIGNED-PAYLOAD"
        )
    if scope.is_s3:
        return declared or _UNSIGNED
    if declared is None and method in _WITHOUT_BODY:
        return _NO_BODY
    if declared is None or not is_hash:
        reason = f"{scope.service} signs the body, which the gateway does not see"
        raise SigningRefused(
            f"{reason}: let the client send its SHA-256 in X-Amz-Content-Sha256"
        )
    return declared


def _signed_too(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the client's headers that AWS wants signed; `SigningRefused` where their
    values are not known.
    """
    for name, value in headers.items():
        if (name.startswith("x-amz-") and name not in _OURS) or name in _ALSO_SIGNED:
            yield name, value
    match = _SIGNED_HEADERS.match(headers.get("authorization", ""))
    for name in match[1].split(";") if match else ():
        if name.startswith("x-amz-") and name not in _OURS and name not in headers:
            raise SigningRefused(
                f"the client signs the header {name[:64]}, which the gateway does not read"
            )


def _canonical_url(scope: AwsScope, url: str) -> str:
    """Escape a URL as AWS reads it for a signature.

    Of a path only S3's: botocore escapes that of other services.
    """
    parts = urlsplit(url)
    path = _escaped(parts.path or "/", "/") if scope.is_s3 else parts.path
    pairs = (pair.partition("=") for pair in parts.query.split("&"))
    query = "&".join(
        f"{_escaped(key)}{equals}{_escaped(value)}" for key, equals, value in pairs
    )
    return parts._replace(path=path, query=query).geturl()


def _escaped(text: str, safe: str = "") -> str:
    return quote(unquote_to_bytes(text), safe=_UNRESERVED + safe)
