"""`squidkeeper acl`: may this request pass? (floor 5)

At host scope Squid asks once for each client, user, method, host and port, and keeps the answer for a second. At
request scope it asks for each URL, where the first answer said that the URL decides.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime
from typing import Final

from squidkeeper.bounded_cache import BoundedCache
from squidkeeper.engine import CompiledPolicy, Decision, Stage, decide
from squidkeeper.helpers.host_matches import HostMatches, decision_time
from squidkeeper.metrics import HOST, REQUEST
from squidkeeper.protocol.lines import Reply, decode_token, parse_tokens, split_tokens
from squidkeeper.protocol.request import CONNECT, REQUEST_TOKENS, Malformed, Request, parse_request
from squidkeeper.replies import (
    acl_reply,
    ask_login,
    describe_url,
    no_policy_reply,
    reply_bytes,
    shared_reply,
    tunnel_reply,
)
from squidkeeper.url import LONG_URL

HOST_TOKENS: Final = (REQUEST_TOKENS, REQUEST_TOKENS + 1)  # Squid ends them by the arguments of its `acl` line, or `-`
URL_TOKENS: Final = (REQUEST_TOKENS + 1, REQUEST_TOKENS + 2)
_HOST_CACHE_BYTES, _REQUEST_CACHE_BYTES = 15_000_000, 4_000_000
_LONGEST_KEPT_LINE = 512  # bytes
_LINE_BYTES = 200  # of Python objects; most lines share their replies


class HostScope:
    """The replies of one policy at host scope, by line: Squid asks the same once a second for each host in use.

    A repeated line takes 0.4 us instead of 11. When a rule expires, or the clock is set back to before that, all
    replies are forgotten.
    """

    def __init__(self, policy: CompiledPolicy) -> None:
        self.policy = policy
        self._lapsed = 0
        self._replies: BoundedCache[object, Reply] = BoundedCache(_HOST_CACHE_BYTES)  # by line; shared ones by decision

    def answer(self, line: bytes) -> Reply:
        """Answer a line."""
        at = decision_time(self.policy)
        if self.policy.lapses:
            self._forget_expired(at)
        return self._replies.get(line) or self._decide(line, at)

    def _forget_expired(self, at: datetime) -> None:
        lapsed = bisect_right(self.policy.lapses, at)
        if lapsed != self._lapsed:
            self._lapsed = lapsed
            self._replies.clear()

    def _decide(self, line: bytes, at: datetime) -> Reply:
        request = parse_request(parse_tokens(line, HOST_TOKENS))
        decision = decide(self.policy, self.policy.match(request), at, Stage.HOST)
        if not decision.allowed and self._may_log_in(request, at):
            return ask_login(acl_reply(decision, HOST, self.policy))
        if isinstance(request, Malformed):
            return tunnel_reply(decision, HOST, self.policy, request)
        if request.method == CONNECT or request.host.address is not None:  # the reply can hold the host
            reply = tunnel_reply(decision, HOST, self.policy, request)
            size = reply_bytes(reply)
        else:
            reply = shared_reply(self._replies, decision, HOST, self.policy, request.user)
            size = 0
        if len(line) <= _LONGEST_KEPT_LINE:
            self._replies.add(line, reply, len(line) + _LINE_BYTES + size)
        return reply

    def _may_log_in(self, request: Request | Malformed, at: datetime) -> bool:
        """Tell whether a request without a login could be allowed with one: some programs wait to be asked."""
        matches = self.policy.matches_of_logins(request)
        return any(decide(self.policy, match, at, Stage.HOST).allowed for match in matches)


class RequestScope:
    """One policy at request scope, with its replies by decision: without them a new URL takes 11 us instead of 7."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self.policy = policy
        self._matches = HostMatches(policy)
        self._replies: BoundedCache[object, Reply] = BoundedCache(_REQUEST_CACHE_BYTES)

    def answer(self, tokens: bytes, url: str) -> Reply:
        """Answer a line, by its first nine tokens as they came and its URL."""
        return shared_reply(self._replies, self._decide(tokens, url), REQUEST, self.policy)

    def _decide(self, tokens: bytes, url: str) -> Decision:
        match, at = self._matches.find(tokens), decision_time(self.policy)
        if len(url) >= LONG_URL:  # Squid asks about it where it denies the host, too, for the access log
            decision = decide(self.policy, match, at, Stage.HOST)
            if not decision.allowed:
                return decision
        return decide(self.policy, match, at, Stage.URL, url)


def answer_host(scope: HostScope | None, line: bytes) -> Reply:
    """Answer at host scope; without a policy, deny."""
    if scope is None:
        return no_policy_reply(HOST, parse_request(parse_tokens(line, HOST_TOKENS)))
    return scope.answer(line)


def answer_url(scope: RequestScope | None, line: bytes) -> Reply:
    """Answer at request scope; without a policy, deny."""
    tokens, token, *_ = split_tokens(line, REQUEST_TOKENS, URL_TOKENS)
    url = decode_token(token)
    if scope is None:
        reply = no_policy_reply(REQUEST, parse_request(parse_tokens(tokens, (REQUEST_TOKENS,))))
    else:
        reply = scope.answer(tokens, url)
    return describe_url(reply, url) if len(url) >= LONG_URL or "#" in url else reply
