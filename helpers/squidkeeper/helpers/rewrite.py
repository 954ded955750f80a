"""`squidkeeper rewrite`: where is this fetched from? (floor 5)

Every answer carries `final_url_`, also where nothing is rewritten: squid.conf denies a request without it, because a
rewriter that has died lets requests through unchanged. Nothing is denied here; the credential helper, which is asked
next, judges the whole request.
"""

from __future__ import annotations

from datetime import UTC, datetime

from squidkeeper.engine import Judge
from squidkeeper.helpers.request import HOST_TOKENS, query_from
from squidkeeper.wire import Reply, Result, parse_tokens


def prepare(judge: Judge) -> Judge:
    """Take a policy in force as it is."""
    return judge


def answer(judge: Judge | None, request: bytes) -> Reply:
    """Answer one line: the URL as it is, for Squid does not encode it here, then the eight tokens."""
    raw, _, place = request.partition(b" ")
    url, tokens = raw.decode("utf-8", "surrogateescape"), parse_tokens(place, HOST_TOKENS)
    if judge is None:
        return Reply(Result.ERR, (("final_url_", url),))
    rewritten = judge.decide(query_from(tokens, url), datetime.now(UTC)).rewritten
    if rewritten is None:
        return Reply(Result.ERR, (("final_url_", url),))
    target = str(rewritten.url)
    if rewritten.rewrite.redirect is not None:
        status = str(rewritten.rewrite.redirect)
        # private_: nothing is fetched, so what the host's name resolves to, if anything, makes no difference
        return Reply(Result.OK, (("status", status), ("url", target), ("final_url_", target), ("private_", "yes")))
    private = "yes" if rewritten.rewrite.private else "no"
    return Reply(Result.OK, (("rewrite-url", target), ("final_url_", target), ("private_", private)))
