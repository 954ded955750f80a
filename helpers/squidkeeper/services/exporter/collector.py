"""Prometheus's metrics of a snapshot: one family for each entry of metrics.py.

Series for what the policy names exist from the start, with 0, so that an alert sees the
first event as an increase. Squid's own counters have the names of the widely used
squid-exporter, so that its dashboards work.
"""

from collections import Counter as Multiset
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Final, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from squidkeeper.base import helper_metrics, metrics
from squidkeeper.base.helper_metrics import HELPERS, NONE, Metric
from squidkeeper.base.squid_counters import SquidCounters
from squidkeeper.policy.language.model import VERDICT_NAMES, Action, Policy
from squidkeeper.policy.language.prices import MILLIONTHS
from squidkeeper.services.exporter.conditions import CONDITIONS, active_conditions
from squidkeeper.services.exporter.counts import SERIES_LIMIT, RequestCounts
from squidkeeper.services.exporter.snapshot import Snapshot
from squidkeeper.serving.counters.layout import (
    INFINITY,
    Key,
    histogram_keys,
    key_labels,
)

# series of one metric that exist before they count anything
_EXPECTED_LIMIT: Final = SERIES_LIMIT // 2
LabelsT = TypeVar("LabelsT", bound=tuple[str, ...])
_STATUS_CLASSES = {"allow": "2xx", "deny": "4xx"}


class GatewayCollector(Collector):
    """All metrics but those of the exporter's own process."""

    def __init__(self, collect: Callable[[], Snapshot]) -> None:
        self._collect = collect

    def describe(self) -> Iterable[Family]:
        """Describe nothing: the registry collects when it is scraped."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Collect a snapshot, and make families of it."""
        view = self._collect()
        of_gateway = (
            _log_families,
            _helper_families,
            _policy_families,
            _exporter_families,
            _archive_families,
        )
        for families in (
            *of_gateway,
            _usage_families,
            _pull_families,
            _fetching_families,
            _export_families,
        ):
            yield from families(view)
        yield from squid_families(view.proxy.squid)


def observed_series(policy: Policy | None) -> list[tuple[str, str]]:
    """List what is observed by a policy, as its rule and verdict: such a series begins
    at 0.
    """
    if policy is None:
        return []
    rules = [
        (rule.name, str(Action.ALLOW if rule.action is Action.ALLOW else Action.DENY))
        for rule in policy.rules
        if rule.observe
    ]
    return [
        *rules,
        *([("default", str(Action.DENY))] if policy.observe_default else []),
    ]


def _log_families(view: Snapshot) -> Iterator[Family]:
    counts, expected = view.log.checkpoint.counts, expected_series(view.policies.policy)
    requests = [
        (client, rule, verdict, "read", _STATUS_CLASSES[verdict])
        for client, rule, verdict in expected
    ]
    yield _family(metrics.REQUESTS, dict.fromkeys(requests, 0) | dict(counts.requests))
    tunnels = [
        (client, rule) for client, rule, verdict in expected if verdict == "allow"
    ]
    yield _family(metrics.TUNNELS, dict.fromkeys(tunnels, 0) | dict(counts.tunnels))
    yield _family(
        metrics.OBSERVED,
        dict.fromkeys(observed_series(view.policies.policy), 0) | dict(counts.observed),
    )
    yield _family(metrics.UNNAMED_DENIALS, dict(counts.unnamed_denials))
    yield _family(
        metrics.RESPONSE_BYTES, dict.fromkeys(expected, 0) | dict(counts.response_bytes)
    )
    yield _durations(counts)
    drift = [(client, rule) for client, rule, _ in expected]
    yield _family(metrics.DRIFT, dict.fromkeys(drift, 0) | dict(counts.drift))
    yield _single(metrics.DRIFT_UNCHECKED, counts.drift_unchecked)
    yield _single(metrics.DRIFT_CUT, counts.drift_cut)
    rules = view.policies.policy.rules_and_grants if view.policies.policy else ()
    matched = {
        (rule.name,): _seconds(counts.last_matched.get(rule.name, "")) for rule in rules
    }
    yield _family(metrics.RULE_LAST_MATCHED, matched)
    yield _single(metrics.RECORD_READABLE, view.log.log_readable)
    yield _single(metrics.RECORD_BACKLOG, view.log.backlog_bytes)
    yield _single(metrics.RECORD_LAST_LINE, _seconds(counts.last_line))
    yield _single(metrics.RECORD_INVALID_LINES, counts.invalid_lines)
    yield _single(metrics.RECORD_LOST, counts.lost)


def expected_series(policy: Policy | None) -> list[tuple[str, str, str]]:
    """List each (client, rule, verdict) that the policy makes likely, a
    bounded number.
    """
    if policy is None:
        return []
    everybody = (*policy.client_names, NONE)
    rules = policy.rules_and_grants
    found = [
        (client, rule.name, str(rule.verdict))
        for rule in rules
        for client in rule.match.clients or everybody
    ]
    for name in sorted(VERDICT_NAMES):
        action = policy.default if name == "default" else Action.DENY
        found += [(client, name, str(action.verdict)) for client in everybody]
    return (
        found
        if len(found) <= _EXPECTED_LIMIT
        else [one for one in found if one[0] == NONE][:_EXPECTED_LIMIT]
    )


def _helper_families(view: Snapshot) -> Iterator[Family]:
    helpers = view.helpers
    yield _single(helper_metrics.WORKERS, view.place.workers)
    for metric in (
        helper_metrics.DECISIONS,
        helper_metrics.PROTOCOL_ERRORS,
        helper_metrics.HELPER_STARTS,
        helper_metrics.THROTTLED,
        helper_metrics.CERTIFICATES,
        helper_metrics.LOGINS,
        helper_metrics.CREDENTIAL_INJECTIONS,
        helper_metrics.CREDENTIAL_FAILURES,
        helper_metrics.QUOTA_DENIALS,
    ):
        yield _family(
            metric,
            _expected(metric, view.policies.policy)
            | _by_labels(metric, view.processes.totals),
        )
    # none without these ports
    connections = _by_labels(
        helper_metrics.TRANSPARENT_CONNECTIONS, view.processes.totals
    )
    results = (
        dict.fromkeys([(result,) for result in helper_metrics.TransparentResult], 0.0)
        if connections
        else {}
    )
    yield _family(helper_metrics.TRANSPARENT_CONNECTIONS, results | connections)
    yield _decision_durations(view.processes.totals)
    yield _per_helper(
        helper_metrics.HELPER_PROCESSES, [status.helper for status in helpers]
    )
    outdated = [status.helper for status in helpers if view.is_outdated(status)]
    yield _per_helper(helper_metrics.HELPER_PROCESSES_OUTDATED, outdated)
    stuck = [status.helper for status in helpers if view.is_stuck(status)]
    yield _per_helper(helper_metrics.HELPER_PROCESSES_STUCK, stuck)


def _policy_families(view: Snapshot) -> Iterator[Family]:
    policy = view.policies.policy
    yield _family(metrics.POLICY_INFO, {(policy.revision,): 1} if policy else {})
    yield _single(metrics.POLICY_LAST_RELOAD_SUCCESSFUL, view.policies.policy_state.ok)
    yield _single(metrics.POLICY_RELOAD_GATED, view.policies.policy_state.gated)
    yield _single(
        metrics.POLICY_LAST_RELOAD_SUCCESS, view.policies.policy_state.loaded or 0
    )
    yield _single(metrics.POLICY_RULES, len(policy.rules) if policy else 0)
    # grants are made to lapse, which is nothing to be warned about
    rules = policy.rules if policy else ()
    yield _family(
        metrics.RULE_EXPIRY,
        {(rule.name,): rule.expires.timestamp() for rule in rules if rule.expires},
    )


def _exporter_families(view: Snapshot) -> Iterator[Family]:
    root = view.certificates.certificate.root_sha256
    yield _family(metrics.CA_INFO, {(root,): 1} if root else {})
    end = view.certificates.certificate.not_after
    tls = (
        view.certificates.tls_certificate.not_after
        if view.certificates.tls_certificate
        else None
    )
    yield _family(metrics.TLS_EXPIRY, {(): tls.timestamp()} if tls else {})
    yield _family(metrics.CA_EXPIRY, {(): end.timestamp()} if end else {})
    yield _single(metrics.STATE_WRITABLE, view.log.state_writable)
    yield _family(
        metrics.FILESYSTEM_AVAILABLE,
        {(disk.folder,): disk.available_bytes for disk in view.records.disks},
    )
    yield _family(
        metrics.FILESYSTEM_SIZE,
        {(disk.folder,): disk.size_bytes for disk in view.records.disks},
    )
    active = {condition.condition.code for condition in active_conditions(view)}
    seen_here = [condition for condition in CONDITIONS if condition.find]
    states = {
        (condition.code, condition.severity): condition.code in active
        for condition in seen_here
    }
    yield _family(metrics.CONDITION, states)
    yield _single(metrics.MAINTENANCE_UP, view.services.maintenance.runs)
    failures = view.services.maintenance.failures
    yield _family(
        metrics.MAINTENANCE_TASK_SUCCESS,
        {(task,): not failure for task, failure in failures.items()},
    )


def _archive_families(view: Snapshot) -> Iterator[Family]:
    archive, since = view.records.archive, view.records.unarchived_since
    yield _family(
        metrics.ARCHIVE_LAST_SUCCESS, {(): archive.succeeded or 0} if archive else {}
    )
    yield _family(metrics.ARCHIVE_UNARCHIVED, {(): since} if since is not None else {})
    yield _single(metrics.ARCHIVE_DELETED, view.records.deleted_logs.files)
    waiting, problem = (
        view.policies.questions_waiting,
        view.services.quota_store_problem,
    )
    yield _family(metrics.QUESTIONS_WAITING, {} if waiting is None else {(): waiting})
    roles = view.policies.policy.roles if view.policies.policy else ()
    active = view.services.sessions.active
    roles = roles if active is not None else ()
    counts = {(role.name,): (active or {}).get(role.name, 0) for role in roles}
    yield _family(metrics.SESSIONS, counts)
    ends = view.certificates.quota_store_not_after
    yield _family(
        metrics.QUOTA_STORE_CERTIFICATE_EXPIRY, {(): ends.timestamp()} if ends else {}
    )
    yield _family(
        metrics.QUOTA_STORE_UP, {} if problem is None else {(): 0 if problem else 1}
    )


def _usage_families(view: Snapshot) -> Iterator[Family]:
    used = view.log.checkpoint.usage.used
    yield _family(
        metrics.METERED_REQUESTS, {labels: requests for labels, (requests, *_) in used}
    )
    tokens = {(*labels, "in"): tokens_in for labels, (_, tokens_in, _, _) in used}
    tokens |= {(*labels, "out"): tokens_out for labels, (_, _, tokens_out, _) in used}
    yield _family(metrics.TOKENS, tokens)
    yield _family(
        metrics.COST, {labels: cost / MILLIONTHS for labels, (*_, cost) in used}
    )
    quotas = view.policies.policy.quotas if view.policies.policy else ()
    ratios = {(quota.name,): 0.0 for quota in quotas if quota.unit.is_tokens}
    for use in view.policies.token_uses:
        ratios[use.quota.name,] = max(use.ratio, ratios.get((use.quota.name,), 0.0))
    yield _family(metrics.QUOTA_USED, ratios)


def _pull_families(view: Snapshot) -> Iterator[Family]:
    pull = view.services.pull
    yield _family(
        metrics.PULL_INFO, {(pull.version,): 1} if pull and pull.version else {}
    )
    yield _family(metrics.PULL_LAST_SUCCESS, {(): pull.succeeded or 0} if pull else {})
    yield _family(metrics.PULL_INTERVAL, {(): pull.every_seconds} if pull else {})
    yield _family(metrics.PULL_REFUSED, {(): bool(pull.refused)} if pull else {})


def _fetching_families(view: Snapshot) -> Iterator[Family]:
    secrets = view.fetched_secrets
    reported = {name: status for name, status in secrets.items() if status}
    yield _family(
        metrics.SECRETS_UP, {(): view.services.fetching.runs} if secrets else {}
    )
    results = {(name, "success"): secret.fetches for name, secret in reported.items()}
    results |= {(name, "failure"): secret.failed for name, secret in reported.items()}
    yield _family(metrics.SECRET_FETCHES, results)
    yield _family(
        metrics.SECRET_FETCH_FAILURES,
        {(name,): secret.failures for name, secret in reported.items()},
    )
    ends = {
        (name,): secret.expires_at
        for name, secret in reported.items()
        if secret.expires_at is not None
    }
    yield _family(metrics.SECRET_EXPIRY, ends)


def _export_families(view: Snapshot) -> Iterator[Family]:
    states = {name: status.state for name, status in view.records.exports.items()}
    yield _family(
        metrics.EXPORT_UP,
        {(name,): status.runs for name, status in view.records.exports.items()},
    )
    yield _family(
        metrics.EXPORT_RECORDS, {(name,): state.sent for name, state in states.items()}
    )
    yield _family(
        metrics.EXPORT_DOUBLED,
        {(name,): state.doubled for name, state in states.items()},
    )
    yield _family(
        metrics.EXPORT_GAPS, {(name,): state.gaps for name, state in states.items()}
    )
    yield _family(
        metrics.EXPORT_LOST, {(name,): state.lost for name, state in states.items()}
    )
    yield _family(
        metrics.EXPORT_BACKLOG,
        {(name,): state.backlog_bytes for name, state in states.items()},
    )
    waiting = {
        (name,): status.waiting_seconds(view.now)
        for name, status in view.records.exports.items()
    }
    yield _family(metrics.EXPORT_WAITING, waiting)


def _single(metric: Metric, value: float) -> Family:
    return _family(metric, {(): value})


def _family(metric: Metric, values: Mapping[LabelsT, float]) -> Family:
    kind = (
        CounterMetricFamily
        if metric.kind is helper_metrics.MetricKind.COUNTER
        else GaugeMetricFamily
    )
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _durations(counts: RequestCounts) -> Family:
    metric = metrics.REQUEST_DURATION
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, (*cells, milliseconds) in counts.durations:
        family.add_metric(labels, _buckets(metric, cells), milliseconds / 1000)
    return family


def _buckets(metric: Metric, cells: Sequence[float]) -> list[tuple[str, float]]:
    return list(
        zip(
            (*map(floatToGoString, metric.buckets), INFINITY),
            accumulate(cells),
            strict=True,
        )
    )


def _expected(metric: Metric, policy: Policy | None) -> dict[tuple[str, ...], float]:
    """Make the series that exist with 0: one for each credential, helper, wait or
    result.
    """
    values: dict[str, Iterable[str]] = {
        "helper": HELPERS,
        "wait": helper_metrics.WAITS,
        "result": helper_metrics.LOGIN_RESULTS
        if metric is helper_metrics.LOGINS
        else helper_metrics.CERTIFICATE_RESULTS,
        "credential": [credential.name for credential in policy.credentials]
        if policy
        else (),
        "quota": [quota.name for quota in policy.quotas] if policy else (),
    }
    [*labels] = metric.labels
    return (
        {(value,): 0.0 for value in values.get(labels[0], ())}
        if len(labels) == 1
        else {}
    )


def _by_labels(
    metric: Metric, totals: Mapping[Key, float]
) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for key, value in totals.items():
        labels = key_labels(key)
        if key[0] == metric.name and labels.keys() == set(metric.labels):
            found[tuple(labels[label] for label in metric.labels)] = value
    return found


def _decision_durations(totals: Mapping[Key, float]) -> Family:
    metric = helper_metrics.DECISION_DURATION
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for helper in HELPERS:
        *buckets, total = histogram_keys(
            metric.name, {"helper": helper}, metric.buckets
        )
        cells = [totals.get(key, 0.0) for key in buckets]
        family.add_metric((helper,), _buckets(metric, cells), totals.get(total, 0.0))
    return family


def _per_helper(metric: Metric, helpers: Iterable[str]) -> Family:
    return _family(
        metric,
        dict.fromkeys([(helper,) for helper in HELPERS], 0)
        | Multiset((one,) for one in helpers),
    )


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp() if time else 0.0


_TRAFFIC = (
    ("requests", "requests_total", "requests"),
    ("errors", "errors_total", "errors"),
    ("kbytes_in", "kbytes_in_kbytes_total", "kilobytes received"),
    ("kbytes_out", "kbytes_out_kbytes_total", "kilobytes sent"),
)
_SERVERS = (
    ("all", "all protocols"),
    ("http", "HTTP"),
    ("ftp", "FTP"),
    ("other", "other protocols"),
)
# Squid's own name of a counter, its metric, its meaning.
COUNTERS: Final = (
    *(
        (f"client_http.{key}", f"squid_client_http_{name}", f"Clients: {what}.")
        for key, name, what in _TRAFFIC
    ),
    (
        "client_http.hits",
        "squid_client_http_hits_total",
        "Clients: requests answered from the cache.",
    ),
    (
        "client_http.hit_kbytes_out",
        "squid_client_http_hit_kbytes_out_bytes_total",
        "Clients: kilobytes sent from the cache. Dashboards know it by this name.",
    ),
    *(
        (
            f"server.{server}.{key}",
            f"squid_server_{server}_{name}",
            f"Origins, {protocol}: {what}.",
        )
        for server, protocol in _SERVERS
        for key, name, what in _TRAFFIC
    ),
    ("swap.ins", "squid_swap_ins_total", "Objects read from the cache on disk."),
    ("swap.outs", "squid_swap_outs_total", "Objects written to the cache on disk."),
    (
        "swap.files_cleaned",
        "squid_swap_files_cleaned_total",
        "Files of the cache on disk that were cleaned up.",
    ),
)


def squid_families(counters: SquidCounters) -> Iterator[Family]:
    """Make metrics of the counters; without counters, only `squid_up`."""
    up = GaugeMetricFamily("squid_up", "Whether Squid answers.", value=counters.answers)
    yield up
    for key, name, meaning in COUNTERS:
        if key in counters.values:
            yield CounterMetricFamily(name, meaning, value=counters.values[key])
