"""AWS signatures of requests: the request that Squid forwards, signed with the policy's keys."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from squidkeeper.base.errors import SigningRefused
from squidkeeper.policy.language.forms import AwsSigV4
from squidkeeper.policy.language.model import Match
from squidkeeper.policy.language.parameters import plain_parameter
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.aws_signature import AwsKeys, AwsScope, sign
from squidkeeper.serving.helpers.fetched_request import FetchedRequest

_COPY_SOURCE = "x-amz-copy-source"  # names an object to read
_SEPARATOR = re.compile(r"[&;?]")
_AWS = "x_amz_"


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
    url = str(request.url())
    if any(_is_of_aws(pair) for pair in _SEPARATOR.split(url.partition("?")[2])):
        raise SigningRefused(
            "the query has a parameter X-Amz-…, which servers take for a header or another signature: send headers"
        )
    session = None if form.session_token is None else secrets.get(form.session_token).reveal()
    keys = AwsKeys(secrets.get(form.access_key_id).reveal(), secrets.get(form.secret_access_key).reveal(), session)
    scope = AwsScope(form.region, form.service)
    return sign(keys, scope, request.method, url, request.headers, datetime.now(UTC))


def _is_of_aws(pair: str) -> bool:
    return plain_parameter(pair.partition("=")[0]).startswith(_AWS)
