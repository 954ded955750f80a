"""Everything that can be wrong with the gateway, in one table.

Its codes stand in /healthz, on the status page, in `squidkeeper_condition` and in
squid/observe/alerts.yaml. A finder is a pure function of a snapshot, except that
`secret-unavailable` reads the files of secrets.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from threading import Lock
from typing import Final

from cachetools import LRUCache, cached

from squidkeeper.base.faults import SECRET_UNAVAILABLE, Fault, FaultCode
from squidkeeper.base.formatting import (
    ago,
    byte_size,
    duration,
    printable,
    quantity,
    timestamp,
)
from squidkeeper.base.gateway_commands import RESTART_BODIES
from squidkeeper.base.helper_metrics import BODIES, JUDGES, LOADS_POLICY, THROTTLE
from squidkeeper.base.squid_counters import COUNTER
from squidkeeper.policy.extras import missing_extras
from squidkeeper.policy.language.lint import lint
from squidkeeper.policy.language.model import Policy
from squidkeeper.record.log.record import NONE, format_time
from squidkeeper.record.why.causes import (
    CRASHED_REMEDY,
    NO_HELPER_REMEDY,
    STORE_ONE_LINE,
)
from squidkeeper.services.exporter.snapshot import (
    HELPER_PATIENCE_SECONDS,
    LAST_MINUTES,
    Disk,
    Snapshot,
)
from squidkeeper.services.exporter.status_rows import logged_time, secret_rows
from squidkeeper.services.pulling.settings import patience_seconds
from squidkeeper.serving.counters.layout import HelperStatus
from squidkeeper.serving.credentials.fetch_status import SecretStatus
from squidkeeper.serving.parts import Part, not_in_force, read_in_force
from squidkeeper.serving.quotas.token_uses import NEARLY

_SECRET_EXPIRES_SOON: Final = timedelta(minutes=10)
_CA_WARNING: Final = timedelta(days=30)
_CA_CRITICAL: Final = timedelta(days=7)
_PUBLISHER_PATIENCE_SECONDS: Final = 15  # it writes once a second
_IS_NEWS: Final = timedelta(days=1)
_ARCHIVE_BEHIND_SECONDS: Final = 3 * 3600.0  # the alerts have the same bounds
_ARCHIVE_FAILING_SECONDS: Final = 3600.0
_DETAILS_SHOWN: Final = 5
_FEW_ANSWERS: Final = 10
_BACKLOG_BYTES: Final = 10_000_000
_EXPORT_PATIENCE_SECONDS: Final = (
    90.0  # syslog confirms after ten seconds, and may take a minute for that
)
_START_SECONDS: Final = 5.0  # within which Squid has started a helper that it needs
# Without the throttle.
_DENIED_BY_SQUID: Final = frozenset(
    {"policy-unavailable", "not-rendered", "authority-mismatch"}
)

Finder = Callable[[Snapshot], Iterator[str]]


class Severity(StrEnum):
    """How bad a condition is, as in the alerts' label. The worst is the first."""

    CRITICAL = "critical"  # something is open, closed or unseen that should not be
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Condition:
    """A row of the table.

    `after` is how long the alert waits, as Prometheus writes it; None: no alert. `find`
    yields a detail for each case, and nothing where all is well; None: only Prometheus
    can see it, over time. `remedy` names commands as for the gateway of the system.

    `unhealthy`: /healthz answers 503, because this gateway does not serve what the
    policy allows. A fault of the policy is none: it would close every gateway. `past`:
    told for a day, although it is over.

    Two columns are for `squidkeeper doctor`. `only_exporter`: doctor cannot tell, or a
    check of its own tells better. `running`: only where the gateway is meant to run.
    """

    code: str
    severity: Severity
    after: str | None
    summary: str
    remedy: str = ""
    find: Finder | None = None
    unhealthy: bool = False
    only_exporter: bool = False
    running: bool = False
    past: bool = False


@dataclass(frozen=True, slots=True)
class ActiveCondition:
    """A condition that holds, with its details."""

    condition: Condition
    details: tuple[str, ...]

    @property
    def first(self) -> "ActiveCondition":
        """The same with its first detail alone."""
        return replace(self, details=self.details[:1])

    @property
    def detail(self) -> str:
        """The first details as one text, without a full stop."""
        more = len(self.details) - _DETAILS_SHOWN
        shown = "; ".join(detail for detail in self.details[:_DETAILS_SHOWN] if detail)
        return f"{shown}; and {more} more" if more > 0 else shown

    @property
    def text(self) -> str:
        """What is wrong, as a sentence."""
        return (
            f"{self.condition.summary}: {self.detail}."
            if self.detail
            else f"{self.condition.summary}."
        )


def active_conditions(
    view: Snapshot, *, unhealthy_only: bool = False
) -> tuple[ActiveCondition, ...]:
    """List the conditions that hold, the most severe first, and what is over last."""
    found = [
        ActiveCondition(condition, details)
        for condition in CONDITIONS
        if condition.find
        and (condition.unhealthy or not unhealthy_only)
        and (details := tuple(condition.find(view)))
    ]
    return tuple(sorted(found, key=_rank))


def _rank(active: ActiveCondition) -> tuple[bool, int]:
    return active.condition.past, list(Severity).index(active.condition.severity)


def worst(active: Iterable[ActiveCondition]) -> Severity | None:
    """Return the highest severity; None where nothing is wrong."""
    found = {condition.condition.severity for condition in active}
    return next((severity for severity in Severity if severity in found), None)


def policy_faults(view: Snapshot) -> tuple[Fault, ...]:
    """List what is wrong with the policy on disk; nothing if it is in force."""
    state = view.policies.policy_state
    return () if state.ok else state.faults


_CA_REMEDY: Final = (
    "Where it is an intermediate, run `./install.sh`, with `--ca-dir DIR` if the CA's key is kept elsewhere: it makes"
    " another one. Where it is the CA, make a new CA, let the clients trust it beside the old one, and run"
    " `./install.sh --ca-dir DIR` with it."
)
_MAKE_ROOM: Final = (
    "Make room: `du -xh FOLDER | sort -h | tail`. Without room for its log Squid ends; without room for the state no"
    " certificate for a new host is made."
)
_MAINTENANCE_LOG: Final = (
    "Read `journalctl -u squidkeeper-maintenance`, or maintenance.log beside access.log"
)
_PULL_LOG: Final = "Read `journalctl -u squidkeeper-pull`, or pull.log in its folder"
_ARCHIVE_LOG: Final = (
    "Read `journalctl -u squidkeeper-archive`, or archive.log in the run folder"
)
_BODIES_LOG: Final = "Read `journalctl -u squidkeeper-bodies-1`"
_SECRETS_LOG: Final = (
    "Read `journalctl -u squidkeeper-secrets`, or secrets/secrets.log in the run folder"
)
CONDITIONS: Final[list[Condition]] = []


def _condition(
    severity: Severity,
    code: str,
    after: str | None,
    summary: str,
    remedy: str = "",
    **columns: bool,
) -> Callable[[Finder | None], Finder | None]:
    def add(find: Finder | None) -> Finder | None:
        CONDITIONS.append(
            Condition(code, severity, after, summary, remedy, find, **columns)
        )
        return find

    return add


# Each adds a row to the table, in the order of the file: with the finder below it, or
# with None.
_critical, _warning, _info = (partial(_condition, severity) for severity in Severity)


@_critical(
    "disk-full",  # the first, as most others follow from it
    None,
    "A disk that the gateway needs is full",
    f"{_MAKE_ROOM} Then start Squid, if it has ended.",
    unhealthy=True,
)
def _disk_full(view: Snapshot) -> Iterator[str]:
    yield from (_free(disk) for disk in view.records.disks if disk.is_full)


def _free(disk: Disk) -> str:
    return f"{byte_size(disk.available_bytes)} of {byte_size(disk.size_bytes)} free on the disk of {disk.path}"


@_critical(
    "squid-down",
    "1m",
    "Squid does not answer",
    "Read `systemctl status squid` and the end of cache.log, and fix what it says. Then start Squid: `systemctl start"
    " squid`.",
    unhealthy=True,
    running=True,
)
def _squid_down(view: Snapshot) -> Iterator[str]:
    if not view.proxy.squid.answers:
        yield f"{view.place.squid_address} ({view.proxy.squid.problem})"


@_warning("squid-crashed", "0m", "Squid has crashed", CRASHED_REMEDY, past=True)
def _squid_crashed(view: Snapshot) -> Iterator[str]:
    recent = [
        crash
        for crash in view.proxy.crashes
        if view.now - crash.at < _IS_NEWS.total_seconds()
    ]
    for crash in reversed(recent):
        yield f"{ago(datetime.fromtimestamp(crash.at, UTC), view.at)}, {crash.told}; {crash.served}"


@_info(
    "drained",
    "1h",
    "This gateway is drained, so that new clients go to others",
    "`squidkeeper drain --cancel` lets clients come again.",
    unhealthy=True,
)
def _drained(view: Snapshot) -> Iterator[str]:
    if view.proxy.drained_since is not None:
        yield ago(datetime.fromtimestamp(view.proxy.drained_since, UTC), view.at)


@_warning(
    "squid-counters-unreadable",
    None,
    "Squid's counters cannot be read",
    "Open them to this machine in squid.conf, as installed. Requests are not affected.",
    running=True,
)
def _squid_counters_unreadable(view: Snapshot) -> Iterator[str]:
    if view.proxy.squid.answers and view.proxy.squid.problem:
        yield view.proxy.squid.problem


@_warning(
    "squid-outdated",
    None,
    "Squid has a known flaw",
    "Update its package, such as by `apt-get install --only-upgrade squid-openssl`, and restart Squid.",
)
def _squid_outdated(view: Snapshot) -> Iterator[str]:
    if view.proxy.squid_version and view.proxy.squid_version.problem:
        yield view.proxy.squid_version.problem


@_critical(
    "no-policy",
    "1m",
    "No policy has loaded",
    "Run `squidkeeper check`. If it finds nothing as root, run it as Squid's account.",
    unhealthy=True,
)
def _no_policy(view: Snapshot) -> Iterator[str]:
    if view.policies.policy_state.revision is None:
        yield "everything is denied"


@_critical(
    "policy-not-published",
    "1m",
    "Edits of the policy do not come into force: they are not published",
    "Make room where the disk is full. Else run `systemctl restart squidkeeper-publisher`, and read"
    " `journalctl -u squidkeeper-publisher`, or publisher.log. Where there is no such service, helpers start"
    " `squidkeeper publish`: read cache.log. The revision in force stays meanwhile.",
    running=True,
)
def _policy_not_published(view: Snapshot) -> Iterator[str]:
    if view.policies.publisher_silent_seconds <= _PUBLISHER_PATIENCE_SECONDS:
        return
    full = (
        disk for disk in view.records.disks if disk.folder == "state" and disk.is_full
    )
    yield next(map(_free, full), "no publisher runs, or it hangs")


@_warning(
    "policy-not-loaded",
    "1m",
    "The policy on disk does not load",
    "Fix it, then run `squidkeeper check`. If it finds nothing as root, run it as Squid's account.",
)
def _policy_not_loaded(view: Snapshot) -> Iterator[str]:
    faults, revision = policy_faults(view), view.policies.policy_state.revision
    if not faults or view.policies.policy_state.gated:
        return
    told = f"{quantity(len(faults), 'fault')}; {faults[0]}"
    if revision:
        told += f"; revision {revision} stays in force"
    yield told


@_warning(
    "reload-gated",
    "1m",
    "The reload gate refuses an edit of the policy",
    "Run `squidkeeper reload`, which shows what the edit would deny. Change the edit, or accept it by"
    " `squidkeeper reload --force`.",
)
def _reload_gated(view: Snapshot) -> Iterator[str]:
    if view.policies.policy_state.gated:
        # how much would be denied; the others say what
        refused = policy_faults(view)[0].message
        yield f"{refused}; revision {view.policies.policy_state.revision} stays in force"


@_info(
    "reload-held",
    None,
    "An edit waits for the reload gate",
    "Wait: it takes 20 seconds at most. `squidkeeper reload --force` accepts the edit at once.",
)
def _reload_held(view: Snapshot) -> Iterator[str]:
    if view.policies.policy_state.held:
        yield f"revision {view.policies.policy_state.held}, while {view.policies.policy_state.revision} stays in force"


@_warning(
    "observing",
    None,
    "The default observes: what no rule decides is ALLOWED",
    "Once the rules are complete, remove `observe` from `defaults`.",
)
def _observing(view: Snapshot) -> Iterator[str]:
    if view.policies.policy and view.policies.policy.observe_default:
        observed = dict(view.log.checkpoint.counts.observed).get(("default", "deny"), 0)
        passed = quantity(observed, "request")
        yield f"{view.policies.policy.observe_default}; {passed} passed that would have been denied"


@_info(
    "policy-warning",
    None,
    "The policy has warnings",
    "Fix them, or leave them if they are meant: `squidkeeper check` lists all.",
)
def _policy_warnings(view: Snapshot) -> Iterator[str]:
    """List the warnings of `check`, without those that another condition reports: about
    secrets, and `observing`.
    """
    yield from (
        str(fault)
        for fault in view.policies.policy_state.warnings
        if fault.code not in SECRET_UNAVAILABLE
    )
    if view.policies.policy:
        yield from (
            str(fault)
            for fault in _lint(view.policies.policy, view.at)
            if fault.code != FaultCode.OBSERVING_DEFAULT
        )


# Of 3,000 rules it takes 160 ms, and each scrape asks for it. A rule that expires shows
# within a minute.
@cached(
    LRUCache(maxsize=1),
    key=lambda policy, at: (policy.revision, at.replace(second=0, microsecond=0)),
    lock=Lock(),
)
def _lint(policy: Policy, at: datetime) -> tuple[Fault, ...]:
    return lint(policy, at)


@_critical(
    "policy-lines-outdated",
    None,
    "The policy needs parts of Squid's configuration that are not in force",
    "They come within seconds. If not, read `journalctl -u squidkeeper-render`, and run `./install.sh`. Until then"
    " the requests that need them are denied.",
)
def _not_rendered(view: Snapshot) -> Iterator[str]:
    if view.policies.policy and view.proxy.fragment:
        place = str(view.place.fragment_file or "squidkeeper.conf")
        yield from map(
            str,
            not_in_force(
                view.policies.policy, read_in_force(view.proxy.fragment), place
            ),
        )


_info("rule-expires-soon", "0m", "A rule expires soon")(None)


@_warning(
    "policy-unavailable",
    None,
    "Requests are denied because no helper answers, or a helper has no policy",
    "Run `squidkeeper check`, and read cache.log. If one `squid -k reconfigure` or one killed helper caused it, it ends"
    " by itself.",
)
def _policy_unavailable(view: Snapshot) -> Iterator[str]:
    if view.decides and (at := _last_unavailable(view)):
        yield f"last {ago(at, view.at)}"


def _last_unavailable(view: Snapshot) -> datetime | None:
    at = logged_time(
        view.log.checkpoint.counts.last_matched.get("policy-unavailable", "")
    )
    return (
        at
        if at and view.policies.policy_state.revision and view.at - at < LAST_MINUTES
        else None
    )


@_critical(
    "no-helper",
    None,
    "No helper with a policy runs",
    f"Run `squidkeeper check`: a helper that starts while the policy does not load has none. {NO_HELPER_REMEDY}",
    unhealthy=True,
)
def _no_helper(view: Snapshot) -> Iterator[str]:
    # since it started: until then, it needs no helper
    was_asked = view.proxy.squid.values.get(COUNTER, 1)
    if (
        view.proxy.squid.answers
        and was_asked
        and not view.decides
        and (at := _last_unavailable(view))
    ):
        yield f"requests were denied {ago(at, view.at)}, as policy-unavailable"


@_critical(
    "helper-stuck",
    "1m",
    "A helper does not answer",
    "Requests that wait for it hang. End it by `kill -9` and its process number: another is started.",
    unhealthy=True,
)
def _helper_stuck(view: Snapshot) -> Iterator[str]:
    for helper in filter(view.is_stuck, view.helpers):
        silence = view.now - helper.beat
        if silence > HELPER_PATIENCE_SECONDS:
            yield f"{_named(helper)}: no heartbeat for {silence:.0f} s"
        else:
            yield f"{_named(helper)}: no reply for {view.now - (helper.busy_since or view.now):.0f} s"


def _named(helper: HelperStatus) -> str:
    return f"helper {helper.helper}, process {helper.pid}"


@_critical(
    "helper-outdated",
    "1m",
    "A helper decides by an outdated policy",
    "Read cache.log: it tells why the helper cannot read what was published. `squid -k reconfigure` starts new"
    " helpers.",
)
def _helper_outdated(view: Snapshot) -> Iterator[str]:
    state = view.policies.policy_state
    if view.now - (state.loaded or 0) <= HELPER_PATIENCE_SECONDS:
        return
    for helper in view.helpers:
        in_force = (
            f"revision {helper.revision} is in force there"
            if helper.revision
            else "that helper denies everything"
        )
        if view.is_stuck(helper):
            continue
        if helper.helper in LOADS_POLICY and state.ok and not helper.reload_ok:
            yield f"{_named(helper)}: the policy on disk does not load there: {in_force}"
        elif view.is_outdated(helper):
            yield f"{_named(helper)}: {in_force}; revision {state.revision} is the last good one"


@_critical(
    "helper-uncounted",
    "1m",
    "A helper cannot write to the state folder",
    "What it counts is missing, and whether it is stuck or outdated is not seen. cache.log says why it cannot"
    " write. Run `./install.sh`, which gives the folders there to Squid's account.",
)
def _helper_uncounted(view: Snapshot) -> Iterator[str]:
    if view.processes.uncounted_helpers:
        yield f"process {', '.join(map(str, view.processes.uncounted_helpers))}"


_warning("helper-restarts", "0m", "A helper restarts again and again")(None)


_warning(
    "certificate-refused",
    "0m",
    "The certificate helper refuses an origin's certificate",
)(None)


_warning("protocol-errors", "0m", "A helper does not understand Squid")(None)


@_warning(
    "throttle-not-running",
    "0m",
    "No throttle answers",
    "Denials stay denials, but nothing limits how fast a client fills the log. Read cache.log: why can Squid not"
    " start `squidkeeper throttle`? `squid -k reconfigure` tries again.",
)
def _throttle_not_running(view: Snapshot) -> Iterator[str]:
    """Find a denial that asked for the throttle although none runs.

    Squid starts the throttle at the first denial after a start or reconfigure. So only
    denials count that a helper which still runs can have decided. Squid itself denies
    with policy-unavailable. A denial without a page of Squid's asked for nothing:
    `squidkeeper bodies` answered, or a tunnel leads nowhere.
    """
    started = [helper.started for helper in view.helpers if helper.helper in JUDGES]
    if not started or any(helper.helper == THROTTLE for helper in view.helpers):
        return
    since = datetime.fromtimestamp(
        max(view.now - LAST_MINUTES.total_seconds(), min(started) + _START_SECONDS), UTC
    )
    until = datetime.fromtimestamp(view.now - _START_SECONDS, UTC)
    denials = (
        denial
        for denial in view.log.checkpoint.denials
        if denial.rule not in _DENIED_BY_SQUID
    )
    times = (denial.time for denial in denials if denial.facts.get("error") != NONE)
    if at := max((time for time in times if since < time < until), default=None):
        yield f"a denial asked for it {ago(at, view.at)}"


_warning("transparent-refusing", "0m", "The transparent ports refuse many connections")(
    None
)


@_critical(
    "bodies-down",
    "1m",
    "Nothing inspects bodies",
    f"Requests that need it are denied. {RESTART_BODIES}. {_BODIES_LOG}.",
    unhealthy=True,
    running=True,
)
def _bodies_down(view: Snapshot) -> Iterator[str]:
    asked = Part.BODIES in read_in_force(view.proxy.fragment)
    if asked and not any(helper.helper == BODIES for helper in view.helpers):
        yield "squidkeeper-bodies-1 and squidkeeper-bodies-2 do not run"


@_critical(
    "secret-unavailable",
    "0m",
    "A secret is unavailable",
    f"Requests that need it are denied. {STORE_ONE_LINE} For a fetched one: {_SECRETS_LOG}.",
)
def _secret_unavailable(view: Snapshot) -> Iterator[str]:
    yield from (row.problem for row in secret_rows(view) if row.problem)
    yield from map(
        str, missing_extras(view.policies.policy) if view.policies.policy else ()
    )


@_critical(
    "quota-store-unavailable",
    "1m",
    "The store that counts quotas for all gateways is away",
    "As quota-store.yaml says, requests under quota are denied, or each gateway gives its part of the limits."
    " cache.log says what is wrong. Does Valkey run, do address, password and certificate agree, and is its"
    " function loaded? An edit of quota-store.yaml or its password is in force within a second.",
)
def _quota_store_unavailable(view: Snapshot) -> Iterator[str]:
    if view.services.quota_store_problem:
        yield printable(view.services.quota_store_problem)


@_warning(
    "quota-store-certificate-expiring",
    "0m",
    "The certificate of the store that counts quotas expires soon",
    "Make another with the store's own CA, as squid/FLEET.md says, and restart Valkey.",
)
def _quota_store_certificate_expiring(view: Snapshot) -> Iterator[str]:
    yield from _ends(view, view.certificates.quota_store_not_after, _CA_WARNING)


def _ends(view: Snapshot, end: datetime | None, within: timedelta) -> Iterator[str]:
    if end and end - view.at <= within:
        yield (
            f"{duration((end - view.at).total_seconds())} left"
            if end > view.at
            else timestamp(end)
        )


@_warning(
    "quota-nearly-used",
    "0m",
    "Four fifths of a quota of tokens or cost are used",
    "`squidkeeper quota` shows who uses it, `squidkeeper log --by client` for what. Once it is spent, requests that it"
    " counts are denied until it begins again: raise the limit, or begin it now: `squidkeeper quota --reset NAME`.",
    only_exporter=True,
)
def _quota_nearly_used(view: Snapshot) -> Iterator[str]:
    for use in sorted(
        view.policies.token_uses, key=lambda use: use.ratio, reverse=True
    ):
        if use.ratio >= NEARLY:
            yield f"{printable(use.text)}; it begins again in {duration(use.ends_in)}"


@_info(
    "model-without-price",
    None,
    "Models without a price have answered, so the highest prices count",
    "Add their prices to the policy's `prices`.",
    only_exporter=True,
)
def _model_without_price(view: Snapshot) -> Iterator[str]:
    if view.policies.policy and view.policies.policy.prices.entries:
        since = format_time(view.at - _IS_NEWS)
        models = (
            model
            for model, last in view.log.checkpoint.usage.models.items()
            if last >= since
        )
        yield from (
            printable(model)
            for model in models
            if view.policies.policy.prices.find(model) is None
        )


@_critical(
    "secrets-not-fetched",
    "1m",
    "The process that fetches secrets does not run, or is stuck",
    "Run `./install.sh`, which starts it where the policy has such secrets, or `systemctl restart"
    f" squidkeeper-secrets`. Values that expire are denied until then. {_SECRETS_LOG}.",
    running=True,
)
def _secrets_not_fetched(view: Snapshot) -> Iterator[str]:
    if view.fetched_secrets and not view.services.fetching.runs:
        yield ", ".join(view.fetched_secrets)


@_warning(
    "secret-fetch-failing",
    "5m",
    "A secret cannot be fetched",
    f"The last value stays in use until it expires. Check its source. {_SECRETS_LOG}.",
)
def _secret_fetch_failing(view: Snapshot) -> Iterator[str]:
    if view.services.fetching.runs and view.services.fetching.problem:
        yield view.services.fetching.problem
    yield from (f"{name}: {status.failure}" for name, status in _failing(view))


def _failing(view: Snapshot) -> Iterator[tuple[str, SecretStatus]]:
    return (
        (name, status)
        for name, status in view.fetched_secrets.items()
        if status and status.failures
    )


@_critical(
    "secret-expiring",
    "0m",
    "The value of a secret expires, and its renewal fails",
    f"After that, requests that need it are denied. Check its source. {_SECRETS_LOG}.",
)
def _secret_expiring(view: Snapshot) -> Iterator[str]:
    for name, status in _failing(view):
        end = (
            datetime.fromtimestamp(status.expires_at, UTC)
            if status.expires_at is not None
            else None
        )
        if end and end - view.at < _SECRET_EXPIRES_SOON:
            yield f"{name} {'expires' if end > view.at else 'expired'} {ago(end, view.at)}"


@_critical(
    "drift",
    "0m",
    "Squid served requests that the policy denies",
    "Run `squidkeeper log --drift`, and compare squid.conf with the installed one.",
)
def _drift(view: Snapshot) -> Iterator[str]:
    times = [
        finding.time
        for finding in view.log.checkpoint.drift
        if view.at - finding.time < _IS_NEWS
    ]
    if times:
        yield f"last {ago(times[0], view.at)}"


_info("drift-unchecked", "0m", "Served requests could not be checked for drift")(None)


_critical(
    "secret-leaving",
    "0m",
    "A request held a secret, a canary or a misdirected placeholder",
)(None)


_warning("denial-surge", "0m", "A client is denied far more often than usual")(None)


@_warning(
    "requests-failing",
    "5m",
    "Most requests that are allowed fail",
    "Run `squidkeeper why --last 5m`, which tells the causes. Do the gateway's DNS (`dig @127.53.53.53 NAME`)"
    " and the parent proxies answer? squidkeeper.d/upstreams.conf has those of `upstreams` and of `install.sh"
    " --upstream`.",
)
def _requests_failing(view: Snapshot) -> Iterator[str]:
    since = format_time(view.at - LAST_MINUTES)
    failed = [answer.failed for answer in view.log.answers if answer.time >= since]
    if len(failed) >= _FEW_ANSWERS and 2 * sum(failed) > len(failed):
        yield f"{sum(failed)} of the last {len(failed)} that were allowed"


@_warning("ca-unreadable", None, "The CA cannot be read", "Check the file.")
def _ca_unreadable(view: Snapshot) -> Iterator[str]:
    if view.certificates.certificate.not_after is None:
        yield f"{view.certificates.certificate.file} ({view.certificates.certificate.problem})"


def _ca_expires(
    view: Snapshot, more_than: timedelta, within: timedelta
) -> Iterator[str]:
    end = view.certificates.certificate.not_after
    if end and more_than < end - view.at <= within:
        yield f"{duration((end - view.at).total_seconds())} left for {view.certificates.certificate.subject}"


_warning("ca-expiring", "0m", "The CA, or its intermediate, expires soon", _CA_REMEDY)(
    partial(_ca_expires, more_than=_CA_CRITICAL, within=_CA_WARNING)
)


_critical(
    "ca-expires-now",
    "0m",
    "The CA, or its intermediate, expires within days",
    _CA_REMEDY,
)(partial(_ca_expires, more_than=timedelta(), within=_CA_CRITICAL))


@_critical(
    "ca-expired",
    None,
    "The CA, or its intermediate, has expired, and no https passes",
    _CA_REMEDY,
    unhealthy=True,
)
def _ca_expired(view: Snapshot) -> Iterator[str]:
    end = view.certificates.certificate.not_after
    if end and end <= view.at:
        yield f"{view.certificates.certificate.subject}, {timestamp(end)}"


_warning("ca-differs", "5m", "Gateways of one job have different CAs")(None)


@_critical(
    "tls-certificate-expiring",
    "0m",
    "The certificate of the TLS port expires within days",
    f"The maintenance process renews it 30 days before, unless the CA expires too. {_MAINTENANCE_LOG}.",
)
def _tls_certificate_expiring(view: Snapshot) -> Iterator[str]:
    yield from _ends(
        view,
        view.certificates.tls_certificate.not_after
        if view.certificates.tls_certificate
        else None,
        _CA_CRITICAL,
    )


_critical("exporter-down", "2m", "The exporter cannot be scraped")(None)


@_critical(
    "access-log-unreadable",
    "2m",
    "The access log cannot be read",
    "Let Squid's account read the file. If it was deleted or renamed, run `squid -k rotate`.",
    running=True,
)
def _access_log_unreadable(view: Snapshot) -> Iterator[str]:
    if not view.log.log_readable:
        yield str(view.place.access_log)


@_warning(
    "access-log-behind",
    "0m",
    "The exporter is behind the access log",
    "Wait, or give the exporter more processor time.",
    only_exporter=True,
)
def _access_log_behind(view: Snapshot) -> Iterator[str]:
    if view.log.log_readable and view.log.backlog_bytes > _BACKLOG_BYTES:
        yield f"{byte_size(view.log.backlog_bytes)} are not counted yet"


_critical(
    "access-log-silent",
    "5m",
    "The access log does not grow while Squid answers requests",
)(None)


_warning("access-log-invalid-lines", "0m", "The access log has unreadable lines")(None)


_warning(
    "access-log-lost", "0m", "A part of the access log was lost before it was counted"
)(None)


@_warning(
    "export-behind",
    "5m",
    "An export does not send what the access log holds",
    "Records wait in the access log until it is deleted. Check the receiver, then read `journalctl -u"
    " squidkeeper-export`, or export.log beside access.log. If an export was ended for good, remove its file from"
    " the folder export in the state folder.",
    running=True,
)
def _export_behind(view: Snapshot) -> Iterator[str]:
    for name, status in view.records.exports.items():
        waiting = status.waiting_seconds(view.now)
        if not status.runs:
            yield f"{name}: its process does not run, or is stuck"
        elif waiting > _EXPORT_PATIENCE_SECONDS:
            reason = f": {status.state.failure}" if status.state.failure else ""
            yield f"{name}: nothing taken for {duration(waiting)}{reason}"
        elif status.state.backlog_bytes > _BACKLOG_BYTES:
            yield f"{name}: {byte_size(status.state.backlog_bytes)} are not sent yet"


_warning("export-gap", "0m", "Records were not exported")(None)


@_warning(
    "state-not-writable",
    "5m",
    "The exporter cannot save its counts",
    "Make room, or let Squid's account write to the state folder. Requests are not affected; a restart continues"
    " from older counts.",
    only_exporter=True,
)
def _state_not_writable(view: Snapshot) -> Iterator[str]:
    if not view.log.state_writable:
        yield ""


@_critical(
    "sessions-unavailable",
    "1m",
    "Programs cannot make sessions",
    "Run `systemctl restart squidkeeper-sessions`, and read `journalctl -u squidkeeper-sessions`, or sessions.log."
    " Sessions that are there go on, and end by time.",
    only_exporter=True,
)
def _sessions_unavailable(view: Snapshot) -> Iterator[str]:
    policy, sessions = view.policies.policy, view.services.sessions
    if not sessions.answers and (sessions.is_wanted or (policy and policy.roles)):
        yield "the service does not answer"


@_warning("disk-space-low", "5m", "Disk space is low", _MAKE_ROOM)
def _disk_space_low(view: Snapshot) -> Iterator[str]:
    yield from (
        _free(disk) for disk in view.records.disks if disk.is_low and not disk.is_full
    )


@_warning(
    "pull-failing",
    "0m",
    "The source of the policy cannot be read",
    f"What is in place stays. Check the source and pull.yaml; `squidkeeper pull --once` tries again. {_PULL_LOG}.",
)
def _pull_failing(view: Snapshot) -> Iterator[str]:
    pull = view.services.pull
    if pull is None or view.now - (pull.succeeded or 0) <= patience_seconds(pull):
        return
    last = (
        f"last read {ago(datetime.fromtimestamp(pull.succeeded, UTC), view.at)}"
        if pull.succeeded
        else "never read"
    )
    yield "; ".join(filter(None, (last, pull.failure)))


@_critical(
    "pull-refused",
    "1m",
    "A version of the pulled policy is refused",
    "Put what it says is missing on this gateway there, such as local.yaml, and fix the rest in the repository. If"
    f" nobody of yours has made the version, find out who has: what is in place stays meanwhile. {_PULL_LOG}.",
)
def _pull_refused(view: Snapshot) -> Iterator[str]:
    if view.services.pull and view.services.pull.refused:
        in_place = (
            f"{view.services.pull.version} stays in place"
            if view.services.pull.version
            else "nothing is in place"
        )
        yield f"{view.services.pull.refused}, {in_place}: {view.services.pull.reason}"


@_critical(
    "pull-altered",
    "0m",
    "What is in place of the pulled policy is not what the source has",
    "Its files were edited on this gateway, or pull.yaml was. What the source has is put in place by itself once"
    " the source can be read and its tip is not refused: fix that. Edit the policy in the source.",
)
def _pull_altered(view: Snapshot) -> Iterator[str]:
    if view.services.pull and view.services.pull.altered:
        yield f"{view.services.pull.version}, from {view.services.pull.source}"


_warning(
    "pull-differs",
    "1m",
    "Another version of the pulled policy than elsewhere is in place",
)(None)


@_warning(
    "archive-failing",
    "0m",
    "The access log is not archived",
    "Fix the cause; nothing is lost while the rotated logs are within their limit in bytes. `systemctl start"
    f" squidkeeper-archive` tries again. {_ARCHIVE_LOG}.",
)
def _archive_failing(view: Snapshot) -> Iterator[str]:
    archive = view.records.archive
    if (
        archive is None
        or view.now - (archive.succeeded or 0) <= _ARCHIVE_FAILING_SECONDS
    ):
        return
    if archive.ended is None:
        yield "it has not run yet"
    elif archive.failure and view.now - archive.ended <= _ARCHIVE_FAILING_SECONDS:
        yield archive.failure
    else:
        yield f"it ran last {ago(datetime.fromtimestamp(archive.ended, UTC), view.at)}"


@_warning(
    "archive-behind",
    "0m",
    "A rotated log has not been archived for hours",
    "Let Squid open a new log, `squid -k rotate`, if it still writes to the rotated one; or fix why the archive"
    f" cannot take it. {_ARCHIVE_LOG}.",
)
def _archive_behind(view: Snapshot) -> Iterator[str]:
    since = view.records.unarchived_since
    if since is not None and view.now - since > _ARCHIVE_BEHIND_SECONDS:
        refused = view.records.archive.refused if view.records.archive else ()
        yield "; ".join(
            [
                f"a rotated log ended {ago(datetime.fromtimestamp(since, UTC), view.at)}",
                *refused,
            ]
        )


@_critical(
    "archive-incomplete",
    "0m",
    "Rotated logs were deleted before they were archived, and their records are lost",
    "Raise the limit of the logs, `./install.sh --log-bytes SIZE`, and find out why the archive was late."
    f" {_ARCHIVE_LOG}. The condition ends a day after the last such file.",
    past=True,
)
def _deleted_unarchived(view: Snapshot) -> Iterator[str]:
    gone = view.records.deleted_logs
    at = datetime.fromtimestamp(gone.at, UTC)
    if gone.files and view.at - at < _IS_NEWS:
        what = f"{quantity(gone.files, 'file')} of {byte_size(gone.bytes)} so far"
        yield f"{what}, the last {gone.last} {ago(at, view.at)}"


@_critical(
    "maintenance-not-running",
    "1m",
    "The maintenance process does not run",
    "Run `systemctl restart squidkeeper-maintenance`, or install.sh again. Until then names may not resolve, the"
    f" logs grow without limit, and new addresses of the gateway stay open. {_MAINTENANCE_LOG}.",
    unhealthy=True,
    running=True,
)
def _maintenance_not_running(view: Snapshot) -> Iterator[str]:
    if not view.services.maintenance.runs:
        yield ""


def _task_failing(view: Snapshot, task: str) -> Iterator[str]:
    failure = view.services.maintenance.failures.get(task)
    if view.services.maintenance.runs and failure:
        yield failure


# What to do where a task of the maintenance process fails, and whether requests fail
# with it.
_TASKS: Final = {
    "resolver": (
        "Squid's lookups of names fail. An unbound that hangs is ended after ten seconds, and another starts. If one"
        f" stays, end it by `kill -9` and its process number. {_MAINTENANCE_LOG}.",
        True,
    ),
    "own-addresses": (
        f"New addresses of the gateway stay open to clients. {_MAINTENANCE_LOG}.",
        False,
    ),
    "rotation": (f"Squid's logs grow without limit. {_MAINTENANCE_LOG}.", False),
    "tls": (
        "HAProxy, which takes the clients for Squid, does not run, or has no valid certificate. Run `systemctl restart"
        f" squidkeeper-tls`, or install.sh again. {_MAINTENANCE_LOG}, and `journalctl -u squidkeeper-tls`, or tls.log.",
        True,
    ),
    "transparent": (
        "Clients without proxy settings do not get through. A missing address comes with its interface. End a process"
        " that hangs by `kill -9`: another is started. `squidkeeper doctor` names a program on one of the ports. If"
        " none of our processes runs there, run `./install.sh`. Logs:"
        " `journalctl -u squidkeeper-dns`, `journalctl -u squidkeeper-transparent`.",
        True,
    ),
    "webhook": (
        "Questions of clients wait, and nobody is told. `squidkeeper ask` shows them. Check webhook.yaml."
        f" {_MAINTENANCE_LOG}.",
        False,
    ),
}
for _task, (_remedy, _stops_requests) in _TASKS.items():
    _add = _critical(
        f"{_task}-failing",
        "1m",
        f"The maintenance task {_task} fails",
        _remedy,
        unhealthy=_stops_requests,
    )
    _add(partial(_task_failing, task=_task))
