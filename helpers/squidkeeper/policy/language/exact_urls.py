"""Exact URLs, as grants have them."""

from dataclasses import dataclass

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.url import Url, parse_url, readings


@dataclass(frozen=True, slots=True)
class ExactUrl:
    """One URL with its whole query: nothing in it is a wildcard.

    Its readings are those of the same path as sent.
    """

    url: Url

    @property
    def text(self) -> str:
        """The URL as requests state it."""
        return str(self.url)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.url.scheme, self.url.host.text, self.url.port

    def matches(self, sent: str, query: str | None) -> bool:
        """Whether a path as sent, with a query, is of this URL; the origin is for other
        fields.
        """
        return (sent, query) == (self.url.path, self.url.query)


def parse_exact_url(text: str) -> ExactUrl:
    """Parse a URL; `PatternError` where no request can have it."""
    try:
        url = parse_url(text)
        readings(url.path)
    except InvalidUrl as error:
        raise PatternError(f"no request can have this URL: {error}") from error
    return ExactUrl(url)
