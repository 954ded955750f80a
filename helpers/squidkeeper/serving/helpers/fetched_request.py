"""A request that is about to be fetched, with the headers that its client sends."""

from typing import NamedTuple, Self

from squidkeeper.policy.engine import HostMatch
from squidkeeper.policy.engine.fields import HostFacts
from squidkeeper.policy.engine.request_scope import facts_of
from squidkeeper.policy.protocol.lines import decode_token
from squidkeeper.policy.protocol.request_headers import RequestHeaders
from squidkeeper.policy.url import Url, parse_url

_METHOD = 2  # the place of its token


class FetchedRequest(NamedTuple):
    """`asked` is the URL that the client asked for, `fetched` the one that Squid forwards, after any rewrite."""

    match: HostMatch
    method: str
    asked: str
    fetched: str
    headers: RequestHeaders

    @classmethod
    def of(cls, match: HostMatch, tokens: bytes, asked: bytes, fetched: bytes, headers: RequestHeaders) -> Self:
        """Make it of a line's tokens, as they came; of a request that is allowed."""
        url = decode_token(asked)
        final_url = url if fetched == b"-" else decode_token(fetched)
        return cls(match, decode_token(tokens.split(b" ")[_METHOD]), url, final_url, headers)

    def url(self) -> Url:
        """Parse the URL that is fetched."""
        return parse_url(self.fetched)

    def facts(self, url: Url) -> HostFacts:
        """Give the facts of the request that is fetched, with its method as it was sent."""
        return facts_of(self.match.facts, url)._replace(method=self.method)
