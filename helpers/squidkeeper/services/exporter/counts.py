"""What is counted in the access log: plain numbers, which a checkpoint saves.

`RequestCounts` are the numbers at one moment; a `RequestCounter` continues from them. A
metric has at most `SERIES_LIMIT` series, whatever clients send: new ones are then
counted under the label `other`.
"""

from bisect import bisect_left
from collections.abc import Container, Sequence
from ipaddress import ip_network
from typing import Final, NamedTuple, TypeVar
from urllib.parse import unquote

import msgspec

from squidkeeper.base import helper_metrics, metrics
from squidkeeper.record.log import record as records
from squidkeeper.record.log.record import Record, is_unseen
from squidkeeper.record.log.requests import (
    ConnectionKey,
    connection_key,
    is_denied_tunnel,
    is_tunnel,
)
from squidkeeper.record.why.causes import is_of_body

SERIES_LIMIT: Final = 4000  # of one metric
NETWORKS_LIMIT: Final = 64  # networks of clients without a name; more are `other`
RULES_LIMIT: Final = 2000  # rules whose last match is remembered
_BOUNDS_MS: Final = tuple(
    round(bound * 1000) for bound in metrics.REQUEST_DURATION.buckets
)
_VERDICTS = frozenset({"allow", "deny"})
_DURATION_CELLS = len(_BOUNDS_MS) + 2
_DENIED_TUNNELS_LIMIT = 10_000
_CELLS_LIMIT = 20_000  # when full, all are dropped, and found again by their series

# client, rule, verdict, method_class, status_class
RequestLabels = tuple[str, str, str, str, str]
BytesLabels = tuple[str, str, str]  # client, rule, verdict
DurationLabels = tuple[str, str]  # verdict, method_class
DriftLabels = tuple[str, str]  # client, rule
TunnelLabels = tuple[str, str]  # client, rule
ObservedLabels = tuple[str, str]  # rule, verdict
UnnamedLabels = tuple[str, str]  # the network of the client, verdict
LabelsT = TypeVar("LabelsT", bound=tuple[str, ...])


class RequestCounts(msgspec.Struct, frozen=True):
    """Everything that is counted in the access log, at one moment.

    `durations` holds the number of requests in each bucket alone (the last has no
    bound), then the sum in milliseconds. Times are as in the access log; empty: never.
    """

    requests: list[tuple[RequestLabels, int]] = []
    tunnels: list[tuple[TunnelLabels, int]] = []
    response_bytes: list[tuple[BytesLabels, int]] = []
    durations: list[tuple[DurationLabels, list[int]]] = []
    observed: list[tuple[ObservedLabels, int]] = []
    unnamed_denials: list[tuple[UnnamedLabels, int]] = []
    last_matched: dict[str, str] = {}
    drift: list[tuple[DriftLabels, int]] = []
    drift_unchecked: int = 0
    drift_cut: int = 0
    invalid_lines: int = 0
    lost: int = 0
    last_line: str = ""
    denied_tunnels: list[
        ConnectionKey
    ] = []  # in which no request has come yet, the oldest first


class _Cells(NamedTuple):
    """The four cells that count requests with the same labels.

    For tunnels, `requests` is a cell of `tunnels`.
    """

    requests: list[int]
    response_bytes: list[int]
    duration: list[int]
    last_matched: list[str]


class RequestCounter:
    """Counts records, starting at `counts`. Not thread-safe."""

    def __init__(self, counts: RequestCounts) -> None:
        self._requests = {labels: [number] for labels, number in counts.requests}
        self._tunnels = {labels: [number] for labels, number in counts.tunnels}
        self._observed = {labels: [number] for labels, number in counts.observed}
        self._unnamed = {labels: [number] for labels, number in counts.unnamed_denials}
        self._bytes = {labels: [number] for labels, number in counts.response_bytes}
        self._durations = {
            labels: list(cells)
            for labels, cells in counts.durations
            if len(cells) == _DURATION_CELLS
        }
        self._last_matched = {
            rule: [time] for rule, time in counts.last_matched.items()
        }
        self._drift = {labels: [number] for labels, number in counts.drift}
        self._denied_tunnels = dict.fromkeys(counts.denied_tunnels)
        self._cells: dict[tuple[str, str, str, str, int], _Cells] = {}
        self.drift_unchecked = counts.drift_unchecked
        self.drift_cut = counts.drift_cut
        self.invalid_lines = counts.invalid_lines
        self.lost = counts.lost
        self.last_line = counts.last_line

    def count(self, record: Record, client: str) -> None:
        """Count a request by a client of the policy, or `none`.

        Allowed tunnels are counted separately.

        The first request inside a denied tunnel counts with its CONNECT, even if it has
        no decision of its own.
        """
        method = (
            metrics.unseen_class(record.method)
            if is_unseen(record)
            else metrics.method_class(record.method)
        )
        kind = (client, record.rule, record.verdict, method, record.status // 100)
        cells = self._cells.get(kind) or self._open(kind)
        duration, time = record.duration_ms, record.time
        is_denied = record.verdict == "deny"
        is_counted = record.verdict != "allow" and self._is_counted(record)
        cells.requests[0] += not is_counted
        if record.bytes > 0:
            cells.response_bytes[0] += record.bytes
        cells.duration[bisect_left(_BOUNDS_MS, duration)] += 1
        if duration > 0:  # negative if the clock was set back meanwhile
            cells.duration[-1] += duration
        # `bodies-down` and `helper-stuck` tell about these
        if time > cells.last_matched[0] and not (is_denied and is_of_body(record)):
            cells.last_matched[0] = time
        if time > self.last_line:
            self.last_line = time
        if client == helper_metrics.NONE and is_denied and not is_counted:
            self._count_unnamed(record)
        if record.observed != records.NONE and not is_counted and not is_tunnel(record):
            self._count_observed(record.observed)

    def _is_counted(self, record: Record) -> bool:
        key = connection_key(record)
        if not is_denied_tunnel(record):
            is_first = key in self._denied_tunnels
            self._denied_tunnels.pop(key, None)
            return is_first
        self._denied_tunnels[key] = None
        if len(self._denied_tunnels) > _DENIED_TUNNELS_LIMIT:
            del self._denied_tunnels[next(iter(self._denied_tunnels))]
        return False

    def _count_unnamed(self, record: Record) -> None:
        labels = (client_block(record.client), record.verdict)
        if labels not in self._unnamed and len(self._unnamed) >= NETWORKS_LIMIT:
            labels = (helper_metrics.OTHER, record.verdict)
        self._unnamed.setdefault(labels, [0])[0] += 1

    def _count_observed(self, observed: str) -> None:
        verdict, _, rule = unquote(observed).partition(":")
        verdict = verdict if verdict in _VERDICTS else helper_metrics.NONE
        labels = _fitting(
            self._observed,
            len(self._observed),
            [(rule, verdict), (helper_metrics.OTHER, verdict)],
        )
        self._observed.setdefault(labels, [0])[0] += 1

    def count_drift(self, client: str, rule: str) -> None:
        """Count a finding of drift; `rule` is the one that decides by the policy."""
        labels = _fitting(
            self._drift,
            len(self._drift),
            [
                (client, rule),
                (client, helper_metrics.OTHER),
                (helper_metrics.OTHER, helper_metrics.OTHER),
            ],
        )
        self._drift.setdefault(labels, [0])[0] += 1

    def counts(self) -> RequestCounts:
        """Return the numbers as they are now."""
        return RequestCounts(
            requests=[(labels, cell[0]) for labels, cell in self._requests.items()],
            tunnels=[(labels, cell[0]) for labels, cell in self._tunnels.items()],
            observed=[(labels, cell[0]) for labels, cell in self._observed.items()],
            unnamed_denials=[
                (labels, cell[0]) for labels, cell in self._unnamed.items()
            ],
            response_bytes=[(labels, cell[0]) for labels, cell in self._bytes.items()],
            durations=[
                (labels, list(cells)) for labels, cells in self._durations.items()
            ],
            last_matched={rule: cell[0] for rule, cell in self._last_matched.items()},
            drift=[(labels, cell[0]) for labels, cell in self._drift.items()],
            drift_unchecked=self.drift_unchecked,
            drift_cut=self.drift_cut,
            invalid_lines=self.invalid_lines,
            lost=self.lost,
            last_line=self.last_line,
            denied_tunnels=list(self._denied_tunnels),
        )

    def _open(self, kind: tuple[str, str, str, str, int]) -> _Cells:
        client, rule, verdict, method, hundreds = kind
        rule = helper_metrics.NONE if rule == records.NONE else unquote(rule)
        verdict = verdict if verdict in _VERDICTS else helper_metrics.NONE
        owners = (
            (client, rule),
            (client, helper_metrics.OTHER),
            (helper_metrics.OTHER, helper_metrics.OTHER),
        )
        is_tunnel = method == metrics.CONNECT_CLASS and verdict == "allow"
        by_size = _fitting(
            self._bytes, len(self._bytes), [(*owner, verdict) for owner in owners]
        )
        cells = _Cells(
            self._tunnel(owners)
            if is_tunnel
            else self._request(
                owners, (verdict, method, metrics.status_class(hundreds * 100))
            ),
            self._bytes.setdefault(by_size, [0]),
            self._durations.setdefault((verdict, method), [0] * _DURATION_CELLS),
            [""] if is_tunnel else self._match(rule),
        )
        if len(self._cells) >= _CELLS_LIMIT:
            self._cells.clear()
        self._cells[kind] = cells
        return cells

    def _request(
        self, owners: Sequence[tuple[str, str]], how: tuple[str, str, str]
    ) -> list[int]:
        labels = _fitting(
            self._requests, len(self._requests), [(*owner, *how) for owner in owners]
        )
        return self._requests.setdefault(labels, [0])

    def _tunnel(self, owners: Sequence[TunnelLabels]) -> list[int]:
        return self._tunnels.setdefault(
            _fitting(self._tunnels, len(self._tunnels), owners), [0]
        )

    def _match(self, rule: str) -> list[str]:
        matched = (
            rule
            if rule in self._last_matched or len(self._last_matched) < RULES_LIMIT
            else helper_metrics.OTHER
        )
        return self._last_matched.setdefault(matched, [""])


def client_block(address: str) -> str:
    """Name the network of a client that is none of the policy: /24, or /64 of IPv6."""
    try:
        return str(
            ip_network(
                (address.partition("%")[0], 64 if ":" in address else 24), strict=False
            )
        )
    except ValueError:
        return helper_metrics.OTHER


def _fitting(
    series: Container[LabelsT], size: int, choices: Sequence[LabelsT]
) -> LabelsT:
    """Choose the labels to count under: the first choice that exists already or fits
    into the bound.

    The last choice always fits: it has few possible values.
    """
    for labels in choices[:-1]:
        if labels in series or size < SERIES_LIMIT:
            return labels
    return choices[-1]
