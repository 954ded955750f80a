"""Sealed tokens in requests: opened, each guard checked, and what they hold injected, or a denial."""

from dataclasses import replace
from datetime import datetime

from squidkeeper.base.errors import SealedTokenRefused, SquidkeeperError
from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import Decision, deny
from squidkeeper.policy.engine.sealed_guards import failing_guard
from squidkeeper.policy.language.forms import InjectedValue, SealedHeader
from squidkeeper.policy.language.model import SEALED_REFUSED, SEALED_TOKEN, Credential, Match
from squidkeeper.policy.language.sealed_tokens import SECRET, SealedContent
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.sealed_tokens import SealedTokens, presented_token
from squidkeeper.serving.credentials.secret import Secret
from squidkeeper.serving.credentials.store import filled
from squidkeeper.serving.helpers.fetched_request import FetchedRequest

_REFUSED = "The sealed token of this request is refused: {}."


class Unsealer:
    """The sealed tokens of one policy; with `default_observes`, what its default allows gets nothing of them."""

    def __init__(self, secrets: SecretStore, keys: tuple[str, ...], *, default_observes: bool = False) -> None:
        self._tokens = SealedTokens(secrets, keys)
        self._default_observes = default_observes

    @property
    def problems(self) -> tuple[SquidkeeperError, ...]:
        """Why keys cannot be used."""
        return tuple(self._tokens.problems.values())

    def unseal(self, decision: Decision, request: FetchedRequest, at: datetime) -> Decision:
        """Add what the request's sealed token holds to the decision, or deny."""
        try:
            token = presented_token(request.headers, request.asked)
            if token is None:
                return decision
            if self._default_observes and decision.rule == "default":
                raise SealedTokenRefused("no rule allows this request, and the default only observes")
            content = self._tokens.open(token)
            _check(content, decision, request, at)
        except SealedTokenRefused as error:
            return deny(SEALED_REFUSED, _REFUSED.format(error))
        template = InjectedValue(content.header, content.template, (SECRET,), content.username)
        form = SealedHeader(content.header, filled(template, [Secret(SECRET, content.secret)]))
        credential = Credential(SEALED_TOKEN, Location(""), Match(), form)
        return replace(decision, credentials=(*decision.credentials, credential))


def _check(content: SealedContent, decision: Decision, request: FetchedRequest, at: datetime) -> None:
    url = request.url()
    problem = failing_guard(content, request.facts(url), url, at)
    if problem is not None:
        raise SealedTokenRefused(problem)
    if decision.credentials:  # in whatever place: a server may let the key of either decide who asks
        raise SealedTokenRefused("the policy has a credential for this request")
