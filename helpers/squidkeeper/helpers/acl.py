"""`squidkeeper acl`: may this pass? (floor 5)

At host scope Squid asks once for each client, user, method and place, and keeps the answer for a second; at request
scope it asks for each URL, where the first answer said that the URL decides.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from sys import getsizeof
from urllib.parse import quote

from squidkeeper.bounded_cache import BoundedCache
from squidkeeper.engine import Decision, Judge, Query, deny
from squidkeeper.engine.query import CONNECT, DENIED_BY
from squidkeeper.helpers import helper_counters as counters
from squidkeeper.helpers.request import HOST_TOKENS, PLACE_TOKENS, URL_TOKENS, query_from
from squidkeeper.helpers.scope_cache import ScopeCache
from squidkeeper.metrics import HOST, REQUEST
from squidkeeper.protocol.lines import (
    USER_LENGTH,
    Reply,
    Result,
    decode_token,
    decode_tokens,
    parse_tokens,
    split_tokens,
)
from squidkeeper.url import LONG_URL, RECORDED_URL_LENGTH, recorded_url

_NO_POLICY = deny(
    "policy-unavailable",
    "The gateway has no policy that loads, so it denies everything. Its operators must fix the policy.",
)
_BARE_IN_USER = "!$&()*+,-./:;=?@_"
_DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits of the hash
_ANSWERS_BYTES, _KEPT_LINE_BYTES = 15_000_000, 512
_LINE_BYTES, _REPLY_BYTES = 200, 1_500  # of Python objects; most lines share their replies


class HostAnswers:
    """What one policy has answered at host scope: Squid asks the same once a second for each host in use.

    An answer stands for as long as the same rules are in force: as soon as one has expired, or is in force again
    because the clock was set back, every line is judged anew.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.revision = judge.policy.revision
        self._lapses = sorted(rule.expires for rule in judge.policy.rules if rule.expires is not None)
        self._lapsed = 0
        # By line, and each reply once by its id.
        self._given: BoundedCache[bytes | int, Reply] = BoundedCache(_ANSWERS_BYTES)

    def find(self, request: bytes, at: datetime) -> Reply | None:
        """Find the answer that a line of Squid's has, if it was given before and stands."""
        lapsed = bisect_right(self._lapses, at)
        if lapsed != self._lapsed:
            self._lapsed = lapsed
            self._given.forget()
        return self._given.get(request)

    def keep(self, request: bytes, reply: Reply) -> None:
        """Keep the answer that was given since the last `find`; long lines are not worth the room."""
        if len(request) > _KEPT_LINE_BYTES:
            return
        if id(reply) not in self._given:  # a client can make up methods and ports, each with a reply of its own
            self._given.keep(id(reply), reply, _REPLY_BYTES + 2 * getsizeof(reply.message))
        self._given.keep(request, reply, len(request) + _LINE_BYTES)


def answer_host(answers: HostAnswers | None, request: bytes) -> Reply:
    """Answer at host scope."""
    if answers is None:
        return unavailable(HOST, parse_tokens(request, HOST_TOKENS))
    at = datetime.now(UTC)
    return answers.find(request, at) or _judge_host(answers, request, at)


def _judge_host(answers: HostAnswers, request: bytes, at: datetime) -> Reply:
    query = query_from(parse_tokens(request, HOST_TOKENS))
    scope = answers.judge.scope(query)
    if isinstance(scope, Decision):
        return connect_reply(scope, HOST, answers.revision, query)
    decision = answers.judge.decide_host(scope, at)
    if query.method == CONNECT or scope.facts.host.address is not None:  # the answer can say for which host it is
        reply = connect_reply(decision, HOST, answers.revision, query)
    else:
        reply = reply_for(decision, HOST, answers.revision, query.user)
    answers.keep(request, reply)
    return reply


def answer_url(places: ScopeCache | None, request: bytes) -> Reply:
    """Answer at request scope."""
    tokens = split_tokens(request, URL_TOKENS)
    url = decode_token(tokens[PLACE_TOKENS])
    if places is None:
        reply = unavailable(REQUEST, decode_tokens(tokens))
    else:
        reply = reply_for(_decide(places, tokens, url), REQUEST, places.revision)
    return _describing(url, reply) if len(url) >= LONG_URL or "#" in url else reply


def _decide(places: ScopeCache, tokens: list[bytes], url: str) -> Decision:
    scope, at = places.find(tokens), datetime.now(UTC)
    if isinstance(scope, Decision):
        return scope
    if len(url) >= LONG_URL:  # also asked about where the host is denied already, for the record
        decision = places.judge.decide_host(scope, at)
        if not decision.allowed:
            return decision
    return places.judge.decide_url(scope, url, at)


def _describing(url: str, reply: Reply) -> Reply:
    """Add what the record cannot show of a URL: a bare `#`, which it shows as `%23`, and all of one that it cuts."""
    said = [("hidden_", "fragment")] if "#" in url else []
    recorded = recorded_url(url)
    if len(recorded) >= RECORDED_URL_LENGTH:
        digest = sha256(recorded.encode()).hexdigest()[:_DIGEST_LENGTH]
        said.append(("cut_", f"{len(recorded)}:{digest}"))
    return replace(reply, annotations=(*reply.annotations, *said))


def write_reply(
    decision: Decision, helper: str, revision: str | None, user: str | None = None, tunnel: str | None = None
) -> Reply:
    """Write a decision as Squid reads it: the annotations of squid.conf and, on a denial, the text of the page.

    `revision` is what it was decided by, `user` the proxy user to name, `tunnel` names the tunnel of a CONNECT. An
    allow at host scope that leaves nothing to ask says so in a tag, which is cheaper for Squid to test than annotations
    that are not there.
    """
    annotations = [
        *decided(decision, revision),
        ("private_", "yes" if decision.private else "no"),
        *([("clt_conn_tag", tunnel)] if tunnel else []),
    ]
    counted = (counters.decision(helper, decision.rule, _outcome(decision, tunnel)),)
    named = [("user_", _recorded(user))] if user is not None else []
    if not decision.allowed:
        return Reply(Result.ERR, (*annotations, *named), page_message(decision), counted)
    flags = (
        ("scope_", "request", decision.needs_url),
        ("rewrite_", "yes", decision.may_rewrite),
        ("inject_", "yes", decision.may_inject),
        ("whole_", "yes", decision.whole),
        ("narrow_", "yes", decision.narrowed),
        ("tag", "sk_settled", helper == HOST and _settles(decision)),
    )
    held = ((key, value) for key, value, holds in flags if holds)
    return Reply(Result.OK, (*annotations, *held, *named), counted=counted)


reply_for = lru_cache(maxsize=1024)(write_reply)  # of a decision that was made for many lines


def _recorded(user: str) -> str:
    """Write the proxy user that was judged, for the record: Squid's own `%un` names also who gave a wrong password."""
    return quote(user, safe=_BARE_IN_USER, errors="surrogateescape")[:USER_LENGTH]


def _outcome(decision: Decision, tunnel: str | None) -> str:
    """Name what is counted: a tunnel that is allowed is no request that a rule has matched."""
    if tunnel and decision.allowed:
        return "tunnel"
    return "url" if decision.needs_url else decision.action


def decided(decision: Decision, revision: str | None) -> tuple[tuple[str, str], ...]:
    """Say what was decided, and by which revision of the policy; by none where none has loaded."""
    said = (("rule_", decision.rule), ("verdict_", str(decision.action)))
    return said if revision is None else (*said, ("revision_", revision))


def _settles(decision: Decision) -> bool:
    return not (decision.needs_url or decision.may_rewrite or decision.may_inject)


def connect_reply(decision: Decision, helper: str, revision: str | None, query: Query) -> Reply:
    """Write a decision without a URL; that of a CONNECT names the tunnel for the requests inside it.

    A denied tunnel is named by what is no authority, so that nothing in it can pass.
    """
    if query.method != CONNECT:
        return write_reply(decision, helper, revision, query.user)
    authority = f"{query.host}:{query.port}"
    tunnel = authority if decision.allowed else f"{authority}{DENIED_BY}{decision.rule}"
    return write_reply(decision, helper, revision, query.user, tunnel)


def page_message(decision: Decision) -> str:
    """Say to a person or a program at the other end which rule denies, and why."""
    return f"Rule: {decision.rule}\nReason: {decision.reason}"


def unavailable(helper: str, tokens: list[str | None]) -> Reply:
    """Deny because no policy has ever loaded."""
    return connect_reply(_NO_POLICY, helper, None, query_from(tokens))
