"""The one decision: helpers, `explain`, a policy's tests and drift all call
`decide`.
"""

from collections.abc import Collection, Iterator
from datetime import datetime
from enum import Enum, auto

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.engine.compiled_policy import (
    TOKEN_LAPSED,
    CompiledPolicy,
    HostMatch,
)
from squidkeeper.policy.engine.decision import Decision, deny
from squidkeeper.policy.engine.host_scope import decide_host
from squidkeeper.policy.engine.own_host import with_url
from squidkeeper.policy.engine.request_scope import (
    decide_fetched,
    decide_url,
    observe_request,
)
from squidkeeper.policy.url import OWN_PAGES, is_own_page, is_unusual, origin_of


class Stage(Enum):
    """How much of a request is decided."""

    HOST = auto()  # every URL of its host, or its tunnel
    URL = auto()  # its URL, with the rewrite and the credentials
    FETCH = auto()  # its URL, with the credentials of the URL that is fetched
    # what Squid asks for one after the other: its host, and its URL where that is not
    # decided by then, or
    ALL = auto()
    # where a rule that observes depends on it


def decide(
    policy: CompiledPolicy,
    match: HostMatch,
    at: datetime,
    stage: Stage = Stage.ALL,
    url: str | None = None,
    final_url: str | None = None,
    spent: Collection[str] = (),
) -> Decision:
    """Decide a request; `match` is `policy.match(request)`.

    `url` stands for the match's own URL, so that one match serves many. `final_url` is
    the rewriter's answer, for `FETCH` alone. `spent` names the grants that have no uses
    left, for `URL` and `ALL`.
    """
    if match.lapses is not None and at >= match.lapses:
        return TOKEN_LAPSED
    if stage is Stage.HOST:
        return match.denial or decide_host(policy, match, at)
    url = match.url if url is None else url
    if stage is Stage.ALL:
        return _decide_all(policy, match, at, url, spent)
    if match.denial is not None:
        return with_url(match.denial, url)
    if stage is Stage.URL:
        return decide_url(policy, match, url or "", at, spent)
    return decide_fetched(policy, match, url or "", final_url, at)


def decide_until_spent(
    policy: CompiledPolicy,
    match: HostMatch,
    at: datetime,
    stage: Stage = Stage.ALL,
    url: str | None = None,
) -> Iterator[Decision]:
    """Decide a request, and again without each counted grant that allowed it: what
    holds as they are spent.

    The last decision is by no counted grant.
    """
    spent: set[str] = set()
    while (
        decision := decide(policy, match, at, stage, url, spent=spent)
    ).counted is not None:
        yield decision
        spent.add(decision.counted.name)
    yield decision


def _decide_all(
    policy: CompiledPolicy,
    match: HostMatch,
    at: datetime,
    url: str | None,
    spent: Collection[str],
) -> Decision:
    if url is not None and is_own_page(url):
        return deny(
            "invalid-request",
            f"{OWN_PAGES}… are pages of Squid itself, which are not for clients.",
        )
    if match.denial is not None:
        return with_url(match.denial, url)
    decision = decide_host(policy, match, at)
    if url is not None and (
        asks_url(decision, match, url) or not _is_of_host(url, match)
    ):
        return decide_url(policy, match, url, at, spent)
    return (
        observe_request(policy, match, decision, url, at)
        if url is not None and decision.observes_url
        else decision
    )


def asks_url(decision: Decision, match: HostMatch, url: str) -> bool:
    """Whether squid.conf asks a helper about a URL after this decision about
    its host.
    """
    facts = match.facts
    if not decision.allowed or facts.method is None:
        return False
    outlook = decision.outlook
    asks_credential = (
        outlook.may_inject and facts.scheme == "https"
    ) or outlook.needs_headers
    return (
        outlook.needs_url or outlook.may_rewrite or asks_credential or is_unusual(url)
    )


def _is_of_host(url: str, match: HostMatch) -> bool:
    """Whether a URL is of the host that Squid states."""
    try:
        scheme, host, port = origin_of(url)
    except InvalidUrl:
        return False
    return (scheme, host.text, port) == (
        match.facts.scheme,
        match.facts.host.text,
        match.facts.port,
    )
