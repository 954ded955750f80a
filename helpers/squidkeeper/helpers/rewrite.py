"""`squidkeeper rewrite`: where is this fetched from? (floor 5)

Every answer carries `final_url_`, also where nothing is rewritten: squid.conf denies a request without it, because a
rewriter that has died lets requests through unchanged. So does one that has no policy: it cannot say that nothing is to
be rewritten. Of a request that this policy denies the answer is `-`: the credential helper, which is asked next, judges
the request again and names the rule. Where it already has a policy that would rewrite the request, it denies too:
neither of the two policies allows the request as it is.
"""

from __future__ import annotations

from datetime import UTC, datetime

from squidkeeper.engine import Decision
from squidkeeper.engine.decision import Rewritten
from squidkeeper.helpers.helper_counters import decision
from squidkeeper.helpers.request import HOST_TOKENS
from squidkeeper.helpers.scope_cache import ScopeCache
from squidkeeper.metrics import NONE, REWRITE
from squidkeeper.protocol.lines import Reply, Result, split_tokens


def answer(places: ScopeCache | None, request: bytes) -> Reply:
    """Answer one line: the URL as it is, for Squid does not encode it here, then the eight tokens."""
    raw, _, place = request.partition(b" ")
    url, tokens = raw.decode("utf-8", "surrogateescape"), split_tokens(place, HOST_TOKENS)
    if places is None:
        return Reply(Result.ERR, counted=(decision(REWRITE, "policy-unavailable", "deny"),))
    scope = places.find(tokens)
    judged = scope if isinstance(scope, Decision) else places.judge.decide_url(scope, url, datetime.now(UTC))
    if judged.rewritten is None:
        final_url = url if judged.allowed else "-"
        return Reply(Result.ERR, (("final_url_", final_url),), counted=(decision(REWRITE, NONE, "unchanged"),))
    return _reply(judged.rewritten, places.revision)


def _reply(rewritten: Rewritten, revision: str) -> Reply:
    rewrite, target = rewritten.rewrite, str(rewritten.url)
    # of a redirect nothing is fetched, so what the host's name resolves to, if anything, makes no difference
    private = "yes" if rewrite.private or rewrite.redirect is not None else "no"
    said = (("final_url_", target), ("private_", private), ("revision_", revision))
    if rewrite.redirect is None:
        counted = (decision(REWRITE, rewrite.name, "rewrite"),)
        return Reply(Result.OK, (("rewrite-url", target), *said), counted=counted)
    counted = (decision(REWRITE, rewrite.name, "redirect"),)
    return Reply(Result.OK, (("status", str(rewrite.redirect)), ("url", target), *said), counted=counted)
