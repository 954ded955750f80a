"""AWS signatures of requests (floor 5): the request that Squid forwards, signed with the policy's keys."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from squidkeeper.credentials import SecretStore
from squidkeeper.credentials.aws_signature import AwsKeys, AwsScope, sign
from squidkeeper.errors import SigningRefused
from squidkeeper.helpers.fetched_request import FetchedRequest
from squidkeeper.policy.forms import AwsSigV4
from squidkeeper.policy.model import Match

_COPY_SOURCE = "x-amz-copy-source"  # names an object to read


def signature_headers(
    form: AwsSigV4, match: Match, secrets: SecretStore, request: FetchedRequest | None
) -> Mapping[str, str]:
    """Sign a request; `SigningRefused` if its head does not allow that."""
    if request is None:
        raise SigningRefused("the headers of the request are not known yet: retry")
    if _COPY_SOURCE in request.headers and not match.any_request:
        raise SigningRefused(
            "the header X-Amz-Copy-Source names an object, and the credential is for a part of the host"
        )
    session = None if form.session_token is None else secrets.get(form.session_token).reveal()
    keys = AwsKeys(secrets.get(form.access_key_id).reveal(), secrets.get(form.secret_access_key).reveal(), session)
    scope = AwsScope(form.region, form.service)
    return sign(keys, scope, request.method, str(request.url()), request.headers, datetime.now(UTC))
