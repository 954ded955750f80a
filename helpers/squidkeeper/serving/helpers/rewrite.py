"""`squidkeeper rewrite`: where is this fetched from?

Every answer has `final_url_`, also where nothing is rewritten: squid.conf denies a
request without it, because Squid passes a request on unchanged when its rewriter dies.
A rewriter without a policy leaves it out too. For a request that this policy denies the
answer is `-`: the credential helper, which is asked next, decides again and names the
rule. Where its policy would rewrite the request, it denies too: neither of the two
policies allows the request as it is.

Parameters of credentials are added last, and `parameters_` names them. Where their
values are unavailable, or the URL would be too long, the answer has none, and the
credential helper denies the request.
"""

import os
from pathlib import Path

from squidkeeper.base.errors import SecretUnavailable
from squidkeeper.policy.engine import CompiledPolicy, Decision, Stage, decide
from squidkeeper.policy.language.parameters import add_parameters
from squidkeeper.policy.protocol.lines import Reply, split_tokens
from squidkeeper.policy.protocol.request import REQUEST_TOKENS
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.helpers.acl import HOST_TOKENS
from squidkeeper.serving.helpers.host_matches import HostMatches, decision_time
from squidkeeper.serving.replies import (
    NO_REWRITE_POLICY,
    parameters_key,
    parametrized_reply,
    rewrite_reply,
)

# Squid writes a URL that it cannot parse, as one of 8,191 bytes, into cache.log.
_LONGEST_URL = 8_000


class Rewriter:
    """One policy, its matches and its secrets; `fetched` is the folder of fetched
    secrets, `brought` of those of sessions.
    """

    def __init__(
        self,
        policy: CompiledPolicy,
        fetched: Path | None = None,
        brought: Path | None = None,
    ) -> None:
        self.policy = policy
        self.matches = HostMatches(policy)
        self.secrets = SecretStore(
            policy.source.secrets, os.environ, fetched, brought=brought
        )

    def answer(self, url: str, tokens: bytes) -> Reply:
        """Answer for one URL and the nine tokens."""
        match = self.matches.find(tokens)
        decision = decide(
            self.policy, match, decision_time(self.policy), Stage.URL, url
        )
        reply = rewrite_reply(decision, url, self.policy.revision)
        key = parameters_key(decision, self.policy)
        if not key:
            return reply
        session = match.facts.session
        fetched = url if decision.rewritten is None else str(decision.rewritten.url)
        number = None if session is None else session.number
        return self._with_parameters(reply, decision, fetched, number, key)

    def _with_parameters(
        self,
        reply: Reply,
        decision: Decision,
        fetched: str,
        session: int | None,
        key: str,
    ) -> Reply:
        try:
            values = {
                value.name: self.secrets.fill(value, session)
                for _, form in decision.parameters
                for value in form.values
            }
        except SecretUnavailable:  # which the credential helper reports
            return reply
        sent = add_parameters(fetched, values)
        return (
            parametrized_reply(reply, sent, key)
            if len(sent.encode("utf-8", "replace")) <= _LONGEST_URL
            else reply
        )


def answer(rewriter: Rewriter | None, line: bytes) -> Reply:
    """Answer one line: the URL as it is, which Squid does not encode here, then the
    nine tokens.
    """
    raw, _, rest = line.partition(b" ")
    url = raw.decode("utf-8", "surrogateescape")
    tokens, *_ = split_tokens(rest, REQUEST_TOKENS, HOST_TOKENS)
    return NO_REWRITE_POLICY if rewriter is None else rewriter.answer(url, tokens)
