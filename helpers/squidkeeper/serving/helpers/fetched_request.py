"""A request that is about to be fetched, with the headers that its client sends: signed
for AWS, its token unsealed.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple, Self

from squidkeeper.base.errors import SealedTokenRefused, SigningRefused, SquidkeeperError
from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import Decision, HostMatch, deny
from squidkeeper.policy.engine.request_scope import facts_of
from squidkeeper.policy.engine.sealed_guards import failing_guard
from squidkeeper.policy.language.forms import AwsSigV4, InjectedValue, SealedHeader
from squidkeeper.policy.language.model import (
    SEALED_REFUSED,
    SEALED_TOKEN,
    Credential,
    HostFacts,
    Match,
)
from squidkeeper.policy.language.parameters import plain_parameter
from squidkeeper.policy.language.sealed_tokens import SECRET, SealedContent
from squidkeeper.policy.protocol.lines import decode_token
from squidkeeper.policy.protocol.request_headers import RequestHeaders
from squidkeeper.policy.url import Url, parse_url
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.aws_signature import AwsKeys, AwsScope, sign
from squidkeeper.serving.credentials.sealed_tokens import SealedTokens, presented_token
from squidkeeper.serving.credentials.store import Secret, filled

_REFUSED = "The sealed token of this request is refused: {}."
_COPY_SOURCE = "x-amz-copy-source"  # names an object to read
_SEPARATOR = re.compile(r"[&;?]")
_AWS = "x_amz_"
_METHOD = 2  # the place of its token


class FetchedRequest(NamedTuple):
    """`asked` is the URL that the client asked for, `fetched` the one that Squid
    forwards, after any rewrite.
    """

    match: HostMatch
    method: str
    asked: str
    fetched: str
    headers: RequestHeaders

    @classmethod
    def of(
        cls,
        match: HostMatch,
        tokens: bytes,
        asked: bytes,
        fetched: bytes,
        headers: RequestHeaders,
    ) -> Self:
        """Make it of a line's tokens, as they came; of a request that is allowed."""
        url = decode_token(asked)
        final_url = url if fetched == b"-" else decode_token(fetched)
        return cls(
            match, decode_token(tokens.split(b" ")[_METHOD]), url, final_url, headers
        )

    @property
    def session(self) -> int | None:
        """The number of the session that asks."""
        session = self.match.facts.session
        return None if session is None else session.number

    def url(self) -> Url:
        """Parse the URL that is fetched."""
        return parse_url(self.fetched)

    def facts(self, url: Url) -> HostFacts:
        """Return the facts of the request that is fetched, with its method as it was
        sent.
        """
        return facts_of(self.match.facts, url)._replace(method=self.method)


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
    url, number = str(request.url()), request.session
    if any(_is_of_aws(pair) for pair in _SEPARATOR.split(url.partition("?")[2])):
        raise SigningRefused(
            "the query has a parameter X-Amz-…, which servers take for a header or another signature: send headers"
        )
    session = (
        None
        if form.session_token is None
        else secrets.get(form.session_token, number).reveal()
    )
    keys = AwsKeys(
        secrets.get(form.access_key_id, number).reveal(),
        secrets.get(form.secret_access_key, number).reveal(),
        session,
    )
    scope = AwsScope(form.region, form.service)
    return sign(keys, scope, request.method, url, request.headers, datetime.now(UTC))


def _is_of_aws(pair: str) -> bool:
    return plain_parameter(pair.partition("=")[0]).startswith(_AWS)


class Unsealer:
    """The sealed tokens of one policy; with `default_observes`, what its default allows
    gets nothing of them.
    """

    def __init__(
        self,
        secrets: SecretStore,
        keys: tuple[str, ...],
        *,
        default_observes: bool = False,
    ) -> None:
        self._tokens = SealedTokens(secrets, keys)
        self._default_observes = default_observes

    @property
    def problems(self) -> tuple[SquidkeeperError, ...]:
        """Why keys cannot be used."""
        return tuple(self._tokens.problems.values())

    def unseal(
        self, decision: Decision, request: FetchedRequest, at: datetime
    ) -> Decision:
        """Add what the request's sealed token holds to the decision, or deny."""
        try:
            token = presented_token(request.headers, request.asked)
            if token is None:
                return decision
            if self._default_observes and decision.rule == "default":
                raise SealedTokenRefused(
                    "no rule allows this request, and the default only observes"
                )
            content = self._tokens.open(token)
            _check(content, decision, request, at)
        except SealedTokenRefused as error:
            return deny(SEALED_REFUSED, _REFUSED.format(error))
        template = InjectedValue(
            content.header, content.template, (SECRET,), content.username
        )
        form = SealedHeader(
            content.header, filled(template, [Secret(SECRET, content.secret)])
        )
        credential = Credential(SEALED_TOKEN, Location(""), Match(), form)
        return replace(decision, credentials=(*decision.credentials, credential))


def _check(
    content: SealedContent, decision: Decision, request: FetchedRequest, at: datetime
) -> None:
    url = request.url()
    problem = failing_guard(content, request.facts(url), url, at)
    if problem is not None:
        raise SealedTokenRefused(problem)
    if (
        decision.credentials
    ):  # in whatever place: a server may let the key of either decide who asks
        raise SealedTokenRefused("the policy has a credential for this request")
