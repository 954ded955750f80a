"""The status page (floor 5): what is in force, whether anything is wrong and what to do.

The exporter fills a `Status` for each request of `/`; `page` makes HTML of it. Nothing in it can hold a secret: there
is no field for a value. Times are aware and in UTC; None is "not known", or "never".
"""

from __future__ import annotations

import re
import shlex
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Final

from squidkeeper.errors import InvalidUrl
from squidkeeper.observe.charts import split_bar
from squidkeeper.observe.events import CONNECT
from squidkeeper.observe.page import ago, counted, cut, moment, render, shown_url, size, span
from squidkeeper.observe.record import NONE, Record, text
from squidkeeper.policy.faults import Fault
from squidkeeper.url import parse_address

DENIALS_KEPT: Final = 50

# --- What the exporter fills ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """The policy that the exporter judges by, which reads the same directory as the helpers."""

    directory: Path
    """The directory as `--policy` names it; it stands in the ready commands."""
    revision: str | None
    """The revision in force; None where none has loaded yet, and everything is denied."""
    loaded_at: datetime | None
    """When this revision was loaded."""
    default_action: str
    """`allow` or `deny`: what happens where no rule matches."""
    faults: tuple[Fault, ...] = ()
    """What is wrong with the policy on disk; empty where the one on disk is in force."""


@dataclass(frozen=True, slots=True)
class RuleInForce:
    """A rule of the policy, in its order, or a verdict that is no rule's and was seen, such as `default`."""

    name: str
    """The rule's name, as on record."""
    action: str
    """`allow` or `deny`; the default's for `default`, `deny` for the other verdicts."""
    allowed: int = 0
    """Requests on record with this rule and the verdict allow."""
    denied: int = 0
    """Requests on record with this rule and the verdict deny."""
    last_matched: datetime | None = None
    """When a request was last decided by it."""
    expires: datetime | None = None
    """The rule's `expires`; at or before `Status.at` the rule has lapsed."""
    owner: str | None = None
    """The rule's `owner`."""
    built_in: bool = False
    """Whether it is no rule of the policy but one of the verdicts; these come after the rules."""


@dataclass(frozen=True, slots=True)
class Denial:
    """A request that was denied, as often as it was the same: client, user, method, URL without query, and rule."""

    time: datetime
    """When it was last denied."""
    client: str
    user: str | None
    method: str
    url: str
    """Without query, fragment and password, printable ASCII, at most `page.LONGEST_URL` characters."""
    cut: int
    """Characters that are missing at the URL's end."""
    rule: str
    times: int = 1
    """How often it was denied, since it was last forgotten."""


@dataclass(frozen=True, slots=True)
class HelperProcess:
    """A helper that runs, from its slot."""

    kind: str
    """As the metrics' label `helper` has it: `host`, `request`, `rewrite` or `credential`."""
    pid: int
    started: datetime
    revision: str | None
    """The revision that it judges by; None where it has none, and denies everything."""
    outdated: bool
    """Whether that is another than the exporter's."""
    stuck: bool
    """Whether it gives no sign of life, or has not answered a line for seconds."""
    last_beat: datetime
    """Its last sign of life."""
    answered: int
    """Lines that it, and those that had its slot before, have answered."""


@dataclass(frozen=True, slots=True)
class SecretInUse:
    """A secret that the policy names, and whether the exporter could have its value now; never the value."""

    name: str
    source: str
    """`file /etc/…` or `env NAME`."""
    problem: str | None = None
    """Why it cannot be had, as `SecretUnavailable` says it; None: it can, or it was not looked at."""
    used_by: tuple[str, ...] = ()
    """The credentials that need it."""

    @property
    def seen(self) -> bool:
        """Whether it was looked at: a variable is the helpers' own, and cannot be from here."""
        return self.problem is not None or not self.source.startswith("env ")


@dataclass(frozen=True, slots=True)
class Certificate:
    """The CA that signs for all hosts."""

    file: Path
    subject: str | None = None
    """None where the file cannot be read."""
    not_after: datetime | None = None
    problem: str | None = None
    """Why it cannot be read."""


@dataclass(frozen=True, slots=True)
class RecordFollowed:
    """Squid's access log, as the exporter follows it."""

    file: Path
    readable: bool
    backlog_bytes: int = 0
    """Written and not yet counted."""
    last_line: datetime | None = None
    """The time of the newest request that was counted."""
    invalid_lines: int = 0
    """Lines that are no record, since the counting began."""
    lost: int = 0
    """Times that a stretch was gone before it was counted."""
    counted_since: datetime | None = None
    """When the counts that this page shows began: the oldest checkpoint's time."""
    problem: str | None = None
    """Why it cannot be read, where that is known."""


@dataclass(frozen=True, slots=True)
class DriftSeen:
    """A request that is not as the policy in force has it."""

    time: datetime
    client: str
    method: str
    url: str
    """As on record; the page takes the query off."""
    rule: str
    """What the policy says."""
    kind: str
    """`allowed`, `unasked` or `credential`, as `observe/drift.py` names them."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What was held against the policy."""

    total: int = 0
    """All findings since the counting began."""
    unchecked: int = 0
    """Served requests whose revision is no longer kept."""
    latest: tuple[DriftSeen, ...] = ()
    """The newest, at most 20, newest first."""


@dataclass(frozen=True, slots=True)
class Squid:
    """Whether Squid answers."""

    address: str
    """Its proxy port as `--squid` names it: `127.0.0.1:3128`."""
    up: bool
    started: datetime | None = None
    version: str | None = None
    """As its cache manager says it: `6.13`."""
    problem: str | None = None
    """Why it does not answer, or its cache manager does not."""


@dataclass(frozen=True, slots=True)
class Status:
    """All that the page shows, at one moment."""

    at: datetime
    """Now."""
    version: str
    """The release of squidkeeper."""
    policy: PolicyInForce
    rules: tuple[RuleInForce, ...]
    """In the policy's order, the verdicts that were seen after them."""
    denials: tuple[Denial, ...]
    """What `RecentDenials.newest()` gives."""
    helpers: tuple[HelperProcess, ...]
    """Those that run; none is idle, not ill: Squid starts one when it asks."""
    secrets: tuple[SecretInUse, ...]
    ca: Certificate
    record: RecordFollowed
    drift: Drift
    squid: Squid
    state_writable: bool = True
    """Whether the exporter could last keep its counts on disk."""


class RecentDenials:
    """The last denials, a bounded number; the same one again only counts up. The tally feeds it, the page reads it.

    Where there are too many, the oldest of the client that has the most goes.

    Safe between threads. To live through a restart: keep `newest()` (msgspec and json know such dataclasses), hand it
    back as `kept`.
    """

    def __init__(self, kept: Iterable[Denial] = (), limit: int = DENIALS_KEPT) -> None:
        self._limit = limit
        self._lock = Lock()
        self._rows: OrderedDict[tuple[str | None, ...], Denial] = OrderedDict()
        for denial in reversed(tuple(kept)):
            self._put(denial)

    def add(self, record: Record) -> None:
        """Take a record of any request; only denials are kept."""
        if record.verdict == "deny":
            denial = _denial(record)
            with self._lock:
                self._forget_tunnel(denial, record.tunnel)
                self._put(denial)

    def newest(self) -> tuple[Denial, ...]:
        """List them, the newest first."""
        with self._lock:
            return tuple(reversed(self._rows.values()))

    def _put(self, denial: Denial) -> None:
        key = _key(denial)
        before = self._rows.pop(key, None)
        self._rows[key] = replace(denial, times=denial.times + before.times) if before else denial
        if len(self._rows) > self._limit:
            self._forget_one()

    def _forget_one(self) -> None:
        """Forget the oldest of the client that has the most: so no client's denials push out those of another."""
        clients = Counter(denial.client for denial in self._rows.values())
        (busiest, _), *_ = clients.most_common(1)
        del self._rows[next(key for key, denial in self._rows.items() if denial.client == busiest)]

    def _forget_tunnel(self, denial: Denial, tunnel: str) -> None:
        """Let a request stand for the CONNECT of the denied tunnel that it came through, which it answers."""
        authority, denied, _ = (text(tunnel) or "").partition(_DENIED_BY)
        if not denied or denial.method == CONNECT:
            return
        key = _key(replace(denial, method=CONNECT, url=authority))
        before = self._rows.pop(key, None)
        if before and before.times > 1:
            self._rows[key] = replace(before, times=before.times - 1)


_DENIED_BY = " denied by "  # as helpers/acl.py notes it on the tunnel of a denied CONNECT


def _key(denial: Denial) -> tuple[str | None, ...]:
    return denial.client, denial.user, denial.method, denial.url, denial.rule


def _denial(record: Record) -> Denial:
    url, missing = cut(shown_url(record.url))
    return Denial(
        time=datetime.fromisoformat(record.time),
        client=record.client,
        user=text(record.user),
        method=cut(text(record.method) or NONE, 40)[0],
        url=url,
        cut=missing,
        rule=text(record.rule) or NONE,
    )


# --- Whether anything is wrong --------------------------------------------------------------------------------------

_CA_WARNING = timedelta(days=30)
_DRIFT_IS_NEWS = timedelta(days=1)
_BACKLOG_BYTES = 10_000_000
_RELOAD_TAKES = timedelta(seconds=5)  # helpers look several times a second, and answer kept verdicts for another second


class Urgency(StrEnum):
    """How soon something has to be done."""

    NOW = "now"  # requests fail, or pass that should not
    SOON = "soon"  # nothing fails yet, or only what is seen of it


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong, and what to do about it; `section` is where the page says more."""

    urgency: Urgency
    what: str
    remedy: str
    section: str


def troubles(status: Status) -> tuple[Trouble, ...]:
    """List what is wrong, the most urgent first."""
    found = [
        *_squid_troubles(status.squid),
        *_policy_troubles(status.policy),
        *_drift_troubles(status),
        *_helper_troubles(status),
        *_secret_troubles(status.secrets),
        *_ca_troubles(status.ca, status.at),
        *_record_troubles(status.record),
    ]
    if not status.state_writable:
        found.append(_STATE_TROUBLE)
    return tuple(sorted(found, key=lambda trouble: trouble.urgency is not Urgency.NOW))


_STATE_TROUBLE = Trouble(
    Urgency.SOON,
    "The exporter cannot keep its counts on disk.",
    "Make room, or the state folder writable for it. Requests are not affected; a restart goes on from older counts.",
    "record",
)


def _squid_troubles(squid: Squid) -> Iterable[Trouble]:
    if not squid.up:
        what = f"Squid does not answer on {squid.address}{_because(squid.problem)}."
        yield Trouble(Urgency.NOW, what, "See `systemctl status squid` and the end of its cache.log.", "squid")


def _policy_troubles(policy: PolicyInForce) -> Iterable[Trouble]:
    remedy = f"Mend it, then run `squidkeeper check --policy {shlex.quote(str(policy.directory))}`."
    if policy.revision is None:
        yield Trouble(Urgency.NOW, "No policy has loaded: everything is denied.", remedy, "policy")
    elif policy.faults:
        faults = counted(len(policy.faults), "fault")
        what = f"The policy on disk does not load ({faults}); revision {policy.revision} goes on."
        yield Trouble(Urgency.NOW, what, remedy, "policy")


def _drift_troubles(status: Status) -> Iterable[Trouble]:
    fresh = [finding for finding in status.drift.latest if status.at - finding.time < _DRIFT_IS_NEWS]
    if fresh:
        what = f"What was served is not what the policy says, last {ago(fresh[0].time, status.at)}."
        yield Trouble(Urgency.NOW, what, "`squidkeeper log --drift` shows each: is squid.conf as installed?", "drift")


def _helper_troubles(status: Status) -> Iterable[Trouble]:
    stuck = [str(helper.pid) for helper in status.helpers if helper.stuck]
    if stuck:
        what = f"{counted(len(stuck), 'helper')} without a sign of life: requests that wait for it hang."
        yield Trouble(Urgency.NOW, what, f"Squid starts a new one after `kill {' '.join(stuck)}`.", "helpers")
    outdated = [helper for helper in status.helpers if helper.outdated]
    loaded = status.policy.loaded_at
    if outdated and (loaded is None or status.at - loaded > _RELOAD_TAKES):
        what = f"{counted(len(outdated), 'helper')} judging by another revision than the one on disk."
        yield Trouble(
            Urgency.NOW, what, "See cache.log for the cause; `squid -k reconfigure` starts new ones.", "helpers"
        )


def _secret_troubles(secrets: Iterable[SecretInUse]) -> Iterable[Trouble]:
    missing = [secret for secret in secrets if secret.problem]
    if len(missing) > 1:
        what = f"{len(missing)} secrets cannot be had: requests that need them are denied."
        yield Trouble(Urgency.NOW, what, f"See below: {', '.join(secret.name for secret in missing[:10])}.", "secrets")
    for secret in missing if len(missing) == 1 else ():
        why = (secret.problem or "").removeprefix(f"secret {secret.name}: ")
        what = f"The secret {secret.name} cannot be had: requests that need it are denied."
        yield Trouble(Urgency.NOW, what, f"{why[:1].upper()}{why[1:]}.", "secrets")


def _ca_troubles(ca: Certificate, now: datetime) -> Iterable[Trouble]:
    remedy = "Make a new one and have the clients trust it, before it ends."
    if ca.not_after is None:
        yield Trouble(Urgency.SOON, f"The CA cannot be read{_because(ca.problem)}.", f"See {ca.file}.", "ca")
    elif ca.not_after <= now:
        yield Trouble(Urgency.NOW, f"The CA has ended on {moment(ca.not_after)}: no https passes.", remedy, "ca")
    elif ca.not_after - now < _CA_WARNING:
        left = span((ca.not_after - now).total_seconds())
        yield Trouble(Urgency.SOON, f"The CA ends in {left}; no https passes after that.", remedy, "ca")


def _record_troubles(record: RecordFollowed) -> Iterable[Trouble]:
    if not record.readable:
        what = f"The access log cannot be read{_because(record.problem)}: what is served is not counted."
        yield Trouble(Urgency.NOW, what, f"Let the exporter's account read {record.file}.", "record")
    elif record.backlog_bytes > _BACKLOG_BYTES:
        what = f"{size(record.backlog_bytes)} of the access log are not counted yet: the figures here are behind."
        yield Trouble(Urgency.SOON, what, "Give the exporter time, or more of a processor.", "record")


def _because(problem: str | None) -> str:
    return f" ({problem})" if problem else ""


_RULES_SHOWN = 500
_FAULTS_SHOWN = 50
_SHORT_URL = 240  # characters of a request that a row shows; its command has the rest


# --- The page -------------------------------------------------------------------------------------------------------


def page(status: Status) -> str:
    """Make the page: one HTML document that needs nothing else."""
    found = troubles(status)
    rules = _rules_shown(status.rules)
    return render(
        "status.html",
        {
            "status": status,
            "troubles": found,
            "urgency": found[0].urgency if found else "",
            "headline": _headline(found),
            "denials": [(denial, explain_command(denial, status.policy.directory)) for denial in status.denials],
            "rules": rules,
            "rules_left_out": len(status.rules) - len(rules),
            "faults": status.policy.faults[:_FAULTS_SHOWN],
            "most_hits": max((rule.allowed + rule.denied for rule in status.rules), default=0),
            "split_bar": split_bar,
            "shown_url": shown_url,
            "cut": cut,
            "shortest": _SHORT_URL,
        },
    )


def _rules_shown(rules: tuple[RuleInForce, ...]) -> list[tuple[int, RuleInForce]]:
    """Give the rules their numbers; of very many, only those that matched or lapse."""
    numbered = list(enumerate(rules, 1))
    if len(numbered) > _RULES_SHOWN:
        numbered = [(number, rule) for number, rule in numbered if rule.allowed or rule.denied or rule.expires]
    return numbered[:_RULES_SHOWN]


def _headline(found: tuple[Trouble, ...]) -> str:
    if not found:
        return "All is well: nothing to do."
    if len(found) == 1:
        return "One thing is wrong." if found[0].urgency is Urgency.NOW else "One thing to see to soon."
    urgent = sum(trouble.urgency is Urgency.NOW for trouble in found)
    if not urgent:
        return f"{len(found)} things to see to soon."
    return f"{len(found)} things are wrong, {urgent} of them to be mended now."


_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")
_USER = re.compile(r"[!-~]{1,100}")
_TARGET = re.compile(r"https?://[!-~]+|[^/]+:[0-9]{1,5}")


def explain_command(denial: Denial, directory: Path) -> str | None:
    """Write the command that explains a denial; None where what was asked does not fit in one that is safe to paste.

    Every word is printable ASCII of bounded length, quoted where a shell would read more into it; `--` keeps what was
    asked from being an option. A backslash, which fish reads inside of quotes, is escaped as Squid escapes it.
    """
    url = denial.url.replace("\\", "%5C")
    if denial.cut or not _TARGET.fullmatch(url) or not _METHOD.fullmatch(denial.method):
        return None
    if denial.user is not None and not _USER.fullmatch(denial.user):
        return None
    words = ["squidkeeper", "explain", "--policy", str(directory)]
    if _is_address(denial.client):
        words += ["--client", denial.client]
    if denial.user is not None:
        words.append(f"--user={denial.user}")
    return shlex.join([*words, "--", denial.method, url])


def _is_address(client: str) -> bool:
    try:
        parse_address(client)
    except InvalidUrl:
        return False
    return True
