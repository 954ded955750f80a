"""`squidkeeper acl`: may this request pass?

At host scope Squid asks once for each client, user, method, host and port, and keeps
the answer for a second. At request scope it asks for each URL, where the first answer
said that the URL decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.helper_metrics import HOST, REQUEST
from squidkeeper.policy.engine import (
    CompiledPolicy,
    Decision,
    HostMatch,
    Stage,
    checked_tunnel,
    decide,
    decide_until_spent,
)
from squidkeeper.policy.engine.own_host import TICKET_PAGE
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.model import SESSION_REQUIRED, Action, Rule
from squidkeeper.policy.protocol.lines import (
    Reply,
    decode_token,
    parse_tokens,
    split_tokens,
)
from squidkeeper.policy.protocol.request import (
    CONNECT,
    REQUEST_TOKENS,
    Malformed,
    Request,
    TunnelMode,
    parse_request,
)
from squidkeeper.policy.url import LONG_URL
from squidkeeper.serving.helpers.host_matches import HostMatches, decision_time
from squidkeeper.serving.parts import PartsInForce, needed_by
from squidkeeper.serving.replies import (
    acl_reply,
    ask_login,
    describe_url,
    no_policy_reply,
    no_ticket_page,
    reply_bytes,
    shared_reply,
    tunnel_reply,
)

if TYPE_CHECKING:
    from squidkeeper.serving.helpers.asking import Asking

_log = logging.getLogger(__name__)
# Squid ends them by the arguments of its `acl` line, or `-`
HOST_TOKENS: Final = (
    REQUEST_TOKENS,
    REQUEST_TOKENS + 1,
)
URL_TOKENS: Final = (REQUEST_TOKENS + 1, REQUEST_TOKENS + 2)
_HOST_CACHE_BYTES, _REQUEST_CACHE_BYTES = 15_000_000, 4_000_000
_LONGEST_KEPT_LINE = 512  # bytes
_LINE_BYTES = 200  # of Python objects; most lines share their replies


class HostScope:
    """The replies of one policy at host scope, by line: Squid asks the same once a
    second for each host in use.

    A repeated line takes 0.4 us instead of 11. When other rules or tokens hold than
    before, all replies are forgotten. `shares` tells whether Squid shares connections
    to origins.
    """

    def __init__(
        self,
        policy: CompiledPolicy,
        in_force: frozenset[str] | None = None,
        *,
        shares: bool = False,
    ) -> None:
        self.policy = policy
        self._in_force = PartsInForce(needed_by(policy), in_force)
        self._shares = shares
        self._holding = 0
        # by line; shared ones by decision
        self._replies: BoundedCache[object, Reply] = BoundedCache(_HOST_CACHE_BYTES)

    def answer(self, line: bytes) -> Reply:
        """Answer a line."""
        at = decision_time(self.policy)
        if self.policy.depends_on_time:
            self._forget_outdated(at)
        sessions = self.policy.sessions
        key = line if sessions is None else (sessions.active.stamp_of(line), line)
        return self._replies.get(key) or self._decide(key, line, at)

    def _forget_outdated(self, at: datetime) -> None:
        holding = self.policy.timetable.holding(at)
        if holding != self._holding:
            self._holding = holding
            self._replies.clear()

    def _decide(self, key: object, line: bytes, at: datetime) -> Reply:
        request = parse_request(parse_tokens(line, HOST_TOKENS))
        match = self.policy.match(request)
        session = _session_of(match)
        decision = decide(self.policy, match, at, Stage.HOST)
        if (decision.asks or not decision.allowed) and self._may_log_in(request, at):
            return ask_login(
                acl_reply(replace(decision, action=Action.DENY), HOST, self.policy)
            )
        # Ahead of the tunnel: one to what is not in force leads nowhere, and that is no
        # reason to open another one.
        decision = self._in_force.checked(decision)
        if isinstance(request, Malformed):
            return tunnel_reply(decision, HOST, self.policy, request)
        # In a tunnel that was denied, a request keeps the rule of its own denial.
        if not (decision.outlook.needs_url and self._is_closed(request, at)):
            decision = checked_tunnel(decision, request, shares=self._shares)
        if (
            request.method == CONNECT or request.host.address is not None
        ):  # the reply can hold the host
            reply = tunnel_reply(
                decision, HOST, self.policy, request, session, shares=self._shares
            )
            size = reply_bytes(reply)
        else:
            reply = shared_reply(
                self._replies,
                decision,
                HOST,
                self.policy,
                request.user,
                session,
                shares=self._shares,
            )
            size = 0
        # a former session is told by each denial for itself
        if len(line) <= _LONGEST_KEPT_LINE and decision.rule != SESSION_REQUIRED:
            self._replies.add(key, reply, len(line) + _LINE_BYTES + size)
        return reply

    def _is_closed(self, request: Request, at: datetime) -> bool:
        """Whether a request is in a tunnel that the policy denies, as it does each URL
        in it: by its own rule.
        """
        if request.tunnel is not TunnelMode.FIRST:
            return False
        connect = request._replace(method=CONNECT, url=None)
        return not decide(
            self.policy, self.policy.match(connect), at, Stage.HOST
        ).allowed

    def _may_log_in(self, request: Request | Malformed, at: datetime) -> bool:
        """Whether a request without a login could be allowed with one: some programs
        wait to be asked.
        """
        matches = self.policy.matches_of_logins(request)
        decisions = (decide(self.policy, match, at, Stage.HOST) for match in matches)
        return any(decision.allowed and not decision.asks for decision in decisions)


class RequestScope:
    """One policy at request scope, with its replies by decision: without them a new URL
    takes 11 us instead of 7.

    `uses` counts the uses of grants. Squid asks here once for each request, so each
    answer is one use. `open_asking` opens the tickets, where they are needed.
    """

    def __init__(
        self,
        policy: CompiledPolicy,
        uses: GrantUses | None = None,
        open_asking: Callable[[], Asking] | None = None,
        in_force: frozenset[str] | None = None,
    ) -> None:
        self.policy = policy
        self._in_force = PartsInForce(needed_by(policy), in_force)
        self._uses = uses
        self._open_asking = open_asking
        self._problem = ""  # that was logged
        self._matches = HostMatches(policy)
        self._replies: BoundedCache[object, Reply] = BoundedCache(_REQUEST_CACHE_BYTES)

    def answer(self, tokens: bytes, url: str) -> Reply:
        """Answer a line, by its first nine tokens as they came and its URL."""
        match = self._matches.find(tokens)
        decision = self._in_force.checked(self._decide(match, url))
        reply = shared_reply(
            self._replies, decision, REQUEST, self.policy, session=_session_of(match)
        )
        if (
            decision.rule == TICKET_PAGE and decision.allowed
        ):  # which nothing may let pass
            return (
                self._open_asking().show(
                    reply, tokens, url, self.policy, match.facts.session
                )
                if self._open_asking
                else no_ticket_page(reply)
            )
        if decision.asks and not decision.allowed and self._open_asking:
            asking = self._open_asking()
            session = match.facts.session
            return asking.deny(reply, tokens, url, decision.rule, self.policy, session)
        return reply

    def _decide(self, match: HostMatch, url: str) -> Decision:
        at, stage = decision_time(self.policy), Stage.URL
        # Squid asks about these where the host decides, too, for the access log.
        if len(url) >= LONG_URL or match.candidates.observing is not None:
            decision = decide(self.policy, match, at, Stage.HOST)
            if decision.observes_url:
                stage = Stage.ALL
            elif not decision.allowed:
                return decision
        decision = decide(self.policy, match, at, stage, url)
        return (
            decision if decision.counted is None else self._use(match, at, stage, url)
        )

    def _use(self, match: HostMatch, at: datetime, stage: Stage, url: str) -> Decision:
        """Count a use of the grant that allows.

        One that has none left, or cannot be counted, is not asked again.
        """
        decisions = decide_until_spent(self.policy, match, at, stage, url)
        return next(
            decision
            for decision in decisions
            if decision.counted is None or self._take(decision.counted)
        )

    def _take(self, grant: Rule) -> bool:
        try:
            return self._uses is not None and self._uses.take(grant)
        except OSError as error:
            problem = f"the uses of grants cannot be counted, so these allow nothing: {error.strerror}"
            if problem != self._problem:
                _log.error("%s", problem)
            self._problem = problem
            return False


def _session_of(match: HostMatch) -> int | None:
    return None if match.facts.session is None else match.facts.session.number


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
        reply = no_policy_reply(
            REQUEST, parse_request(parse_tokens(tokens, (REQUEST_TOKENS,)))
        )
    else:
        reply = scope.answer(tokens, url)
    return describe_url(reply, url) if len(url) >= LONG_URL or "#" in url else reply
