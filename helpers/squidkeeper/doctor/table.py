"""Every check of `squidkeeper doctor`, in one table (floor 8).

A check of what the exporter reports is no row here: `conditions.py` has it, and doctor runs its finder too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from squidkeeper.doctor import configuration, machine
from squidkeeper.doctor.configuration import Found
from squidkeeper.doctor.inspection import Inspection
from squidkeeper.exporter.conditions import CONDITIONS, Condition, Severity

FindFaults = Callable[[Inspection], Iterator[Found]]
_CRITICAL, _WARNING, _INFO = Severity


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table. `summary` says what is wrong, `remedy` what to do.

    `as_root`: only root can tell. `running`: only where the gateway is meant to run. `in_setup`: not at the end of an
    installation, which has just tried it itself, or which would wait for it.
    """

    code: str
    severity: Severity
    summary: str
    remedy: str
    find: FindFaults
    as_root: bool = False
    running: bool = False
    in_setup: bool = False


# What only the exporter can tell, over time, or what a row below tells better.
_EXPORTERS_ALONE: Final = frozenset({"access-log-behind", "requests-failing", "state-not-writable"})
_OF_A_RUNNING_GATEWAY: Final = frozenset(
    {
        *("squid-down", "squid-counters-unreadable", "access-log-unreadable"),
        *("maintenance-not-running", "secrets-not-fetched", "export-behind"),
    }
)
_PAST: Final = frozenset({"squid-crashed"})  # told for a day, which must not keep a gateway drained that serves again


# What the exporter's finder would tell twice, or only where a process runs.
_FINDERS: Final[dict[str, FindFaults]] = {
    "secret-unavailable": machine.unavailable_secrets,
    "webhook-failing": machine.webhook_failing,
    "quota-store-unavailable": machine.quota_store_unavailable,
}


def _condition(one: Condition) -> Check:
    def find(inspection: Inspection) -> Iterator[Found]:
        yield from map(Found, one.find(inspection.view) if one.find else ())

    running = one.code in _OF_A_RUNNING_GATEWAY
    severity = _WARNING if one.code in _PAST else one.severity
    return Check(
        one.code, severity, one.summary, one.remedy, _FINDERS.get(one.code, find), as_root=True, running=running
    )


_LOCAL: Final = "Remove the line, or move it behind the include of squidkeeper.conf."
_INSTALL: Final = "Run `./install.sh`, which writes the file again."


def _acceptance_unusable(one: Inspection) -> Iterator[Found]:
    return machine.acceptance_unusable(one, {check.code for check in ALL_CHECKS})


CHECKS: Final = (
    # The configuration
    Check(
        "squid-conf-incomplete",
        _CRITICAL,
        "Squid's configuration cannot be read as a whole",
        "Fix the line. Squid does not start with it.",
        configuration.incomplete,
    ),
    Check(
        "squid-conf-rejected",
        _CRITICAL,
        "Squid does not accept its configuration",
        "Run `squid -k parse`, and fix the line that it names. Squid does not start with it.",
        configuration.rejected,
        as_root=True,
        in_setup=True,
    ),
    Check(
        "policy-not-included",
        _CRITICAL,
        "Squid does not ask the policy",
        f"{_INSTALL} In a squid.conf of yours, include the file ahead of the http_access lines.",
        configuration.policy_not_included,
    ),
    Check(
        "allowed-ahead-of-policy",
        _CRITICAL,
        "Requests are allowed before the policy is asked",
        _LOCAL,
        configuration.allowed_ahead,
    ),
    Check(
        "private-addresses-open",
        _CRITICAL,
        "Requests take a way that does not close private addresses",
        "Name parent proxies by `upstreams` in the policy, or by `./install.sh --upstream URL`.",
        configuration.closing_passed_by,
    ),
    Check(
        "certificate-errors-allowed",
        _CRITICAL,
        "Servers with invalid certificates are accepted",
        "Remove the line. For a private CA, use `tls_outgoing_options cafile=FILE`.",
        configuration.certificate_errors_allowed,
    ),
    Check(
        "verification-off",
        _CRITICAL,
        "Certificates of servers are not verified",
        "Remove the flag. For a private CA, use `cafile=FILE`.",
        configuration.unverified,
    ),
    Check(
        "tunnel-not-bumped",
        _CRITICAL,
        "Tunnels pass without their requests being judged",
        "Remove the line, or add ssl-bump to the port as in squid.conf. For single hosts, use `tls: passthrough`.",
        configuration.passed_on_encrypted,
    ),
    Check(
        "credentials-cached",
        _CRITICAL,
        "Answers that a credential opened can be cached and served to others",
        _INSTALL,
        configuration.cached_credentials,
    ),
    Check(
        "header-unguarded",
        _CRITICAL,
        "A header is made of an annotation without its guard",
        'Write `request_header_add NAME "%\'{KEY}note" ACL`, with `acl ACL note KEY`.',
        configuration.added_headers,
    ),
    Check(
        "client-header-kept",
        _CRITICAL,
        "The client's own copy of a header that can be injected is let through",
        _LOCAL,
        configuration.client_headers_kept,
    ),
    Check(
        "override-header-kept",
        _WARNING,
        "A header is let through by which some servers answer for another request than was judged",
        "Remove the line, unless no server that clients reach reads the header: see squid/README.md.",
        configuration.override_headers_kept,
    ),
    Check(
        "token-not-encoded",
        _CRITICAL,
        "A helper reads text of a client that is not encoded, so that a newline in it is a second question",
        "Write `%#` in place of `%`, such as `%#ssl::>sni`.",
        configuration.raw_tokens,
    ),
    Check(
        "wrong-passwords-pass",
        _CRITICAL,
        "Wrong passwords pass as a name while the right one of this name is in use",
        'Add `auth_param basic key_extras "%>a %#{Proxy-Authorization}>h"`.',
        configuration.passwords_shared,
    ),
    Check(
        "annotations-printed",
        _CRITICAL,
        "A value that is injected is printed or sent elsewhere",
        "Name the annotations that the line needs, and none of a header.",
        configuration.printed_annotations,
    ),
    Check(
        "debugging-prints-headers",
        _CRITICAL,
        "Debugging writes headers or helper answers into cache.log, credentials included",
        "Set `debug_options ALL,1 11,0 29,0 55,0`, and delete the cache.log that was written with it.",
        configuration.debugging,
    ),
    Check(
        "requests-in-warnings",
        _WARNING,
        "Warnings in cache.log can hold text of requests: a login, or a secret in the URL that is fetched",
        "Let the last `debug_options` end in `11,0 29,0 55,0`.",
        configuration.warnings_with_requests,
    ),
    Check(
        "forwarded-for-believed",
        _CRITICAL,
        "A client can name any address as its own in X-Forwarded-For",
        "Remove the line. Only a proxy on this machine may name clients: `follow_x_forwarded_for allow localhost`.",
        configuration.forwarded_for_believed,
    ),
    Check(
        "proxy-protocol-open",
        _CRITICAL,
        "Any client can claim another client's address by a PROXY header",
        "Name the load balancer's address: `acl NAME src ADDRESS`, `proxy_protocol_access allow NAME`.",
        configuration.proxy_protocol_open,
    ),
    Check(
        "proxy-header-from-nobody",
        _CRITICAL,
        "No client gets through: Squid requires a PROXY header, and takes one from nobody",
        "Name the load balancers: `./install.sh --behind ADDRESS`; or `./install.sh --behind none`, without any.",
        configuration.proxy_header_from_nobody,
    ),
    Check(
        "answers-kept-too-long",
        _WARNING,
        "Squid keeps the answers of a helper, so edits of the policy come into force late",
        "Set `ttl=1 negative_ttl=1`.",
        configuration.kept_answers,
    ),
    Check(
        "rewriter-bypassed",
        _WARNING,
        "Squid goes past a busy rewriter, and denies the request then",
        "Set `url_rewrite_bypass off`.",
        configuration.rewriter_bypassed,
    ),
    Check(
        "half-closed-clients",
        _WARNING,
        "Squid 6 ends itself under server-sent events (Squid's bug 4156)",
        "Set `half_closed_clients off`.",
        configuration.half_closed,
    ),
    Check(
        "answers-kept-in-memory",
        _WARNING,
        "Squid 6 keeps a part of each answer in memory until it ends: 2 KB of a usual one, 147 KB of a large head",
        "Remove the line. Deny requests by `http_access` instead of answers by `http_reply_access`.",
        configuration.kept_answers_of_origins,
    ),
    Check(
        "error-pages-show-headers",
        _WARNING,
        "Stock error pages carry headers of the request in a link (CVE-2025-62168)",
        "Set `email_err_data off`.",
        configuration.mail_links,
    ),
    Check(
        "error-pages-not-ours",
        _WARNING,
        "Clients get other error pages than squidkeeper's",
        "Remove your error_directory line.",
        configuration.other_error_pages,
    ),
    Check(
        "two-resolvers",
        _WARNING,
        "Squid asks name servers of two lines",
        "Remove one. After an edit of local.conf, run `./install.sh`: it takes its own line out.",
        configuration.two_resolvers,
    ),
    Check(
        "no-access-log",
        _CRITICAL,
        "Requests are not logged where squidkeeper reads them",
        _INSTALL,
        configuration.no_record,
    ),
    Check(
        "watched-requests-logged",
        _CRITICAL,
        "A log shows URLs of requests that hold what the policy watches for",
        "End an access_log of yours in `!sk_withheld` (see squid/INSTALL.md). For ours, run `./install.sh`.",
        configuration.logs_what_is_watched_for,
    ),
    Check(
        "counter-unlike-lines",
        _WARNING,
        "Squid's own counter of requests does not fit the lines of the access log",
        "Write `stats_collection deny sk_scrape` behind `acl sk_scrape` as in squid.conf, and no other such line."
        " Otherwise `squidkeeper archive verify` reports faults that are none.",
        configuration.counter_unlike_lines,
    ),
    Check(
        "few-descriptors",
        _WARNING,
        "Squid can have few connections",
        "Set `max_filedescriptors 16384`.",
        configuration.few_descriptors,
    ),
    Check(
        "workers-overridden",
        _WARNING,
        "Squid has another number of workers than the gateway is installed for",
        "Remove the line, and run `./install.sh --workers N`: the throttle and the alerts depend on the number.",
        configuration.workers_overridden,
    ),
    Check(
        "worker-port-shared",
        _WARNING,
        "Workers share the queue of a port: one that starts again may listen no more",
        "Add `worker-queues` to the line, and restart Squid.",
        configuration.worker_port_shared,
    ),
    Check(
        "rendered-lines-outdated",
        _WARNING,
        "Squid's configuration is of another version than the program, or was edited",
        _INSTALL,
        configuration.outdated_lines,
    ),
    # Files and the machine
    Check(
        "secret-file-open",
        _CRITICAL,
        "Other accounts can read or replace a file with a secret",
        "Run `chown root:GROUP FILE` (the group of Squid's account) and `chmod 0640 FILE`; for a folder `chown root`"
        " and `chmod go-w`.",
        machine.exposed_files,
        as_root=True,
    ),
    Check(
        "squid-cannot-read",
        _CRITICAL,
        "Squid's account cannot read a file that it needs",
        "Run `chgrp GROUP FILE` and `chmod g+r FILE`, with the group of Squid's account; `chmod o+x` for a folder.",
        machine.squid_cannot_read,
        as_root=True,
    ),
    Check(
        "accepted-unusable",
        _WARNING,
        "The file of accepted findings cannot be used",
        "Write one line for each finding that you accept: `CODE: REASON`. See squid/DOCTOR.md.",
        _acceptance_unusable,
    ),
    Check(
        "quota-store-unusable",
        _CRITICAL,
        "The store of quotas cannot be used",
        "Fix quota-store.yaml, and let the group of Squid's account read it. Until then the last good one counts; where"
        " a process has read none, no quota gives anything.",
        machine.quota_store_unusable,
        as_root=True,
    ),
    Check(
        "pull-settings-unusable",
        _CRITICAL,
        "The settings of `squidkeeper pull` cannot be used",
        "Fix pull.yaml, and let the account squidkeeper-pull read it. Until then no new policy is pulled.",
        machine.pull_settings_unusable,
        as_root=True,
    ),
    Check(
        "pull-without-ceiling",
        _INFO,
        "Whoever signs the pulled policy may open everything",
        "Name a `ceiling` in pull.yaml: a policy that says what may be open at most. See policy/PULL.md.",
        machine.pull_without_ceiling,
        as_root=True,
    ),
    Check(
        "clock-off",
        _CRITICAL,
        "The clock is behind",
        "Set the clock, such as by an NTP client. Certificates and `expires` go by it.",
        machine.clock_off,
    ),
    Check(
        "logrotate-loses-records",
        _CRITICAL,
        "logrotate loses lines of the access log",
        "Rotate by renaming: remove copytruncate, and run `squid -k rotate` in postrotate.",
        machine.lost_by_logrotate,
    ),
    Check(
        "logrotate-keeps-few-days",
        _INFO,
        "logrotate deletes records within a week",
        "If the log is your audit, raise `rotate`: see squid/observe/RECORD.md.",
        machine.few_days_kept,
    ),
    Check(
        "open-proxy",
        _CRITICAL,
        "The internet reaches the gateway, and any client is allowed",
        "Name `clients` in the rules, or let Squid listen on an inner address: `./install.sh --listen ADDRESS:PORT`.",
        machine.open_proxy,
    ),
    # Processes
    Check(
        "service-not-running",
        _CRITICAL,
        "A service beside Squid does not work",
        "Run `./install.sh`, which starts it again. Its log: `journalctl -u`, or beside access.log.",
        machine.service_not_running,
        as_root=True,
        running=True,
    ),
    Check(
        "few-descriptors-granted",
        _WARNING,
        "Squid runs with fewer descriptors than it is configured for",
        "Raise LimitNOFILE of Squid's unit, or the hard limit (`ulimit -Hn`) of what starts it, and restart Squid.",
        machine.few_descriptors_granted,
        as_root=True,
        running=True,
    ),
    Check(
        "client-fills-descriptors",
        _WARNING,
        "One machine can have nearly all connections",
        "Raise the descriptors: LimitNOFILE of the unit, or `ulimit -Hn` of what starts it. Or lower the limit of a"
        " client: `./install.sh` gives each its share of HAProxy's.",
        machine.client_fills_descriptors,
        as_root=True,
        running=True,
    ),
    Check(
        "helper-silent",
        _CRITICAL,
        "A helper does not answer",
        "Run its command as Squid's account, and read what it says. Where the program is damaged, run `./install.sh`.",
        machine.silent_helpers,
        as_root=True,
        running=True,
        in_setup=True,
    ),
    Check(
        "stopped-helper-stays",
        _CRITICAL,
        "A helper that is stopped is not ended, and its clients wait for ever",
        "Run `systemctl restart squidkeeper-exporter`, or install.sh again: the exporter ends such helpers. Its log"
        " says why it does not.",
        machine.stopped_helper_stays,
        as_root=True,
        running=True,
        in_setup=True,
    ),
)
_CONDITIONS: Final = tuple(_condition(one) for one in CONDITIONS if one.find and one.code not in _EXPORTERS_ALONE)
ALL_CHECKS: Final = (_CONDITIONS[0], *CHECKS, *_CONDITIONS[1:])  # most others follow from a full disk
