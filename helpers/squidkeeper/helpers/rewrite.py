"""`squidkeeper rewrite`: where is this fetched from? (floor 5)

Every answer has `final_url_`, also where nothing is rewritten: squid.conf denies a request without it, because Squid
passes a request on unchanged when its rewriter dies. A rewriter without a policy leaves it out too. For a request that
this policy denies the answer is `-`: the credential helper, which is asked next, decides again and names the rule.
Where its policy would rewrite the request, it denies too: neither of the two policies allows the request as it is.
"""

from __future__ import annotations

from datetime import UTC, datetime

from squidkeeper.engine import Stage, decide
from squidkeeper.helpers.acl import HOST_TOKENS
from squidkeeper.helpers.host_matches import HostMatches
from squidkeeper.protocol.lines import Reply, split_tokens
from squidkeeper.replies import NO_REWRITE_POLICY, rewrite_reply


def answer(matches: HostMatches | None, line: bytes) -> Reply:
    """Answer one line: the URL as it is, which Squid does not encode here, then the eight tokens."""
    raw, _, rest = line.partition(b" ")
    url, tokens = raw.decode("utf-8", "surrogateescape"), split_tokens(rest, HOST_TOKENS)
    if matches is None:
        return NO_REWRITE_POLICY
    decision = decide(matches.policy, matches.find(tokens), datetime.now(UTC), Stage.URL, url)
    return rewrite_reply(decision, url, matches.policy.revision)
