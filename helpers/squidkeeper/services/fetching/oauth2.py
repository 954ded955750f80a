"""Tokens of an OAuth2 token endpoint, asked for with authlib, of the extra `oauth2`."""

from dataclasses import dataclass, field
from ssl import SSLContext

from squidkeeper.base.errors import SourceFailed
from squidkeeper.policy.extras import require
from squidkeeper.policy.language.secret_sources import ClientAuth, Grant, OAuth2Source
from squidkeeper.services.fetching.https import post_for_json
from squidkeeper.services.fetching.times import parse_expires_in
from squidkeeper.serving.credentials.fetched_values import FetchedValue

_METHODS = {ClientAuth.BASIC: "client_secret_basic", ClientAuth.FORM: "client_secret_post"}


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token, and the refresh token that replaces the one that was used, if the answer has one."""

    access: FetchedValue
    refresh_token: str | None = field(default=None, repr=False)


async def fetch_token(
    source: OAuth2Source, tls: SSLContext, client_secret: str | None, refresh_token: str | None, now: float
) -> AccessToken:
    """Ask for a token; `SourceFailed` if there is none."""
    headers, body = token_request(source, client_secret, refresh_token)
    return parse_token(await post_for_json(source.token_url, tls, 200, headers, body), now)


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
    body = prepare_token_request(source.grant.value, **{key: value for key, value in fields.items() if value})
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
    if refresh is not None and not (isinstance(refresh, str) and refresh.isascii() and refresh.isprintable()):
        raise SourceFailed("the answer's 'refresh_token' is not a text of printable ASCII")
    return AccessToken(FetchedValue(token, parse_expires_in(answer.get("expires_in"), now)), refresh or None)
