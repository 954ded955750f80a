"""`squidkeeper credential`: what is put into this request? (floor 5)

Asked last, after a rewrite. It judges the request again by the policy it has itself, so that a credential is given by
one revision as a whole, and answers with one annotation a header, or denies.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from squidkeeper.bounded_cache import BoundedCache
from squidkeeper.credentials import SecretStore
from squidkeeper.engine import Decision, Judge, deny
from squidkeeper.engine.judge import Scope
from squidkeeper.errors import ReplyTooLong, SecretUnavailable, SquidkeeperError
from squidkeeper.helpers import helper_counters as counters
from squidkeeper.helpers.acl import decided, page_message, unavailable
from squidkeeper.helpers.helper_counters import failure, injection
from squidkeeper.helpers.request import PLACE_TOKENS
from squidkeeper.helpers.scope_cache import ScopeCache
from squidkeeper.metrics import CREDENTIAL
from squidkeeper.protocol.lines import (
    LONGEST_CHANNEL,
    Reply,
    Result,
    decode_tokens,
    format_reply,
    parse_tokens,
    reply_limit,
    split_tokens,
)

_log = logging.getLogger(__name__)
_UNAVAILABLE = "The credential for this request ({names}) is unavailable; the gateway's cache.log says why."
_GIVEN_BYTES, _GIVEN_ENTRY_BYTES = 4 * 1024 * 1024, 3_000  # of Python objects, beside the values
_TOKENS = (PLACE_TOKENS + 2, PLACE_TOKENS + 3)


class Grants:
    """One policy in force and its secrets."""

    def __init__(self, judge: Judge) -> None:
        self.places = ScopeCache(judge)
        self.secrets = SecretStore(judge.policy.secrets, os.environ)
        self._given: BoundedCache[Decision, tuple[list[str], Reply]] = BoundedCache(_GIVEN_BYTES)
        self._complained: set[str] = set()

    def reply(self, decision: Decision, values: list[str], limit: int) -> Reply:
        """Write the reply with these values of the decision's headers: once, as long as the values stay the same.

        `ReplyTooLong` where it would take more than `limit` bytes.
        """
        known = self._given.get(decision)
        if known is not None:
            if known[0] == values:
                return known[1]
            self._given.forget()  # a secret was rotated: what holds the old one is to go at once
        reply = _granting(decision, self.places.revision, values)
        format_reply(reply, LONGEST_CHANNEL, limit)
        if decision.rewritten is None:  # else it was made for this request alone
            self._given.keep(decision, (values, reply), _GIVEN_ENTRY_BYTES + 3 * sum(map(len, values)))
        return reply

    def complain(self, problem: str) -> None:
        """Tell the operators of a problem, once for each policy: a client could cause the same line at any rate."""
        if problem not in self._complained:
            self._complained.add(problem)
            _log.error("%s", problem)


def answer(grants: Grants | None, request: bytes, concurrency: int) -> Reply:
    """Answer one line: the eight tokens, the URL that was asked for and the one that is fetched (`final_url_`)."""
    if grants is None:
        return unavailable(CREDENTIAL, parse_tokens(request, _TOKENS))
    tokens = split_tokens(request, _TOKENS)
    decision = grants.places.find(tokens)
    if isinstance(decision, Scope):
        url, final_url = decode_tokens(tokens[PLACE_TOKENS : PLACE_TOKENS + 2])
        decision = grants.places.judge.decide_fetched(decision, url or "", final_url, datetime.now(UTC))
    if not decision.credentials:
        return _reply(decision, grants.places.revision)
    return _with_headers(grants, decision, reply_limit(concurrency))


def header_annotation(header: str) -> str:
    """Name the annotation that carries a header's value; the closing `_` keeps Squid from logging it."""
    return f"{header.lower().replace('-', '_')}_"


def _with_headers(grants: Grants, decision: Decision, limit: int) -> Reply:
    """Put in every header of a decision, or deny: naming the unavailable credentials, if not all are."""
    values: list[str] = []
    problems: dict[str, SquidkeeperError] = {}
    for credential in decision.credentials:
        try:
            values.append(grants.secrets.header_value(credential).reveal())
        except SecretUnavailable as error:
            problems[credential.name] = error
    if not problems:
        try:
            return grants.reply(decision, values, limit)
        except ReplyTooLong as error:
            problems = {credential.name: error for credential in decision.credentials}
    return _unavailable(grants, decision, problems)


def _unavailable(grants: Grants, decision: Decision, problems: Mapping[str, SquidkeeperError]) -> Reply:
    shown = ", ".join(credential.name for credential in decision.credentials)
    for problem in dict.fromkeys(map(str, problems.values())):
        grants.complain(f"credential {shown}: {problem}")
    denied = _reply(deny("credential-unavailable", _UNAVAILABLE.format(names=shown)), grants.places.revision)
    return replace(denied, counted=(*denied.counted, *map(failure, problems)))


def _granting(decision: Decision, revision: str, values: list[str]) -> Reply:
    headers = [header_annotation(credential.header) for credential in decision.credentials]
    names = ",".join(credential.name for credential in decision.credentials)
    said = (*zip(headers, values, strict=True), ("injected_", "yes"), ("credential_", names))
    return _reply(decision, revision, said)


def _reply(decision: Decision, revision: str, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    said = decided(decision, revision)
    counted = (counters.decision(CREDENTIAL, decision.rule, decision.action),)
    if not decision.allowed:
        return Reply(Result.ERR, said, page_message(decision), counted)
    injected = tuple(injection(credential.name) for credential in decision.credentials)
    return Reply(Result.OK, (*said, *headers), counted=(*counted, *injected))
