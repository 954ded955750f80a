"""`squidkeeper credential`: what is put into this request?

Squid asks it last, after a rewrite. It decides the request again by its own policy, so
that one revision alone gives a credential. The answer has one annotation for each
header, or denies.
"""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.errors import (
    ExtraMissing,
    ReplyTooLong,
    SecretUnavailable,
    SessionValueMissing,
    SigningRefused,
    SquidkeeperError,
)
from squidkeeper.base.helper_metrics import CREDENTIAL
from squidkeeper.policy.engine import CompiledPolicy, Decision, Stage, decide
from squidkeeper.policy.extras import extra_problem
from squidkeeper.policy.language.forms import (
    AwsSigV4,
    Headers,
    QueryParameters,
    SealedHeader,
    signs,
)
from squidkeeper.policy.language.model import Credential
from squidkeeper.policy.language.secret_sources import session_secrets
from squidkeeper.policy.protocol.lines import (
    LINE_LIMIT,
    LONGEST_CHANNEL,
    Reply,
    decode_token,
    format_reply,
    parse_tokens,
    reply_limit,
    split_tokens,
)
from squidkeeper.policy.protocol.request import REQUEST_TOKENS, parse_request
from squidkeeper.policy.protocol.request_headers import (
    READ_HEADERS,
    RequestHeaders,
    parse_headers,
)
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.aws_signature import load_signer
from squidkeeper.serving.helpers.fetched_request import (
    FetchedRequest,
    Unsealer,
    signature_headers,
)
from squidkeeper.serving.helpers.host_matches import HostMatches, decision_time
from squidkeeper.serving.parts import PartsInForce, needed_by
from squidkeeper.serving.replies import (
    HEADER_TOO_LONG,
    WITHOUT_HEADERS,
    credential_reply,
    credential_unavailable_reply,
    no_policy_reply,
    other_parameters_reply,
    parameters_key,
    signing_refused_reply,
)

_log = logging.getLogger(__name__)
_TRUST_SECONDS = 0.1  # a rotated file is in use after that
# of Python objects, beside the values
_CACHE_BYTES, _REPLY_BYTES = (
    4 * 1024 * 1024,
    3_000,
)
_NOT_ADDED = ReplyTooLong(
    "the URL with its parameters is longer than 8,000 bytes, or they have just become available"
)
# in place of the parameters, where Squid asks again once the rewriter was asked
_AHEAD = b"ahead"
_TOKENS = (REQUEST_TOKENS + 3, REQUEST_TOKENS + 4)
_TOKENS_WITH_HEADERS = tuple(count + len(READ_HEADERS) for count in _TOKENS)


class Injector:
    """One policy and its secrets, with the replies by decision: without them a line
    takes 23 us instead of 11.

    `fetched` is the folder of fetched secrets, `brought` of those of sessions. A reply
    with a session's own value is not kept. Where no value of one has been fetched
    yet, the lines that need it are held for `wait_seconds` from the first one on. After
    that they are denied at once.
    """

    def __init__(
        self,
        policy: CompiledPolicy,
        fetched: Path | None = None,
        wait_seconds: float = 0.0,
        in_force: frozenset[str] | None = None,
        brought: Path | None = None,
    ) -> None:
        self.policy = policy
        self._in_force = PartsInForce(needed_by(policy), in_force)
        self.secrets = SecretStore(
            policy.source.secrets, os.environ, fetched, _TRUST_SECONDS, brought
        )
        self._of_sessions = session_secrets(policy.source.secrets)
        self._wait_seconds = wait_seconds
        self._wait_until: dict[
            str, float
        ] = {}  # by the credential that lacks a first value
        self._matches = HostMatches(policy)
        self._replies: BoundedCache[Decision, tuple[list[tuple[str, str]], Reply]] = (
            BoundedCache(_CACHE_BYTES)
        )
        self._reported: set[str] = set()
        observes = policy.source.observe_default is not None
        self._unsealer = Unsealer(
            self.secrets, policy.source.sealing_keys, default_observes=observes
        )
        self._report(f"sealed tokens: {problem}" for problem in self._unsealer.problems)
        if (
            any(signs(credential.form) for credential in policy.source.credentials)
            and extra_problem("aws") is None
        ):
            load_signer()

    def decide(self, tokens: bytes, url: bytes, final_url: bytes) -> Decision:
        """Decide one line, by its tokens as they came."""
        asked = None if url == b"-" else decode_token(url)
        fetched = None if final_url == b"-" else decode_token(final_url)
        match, at = self._matches.find(tokens), decision_time(self.policy)
        return self._in_force.checked(
            decide(self.policy, match, at, Stage.FETCH, asked, fetched)
        )

    def request(
        self, tokens: bytes, url: bytes, final_url: bytes, headers: RequestHeaders
    ) -> FetchedRequest:
        """Return the request of a line that is allowed, with its headers."""
        return FetchedRequest.of(
            self._matches.find(tokens), tokens, url, final_url, headers
        )

    def session_of(self, tokens: bytes) -> int | None:
        """Return the number of the session that asks, of a line's tokens."""
        session = self._matches.find(tokens).facts.session
        return None if session is None else session.number

    def unseal(self, decision: Decision, request: FetchedRequest | None) -> Decision:
        """Open the sealed token of a request that is allowed, if it has one; deny where
        its headers are not known.

        They are not where another revision has decided that nothing reads them: a token
        would pass as it is.
        """
        if (
            not decision.allowed
            or decision.redirects
            or not self.policy.source.sealing_keys
        ):
            return decision
        if request is None:
            return WITHOUT_HEADERS
        unsealed = self._unsealer.unseal(decision, request, datetime.now(UTC))
        if not unsealed.allowed:
            self._report(
                f"sealed tokens: {problem}" for problem in self._unsealer.problems
            )
        return unsealed

    def inject(
        self,
        decision: Decision,
        request: FetchedRequest | None,
        limit: int,
        *,
        session: int | None = None,
        lacks_parameters: bool = False,
    ) -> Reply:
        """Put every header of a decision into a reply of at most `limit` bytes, or
        deny.

        `request` is None where the policy needs no headers of the client. `session` is
        the number of the one that asks. With
        `lacks_parameters`, the rewriter has not added those of the decision.
        """
        injected: list[tuple[str, str]] = []
        problems: dict[str, SquidkeeperError] = {}
        for credential in decision.credentials:
            try:
                injected += self._headers(credential, request, session)
            except (SecretUnavailable, ExtraMissing) as error:
                problems[credential.name] = error
            except SigningRefused as error:
                return signing_refused_reply(
                    decision, self.policy, credential.name, str(error)
                )
        if lacks_parameters and not problems:
            problems = {name: _NOT_ADDED for name, _ in decision.parameters}
        if not problems:
            try:
                return self._reply(decision, injected, limit)
            except ReplyTooLong as error:
                problems = {
                    credential.name: error for credential in decision.credentials
                }
        is_missing = any(
            isinstance(problem, SessionValueMissing) for problem in problems.values()
        )
        reply = credential_unavailable_reply(
            decision, self.policy, problems, of_session=is_missing
        )
        if time.monotonic() < (until := self._waits_until(problems)):
            return replace(reply, hold_until=until)
        names = ", ".join(credential.name for credential in decision.credentials)
        self._report(f"credential {names}: {problem}" for problem in problems.values())
        return reply

    def _waits_until(self, problems: Mapping[str, SquidkeeperError]) -> float:
        if not all(
            isinstance(problem, SecretUnavailable) and problem.pending
            for problem in problems.values()
        ):
            return 0.0
        until = time.monotonic() + self._wait_seconds
        return min(self._wait_until.setdefault(name, until) for name in problems)

    def _headers(
        self,
        credential: Credential,
        request: FetchedRequest | None,
        session: int | None,
    ) -> list[tuple[str, str]]:
        fill = self.secrets.fill
        match credential.form:
            case Headers() as form:
                return [(value.name, fill(value, session)) for value in form.values]
            case QueryParameters() as form:  # which the rewriter adds
                for value in form.values:
                    fill(value, session)
                return []
            case SealedHeader(name, value):
                return [(name, value)]
            case AwsSigV4() as form:
                return [
                    *signature_headers(
                        form, credential.match, self.secrets, request
                    ).items()
                ]

    def _reply(
        self, decision: Decision, injected: list[tuple[str, str]], limit: int
    ) -> Reply:
        known = self._replies.get(decision)
        if known is not None:
            if known[0] == injected:
                return known[1]
            # a secret was rotated: nothing may hold the old one any longer
            self._replies.clear()
        reply = credential_reply(decision, self.policy, injected)
        format_reply(reply, LONGEST_CHANNEL, limit)
        # else it was decided for this request alone, or is of one session
        if decision.rewritten is None and not self._is_of_request(decision):
            held = sum(len(value) for _, value in injected)
            self._replies.add(decision, (injected, reply), _REPLY_BYTES + 3 * held)
        return reply

    def _is_of_request(self, decision: Decision) -> bool:
        """Whether the values are those of one request or session, and of no other with
        the same decision.
        """
        forms = [credential.form for credential in decision.credentials]
        return any(
            isinstance(form, SealedHeader | AwsSigV4)
            or not self._of_sessions.isdisjoint(form.secrets)
            for form in forms
        )

    def _report(self, problems: Iterable[str]) -> None:
        """Report problems to the operators, each once for a policy: a client can cause
        the same one at any rate.
        """
        for problem in problems:
            if problem not in self._reported:
                self._reported.add(problem)
                _log.error("%s", problem)


def answer(
    injector: Injector | None,
    line: bytes,
    concurrency: int,
    *,
    with_headers: bool = False,
) -> Reply:
    """Answer one line: the nine tokens, the URL asked for, the one that is fetched, the
    parameters, the headers.
    """
    counts = _TOKENS_WITH_HEADERS if with_headers else _TOKENS
    if injector is None:
        return no_policy_reply(CREDENTIAL, parse_request(parse_tokens(line, counts)))
    if with_headers and len(line) > LINE_LIMIT:
        return credential_reply(HEADER_TOO_LONG, injector.policy)
    tokens, url, final_url, added, *rest = split_tokens(line, REQUEST_TOKENS, counts)
    decision = injector.decide(tokens, url, final_url)
    expected = parameters_key(decision, injector.policy)
    if decision.allowed and added not in (b"-", _AHEAD, expected.encode()):
        return other_parameters_reply(injector.policy)
    request = None
    if with_headers and decision.allowed:
        request = injector.request(tokens, url, final_url, parse_headers(rest))
    decision = injector.unseal(decision, request)
    if not decision.credentials:
        return credential_reply(decision, injector.policy)
    return injector.inject(
        decision,
        request,
        reply_limit(concurrency),
        session=injector.session_of(tokens),
        lacks_parameters=bool(expected) and added == b"-",
    )
