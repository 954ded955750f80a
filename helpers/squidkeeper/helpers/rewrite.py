"""`squidkeeper rewrite`: where is this fetched from? (floor 5)

Every answer has `final_url_`, also where nothing is rewritten: squid.conf denies a request without it, because Squid
passes a request on unchanged when its rewriter dies. A rewriter without a policy leaves it out too. For a request that
this policy denies the answer is `-`: the credential helper, which is asked next, decides again and names the rule.
Where its policy would rewrite the request, it denies too: neither of the two policies allows the request as it is.
"""

from __future__ import annotations

from squidkeeper.engine import Stage, decide
from squidkeeper.helpers.acl import HOST_TOKENS
from squidkeeper.helpers.host_matches import HostMatches, decision_time
from squidkeeper.protocol.lines import Reply, split_tokens
from squidkeeper.protocol.request import REQUEST_TOKENS
from squidkeeper.replies import NO_REWRITE_POLICY, rewrite_reply


def answer(matches: HostMatches | None, line: bytes) -> Reply:
    """Answer one line: the URL as it is, which Squid does not encode here, then the nine tokens."""
    raw, _, rest = line.partition(b" ")
    url = raw.decode("utf-8", "surrogateescape")
    tokens, *_ = split_tokens(rest, REQUEST_TOKENS, HOST_TOKENS)
    if matches is None:
        return NO_REWRITE_POLICY
    decision = decide(matches.policy, matches.find(tokens), decision_time(matches.policy), Stage.URL, url)
    return rewrite_reply(decision, url, matches.policy.revision)
