"""Who went where, and when: requests by host and client, and in steps of time that grow
with the period.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.policy.language.public_suffixes import registrable_domain
from squidkeeper.record.report import figures
from squidkeeper.record.report.period import client_label

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_CLIENTS_SHOWN = 8
_HOSTS_SHOWN = 25
_LEAST_SHARE = 0.01  # of all requests: a host with less counts with its domain
_AT_ONCE = 10_000  # hosts

_SUMS = "sum(allowed)::BIGINT, sum(denied)::BIGINT, sum(response_bytes)::BIGINT"
_TOP_CLIENTS: Final = f"""
    CREATE TEMP TABLE top_clients AS
    SELECT client, "user", {_SUMS} FROM pairs GROUP BY ALL
    ORDER BY sum(allowed + denied) DESC, client, "user" LIMIT {_CLIENTS_SHOWN}
"""
_DOMAINS: Final = "CREATE TEMP TABLE domains (host VARCHAR, domain VARCHAR)"
_SELDOM: Final = f"""
    SELECT host FROM pairs WHERE host > ? GROUP BY host
    HAVING sum(allowed + denied) < {_LEAST_SHARE} * (SELECT sum(allowed + denied) FROM pairs)
    ORDER BY host LIMIT {_AT_ONCE}
"""
_ADD_DOMAINS: Final = (
    "INSERT INTO domains SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[])"
)
_VISITS: Final = """
    CREATE TEMP VIEW visits AS
    SELECT * EXCLUDE domain, coalesce('*.' || domain, host) AS site
    FROM pairs LEFT JOIN domains USING (host)
"""
_TOP_SITES: Final = f"""
    CREATE TEMP TABLE top_sites AS
    SELECT
        site, CASE WHEN count(DISTINCT host) = 1 THEN min(host) ELSE site END AS name,
        count(DISTINCT host) AS hosts, {_SUMS}
    FROM visits GROUP BY site ORDER BY sum(allowed + denied) DESC, site LIMIT {_HOSTS_SHOWN}
"""
_TOP_PAIRS: Final = f"""
    SELECT client, "user", site, {_SUMS}
    FROM visits SEMI JOIN top_clients USING (client, "user") SEMI JOIN top_sites USING (site)
    GROUP BY ALL
"""
_ALL: Final = f"""
    SELECT {_SUMS}, (SELECT count(*) FROM (SELECT DISTINCT client, "user" FROM pairs)), count(DISTINCT host) FROM pairs
"""

_Client = tuple[str, str]  # address, user
_M, _H, _D = 60, 3600, 86400
STEPS_SECONDS: Final = (
    *(1, 5, 15, 30, _M, 5 * _M, 15 * _M, 30 * _M),
    *(_H, 3 * _H, 6 * _H, 12 * _H, _D, 7 * _D, 28 * _D, 364 * _D),
)
_STEPS_SHOWN = 96

_REQUESTS: Final = """
    SELECT (epoch_ms(time) - ?) // ?, CASE WHEN denied THEN rule END, count(*)
    FROM reported GROUP BY ALL
"""
_NEW_HOSTS: Final = (
    "SELECT (epoch_ms(first) - ?) // ?, count(*) FROM new_hosts GROUP BY ALL"
)


class RequestTotals(NamedTuple):
    """The sums of the requests of a host, a client, or both."""

    allowed: int = 0
    denied: int = 0
    response_bytes: int = 0

    def minus(self, others: Iterable[RequestTotals]) -> RequestTotals:
        """Subtract others."""
        taken = [sum(values) for values in zip(*others, strict=True)] or [0, 0, 0]
        return RequestTotals(
            *(value - less for value, less in zip(self, taken, strict=True))
        )


def traffic(connection: DuckDBPyConnection) -> figures.TrafficFigures:
    """Return the busiest clients and hosts, and the sum of the rest.

    Hosts with few requests count as their registrable domain. A client that asks for a
    thousand names of one domain is one row.
    """
    connection.execute(_TOP_CLIENTS)
    _find_domains(connection)
    connection.execute(_VISITS)
    connection.execute(_TOP_SITES)
    clients = {
        (row[0], row[1]): RequestTotals(*row[2:])
        for row in connection.execute("FROM top_clients").fetchall()
    }
    sites = {
        site: _Site(name, number, RequestTotals(*totals))
        for site, name, number, *totals in connection.execute(
            "FROM top_sites"
        ).fetchall()
    }
    found = connection.execute(_TOP_PAIRS).fetchall()
    pairs = {
        ((client, user), site): RequestTotals(*totals)
        for client, user, site, *totals in found
    }
    ((allowed, denied, response_bytes, all_clients, all_hosts),) = connection.execute(
        _ALL
    ).fetchall()
    rest = RequestTotals(allowed or 0, denied or 0, response_bytes or 0).minus(
        site.totals for site in sites.values()
    )
    return figures.TrafficFigures(
        clients=tuple(
            figures.ClientFigures(client_label(*client), totals.allowed, totals.denied)
            for client, totals in clients.items()
        ),
        other_clients=all_clients - len(clients),
        hosts=tuple(
            _row(
                site, [pairs.get((client, key), RequestTotals()) for client in clients]
            )
            for key, site in sites.items()
        ),
        other_hosts=(others := all_hosts - sum(site.hosts for site in sites.values())),
        rest=_rest(_Site("", others, rest), clients, sites, pairs)
        if rest.allowed or rest.denied
        else None,
    )


def _find_domains(connection: DuckDBPyConnection) -> None:
    """Note the domain of each host with few requests."""
    connection.execute(_DOMAINS)
    last = ""
    while found := connection.execute(_SELDOM, [last]).fetchall():
        hosts = [host for (host,) in found]
        domains = [_domain(host) for host in hosts]
        connection.execute(_ADD_DOMAINS, [hosts, domains])
        last = hosts[-1]


def _domain(host: str) -> str | None:
    """Return the registrable domain of a host; None for an address, and a name that
    has none.
    """
    is_address = ":" in host or host.rpartition(".")[2].isdigit()
    return None if is_address else registrable_domain(host)


class _Site(NamedTuple):
    """A host, or the hosts of a domain."""

    name: str
    hosts: int
    totals: RequestTotals


def _rest(
    rest: _Site,
    clients: dict[_Client, RequestTotals],
    sites: Iterable[str],
    pairs: dict[tuple[_Client, str], RequestTotals],
) -> figures.HostFigures:
    elsewhere = [
        totals.minus(pairs[client, site] for site in sites if (client, site) in pairs)
        for client, totals in clients.items()
    ]
    return _row(rest, elsewhere)


def _row(site: _Site, of_clients: list[RequestTotals]) -> figures.HostFigures:
    by_client = [*of_clients, site.totals.minus(of_clients)]
    visits = tuple(figures.Visits(visit.allowed, visit.denied) for visit in by_client)
    return figures.HostFigures(site.name, *site.totals, visits, site.hosts)


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of equal length; `first` is the start of the first one, in seconds since
    1970.
    """

    seconds: int
    first: int
    number: int

    @classmethod
    def of(cls, since: datetime | None, until: datetime | None) -> Steps:
        """Choose the shortest steps of which a period has 96 at most; no steps for a
        period that is open.
        """
        if since is None or until is None:
            return cls(STEPS_SECONDS[0], 0, 0)
        start, end = since.timestamp(), until.timestamp()
        seconds = next(
            (step for step in STEPS_SECONDS if (end - start) / step <= _STEPS_SHOWN),
            STEPS_SECONDS[-1],
        )
        first = int(start // seconds) * seconds
        return cls(seconds, first, max(0, int(end - first) // seconds + 1))

    def starts(self) -> Iterator[datetime]:
        """Return the start of each step."""
        for place in range(self.number):
            yield datetime.fromtimestamp(self.first + place * self.seconds, UTC)

    def counts(self, found: Iterable[tuple[int, int]]) -> tuple[int, ...]:
        """Put counts, each with the place of its step, into the order of the steps; of
        one place, add them.
        """
        counts = [0] * self.number
        for place, count in found:
            counts[place] += count
        return tuple(counts)


def timeline(
    connection: DuckDBPyConnection, steps: Steps
) -> tuple[figures.TimelineFigures, dict[str, tuple[int, ...]]]:
    """Return the requests of each step, and the denials of each rule in each step."""
    if not steps.number:
        return figures.TimelineFigures(steps.seconds, ()), {}
    parameters = [steps.first * 1000, steps.seconds * 1000]
    found = connection.execute(_REQUESTS, parameters).fetchall()
    allowed = steps.counts(
        (place, count) for place, rule, count in found if rule is None
    )
    denied = steps.counts(
        (place, count) for place, rule, count in found if rule is not None
    )
    new = steps.counts(connection.execute(_NEW_HOSTS, parameters).fetchall())
    rows = zip(steps.starts(), allowed, denied, new, strict=True)
    of_rules = {
        rule: steps.counts((place, count) for place, of, count in found if of == rule)
        for rule in {rule for _, rule, _ in found if rule is not None}
    }
    return figures.TimelineFigures(
        steps.seconds, tuple(figures.TimelineStep(*row) for row in rows)
    ), of_rules
