"""`squidkeeper acl`: may this pass? (floor 5)

At host scope Squid asks once for each client, user, method and place, and keeps the answer for a second; at request
scope it asks for each URL, where the first answer said that the URL decides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cachetools import LRUCache

from squidkeeper.engine import Decision, Judge, Query, deny
from squidkeeper.engine.judge import Scope
from squidkeeper.engine.query import CONNECT
from squidkeeper.helpers import counting as counters
from squidkeeper.helpers.request import HOST_TOKENS, PLACE_TOKENS, URL_TOKENS, query_from
from squidkeeper.metrics import HOST, REQUEST
from squidkeeper.policy.model import Action, Policy
from squidkeeper.wire import Reply, Result, decode_token, parse_tokens, split_tokens

_SCOPE_CACHE_BYTES = 8 * 1024 * 1024
_NO_POLICY = deny(
    "policy-unavailable",
    "The gateway has no policy that loads, so it denies everything. Its operators have to mend the policy.",
)
_ANSWERS_KEPT, _KEPT_LINE_BYTES = 8_192, 512  # 15 MB at most, with the answers
_PLACE_BYTES = 2_000  # of Python objects, beside the tokens themselves and a reference to each entry


@dataclass(frozen=True, slots=True)
class Place:
    """Who asks for which host how: all that is known without the URL, and what the policy says so far."""

    scope: Scope | Decision
    key_bytes: int


class Places:
    """One policy in force and what was already looked up in it; bounded in bytes, gone with the policy.

    Nothing in a place depends on the time: what expires is judged anew for each URL.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.revision = judge.policy.revision
        self.answers = HostAnswers(judge.policy)
        self._known: LRUCache[tuple[bytes, ...], Place] = LRUCache(_SCOPE_CACHE_BYTES, getsizeof=_place_bytes)

    def find(self, request: bytes, counts: tuple[int, ...]) -> tuple[Place, list[bytes]]:
        """Find the place of a line of Squid's; gives the line's tokens too, still as they came."""
        tokens = split_tokens(request, counts)
        key = tuple(tokens[:PLACE_TOKENS])
        place = self._known.get(key)
        if place is None:
            scope = self.judge.scope(query_from(parse_tokens(request, counts)))
            place = Place(scope, sum(map(len, key)))
            if _place_bytes(place) <= _SCOPE_CACHE_BYTES:
                self._known[key] = place
        return place, tokens


class HostAnswers:
    """What one policy has answered at host scope: Squid asks the same once a second for each host in use.

    An answer stands for as long as the same rules are in force: as soon as one has expired, or is in force again
    because the clock was set back, every line is judged anew.
    """

    def __init__(self, policy: Policy) -> None:
        self._lapses = sorted(rule.expires for rule in policy.rules if rule.expires is not None)
        self._lapsed = 0
        self._given: dict[bytes, Reply] = {}

    def find(self, request: bytes, at: datetime) -> Reply | None:
        """Find the answer that a line of Squid's has, if it was given before and stands."""
        lapsed = bisect_right(self._lapses, at)
        if lapsed != self._lapsed:
            self._lapsed = lapsed
            self._given.clear()
        return self._given.get(request)

    def keep(self, request: bytes, reply: Reply) -> None:
        """Keep the answer that was given since the last `find`; long lines are not worth the room."""
        if len(self._given) >= _ANSWERS_KEPT:
            self._given.clear()
        if len(request) <= _KEPT_LINE_BYTES:
            self._given[request] = reply


def answer_host(places: Places | None, request: bytes) -> Reply:
    """Answer at host scope."""
    if places is None:
        return unavailable(HOST, parse_tokens(request, HOST_TOKENS))
    at = datetime.now(UTC)
    given = places.answers.find(request, at)
    if given is None:
        given = _judge_host(places, request, at)
        places.answers.keep(request, given)
    return given


def _judge_host(places: Places, request: bytes, at: datetime) -> Reply:
    query = query_from(parse_tokens(request, HOST_TOKENS))
    scope = places.judge.scope(query)
    decision = scope if isinstance(scope, Decision) else places.judge.decide_host(scope, at)
    return connect_reply(_known(decision), HOST, places.revision, query)


def answer_url(places: Places | None, request: bytes) -> Reply:
    """Answer at request scope."""
    if places is None:
        return unavailable(REQUEST, parse_tokens(request, URL_TOKENS))
    place, tokens = places.find(request, URL_TOKENS)
    scope = place.scope
    if isinstance(scope, Decision):
        return reply_for(scope, REQUEST, places.revision)
    decision = places.judge.decide_url(scope, decode_token(tokens[PLACE_TOKENS]), datetime.now(UTC))
    return reply_for(decision, REQUEST, places.revision)


ANSWERS: dict[str, Callable[[Places | None, bytes], Reply]] = {HOST: answer_host, REQUEST: answer_url}


def _known(decision: Decision) -> Decision:
    """Find the decision that says the same and was made before, whose reply is written already."""
    return _made(
        decision.action,
        decision.rule,
        decision.reason,
        decision.private,
        decision.needs_url,
        decision.may_rewrite,
        decision.may_inject,
        decision.whole,
    )


@lru_cache(maxsize=1024)
def _made(
    action: Action,
    rule: str,
    reason: str | None,
    private: bool,
    needs_url: bool,
    may_rewrite: bool,
    may_inject: bool,
    whole: bool,
) -> Decision:
    return Decision(action, rule, reason, None, private, needs_url, may_rewrite, may_inject, whole)


@lru_cache(maxsize=1024)
def reply_for(decision: Decision, helper: str, revision: str | None, tunnel: str | None = None) -> Reply:
    """Write a decision as Squid reads it: the annotations of squid.conf and, on a denial, the text of the page.

    `revision` is what it was decided by, `tunnel` names the tunnel of a CONNECT. An allow at host scope that leaves
    nothing to ask says so in a tag, which is cheaper for Squid to test than annotations that are not there.
    """
    annotations = [
        *decided(decision, revision),
        ("private_", "yes" if decision.private else "no"),
        *([("clt_conn_tag", tunnel)] if tunnel else []),
    ]
    counted = (counters.decision(helper, decision.rule, "url" if decision.needs_url else decision.action),)
    if not decision.allowed:
        return Reply(Result.ERR, tuple(annotations), page_message(decision), counted)
    flags = (
        ("scope_", "request", decision.needs_url),
        ("rewrite_", "yes", decision.may_rewrite),
        ("inject_", "yes", decision.may_inject),
        ("whole_", "yes", decision.whole),
        ("tag", "sk_settled", helper == HOST and _settles(decision)),
    )
    held = ((key, value) for key, value, holds in flags if holds)
    return Reply(Result.OK, (*annotations, *held), counted=counted)


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
        return reply_for(decision, helper, revision)
    authority = f"{query.host}:{query.port}"
    tunnel = authority if decision.allowed else f"{authority} denied by {decision.rule}"
    return reply_for(decision, helper, revision, tunnel)


def page_message(decision: Decision) -> str:
    """Say to a person or a program at the other end which rule denies, and why."""
    return f"Rule: {decision.rule}\nReason: {decision.reason}"


def unavailable(helper: str, tokens: list[str | None]) -> Reply:
    """Deny because no policy has ever loaded."""
    return connect_reply(_NO_POLICY, helper, None, query_from(tokens))


def _place_bytes(place: Place) -> int:
    scope = place.scope
    entries = 0 if isinstance(scope, Decision) else len(scope.rules) + len(scope.rewrites) + len(scope.credentials)
    return _PLACE_BYTES + 3 * place.key_bytes + 8 * entries  # the tokens as they came, decoded and parsed
