"""`squidkeeper credential`: what is put into this request? (floor 5)

Squid asks it last, after a rewrite. It decides the request again by its own policy, so that one revision alone gives a
credential. The answer has one annotation for each header, or denies.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from squidkeeper.bounded_cache import BoundedCache
from squidkeeper.credentials import SecretStore
from squidkeeper.engine import CompiledPolicy, Decision, Stage, decide
from squidkeeper.errors import ReplyTooLong, SecretUnavailable, SquidkeeperError
from squidkeeper.helpers.host_matches import HostMatches, decision_time
from squidkeeper.metrics import CREDENTIAL
from squidkeeper.policy.model import Credential
from squidkeeper.protocol.lines import (
    LONGEST_CHANNEL,
    Reply,
    decode_token,
    format_reply,
    parse_tokens,
    reply_limit,
    split_tokens,
)
from squidkeeper.protocol.request import REQUEST_TOKENS, parse_request
from squidkeeper.protocol.request_headers import NO_HEADERS, READ_HEADERS, RequestHeaders, parse_headers
from squidkeeper.replies import credential_reply, credential_unavailable_reply, no_policy_reply

_log = logging.getLogger(__name__)
_CACHE_BYTES, _REPLY_BYTES = 4 * 1024 * 1024, 3_000  # of Python objects, beside the values
_TOKENS = (REQUEST_TOKENS + 2, REQUEST_TOKENS + 3)
_TOKENS_WITH_HEADERS = tuple(count + len(READ_HEADERS) for count in _TOKENS)


class Injector:
    """One policy and its secrets, with the replies by decision: without them a line takes 23 us instead of 11.

    `fetched` is the folder of fetched secrets. Where no value of one has been fetched yet, the lines that need it are
    held for `wait_seconds` from the first one on. After that they are denied at once.
    """

    def __init__(self, policy: CompiledPolicy, fetched: Path | None = None, wait_seconds: float = 0.0) -> None:
        self.policy = policy
        self.secrets = SecretStore(policy.source.secrets, os.environ, fetched)
        self._wait_seconds = wait_seconds
        self._wait_until: dict[str, float] = {}  # by the credential that lacks a first value
        self._matches = HostMatches(policy)
        self._replies: BoundedCache[Decision, tuple[list[tuple[str, str]], Reply]] = BoundedCache(_CACHE_BYTES)
        self._reported: set[str] = set()

    def decide(self, tokens: bytes, url: bytes, final_url: bytes) -> Decision:
        """Decide one line, by its tokens as they came."""
        urls = (None if token == b"-" else decode_token(token) for token in (url, final_url))
        at = decision_time(self.policy)
        return decide(self.policy, self._matches.find(tokens), at, Stage.FETCH, *urls)

    def inject(self, decision: Decision, headers: RequestHeaders, limit: int) -> Reply:  # noqa: ARG002 - none reads them
        """Put every header of a decision into a reply of at most `limit` bytes, or deny.

        `headers` are the client's: none where the policy does not need them.
        """
        injected: list[tuple[str, str]] = []
        problems: dict[str, SquidkeeperError] = {}
        for credential in decision.credentials:
            try:
                injected += self._headers(credential)
            except SecretUnavailable as error:
                problems[credential.name] = error
        if not problems:
            try:
                return self._reply(decision, injected, limit)
            except ReplyTooLong as error:
                problems = {credential.name: error for credential in decision.credentials}
        reply = credential_unavailable_reply(decision, self.policy, problems)
        if time.monotonic() < (until := self._waits_until(problems)):
            return replace(reply, hold_until=until)
        self._report(decision, problems.values())
        return reply

    def _waits_until(self, problems: Mapping[str, SquidkeeperError]) -> float:
        """Tell until when a first value may still come, if that is all that is missing."""
        if not all(isinstance(problem, SecretUnavailable) and problem.pending for problem in problems.values()):
            return 0.0
        until = time.monotonic() + self._wait_seconds
        return min(self._wait_until.setdefault(name, until) for name in problems)

    def _headers(self, credential: Credential) -> Iterator[tuple[str, str]]:
        return ((value.name, self.secrets.fill(value)) for value in credential.form.values)

    def _reply(self, decision: Decision, injected: list[tuple[str, str]], limit: int) -> Reply:
        known = self._replies.get(decision)
        if known is not None:
            if known[0] == injected:
                return known[1]
            self._replies.clear()  # a secret was rotated: nothing may hold the old one any longer
        reply = credential_reply(decision, self.policy, injected)
        format_reply(reply, LONGEST_CHANNEL, limit)
        if decision.rewritten is None:  # else it was decided for this request alone
            held = sum(len(value) for _, value in injected)
            self._replies.add(decision, (injected, reply), _REPLY_BYTES + 3 * held)
        return reply

    def _report(self, decision: Decision, problems: Iterable[SquidkeeperError]) -> None:
        """Report problems to the operators, each once for a policy: a client can cause the same one at any rate."""
        names = ", ".join(credential.name for credential in decision.credentials)
        for problem in dict.fromkeys(f"credential {names}: {problem}" for problem in problems):
            if problem not in self._reported:
                self._reported.add(problem)
                _log.error("%s", problem)


def answer(injector: Injector | None, line: bytes, concurrency: int, *, with_headers: bool = False) -> Reply:
    """Answer one line: the nine tokens, the URL asked for, the one that is fetched (`final_url_`), and the headers."""
    counts = _TOKENS_WITH_HEADERS if with_headers else _TOKENS
    if injector is None:
        return no_policy_reply(CREDENTIAL, parse_request(parse_tokens(line, counts)))
    tokens, url, final_url, *rest = split_tokens(line, REQUEST_TOKENS, counts)
    decision = injector.decide(tokens, url, final_url)
    if not decision.credentials:
        return credential_reply(decision, injector.policy)
    headers = parse_headers(rest) if with_headers else NO_HEADERS
    return injector.inject(decision, headers, reply_limit(concurrency))
