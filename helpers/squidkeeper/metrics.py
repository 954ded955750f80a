"""Every metric that the exporter serves under `squidkeeper_` (floor 4): its name, type, labels and meaning, once.

The documentation's table is this one; a test compares them. Label values are bounded by the policy and by these lists:
never an address, a host or a URL, which a client could make up without end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

OTHER: Final = "other"  # what does not fit into the bound of a label, or is of no class
NONE: Final = "none"  # a request of no client of the policy, or that no rule was asked about

HOST: Final = "host"  # the values of the label `helper`
REQUEST: Final = "request"
REWRITE: Final = "rewrite"
CREDENTIAL: Final = "credential"
THROTTLE: Final = "throttle"
JUDGES: Final = (HOST, REQUEST, REWRITE, CREDENTIAL)  # the helpers that have a policy
HELPERS: Final = (*JUDGES, THROTTLE)


WAITS: Final = ("at_once", "held", "surplus")  # the values of the label `wait`


class MetricKind(StrEnum):
    """A metric's type, as Prometheus names it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` is whole, with its unit and `_total`; `buckets` are a histogram's upper bounds."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DECISION_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0)

_COUNTER, _GAUGE, _HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

# --- Of the record of requests ------------------------------------------------------------------------------------

REQUESTS = Metric(
    "squidkeeper_requests_total",
    _COUNTER,
    "Requests that Squid has answered, with the CONNECT of a denied tunnel (method_class connect). Allowed tunnels are "
    "in squidkeeper_tunnels_total.",
    ("client", "rule", "verdict", "method_class", "status_class"),
)
TUNNELS = Metric(
    "squidkeeper_tunnels_total",
    _COUNTER,
    "Tunnels (CONNECT) that the policy allowed. rule: the first that could allow a request in it, whether or not one "
    "came; the requests are in squidkeeper_requests_total.",
    ("client", "rule"),
)
RESPONSE_BYTES = Metric(
    "squidkeeper_response_bytes_total",
    _COUNTER,
    "Bytes sent to clients, headers included.",
    ("client", "rule", "verdict"),
)
REQUEST_DURATION = Metric(
    "squidkeeper_request_duration_seconds",
    _HISTOGRAM,
    "Time from a request's first byte to its answer's last; of a CONNECT, until TLS with the client stood.",
    ("verdict", "method_class"),
    _REQUEST_SECONDS,
)
DRIFT = Metric(
    "squidkeeper_enforcement_drift_total",
    _COUNTER,
    "Requests that were served though the policy in force denies them, that no helper was asked about, or that had a "
    "credential put in which the policy does not give them. rule: what the policy says. See `squidkeeper log --drift`.",
    ("client", "rule"),
)
DRIFT_UNCHECKED = Metric(
    "squidkeeper_enforcement_drift_unchecked_total",
    _COUNTER,
    "Served requests that could not be held against the policy, because its revision is no longer kept.",
)
DRIFT_CUT = Metric(
    "squidkeeper_enforcement_drift_cut_total",
    _COUNTER,
    "Served requests that could not be held against the policy, because the record cuts off the URL that decides.",
)
RULE_LAST_MATCHED = Metric(
    "squidkeeper_rule_last_matched_timestamp_seconds",
    _GAUGE,
    "When a request was last decided by this rule of the policy in force, or a tunnel denied; 0: never seen. An "
    "allowed tunnel does not count.",
    ("rule",),
)
RECORD_READABLE = Metric(
    "squidkeeper_record_readable",
    _GAUGE,
    "Whether the exporter can read Squid's access log: 0, and what is counted from it stands still.",
)
RECORD_BACKLOG = Metric(
    "squidkeeper_record_backlog_bytes",
    _GAUGE,
    "Bytes of the access log that are written and not yet counted.",
)
RECORD_LAST_LINE = Metric(
    "squidkeeper_record_last_line_timestamp_seconds",
    _GAUGE,
    "Time of the newest request that has been counted.",
)
RECORD_INVALID_LINES = Metric(
    "squidkeeper_record_invalid_lines_total",
    _COUNTER,
    "Lines of the access log that are no record: another logformat, another version, torn by a full disk.",
)
RECORD_LOST = Metric(
    "squidkeeper_record_lost_total",
    _COUNTER,
    "Times that a stretch of the access log was gone before it was counted: truncated, or rotated away unread.",
)

# --- Of the helpers -----------------------------------------------------------------------------------------------

DECISIONS = Metric(
    "squidkeeper_decisions_total",
    _COUNTER,
    "Lines of Squid's that a helper has answered. Squid keeps answers for a second, so requests are more. verdict "
    "is also url (the URL decides), tunnel (an allowed CONNECT), or what the rewriter did.",
    ("helper", "rule", "verdict"),
)
DECISION_DURATION = Metric(
    "squidkeeper_decision_duration_seconds",
    _HISTOGRAM,
    "Time from a line's reading to its answer, the lines read with it included.",
    ("helper",),
    _DECISION_SECONDS,
)
PROTOCOL_ERRORS = Metric(
    "squidkeeper_protocol_errors_total",
    _COUNTER,
    "Lines that a helper could not understand or judge, and denied; the cause is in cache.log.",
    ("helper",),
)
HELPER_STARTS = Metric(
    "squidkeeper_helper_starts_total",
    _COUNTER,
    "Helper processes that Squid has started.",
    ("helper",),
)
HELPER_PROCESSES = Metric(
    "squidkeeper_helper_processes",
    _GAUGE,
    "Helper processes that run now. 0: Squid has not asked, and starts one when it does.",
    ("helper",),
)
HELPER_PROCESSES_OUTDATED = Metric(
    "squidkeeper_helper_processes_outdated",
    _GAUGE,
    "Helper processes that judge by another revision than the exporter, which reads the same directory.",
    ("helper",),
)
HELPER_PROCESSES_STUCK = Metric(
    "squidkeeper_helper_processes_stuck",
    _GAUGE,
    "Helper processes that give no sign of life, or have not answered a line for seconds.",
    ("helper",),
)
THROTTLED = Metric(
    "squidkeeper_denials_throttled_total",
    _COUNTER,
    "Denials by when the client was answered: at_once, held until its turn, or surplus, which waits a minute at most.",
    ("wait",),
)
CREDENTIAL_INJECTIONS = Metric(
    "squidkeeper_credential_injections_total",
    _COUNTER,
    "Requests that a credential was handed to Squid for.",
    ("credential",),
)
CREDENTIAL_FAILURES = Metric(
    "squidkeeper_credential_failures_total",
    _COUNTER,
    "Requests denied because this credential's value could not be had.",
    ("credential",),
)

# --- Of the policy directory --------------------------------------------------------------------------------------

POLICY_INFO = Metric("squidkeeper_policy_info", _GAUGE, "1, for the revision of the policy in force.", ("revision",))
POLICY_LAST_RELOAD_SUCCESSFUL = Metric(
    "squidkeeper_policy_last_reload_successful",
    _GAUGE,
    "Whether the policy on disk loads: 0, and an older one is in force, or none.",
)
POLICY_LAST_RELOAD_SUCCESS = Metric(
    "squidkeeper_policy_last_reload_success_timestamp_seconds",
    _GAUGE,
    "When a policy was last loaded.",
)
POLICY_RULES = Metric("squidkeeper_policy_rules", _GAUGE, "Rules of the policy in force.")
RULE_EXPIRY = Metric(
    "squidkeeper_rule_expiry_timestamp_seconds",
    _GAUGE,
    "When a rule with `expires` lapses, or lapsed.",
    ("rule",),
)

# --- Of the exporter itself ---------------------------------------------------------------------------------------

CA_EXPIRY = Metric(
    "squidkeeper_ca_certificate_expiry_timestamp_seconds",
    _GAUGE,
    "When the CA that signs for all hosts ends; nothing that goes through the gateway works afterwards.",
)
STATE_WRITABLE = Metric(
    "squidkeeper_exporter_state_writable",
    _GAUGE,
    "Whether the exporter could last keep its counts on disk: 0, and a restart goes on from the last that were kept.",
)

# --- Of the maintenance process -----------------------------------------------------------------------------------

MAINTENANCE_UP = Metric(
    "squidkeeper_maintenance_up",
    _GAUGE,
    "Whether the maintenance process gives a sign of life: 0, and its resolver does not run, Squid's logs are not "
    "bounded, and new addresses of the gateway stay open.",
)
MAINTENANCE_TASK_SUCCESS = Metric(
    "squidkeeper_maintenance_task_success",
    _GAUGE,
    "Whether a task of the maintenance process works, by its last report: resolver, rotation, own-addresses.",
    ("task",),
)

# --- Of the disks -------------------------------------------------------------------------------------------------

FILESYSTEM_AVAILABLE = Metric(
    "squidkeeper_filesystem_avail_bytes",
    _GAUGE,
    "Bytes that Squid's account can still write to the file system of its logs (`log`) and of the state (`state`).",
    ("folder",),
)
FILESYSTEM_SIZE = Metric(
    "squidkeeper_filesystem_size_bytes",
    _GAUGE,
    "Size of the file system of the logs (`log`) and of the state (`state`).",
    ("folder",),
)

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

CONNECT_CLASS: Final = "connect"
_METHOD_CLASSES = {"CONNECT": CONNECT_CLASS, "GET": "read", "HEAD": "read", "OPTIONS": "read"}
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def method_class(method: str) -> str:
    """Class a method: connect, read (GET, HEAD, OPTIONS), write (POST, PUT, PATCH, DELETE) or other."""
    return _METHOD_CLASSES.get(method) or ("write" if method in _WRITES else OTHER)


def status_class(status: int) -> str:
    """Class a status: 1xx to 5xx, or other (Squid logs 0 where there was none)."""
    return f"{status // 100}xx" if 100 <= status < 600 else OTHER
