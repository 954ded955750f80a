"""Who went where: requests by host and client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.record.report import figures
from squidkeeper.record.report.period import client_label

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_CLIENTS_SHOWN = 8
_HOSTS_SHOWN = 25

_SUMS = "sum(allowed)::BIGINT, sum(denied)::BIGINT, sum(response_bytes)::BIGINT"
_TOP_CLIENTS: Final = f"""
    CREATE TEMP TABLE top_clients AS
    SELECT client, "user", {_SUMS} FROM pairs GROUP BY ALL
    ORDER BY sum(allowed + denied) DESC, client, "user" LIMIT {_CLIENTS_SHOWN}
"""
_TOP_HOSTS: Final = f"""
    CREATE TEMP TABLE top_hosts AS
    SELECT host, {_SUMS} FROM pairs GROUP BY ALL
    ORDER BY sum(allowed + denied) DESC, host LIMIT {_HOSTS_SHOWN}
"""
_TOP_PAIRS: Final = """
    SELECT client, "user", host, allowed, denied, response_bytes
    FROM pairs SEMI JOIN top_clients USING (client, "user") SEMI JOIN top_hosts USING (host)
"""
_ALL: Final = f"""
    SELECT {_SUMS}, (SELECT count(*) FROM (SELECT DISTINCT client, "user" FROM pairs)), count(DISTINCT host) FROM pairs
"""

_Client = tuple[str, str]  # address, user


class RequestTotals(NamedTuple):
    """The sums of the requests of a host, a client, or both."""

    allowed: int = 0
    denied: int = 0
    response_bytes: int = 0

    def minus(self, others: Iterable[RequestTotals]) -> RequestTotals:
        """Subtract others."""
        taken = [sum(values) for values in zip(*others, strict=True)] or [0, 0, 0]
        return RequestTotals(*(value - less for value, less in zip(self, taken, strict=True)))


def traffic(connection: DuckDBPyConnection) -> figures.TrafficFigures:
    """Return the busiest clients and hosts, and the sum of the rest."""
    connection.execute(_TOP_CLIENTS)
    connection.execute(_TOP_HOSTS)
    clients = {(row[0], row[1]): RequestTotals(*row[2:]) for row in connection.execute("FROM top_clients").fetchall()}
    hosts = {row[0]: RequestTotals(*row[1:]) for row in connection.execute("FROM top_hosts").fetchall()}
    found = connection.execute(_TOP_PAIRS).fetchall()
    pairs = {((client, user), host): RequestTotals(*totals) for client, user, host, *totals in found}
    ((allowed, denied, response_bytes, all_clients, all_hosts),) = connection.execute(_ALL).fetchall()
    rest = RequestTotals(allowed or 0, denied or 0, response_bytes or 0).minus(hosts.values())
    return figures.TrafficFigures(
        clients=tuple(
            figures.ClientFigures(client_label(*client), totals.allowed, totals.denied)
            for client, totals in clients.items()
        ),
        other_clients=all_clients - len(clients),
        hosts=tuple(
            _row(host, totals, [pairs.get((client, host), RequestTotals()) for client in clients])
            for host, totals in hosts.items()
        ),
        other_hosts=all_hosts - len(hosts),
        rest=_rest(rest, clients, hosts, pairs) if rest.allowed or rest.denied else None,
    )


def _rest(
    rest: RequestTotals,
    clients: dict[_Client, RequestTotals],
    hosts: Iterable[str],
    pairs: dict[tuple[_Client, str], RequestTotals],
) -> figures.HostFigures:
    elsewhere = [
        totals.minus(pairs[client, host] for host in hosts if (client, host) in pairs)
        for client, totals in clients.items()
    ]
    return _row("", rest, elsewhere)


def _row(host: str, totals: RequestTotals, of_clients: list[RequestTotals]) -> figures.HostFigures:
    by_client = [*of_clients, totals.minus(of_clients)]
    visits = tuple(figures.Visits(one.allowed, one.denied) for one in by_client)
    return figures.HostFigures(host, *totals, visits)
