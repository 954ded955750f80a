"""The metrics that helpers count, and what every metric is made of."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

OTHER: Final = "other"  # beyond the bound of a label, or of no class
NONE: Final = "none"  # no client of the policy, or no rule decided

HOST: Final = "host"  # the values of the label `helper`
REQUEST: Final = "request"
REWRITE: Final = "rewrite"
CREDENTIAL: Final = "credential"
THROTTLE: Final = "throttle"
CERTIFICATE: Final = "certificate"
LOGIN: Final = "login"
WATCH: Final = "watch"
METER: Final = "meter"
BODIES: Final = "bodies"  # no helper of Squid's, but counted as one
TRANSPARENT: Final = "transparent"  # likewise; in `squidkeeper_helper_processes` alone
# the helpers that decide by the policy
JUDGES: Final = (
    HOST,
    REQUEST,
    REWRITE,
    CREDENTIAL,
)
LOADS_POLICY: Final = (*JUDGES, LOGIN, WATCH, METER, BODIES)
HELPERS: Final = (*LOADS_POLICY, THROTTLE, CERTIFICATE)


WAITS: Final = ("at_once", "held", "surplus")  # the values of the label `wait`
LOGIN_RESULTS: Final = (
    "accepted",
    "unknown_client",
    "wrong_token",
    "expired",
    "other_network",
    "no_policy",
)
# the values of the label `result`
CERTIFICATE_RESULTS: Final = (
    "made",
    "kept",
    "refused",
)


class TransparentResult(StrEnum):
    """What became of a connection to the transparent ports: it was opened, and has
    ended; or why it was refused.
    """

    OPENED = "opened"
    ENDED = "ended"
    GONE = "gone"  # the client has closed it before
    NO_SERVER_NAME = "no_server_name"
    NOT_TLS = "not_tls"
    TIMEOUT = "timeout"
    TOO_MANY = "too_many"
    SQUID_UNREACHABLE = "squid_unreachable"
    SQUID_REFUSED = "squid_refused"


class MetricKind(StrEnum):
    """A metric's type, as Prometheus names it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    `name` includes unit and, of a counter, `_total`; `buckets` are the upper bounds of
    a histogram.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def kind(self) -> MetricKind:
        """Its type, which its name and its buckets tell."""
        if self.buckets:
            return MetricKind.HISTOGRAM
        return MetricKind.COUNTER if self.name.endswith("_total") else MetricKind.GAUGE


_DECISION_SECONDS = (
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.01,
    0.05,
    0.25,
    1.0,
)

# --- The helpers ----------------------------------------------------------------------

DECISIONS = Metric(
    "squidkeeper_decisions_total",
    "Helper lines that were answered. verdict can also be url (the URL decides), tunnel (an allowed CONNECT), "
    "or what the rewriter did.",
    ("helper", "rule", "verdict"),
)
DECISION_DURATION = Metric(
    "squidkeeper_decision_duration_seconds",
    "Time from reading a helper line to its reply, including the lines read with it.",
    ("helper",),
    _DECISION_SECONDS,
)
PROTOCOL_ERRORS = Metric(
    "squidkeeper_protocol_errors_total",
    "Helper lines that could not be parsed or decided. They are denied. cache.log has the cause.",
    ("helper",),
)
WORKERS = Metric(
    "squidkeeper_workers", "Squid's workers, as installed. Each starts its own helpers."
)
HELPER_STARTS = Metric(
    "squidkeeper_helper_starts_total",
    "Helper processes that Squid has started.",
    ("helper",),
)
HELPER_PROCESSES = Metric(
    "squidkeeper_helper_processes",
    "Helper processes that run now. 0 is normal: Squid starts one when it needs it.",
    ("helper",),
)
HELPER_PROCESSES_OUTDATED = Metric(
    "squidkeeper_helper_processes_outdated",
    "Helper processes that decide by another revision than the exporter has.",
    ("helper",),
)
HELPER_PROCESSES_STUCK = Metric(
    "squidkeeper_helper_processes_stuck",
    "Helper processes without a heartbeat or a reply for ten seconds.",
    ("helper",),
)
THROTTLED = Metric(
    "squidkeeper_denials_throttled_total",
    "Denials by when the client got the answer: at_once, held (after a wait) or surplus (after at most a minute).",
    ("wait",),
)
CERTIFICATES = Metric(
    "squidkeeper_certificates_total",
    "Certificates that Squid asked for, one for each tunnel: made, kept (from memory) or refused. cache.log "
    "has the cause of a refusal.",
    ("result",),
)
LOGINS = Metric(
    "squidkeeper_logins_total",
    "Logins that the login helper checked: accepted, or refused and why. Squid keeps an answer for some seconds.",
    ("result",),
)
CREDENTIAL_INJECTIONS = Metric(
    "squidkeeper_credential_injections_total",
    "Requests that got this credential.",
    ("credential",),
)
CREDENTIAL_FAILURES = Metric(
    "squidkeeper_credential_failures_total",
    "Requests denied because the value of this credential is unavailable.",
    ("credential",),
)

QUOTA_DENIALS = Metric(
    "squidkeeper_quota_denials_total",
    "Requests denied by this quota: it is used up, or could not be counted.",
    ("quota",),
)

# --- The transparent ports ------------------------------------------------------------

TRANSPARENT_CONNECTIONS = Metric(
    "squidkeeper_transparent_connections_total",
    "Connections of clients without proxy settings: opened, ended (of these), or refused and why.",
    ("result",),
)
