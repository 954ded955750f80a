"""Tokens of an installation of a GitHub App. joserfc, of the extra `oauth2`, signs the request."""

import json
from ssl import SSLContext
from typing import Final

from squidkeeper.base.errors import SourceFailed
from squidkeeper.policy.extras import require
from squidkeeper.policy.language.secret_sources import GitHubAppSource
from squidkeeper.services.fetching.https import post_for_json
from squidkeeper.services.fetching.times import parse_expires_at
from squidkeeper.serving.credentials.fetched_values import FetchedValue

_BEFORE_SECONDS: Final = 60  # GitHub's clock may be behind
_VALID_SECONDS: Final = 540  # GitHub takes ten minutes at most


async def fetch_installation_token(
    source: GitHubAppSource, tls: SSLContext, private_key: bytes, now: float
) -> FetchedValue:
    """Ask for a token with these repositories and permissions alone; `SourceFailed` if there is none."""
    url = f"{source.api_url.rstrip('/')}/app/installations/{source.installation_id}/access_tokens"
    headers = {
        "Authorization": f"Bearer {app_token(source.app_id, private_key, now)}",
        "Accept": "application/vnd.github+json",
        "Content-Type": "application/json",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    narrowed = {"repositories": source.repositories, "permissions": dict(source.permissions)}
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

    claims = {"iat": int(now) - _BEFORE_SECONDS, "exp": int(now) + _VALID_SECONDS, "iss": app_id}
    try:
        return jwt.encode({"alg": "RS256"}, claims, RSAKey.import_key(private_key))
    except (ValueError, TypeError, JoseError):
        raise SourceFailed("the private key is not an RSA key in PEM, as GitHub gives it") from None
