"""Whether a request may have what a sealed token holds: every guard, for the URL that
is fetched.
"""

from collections.abc import Iterator
from datetime import datetime

from squidkeeper.policy.engine.compiled_policy import injects
from squidkeeper.policy.engine.fields import HOST_FIELDS, URL_FIELDS, UrlFacts
from squidkeeper.policy.language.model import HostFacts
from squidkeeper.policy.language.sealed_tokens import SealedContent
from squidkeeper.policy.url import Url, readings


def failing_guard(
    content: SealedContent, facts: HostFacts, url: Url, at: datetime
) -> str | None:
    """Say which guard fails, and nothing of what it allows; None where all hold, in
    every reading of the path.

    `facts` are those of the request that is fetched, with its method as it was sent.
    """
    if content.expires is not None and at >= content.expires:
        return "it has expired"
    if not injects(facts):
        return "it is for https alone, and not for OPTIONS"
    if not any(pattern.matches(url.host) for pattern in content.hosts):
        return "it is for another host"
    failing = next(_failing_fields(content, facts, url), None)
    return None if failing is None else f"it is for {_OTHER[failing]}"


def _failing_fields(
    content: SealedContent, facts: HostFacts, url: Url
) -> Iterator[str]:
    yield from (
        name
        for name, holds in HOST_FIELDS.items()
        if not holds(content.match, facts, False)
    )
    for path in readings(url.path):
        read = UrlFacts(path, url.query, url.path)
        yield from (
            name
            for name, holds in URL_FIELDS.items()
            if not holds(content.match, read, False)
        )


_OTHER = {
    "clients": "another client",
    "schemes": "another scheme",
    "ports": "another port",
    "methods": "another method",
    "paths": "another path",
    "query": "another query",
}
