"""`squidkeeper credential`: what is put into this request? (floor 5)

Asked last, after a rewrite. It judges the request again by the policy it has itself, so that a credential is given by
one revision as a whole, and answers with one annotation a header, or denies.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime

from squidkeeper.engine import Decision, Judge, deny
from squidkeeper.errors import ReplyTooLong, SecretUnavailable
from squidkeeper.helpers.acl import page_message, unavailable
from squidkeeper.helpers.request import PLACE_TOKENS, query_from
from squidkeeper.policy.model import Credential
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
        return unavailable(tokens)
    url, final_url = tokens[PLACE_TOKENS : PLACE_TOKENS + 2]
    decision = grants.judge.decide_fetched(query_from(tokens, url or ""), final_url, datetime.now(UTC))
    if not decision.allowed:
        return _reply(decision)
    try:
        reply = _reply(decision, _annotations(grants.secrets, decision.credentials))
        format_reply(reply, LONGEST_CHANNEL, reply_limit(concurrency))
    except (SecretUnavailable, ReplyTooLong) as error:
        names = ", ".join(one.name for one in decision.credentials)
        grants.complain(f"credential {names}: {error}")
        return _reply(deny("credential-unavailable", _UNAVAILABLE.format(names=names)))
    return reply


def header_annotation(header: str) -> str:
    """Name the annotation that carries a header's value; the closing `_` keeps Squid from logging it."""
    return f"{header.lower().replace('-', '_')}_"


def _annotations(secrets: SecretStore, credentials: tuple[Credential, ...]) -> tuple[tuple[str, str], ...]:
    if not credentials:
        return ()
    headers = [(header_annotation(one.header), secrets.header_value(one).reveal()) for one in credentials]
    names = ",".join(one.name for one in credentials)
    return (*headers, ("injected_", "yes"), ("credential_", names))


def _reply(decision: Decision, annotations: tuple[tuple[str, str], ...] = ()) -> Reply:
    common = (("rule_", decision.rule), ("verdict_", decision.action))
    if decision.allowed:
        return Reply(Result.OK, (*common, *annotations))
    return Reply(Result.ERR, common, page_message(decision))
