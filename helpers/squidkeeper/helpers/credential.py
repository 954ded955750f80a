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

from squidkeeper.engine import Decision, Judge, deny
from squidkeeper.errors import ReplyTooLong, SecretUnavailable, SquidkeeperError
from squidkeeper.helpers import counting as counters
from squidkeeper.helpers.acl import decided, page_message, unavailable
from squidkeeper.helpers.counting import failure, injection
from squidkeeper.helpers.request import PLACE_TOKENS, query_from
from squidkeeper.metrics import CREDENTIAL
from squidkeeper.secrets import SecretStore
from squidkeeper.wire import LONGEST_CHANNEL, Reply, Result, format_reply, parse_tokens, reply_limit

_log = logging.getLogger(__name__)
_UNAVAILABLE = "The credential for this request ({names}) cannot be had; the gateway's cache.log says why."
_TOKENS = (PLACE_TOKENS + 2, PLACE_TOKENS + 3)


class Grants:
    """One policy in force and its secrets."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.secrets = SecretStore(judge.policy.secrets, os.environ)
        self._complained: set[str] = set()

    def complain(self, problem: str) -> None:
        """Tell the operators of a problem, once for each policy: a client could cause the same line at any rate."""
        if problem not in self._complained:
            self._complained.add(problem)
            _log.error("%s", problem)


def answer(grants: Grants | None, request: bytes, concurrency: int) -> Reply:
    """Answer one line: the eight tokens, the URL that was asked for and the one that is fetched (`final_url_`)."""
    tokens = parse_tokens(request, _TOKENS)
    if grants is None:
        return unavailable(CREDENTIAL, tokens)
    url, final_url = tokens[PLACE_TOKENS : PLACE_TOKENS + 2]
    decision = grants.judge.decide_fetched(query_from(tokens, url or ""), final_url, datetime.now(UTC))
    if not decision.credentials:
        return _reply(grants, decision)
    return _with_headers(grants, decision, reply_limit(concurrency))


def header_annotation(header: str) -> str:
    """Name the annotation that carries a header's value; the closing `_` keeps Squid from logging it."""
    return f"{header.lower().replace('-', '_')}_"


def _with_headers(grants: Grants, decision: Decision, limit: int) -> Reply:
    """Put in every header of a decision, or deny: naming the credentials that cannot be had, where only some cannot."""
    headers: list[tuple[str, str]] = []
    problems: dict[str, SquidkeeperError] = {}
    for credential in decision.credentials:
        try:
            headers.append((header_annotation(credential.header), grants.secrets.header_value(credential).reveal()))
        except SecretUnavailable as error:
            problems[credential.name] = error
    names = [credential.name for credential in decision.credentials]
    reply = _reply(grants, decision, (*headers, ("injected_", "yes"), ("credential_", ",".join(names))))
    try:
        format_reply(reply, LONGEST_CHANNEL, limit)
    except ReplyTooLong as error:
        problems = problems or dict.fromkeys(names, error)
    return _unavailable(grants, names, problems) if problems else reply


def _unavailable(grants: Grants, names: list[str], problems: Mapping[str, SquidkeeperError]) -> Reply:
    shown = ", ".join(names)
    for problem in dict.fromkeys(map(str, problems.values())):
        grants.complain(f"credential {shown}: {problem}")
    denied = _reply(grants, deny("credential-unavailable", _UNAVAILABLE.format(names=shown)))
    return replace(denied, counted=(*denied.counted, *map(failure, problems)))


def _reply(grants: Grants, decision: Decision, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    said = decided(decision, grants.judge.policy.revision)
    counted = (counters.decision(CREDENTIAL, decision.rule, decision.action),)
    if not decision.allowed:
        return Reply(Result.ERR, said, page_message(decision), counted)
    injected = tuple(injection(credential.name) for credential in decision.credentials)
    return Reply(Result.OK, (*said, *headers), counted=(*counted, *injected))
