"""Clients that know what each answer must be, and the account of what they got while
something failed.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.e2e.curl import answer
from tests.e2e.gateway import Gateway
from tests.e2e.load import Load, load
from tests.e2e.observer import Exporter, fetch
from tests.e2e.origin import Origins
from tests.waiting import wait_for

_log = logging.getLogger(__name__)
TOKEN = "faults-token-that-no-file-may-hold"
POLICY = """
version: 1
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}
  - {name: rewritten, action: allow, hosts: [rewritten.example]}
  - {name: injected, action: allow, hosts: [injected.example]}
rewrites:
  - {name: away, hosts: [rewritten.example], to: "https://target.example{path}"}
secrets:
  token: {file: secrets/token}
credentials:
  - {name: injected, hosts: [injected.example], bearer: token}
"""
HELPERS = (
    "acl --scope host",
    "acl --scope request",
    "rewrite",
    "credential",
    "throttle",
    "certificate",
)

# What each host must be answered for every path that these clients ask for. Every
# helper is asked about some of them.
EXPECTED = {
    ("http", "open.example"): 200,
    ("http", "closed.example"): 403,
    ("http", "paths.example"): 403,
    ("https", "rewritten.example"): 200,
    ("https", "injected.example"): 200,
}
MAY_ARRIVE = {"open.example", "target.example", "injected.example"}
EVERYTHING = frozenset(host for _, host in EXPECTED)
# of Squid 6, when it writes to a helper that dies; all start again
SQUIDS_ASSERTION = "assertion failed: Write.cc"


@dataclass(frozen=True, slots=True)
class Fault:
    """What a fault may cost clients, and why; without a reason it may cost nothing."""

    denied: str = ""  # open hosts answered 403
    lost: str = ""  # connections that end without an answer
    failed: str = ""  # 500 and more, from Squid itself
    only: AbstractSet[str] = (
        # the hosts that it may cost something, as long as Squid's own process lives
        EVERYTHING
    )


HARMLESS = Fault()


@contextmanager
def under_load(
    gateway: Gateway,
    origins: Origins,
    fault: Fault = HARMLESS,
    also: AbstractSet[str] = frozenset(),
) -> Iterator[Load]:
    """Keep the clients busy before, during and after the block, and account for every
    answer.

    `also` are hosts that requests of the block's own may reach.
    """
    origins.forget()
    assertions = gateway.cache_log().count(SQUIDS_ASSERTION)
    with load(gateway, *EXPECTED) as running:
        wait_for(
            lambda: all(
                EXPECTED[place] in statuses(running, place) for place in EXPECTED
            ),
            "each its answer",
        )
        # While helpers start on a busy machine, a tunnel may end after its
        # request_timeout: no fault is there yet.
        running.answers[:] = [
            answer for answer in running.answers if answer.status is not None
        ]
        yield running
        running.at_least(30)
    only_what_may_arrive(origins, MAY_ARRIVE | also)
    if gateway.cache_log().count(SQUIDS_ASSERTION) > assertions:
        fault = replace(fault, only=EVERYTHING)
    account(running, fault)


def account(running: Load, fault: Fault) -> None:
    """Fail on a request that was wrongly allowed, and on one that was denied or lost
    without a reason.
    """
    got = Counter((*place_of(answer.url), answer.status) for answer in running.answers)
    wrong = [
        (scheme, host, status)
        for scheme, host, status in got
        if _is_wrong(scheme, host, status, fault)
    ]
    told = ", ".join(
        f"{scheme}://{host} {status or 'lost'}: {count}"
        for (scheme, host, status), count in got.items()
    )
    assert wrong == [], f"all answers: {told}"
    _log.info("answers: %s; %s", told, fault)


def statuses(running: Load, place: tuple[str, str]) -> set[int | None]:
    return {
        answer.status
        for answer in list(running.answers)
        if place_of(answer.url) == place
    }


def place_of(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    return scheme, rest.partition("/")[0]


def _is_wrong(scheme: str, host: str, status: int | None, fault: Fault) -> bool:
    expected = EXPECTED[scheme, host]
    if status == expected:
        return False
    if host not in fault.only:
        return True
    if status is None:
        return not fault.lost
    if status >= 500:
        return not fault.failed
    return status != 403 or not fault.denied


def only_what_may_arrive(
    origins: Origins, hosts: AbstractSet[str] = MAY_ARRIVE
) -> None:
    """No origin has seen what is closed, or what should have been rewritten, or had a
    credential put in.
    """
    seen = list(origins.seen)
    closed = [request for request in seen if request.url.split("/")[2] not in hosts]
    assert closed == [], f"arrived: {closed}"
    plain = [
        request for request in seen if "target" in request.url and request.port != 443
    ]
    assert plain == [], f"arrived: {plain}"
    bearer = [f"Bearer {TOKEN}"]
    bare = [
        request
        for request in seen
        if ("injected" in request.url) != (request.values("Authorization") == bearer)
    ]
    assert bare == [], f"arrived: {bare}"


def answers(gateway: Gateway, url: str, expected: int | str) -> None:
    """Wait for this status, or a denial by this rule, or with this page of
    Squid's own.
    """

    def found() -> bool:
        reply = answer(gateway, url)
        return expected in (reply.status, reply.denial)

    wait_for(found, f"{url} to be answered {expected}")


def recorded(exporter: Exporter) -> float:
    """The lines of the record that are counted: requests, and tunnels that were
    allowed.
    """
    return metric(exporter, "squidkeeper_requests_total") + metric(
        exporter, "squidkeeper_tunnels_total"
    )


def metric(exporter: Exporter, name: str) -> float:
    """The value of a metric, summed over its labels."""
    text = fetch(exporter.port, "/metrics").text
    return sum(
        float(value)
        for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    )
