"""The table of all metrics under `squidkeeper_`: name, type, labels and meaning.

A test holds the table in the documentation to it. Label values come from the policy and
from the lists here, never from an address, a host or a URL: clients could invent any
number of those. The names of models have a bound.
"""

from typing import Final

from squidkeeper.base import helper_metrics
from squidkeeper.base.helper_metrics import OTHER, Metric

_REQUEST_SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
# --- The access log -------------------------------------------------------------------

REQUESTS = Metric(
    "squidkeeper_requests_total",
    "Requests that Squid answered, allowed and denied. A denied CONNECT and the first request inside count as "
    "one. Allowed tunnels are in squidkeeper_tunnels_total.",
    ("client", "rule", "verdict", "method_class", "status_class"),
)
TUNNELS = Metric(
    "squidkeeper_tunnels_total",
    "Tunnels (CONNECT) that the policy allowed. rule: the first rule that could allow a request inside.",
    ("client", "rule"),
)
OBSERVED = Metric(
    "squidkeeper_observed_total",
    "Requests by what a rule that observes would have decided. rule default: what the default would have "
    "denied. Allowed tunnels do not count.",
    ("rule", "verdict"),
)

UNNAMED_DENIALS = Metric(
    "squidkeeper_unnamed_denials_total",
    "Denied requests of clients that the policy does not name, by network: /24, or /64 of IPv6. Beyond 64 "
    "networks: `other`.",
    ("client", "verdict"),
)
RESPONSE_BYTES = Metric(
    "squidkeeper_response_bytes_total",
    "Bytes sent to clients, including headers.",
    ("client", "rule", "verdict"),
)
REQUEST_DURATION = Metric(
    "squidkeeper_request_duration_seconds",
    "Time from the first byte of a request to the last byte of its answer. A CONNECT: until TLS with the "
    "client is set up. A tunnel that passed through, or a WebSocket: until its end.",
    ("verdict", "method_class"),
    _REQUEST_SECONDS,
)
DRIFT = Metric(
    "squidkeeper_enforcement_drift_total",
    "Findings of drift, such as a served request that the policy denies. rule: the rule that denies. See "
    "`squidkeeper log --drift`.",
    ("client", "rule"),
)
DRIFT_UNCHECKED = Metric(
    "squidkeeper_enforcement_drift_unchecked_total",
    "Served requests not checked for drift: their revision is no longer on disk.",
)
DRIFT_CUT = Metric(
    "squidkeeper_enforcement_drift_cut_total",
    "Served requests not checked for drift: the access log cuts off their URL.",
)
RULE_LAST_MATCHED = Metric(
    "squidkeeper_rule_last_matched_timestamp_seconds",
    "When this rule last decided a request or denied a tunnel. 0: never. Allowed tunnels do not count.",
    ("rule",),
)
RECORD_READABLE = Metric(
    "squidkeeper_record_readable",
    "Whether the exporter can read the access log. 0: the counts from it do not grow.",
)
RECORD_BACKLOG = Metric(
    "squidkeeper_record_backlog_bytes",
    "Bytes of the access log that are not counted yet.",
)
RECORD_LAST_LINE = Metric(
    "squidkeeper_record_last_line_timestamp_seconds",
    "Time of the newest counted request.",
)
RECORD_INVALID_LINES = Metric(
    "squidkeeper_record_invalid_lines_total",
    "Unreadable lines of the access log: another logformat or version, or torn by a full disk.",
)
RECORD_LOST = Metric(
    "squidkeeper_record_lost_total",
    "Times that a part of the access log was lost before it was counted: truncated, deleted or damaged.",
)

# --- The ledger of usage --------------------------------------------------------------

_USAGE_LABELS = ("client", "rule", "model", "state")
METERED_REQUESTS = Metric(
    "squidkeeper_metered_requests_total",
    "Metered requests whose answer has ended. state: metered; reserved or unmetered where the reserve counts.",
    _USAGE_LABELS,
)
TOKENS = Metric(
    "squidkeeper_tokens_total",
    "Tokens of metered requests. direction: in or out. model: the one that answered; `none` for a reserve.",
    (*_USAGE_LABELS, "direction"),
)
COST = Metric(
    "squidkeeper_cost_total",
    "Cost of metered requests, in the currency of `prices`.",
    _USAGE_LABELS,
)
QUOTA_USED = Metric(
    "squidkeeper_quota_used_ratio",
    "The used part of a quota of tokens or cost, with reserves: the most of any holder on this gateway.",
    ("quota",),
)

# --- The policy directory -------------------------------------------------------------

POLICY_INFO = Metric(
    "squidkeeper_policy_info",
    "1 for the revision of the policy in force.",
    ("revision",),
)
POLICY_LAST_RELOAD_SUCCESSFUL = Metric(
    "squidkeeper_policy_last_reload_successful",
    "Whether the policy on disk is in force. 0: an older one is, or none.",
)
POLICY_RELOAD_GATED = Metric(
    "squidkeeper_policy_reload_gated",
    "Whether the reload gate refuses the policy on disk.",
)
POLICY_LAST_RELOAD_SUCCESS = Metric(
    "squidkeeper_policy_last_reload_success_timestamp_seconds",
    "When the policy was last loaded.",
)
POLICY_RULES = Metric(
    "squidkeeper_policy_rules", "Number of rules of the policy in force."
)
RULE_EXPIRY = Metric(
    "squidkeeper_rule_expiry_timestamp_seconds",
    "When a rule with `expires` expires, or expired.",
    ("rule",),
)

# --- The exporter ---------------------------------------------------------------------

TLS_EXPIRY = Metric(
    "squidkeeper_tls_certificate_expiry_timestamp_seconds",
    "When the certificate of the TLS port expires. It is renewed 30 days before.",
)
CA_EXPIRY = Metric(
    "squidkeeper_ca_certificate_expiry_timestamp_seconds",
    "When the CA or its intermediate expires. After that, no https request works.",
)
CA_INFO = Metric(
    "squidkeeper_ca_info",
    "1 for the SHA-256 of the root. Gateways behind one address need the same root.",
    ("sha256",),
)
CONDITION = Metric(
    "squidkeeper_condition",
    "1 while the condition holds, 0 otherwise. Only conditions that the exporter can see.",
    ("code", "severity"),
)
STATE_WRITABLE = Metric(
    "squidkeeper_exporter_state_writable",
    "Whether the exporter can save its counts. 0: after a restart it continues from the last checkpoint.",
)

# --- The maintenance process ----------------------------------------------------------

MAINTENANCE_UP = Metric(
    "squidkeeper_maintenance_up", "Whether the maintenance process gives a heartbeat."
)
MAINTENANCE_TASK_SUCCESS = Metric(
    "squidkeeper_maintenance_task_success",
    "Whether a task of the maintenance process works: resolver, rotation, own-addresses, tls, "
    "transparent or webhook.",
    ("task",),
)

# --- The secrets that are fetched -----------------------------------------------------

SECRETS_UP = Metric(
    "squidkeeper_secrets_up",
    "Whether the process that fetches secrets gives a heartbeat.",
)
SECRET_FETCHES = Metric(
    "squidkeeper_secret_fetches_total",
    "Attempts to fetch this secret. result: success or failure.",
    ("secret", "result"),
)
SECRET_FETCH_FAILURES = Metric(
    "squidkeeper_secret_fetch_failures",
    "Failed attempts to fetch this secret since the last success.",
    ("secret",),
)
SECRET_EXPIRY = Metric(
    "squidkeeper_secret_expiry_timestamp_seconds",
    "When the value of a fetched secret expires, or expired. No series where its source does not say.",
    ("secret",),
)

# --- The disks ------------------------------------------------------------------------

FILESYSTEM_AVAILABLE = Metric(
    "squidkeeper_filesystem_avail_bytes",
    "Bytes that Squid's account can still write. folder: log, state or archive.",
    ("folder",),
)
FILESYSTEM_SIZE = Metric(
    "squidkeeper_filesystem_size_bytes",
    "Size of the file system. folder: log, state or archive.",
    ("folder",),
)

PULL_INFO = Metric(
    "squidkeeper_pull_info",
    "1 for the pulled version that is in place: a commit, or a bundle.",
    ("version",),
)
PULL_LAST_SUCCESS = Metric(
    "squidkeeper_pull_last_success_timestamp_seconds",
    "When the source of the policy was last read.",
)
PULL_INTERVAL = Metric(
    "squidkeeper_pull_interval_seconds", "How often the source of the policy is read."
)
PULL_REFUSED = Metric(
    "squidkeeper_pull_refused", "Whether the newest version of the source is refused."
)
ARCHIVE_LAST_SUCCESS = Metric(
    "squidkeeper_archive_last_success_timestamp_seconds",
    "When the access log was last archived without a failure.",
)
ARCHIVE_UNARCHIVED = Metric(
    "squidkeeper_archive_unarchived_timestamp_seconds",
    "When the oldest rotated log that is not archived was last written to. No series where all are archived.",
)
ARCHIVE_DELETED = Metric(
    "squidkeeper_archive_deleted_logs_total",
    "Rotated logs that were deleted before they were archived: the logs were over their limit.",
)

# --- Questions of clients -------------------------------------------------------------

QUESTIONS_WAITING = Metric(
    "squidkeeper_questions_waiting",
    "Questions of clients that wait for a person: `squidkeeper ask` lists them.",
)

SESSIONS = Metric(
    "squidkeeper_sessions",
    "Active sessions of a role. Nothing where the policy has no roles, or they cannot be read.",
    ("role",),
)

# --- The store of quotas --------------------------------------------------------------

QUOTA_STORE_UP = Metric(
    "squidkeeper_quota_store_up",
    "Whether the Valkey of all gateways counts quotas. 0: a helper could not reach it in the last 30 seconds.",
)
QUOTA_STORE_CERTIFICATE_EXPIRY = Metric(
    "squidkeeper_quota_store_certificate_expiry_timestamp_seconds",
    "When the certificate of that Valkey expires. You renew it.",
)

# --- The exports ----------------------------------------------------------------------

EXPORT_UP = Metric(
    "squidkeeper_export_up",
    "Whether the process of this export gives a heartbeat.",
    ("export",),
)
EXPORT_RECORDS = Metric(
    "squidkeeper_export_records_total",
    "Records that the receiver of this export has taken.",
    ("export",),
)
EXPORT_DOUBLED = Metric(
    "squidkeeper_export_doubled_total",
    "Messages that were sent again, because it is unknown whether the receiver had taken them.",
    ("export",),
)
EXPORT_GAPS = Metric(
    "squidkeeper_export_gaps_total",
    "Gaps that the receiver was told about: parts of the access log that were deleted before they were sent, "
    "and records that it refuses.",
    ("export",),
)
EXPORT_LOST = Metric(
    "squidkeeper_export_lost_records_total",
    "Records in these gaps, where their number is known.",
    ("export",),
)
EXPORT_BACKLOG = Metric(
    "squidkeeper_export_backlog_bytes",
    "Bytes of the access log that were not sent yet.",
    ("export",),
)
EXPORT_WAITING = Metric(
    "squidkeeper_export_waiting_seconds",
    "How long the receiver has not taken what there is. 0: it has all.",
    ("export",),
)

METRICS: Final = tuple(
    value
    for value in (*vars(helper_metrics).values(), *list(globals().values()))
    if isinstance(value, Metric)
)

CONNECT_CLASS: Final = "connect"
_METHOD_CLASSES = {
    "CONNECT": CONNECT_CLASS,
    "GET": "read",
    "HEAD": "read",
    "OPTIONS": "read",
}
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def unseen_class(method: str) -> str:
    """Classify what was passed on unread, which lasts as long as its client likes:
    passthrough or websocket.
    """
    return "passthrough" if method == "CONNECT" else "websocket"


def method_class(method: str) -> str:
    """Classify a method: connect, read (GET, HEAD, OPTIONS), write (POST, PUT, PATCH,
    DELETE) or other.
    """
    return _METHOD_CLASSES.get(method) or ("write" if method in _WRITES else OTHER)


def status_class(status: int) -> str:
    """Classify a status: 1xx to 5xx, or other (Squid logs 0 if there is none)."""
    return f"{status // 100}xx" if 100 <= status < 600 else OTHER
