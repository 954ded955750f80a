"""What is wrong around Squid: files, accounts, processes, clock, logrotate."""

import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
from cryptography import x509

from squidkeeper.base.errors import (
    CountsUnavailable,
    InvalidExport,
    PullFailed,
    WebhookFailed,
)
from squidkeeper.base.formatting import quantity
from squidkeeper.base.layout import ACCOUNTS, BODIES, SERVICES
from squidkeeper.base.squid_account import (
    Account,
    account_of,
    call_as,
    changed_by_others,
    unreadable_for,
)
from squidkeeper.operate.doctor.inspection import (
    Found,
    Inspection,
    critical,
    finds,
    info,
    warning,
)
from squidkeeper.operate.doctor.listening import foreign_listeners
from squidkeeper.operate.setup.configuration import CLIENT_SHARE
from squidkeeper.operate.setup.entries import text_at
from squidkeeper.operate.setup.generations import PARTS
from squidkeeper.operate.setup.options import NO_EXPORTER, port_of
from squidkeeper.operate.setup.processes import InstalledService
from squidkeeper.operate.setup.sockets import process_listens
from squidkeeper.policy.extras import missing_extras
from squidkeeper.policy.language.lint import open_to_any_client
from squidkeeper.record.export.https import tls_context
from squidkeeper.services.exporter.status_rows import secret_rows
from squidkeeper.services.maintenance.own_addresses import reached_at
from squidkeeper.services.maintenance.resolver import answers
from squidkeeper.services.pulling.settings import read_pull_settings
from squidkeeper.services.sessions.orchestrators import check_orchestrators
from squidkeeper.services.webhook import read_webhook_settings
from squidkeeper.serving.credentials.fetched_values import VALUE_SUFFIX
from squidkeeper.serving.quotas.opening import try_quota_store
from squidkeeper.serving.quotas.store_settings import quota_store_file, read_quota_store

# A helper loads the policy first, which can take minutes on a busy machine. So one is
# silent that neither answers nor works.
_SOCKET_SECONDS: Final = 5.0
_STARTING_SECONDS: Final = 3.0  # of a service that was just started
_SLEEP_SECONDS: Final = 0.1
_IDLE_SECONDS: Final = 20.0
_WORK_SECONDS: Final = 0.2  # of the processor, while it is idle for less than that
_LOOK_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 600.0
# the exporter ends a stopped helper within 15, on a very busy machine within 30
_STOPPED_SECONDS: Final = 60.0
_CLOCK_SECONDS: Final = 60.0
_FEW_DAYS: Final = 7
_PERIODS: Final = {
    "hourly": 1 / 24,
    "daily": 1,
    "weekly": 7,
    "monthly": 30,
    "yearly": 365,
}
_URL: Final = "https://squidkeeper.invalid/"
# What a helper is asked for each token of its format; `-` for others. Nothing is
# fetched, and any answer will do.
_ASKED: Final = {
    "%#>a": "127.0.0.1",
    "%#>rm": "GET",
    "%#>rs": "https",
    "%#>rd": "squidkeeper.invalid",
    "%#>rP": "443",
    "%#ssl::>sni": "squidkeeper.invalid",
    "%#note{clt_conn_tag}": "squidkeeper.invalid%3A443",
    "%#URI": _URL,
    "%#note{final_url_}": _URL,
}
# Of root's environment nothing else is handed on: it can hold secrets that Squid's
# account must not read.
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}
_LOGIN: Final = re.compile(r'\blogin(=|":")[^"]')  # of a parent
_BLOCK: Final = re.compile(r"^([^\n{}#][^{}]*?)\s*\{([^}]*)\}", re.MULTILINE)


# --- Files ----------------------------------------------------------------------------


def _secret_files(seen: Inspection) -> Iterator[tuple[Path, str]]:
    layout = seen.layout
    yield from ((path, "the CA's key") for path in (layout.signing_key, layout.ca_key))
    yield from (
        (path, "passwords of parent proxies")
        for path in sorted(layout.generations.glob(f"[0-9]*/{PARTS}/*"))
    )
    yield layout.webhook, "the URL of the webhook"
    yield from ((path, "a secret of the policy") for path in seen.secret_files)
    yield from (
        (path, "a secret that was fetched")
        for path in sorted(seen.layout.secrets.glob(f"*{VALUE_SUFFIX}"))
    )


@finds("secret-unavailable")
def _unavailable_secrets(seen: Inspection) -> Iterator[Found]:
    """Find secrets without a value.

    `secrets-not-fetched` names them where nothing fetches them.
    """
    fetched = {} if seen.view.services.fetching.runs else seen.view.fetched_secrets
    yield from (
        Found(row.problem)
        for row in secret_rows(seen.view)
        if row.problem and row.name not in fetched
    )
    yield from (
        Found(str(fault))
        for fault in (
            missing_extras(seen.view.policies.policy)
            if seen.view.policies.policy
            else ()
        )
    )


@finds("webhook-failing")
def _webhook_failing(seen: Inspection) -> Iterator[Found]:
    """Find what is wrong with webhook.yaml, as Squid's account reads it; else what the
    process that uses it reports.
    """
    file, reported = (
        seen.layout.webhook,
        seen.view.services.maintenance.failures.get("webhook"),
    )
    found = [*_settings_faults(file, _read_webhook, seen, seen.account)]
    yield from found
    if not found and file.exists() and seen.view.services.maintenance.runs and reported:
        yield Found(reported, str(file))


def _read_webhook(file: Path) -> None:
    if settings := read_webhook_settings(file):
        tls_context(settings.ca_file)


@critical(
    "quota-store-unusable",
    "The store of quotas cannot be used",
    "Fix quota-store.yaml, and let the group of Squid's account read it. Until then the last good one counts; where"
    " a process has read none, no quota gives anything.",
    as_root=True,
)
def _quota_store_unusable(seen: Inspection) -> Iterator[Found]:
    yield from _settings_faults(
        quota_store_file(seen.layout.policy), read_quota_store, seen, seen.account
    )


@finds("quota-store-unavailable")
def _quota_store_unavailable(seen: Inspection) -> Iterator[Found]:
    """Ask the store of all gateways, as Squid's account: what is wrong with its
    settings is another finding.
    """
    file = quota_store_file(seen.layout.policy)
    if file.exists() and not any(_quota_store_unusable(seen)):
        yield from _settings_faults(
            file,
            lambda file: try_quota_store(read_quota_store(file)),
            seen,
            seen.account,
        )


@finds("resolver-failing")
def _resolver_failing(seen: Inspection) -> Iterator[Found]:
    """Find what the maintenance process reports. Else ask its resolver, where Squid
    asks it: the maintenance process waits for some seconds.
    """
    maintenance, address = seen.view.services.maintenance, seen.layout.resolver
    servers = seen.last("dns_nameservers")
    if not maintenance.runs:
        return
    if reported := maintenance.failures.get("resolver"):
        yield Found(reported)
    elif servers and address in servers.words and not answers(address):
        asked = [*foreign_listeners(f"{address}:53", (), "udp")]
        named = ", ".join(f"process {one.pid} ({one.name()}) hangs" for one in asked)
        yield Found(
            f"no answer on {address} port 53: {named or 'nothing listens there'}",
            servers.place,
        )


@critical(
    "pull-settings-unusable",
    "The settings of `squidkeeper pull` cannot be used",
    "Fix pull.yaml, and let the account squidkeeper-pull read it. Until then no new policy is pulled.",
    as_root=True,
)
def _pull_settings_unusable(seen: Inspection) -> Iterator[Found]:
    """Find what is wrong with pull.yaml, as the account that pulls reads it, where
    there is one.

    Its unit gives it the group of Squid's account, and keeps its own.
    """
    account = account_of(ACCOUNTS["pull"])
    if account and seen.account:
        account = replace(account, group=seen.account.group)
    yield from _settings_faults(
        seen.layout.pull_settings, read_pull_settings, seen, account
    )


@info(
    "pull-without-ceiling",
    "Whoever signs the pulled policy may open everything",
    "Name a `ceiling` in pull.yaml: a policy that says what may be open at most. See policy/PULL.md.",
    as_root=True,
)
def _pull_without_ceiling(seen: Inspection) -> Iterator[Found]:
    file = seen.layout.pull_settings
    with suppress(PullFailed):  # another check tells that
        if read_pull_settings(file).ceiling is None:
            yield Found("it names no ceiling", str(file))


@critical(
    "sessions-unavailable",
    "Programs cannot make sessions",
    "Correct the faults of sessions.yaml, if any: the next call takes the edit."
    " If nothing answers, run `systemctl restart squidkeeper-sessions`, or `./install.sh`,"
    " and read `journalctl -u squidkeeper-sessions`, or sessions.log in its folder."
    " Without sessions.yaml no service runs: see squid/SESSIONS.md."
    " Sessions that are there go on.",
    as_root=True,
)
def _sessions_unavailable(seen: Inspection) -> Iterator[Found]:
    """Find a socket that does not answer, where the policy has roles or the operator
    names who makes sessions.
    """
    layout, file = seen.layout, seen.layout.sessions_settings
    if not file.exists():
        if seen.policy is not None and seen.policy.roles:
            yield Found("the policy has roles, and no program may make sessions")
        return
    _, faults = check_orchestrators(file, file.read_bytes())
    for fault in faults:
        yield Found(fault.text, str(fault.location))
    until = time.monotonic() + _STARTING_SECONDS
    while not (answered := _answers(layout.sessions_socket)):
        if time.monotonic() >= until:
            break
        time.sleep(_SLEEP_SECONDS)
    if not answered:
        yield Found("nothing answers", str(layout.sessions_socket))


def _answers(place: Path) -> bool:
    """Whether something answers at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_SOCKET_SECONDS)
        try:
            asking.connect(str(place))
            asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return bool(asking.recv(1))
        except OSError:
            return False


def _settings_faults(
    file: Path,
    read: Callable[[Path], object],
    seen: Inspection,
    account: Account | None,
) -> Iterator[Found]:
    if not file.exists():
        return
    check = partial(_settings_problem, file, read)
    if problem := call_as(account, check) if account and seen.is_root else check():
        yield Found(problem, str(file))


def _settings_problem(file: Path, read: Callable[[Path], object]) -> str:
    try:
        read(file)
    except (CountsUnavailable, InvalidExport, PullFailed, WebhookFailed) as error:
        return str(error)
    return ""


@critical(
    "secret-file-open",
    "Other accounts can read or replace a file with a secret",
    "Run `chown root:GROUP FILE` (the group of Squid's account) and `chmod 0640 FILE`; for a folder `chown root`"
    " and `chmod go-w`.",
    as_root=True,
)
def _exposed_files(seen: Inspection) -> Iterator[Found]:
    folders: dict[Path, str] = {}
    secrets = seen.layout.secrets.resolve()  # of what fetches
    for path, what in _secret_files(seen):
        if not path.exists() or (
            path.parent.name == PARTS and not _LOGIN.search(text_at(path))
        ):
            continue
        if problem := _exposed(
            path, seen.account, fetched=path.parent == seen.layout.secrets
        ):
            yield Found(f"{what}: {problem}", str(path))
        folders |= dict.fromkeys(path.resolve().parents, what)
    for folder, what in folders.items():
        owners = {
            *_owners(seen.account),
            *([folder.stat().st_uid] if folder == secrets else ()),
        }
        if other := changed_by_others(folder, owners):
            mode = stat.S_IMODE(folder.stat().st_mode)
            yield Found(
                f"above {what}: {other} can replace files in it (mode {mode:04o})",
                str(folder),
            )


def _owners(account: Account | None) -> set[int]:
    return {0, account.user} if account else {0}


def _exposed(path: Path, account: Account | None, *, fetched: bool) -> str:
    found = path.stat()
    mode, others = stat.S_IMODE(found.st_mode), {0, account.group if account else 0}
    if (
        found.st_uid not in _owners(account) and not fetched
    ):  # what was fetched belongs to what has fetched it
        return f"it belongs to user {found.st_uid}, neither root nor Squid's account"
    if mode & 0o007:
        return f"every account can read or write it (mode {mode:04o})"
    if mode & 0o020 or (mode & 0o070 and found.st_gid not in others):
        return f"group {found.st_gid} can read or write it (mode {mode:04o})"
    return ""


@critical(
    "squid-cannot-read",
    "Squid's account cannot read a file that it needs",
    "Run `chgrp GROUP FILE` and `chmod g+r FILE`, with the group of Squid's account; `chmod o+x` for a folder.",
    as_root=True,
)
def _squid_cannot_read(seen: Inspection) -> Iterator[Found]:
    if seen.account is None:
        return
    own = (seen.layout.signing_cert, seen.layout.signing_key, seen.layout.program)
    files = [
        *seen.conf.files,
        *own,
        *seen.layout.policy.rglob("*"),
        *seen.list_files,
        *seen.secret_files,
    ]
    for path, closed in unreadable_for(seen.account, files).items():
        yield Found(f"closed at {closed}", str(path))


@critical(
    "clock-off",
    "The clock is behind",
    "Set the clock, such as by an NTP client. Certificates and `expires` go by it.",
)
def _clock_off(seen: Inspection) -> Iterator[Found]:
    """Compare the clock with the CA, and with what the gateway wrote: a machine may
    have no NTP client to ask.
    """
    now = seen.view.now
    try:
        [first, *_] = x509.load_pem_x509_certificates(
            seen.layout.signing_cert.read_bytes()
        )
    except (OSError, ValueError):
        first = None
    if first and first.not_valid_before_utc.timestamp() > now:
        yield Found(
            f"the CA begins at {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            str(seen.layout.signing_cert),
        )
    for path in (
        seen.layout.access_log,
        seen.layout.cache_log,
        seen.layout.applied,
        seen.layout.conf,
    ):
        ahead = path.stat().st_mtime - now if path.exists() else 0
        if ahead > _CLOCK_SECONDS:
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            yield Found(f"it was written at {written:%Y-%m-%d %H:%M} UTC", str(path))


@info(
    "squid-version-unclear",
    "The version of Squid does not tell whether a known flaw is fixed",
    "Ask your distribution whether it is. If so, accept the finding: see squid/DOCTOR.md.",
)
def _squid_version_unclear(seen: Inspection) -> Iterator[Found]:
    version = seen.view.proxy.squid_version
    if version and version.fixed is None:
        yield Found(version.remark)


# --- logrotate ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RotationRule:
    """A block of logrotate's that names the access log, with what logrotate.conf says
    ahead of all blocks.
    """

    place: str
    body: str
    usual: str

    def has(self, word: str) -> bool:
        """Whether it has an option."""
        return re.search(rf"^\s*{word}\b", self.body, re.MULTILINE) is not None

    @property
    def days(self) -> float:
        """How many days of records it keeps, the current one left out."""
        number = int(self._last(r"rotate\s+(-?\d+)") or 0)
        return (
            float("inf")
            if number == -1
            else number * _PERIODS[self._last(rf"({'|'.join(_PERIODS)})\b") or "weekly"]
        )

    def _last(self, option: str) -> str:
        found = (
            re.findall(rf"^\s*{option}", text, re.MULTILINE)
            for text in (self.body, self.usual)
        )
        return next((values[-1] for values in found if values), "")


def _rotation_rules(seen: Inspection) -> Iterator[RotationRule]:
    ignores_others = False
    usual = re.split(
        r"^\s*include\b",
        text_at(seen.logrotate.with_suffix(".conf")),
        maxsplit=1,
        flags=re.MULTILINE,
    )[0]
    for path in sorted(seen.logrotate.glob("*")):
        text = text_at(path)
        for found in _BLOCK.finditer(text):
            if any(
                fnmatch(str(seen.layout.access_log), glob.strip("\"'"))
                for glob in found[1].split()
            ):
                rule = RotationRule(
                    f"{path}:{text.count(chr(10), 0, found.start()) + 1}",
                    found[2],
                    usual,
                )
                if not ignores_others:
                    yield rule
                ignores_others = ignores_others or rule.has("ignoreduplicates")


@critical(
    "logrotate-loses-records",
    "logrotate loses lines of the access log",
    "Rotate by renaming: remove copytruncate, and run `squid -k rotate` in postrotate.",
)
def _lost_by_logrotate(seen: Inspection) -> Iterator[Found]:
    for rule in _rotation_rules(seen):
        if rule.has("copytruncate"):
            yield Found(
                "copytruncate: what is logged between the copy and the cut is lost",
                rule.place,
            )
        elif not re.search(r"squid\b.*-k\s*rotate|systemctl .*squid", rule.body):
            yield Found(
                "it does not run `squid -k rotate`: Squid writes on into the file that is deleted",
                rule.place,
            )
        if rule.days == 0:
            yield Found("rotate 0: the log is deleted, not kept", rule.place)


@info(
    "logrotate-keeps-few-days",
    "logrotate deletes records within a week",
    "If the log is your audit, raise `rotate`: see squid/observe/RECORD.md.",
)
def _few_days_kept(seen: Inspection) -> Iterator[Found]:
    for rule in _rotation_rules(seen):
        if 0 < rule.days < _FEW_DAYS:
            yield Found(f"{quantity(round(rule.days), 'day')} of records", rule.place)


# --- Processes ------------------------------------------------------------------------


@critical(
    "service-not-running",
    "A service beside Squid does not work",
    "Run `./install.sh`, which starts it again. If it hangs, end it by `kill -9` and its process number.",
    as_root=True,
    running=True,
)
def _service_not_running(seen: Inspection) -> Iterator[Found]:
    """Find an installed service beside Squid that does not work.

    Others tell about bodies and heartbeats.
    """
    listens = text_at(seen.layout.service("exporter").applied).split(" ")[0]
    for name in sorted({*SERVICES} - {"maintenance", "secrets", "export", *BODIES}):
        paths = seen.layout.service(name)
        exporter = listens if name == "exporter" and listens != NO_EXPORTER else ""
        service = InstalledService(
            name,
            seen.layout,
            seen.squid.systemd,
            port=port_of(exporter) if exporter else None,
        )
        if paths.unit.exists() and not service.works():
            what = f"squidkeeper-{name}" + (
                f" does not answer on {exporter}" if exporter else ""
            )
            log = (
                f"`journalctl -u squidkeeper-{name}`"
                if seen.squid.systemd
                else paths.log
            )
            yield Found(f"{what}; its log: {log}", str(paths.unit))
        elif name == "exporter":
            yield from _unanswered(paths.unit, service.pid())


def _unanswered(unit: Path, exporter: int | None) -> Iterator[Found]:
    listens = re.search(
        r"^ExecStart=.* --health-listen (\S+)", text_at(unit), re.MULTILINE
    )
    if listens and not process_listens(exporter, port_of(listens[1])):
        yield Found(
            f"squidkeeper-exporter does not answer load balancers on {listens[1]}",
            str(unit),
        )


@warning(
    "few-descriptors-granted",
    "Squid runs with fewer descriptors than it is configured for",
    "Raise LimitNOFILE of Squid's unit, or the hard limit (`ulimit -Hn`) of what starts it, and restart Squid.",
    as_root=True,
    running=True,
)
def _few_descriptors_granted(seen: Inspection) -> Iterator[Found]:
    wanted, pid = seen.last("max_filedescriptors"), seen.squid.pid()
    if wanted is None or wanted.number is None or pid is None:
        return
    for process in psutil.Process(pid).children():
        if process.name() == "squid":
            granted = _descriptors(process.pid)
            if granted < wanted.number:
                yield Found(
                    f"process {process.pid} has {granted} of {wanted.first}",
                    wanted.place,
                )


@warning(
    "client-fills-descriptors",
    "One machine can have nearly all connections",
    "Raise the descriptors: LimitNOFILE of the unit, or `ulimit -Hn` of what starts it. Or lower the limit of a"
    " client: `./install.sh` gives each its share of HAProxy's.",
    as_root=True,
    running=True,
)
def _client_fills_descriptors(seen: Inspection) -> Iterator[Found]:
    most, own = seen.last("client_ip_max_connections"), seen.last("max_filedescriptors")
    if (
        own
        and own.number
        and (most is None or not 0 < 3 * 2 * (most.number or 0) < 0.8 * own.number)
    ):
        limit = most.first if most else "missing"
        place = most.place if most else str(seen.layout.conf)
        yield Found(
            f"client_ip_max_connections is {limit}, and a worker has {own.number} descriptors",
            place,
        )
    limits = re.search(r"sc0_conn_cur gt (\d+) ", text_at(seen.layout.haproxy))
    pid = InstalledService("tls", seen.layout, seen.squid.systemd).pid()
    if limits and pid is not None:
        granted = min(
            (_descriptors(process.pid) for process in _with_children(pid)), default=0
        )
        if granted and int(limits[1]) > granted // CLIENT_SHARE:
            text = f"HAProxy lets a client have {limits[1]} connections, and has {granted} descriptors"
            yield Found(text, str(seen.layout.haproxy))


def _with_children(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield from (process, *process.children())


def _descriptors(pid: int) -> int:
    """Return the limit of a process: psutil asks for one by a call that containers can
    forbid.
    """
    found = re.search(
        r"^Max open files +(\d+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE
    )
    return int(found[1]) if found else 0


@critical(
    "open-proxy",
    "The internet reaches the gateway, and any client is allowed",
    "Name `clients` in the rules, or let Squid listen on an inner address: `./install.sh --listen ADDRESS:PORT`.",
)
def _open_proxy(seen: Inspection) -> Iterator[Found]:
    """Find a gateway that the internet reaches, and whose policy allows any client.

    A port that requires a PROXY header serves load balancers alone:
    `proxy-protocol-open` finds one that serves others.
    """
    open_to = (
        open_to_any_client(seen.policy, str(seen.layout.policy), seen.view.at)
        if seen.policy
        else ()
    )
    balanced = {
        port.first
        for port in seen.named("http_port")
        if "require-proxy-header" in port.words
    }
    listens = (*seen.listens, *(f"{host}:443" for host in seen.transparent))
    for listen in listens if open_to else ():
        if listen not in balanced and (
            reached := ", ".join(map(str, reached_at(listen)))
        ):
            yield Found(
                f"it listens on {listen}, reached at {reached}; {open_to[0].text}",
                str(open_to[0].location),
            )


# --- Helpers --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskedHelper:
    """A command of ours that Squid runs, and a question in its protocol."""

    place: str
    command: tuple[str, ...]
    question: str

    @property
    def name(self) -> str:
        """The command without its path and most of its options."""
        return f"squidkeeper {' '.join(self.command[1:4])}"


@critical(
    "helper-silent",
    "A helper does not answer",
    "Run its command as Squid's account, and read what it says. Where the program is damaged, run `./install.sh`.",
    as_root=True,
    running=True,
    deep=True,
)
def _silent_helpers(seen: Inspection) -> Iterator[Found]:
    helpers = [*_helpers(seen)]
    with (
        tempfile.TemporaryDirectory(
            prefix="squidkeeper-doctor-", ignore_cleanup_errors=True
        ) as folder,
        ThreadPoolExecutor() as pool,
    ):
        if seen.account and seen.is_root:
            os.chown(folder, seen.account.user, seen.account.group)
        problems = pool.map(
            lambda helper: _problem(helper, folder, seen.account), helpers
        )
        for helper, problem in zip(helpers, problems, strict=True):
            if problem:
                yield Found(f"{helper.name}: {problem}", helper.place)


@critical(
    "stopped-helper-stays",
    "A helper that is stopped is not ended, and its clients wait for ever",
    "Run `systemctl restart squidkeeper-exporter`, or install.sh again: the exporter ends such helpers. Its log"
    " says why it does not.",
    as_root=True,
    running=True,
    deep=True,
)
def _stopped_helper_stays(seen: Inspection) -> Iterator[Found]:
    helper = next(
        (helper for helper in _helpers(seen) if "--state" in helper.command), None
    )
    if (
        helper is None
        or not InstalledService("exporter", seen.layout, seen.squid.systemd).works()
    ):
        return
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(  # noqa: S603 - Squid's command
        helper.command, **pipes, **_started_as(seen.account)
    ) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            process.wait(_STOPPED_SECONDS)
        except subprocess.TimeoutExpired:
            yield Found(
                f"{helper.name}: nothing ended a process that was stopped for {_STOPPED_SECONDS:.0f} s"
            )
        finally:
            process.kill()


def _helpers(seen: Inspection) -> Iterator[AskedHelper]:
    extras = seen.last("url_rewrite_extras")
    questions: dict[str, Callable[[Sequence[str]], str]] = {
        "external_acl_type": lambda words: f"1 {_values(words)} -",
        "url_rewrite_program": lambda _: (
            f"{_URL} {_values(' '.join(extras.words).split() if extras else ())}"
        ),
        "auth_param": lambda _: "1 squidkeeper-doctor - 127.0.0.1 -",
        "sslcrtd_program": lambda _: (
            "new_certificate 1 x"
        ),  # names no host: it answers ERR
    }
    for directive in seen.named(*questions):
        words = directive.words
        start = next(
            (at for at, word in enumerate(words) if Path(word).name == "squidkeeper"),
            None,
        )
        if start is not None:
            yield AskedHelper(
                directive.place,
                words[start:],
                questions[directive.name](words[1:start]) + "\n",
            )


def _values(format_: Sequence[str]) -> str:
    return " ".join(
        _ASKED.get(token, "-") for token in format_ if token.startswith("%")
    )


def _problem(helper: AskedHelper, folder: str, account: Account | None) -> str:
    """Ask a helper; give what is wrong with it.

    The end of its input ends it, once it has answered. The publisher that it has
    started is ended with it, since it would write on.
    """
    pairs = zip(("", *helper.command), helper.command, strict=False)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    try:
        process = subprocess.Popen(  # noqa: S603 - the command that Squid runs
            [folder if before == "--state" else word for before, word in pairs],
            **pipes,
            **_started_as(account),
            start_new_session=True,
        )
    except OSError as error:
        return f"it cannot be started ({error.strerror})"
    with process:
        try:
            answer = _answer(process, helper.question.encode())
        except subprocess.TimeoutExpired:
            return f"it neither answers nor works for {_IDLE_SECONDS:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return (
        ""
        if answer.strip()
        else f"it ends without an answer, with status {process.returncode}"
    )


def _answer(process: "subprocess.Popen[bytes]", question: bytes | None) -> bytes:
    """Return what a helper answers; `TimeoutExpired` when it does not work any more."""
    began = since = time.monotonic()
    worked = 0.0
    while True:
        try:
            return process.communicate(question, _LOOK_SECONDS)[0]
        except subprocess.TimeoutExpired:
            question = None  # it has been given
            now, work = time.monotonic(), _processor_seconds(process.pid)
            if work - worked > _WORK_SECONDS:
                worked, since = work, now
            if now - since > _IDLE_SECONDS or now - began > _LONGEST_SECONDS:
                raise


def _processor_seconds(pid: int) -> float:
    seconds = 0.0
    with suppress(psutil.NoSuchProcess):
        for process in _with_children(pid):
            used = process.cpu_times()
            seconds += used.user + used.system
    return seconds


def _started_as(account: Account | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "cwd": "/",
        "env": _ENVIRONMENT,
        "stderr": subprocess.DEVNULL,
    }
    if account is None or os.geteuid() != 0:
        return options
    groups = os.getgrouplist(account.name, account.group)
    return {
        **options,
        "user": account.user,
        "group": account.group,
        "extra_groups": groups,
    }
