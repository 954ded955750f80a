"""`squidkeeper check`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from squidkeeper.base.errors import PolicyError, PullFailed
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.base.formatting import age, duration, quantity
from squidkeeper.base.layout import Layout
from squidkeeper.base.places import revisions_folder
from squidkeeper.base.squid_account import (
    Account,
    account_of,
    group_name,
    squid_account,
    unreadable_for,
)
from squidkeeper.cli.helper_options import DEFAULT_POLICY, policy_option, state_option
from squidkeeper.cli.options import fragment_option, json_option
from squidkeeper.cli.output import progress, show_json, show_text
from squidkeeper.policy.language.model import SHORTEST_WATCHED
from squidkeeper.policy.language.secret_sources import (
    EnvironmentSource,
    FileSource,
    SecretSource,
)

if TYPE_CHECKING:
    from squidkeeper.policy.language.host_lists import HostList
    from squidkeeper.policy.language.model import Policy, ReloadGate, Rewrite, Rule
    from squidkeeper.policy.policy_store.revisions import InForce
    from squidkeeper.policy.policy_store.sources import Sources


@click.command()
@policy_option
@state_option()
@click.option(
    "--account",
    metavar="NAME",
    help="Squid's account. [default: as `squid -v` names it]",
)
@click.option(
    "--require-clients", is_flag=True, help="Fail if a rule allows any client."
)
@fragment_option
@json_option
def check(
    directory: Path,
    state: Path,
    account: str | None,
    require_clients: bool,
    fragment: Path,
    as_json: bool,
) -> None:
    """Check a policy: print its faults, warnings and the age of lists; run its tests.

    As root, it also finds files that Squid's account cannot read. It names what Squid's
    configuration lacks, and why install.sh has to be run.

    \b
    Examples:
      sudo squidkeeper check
      squidkeeper check --policy ./draft --require-clients

    \b
    Exit status:
      0  The policy loads. Warnings are allowed.
      1  The policy does not load, Squid's account cannot read a file of it,
         or --require-clients found a rule that allows any client.
    """
    from squidkeeper.policy.policy_store.sources import read_sources

    sources = read_sources(directory)
    in_force = _in_force(directory, state)
    is_draft = in_force is None and directory.absolute() != DEFAULT_POLICY
    access = _access(sources, account, is_draft=is_draft)
    ended = in_force.ended if in_force else frozenset[str]()
    with progress("checking the policy"):
        report = _report(
            directory, sources, access, ended, require_clients, fragment, state
        )
    if as_json:
        show_json(_as_object(report))
    else:
        show_text(_text(report))
    raise SystemExit(1 if report.faults else 0)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found; `revision` is None where the policy does not load.

    A policy can load with `faults`: the helpers miss a secret of it, or
    --require-clients found a rule that allows any client.
    """

    directory: Path
    access: Access
    loads: bool = False
    revision: str | None = None
    rules: int = 0
    grants: int = 0
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    lists: tuple[ListReport, ...] = ()
    gate: ReloadGate | None = None
    install: tuple[str, ...] = ()  # for what install.sh has to be run
    parts: tuple[str, ...] | None = (
        None  # of Squid's configuration, in force; None where they cannot be read
    )


@dataclass(frozen=True, slots=True)
class Access:
    """What an account, Squid's if it is known, cannot read of a policy; or why that was
    not checked.

    `required` are faults of files without which its helpers keep the policy that they
    have, `others` those of secrets and canaries.
    """

    account: str | None
    not_checked: str = ""
    required: tuple[Fault, ...] = ()
    others: tuple[Fault, ...] = ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults of files."""
        return (*self.required, *self.others)


@dataclass(frozen=True, slots=True)
class ListReport:
    """One list of a policy that loads: what it holds, and how old its file is."""

    name: str
    file: Path
    hosts: int
    not_understood: int
    changed: datetime
    age_seconds: float


def _report(
    directory: Path,
    sources: Sources,
    access: Access,
    ended: frozenset[str],
    require_clients: bool,
    fragment: Path,
    state: Path,
) -> CheckReport:
    from squidkeeper.policy.extras import missing_extras
    from squidkeeper.policy.language.lint import lint, open_to_any_client
    from squidkeeper.policy.policy_store.loading import load_sources
    from squidkeeper.serving.parts import named_parts, not_in_force

    now = datetime.now(UTC)
    try:
        loaded = load_sources(sources, now, ended=ended)
    except PolicyError as error:
        faults = (*error.faults, *access.faults)
        return CheckReport(
            directory,
            access,
            faults=faults,
            warnings=error.warnings,
        )
    policy = loaded.compiled.source
    in_force = _rendered(fragment)
    found = (
        *loaded.warnings,
        *lint(policy, now),
        *_unusable_secrets(policy, sources),
        *(not_in_force(policy, in_force, str(fragment)) if in_force else ()),
        *missing_extras(policy),
        *_without_ceiling(policy, directory),
        *_session_makers(policy, directory, state),
    )
    open_entries = (
        open_to_any_client(policy, str(directory), now) if require_clients else ()
    )
    return CheckReport(
        directory,
        access,
        loads=not access.required,
        revision=policy.revision,
        rules=len(policy.rules),
        grants=len(policy.grants),
        faults=(*access.faults, *open_entries),
        warnings=found,
        lists=tuple(_list_reports(sources, policy.lists, now)),
        gate=policy.reload_gate,
        install=_to_install(policy, directory, state),
        parts=named_parts(in_force) if in_force else None,
    )


def _without_ceiling(policy: Policy, directory: Path) -> Iterator[Fault]:
    """Warn about what opens private addresses in a policy that is pulled without a
    ceiling.
    """
    from squidkeeper.services.pulling.settings import SETTINGS, read_pull_settings

    try:
        settings = read_pull_settings(directory.absolute().parent / SETTINGS)
    except PullFailed:
        return  # it is not pulled, or says so itself
    entries: tuple[Rule | Rewrite, ...] = (*policy.rules, *policy.rewrites)
    for entry in entries if settings.ceiling is None else ():
        if entry.private:
            what = f"{entry.name!r} opens private addresses in a policy that is pulled without a ceiling"
            message = (
                f"{what}: name one in {SETTINGS}, or the next version may open more"
            )
            yield Fault(entry.location, FaultCode.NO_CEILING, message)


def _session_makers(policy: Policy, directory: Path, state: Path) -> Iterator[Fault]:
    """Warn about roles that no program may give, and programs with unknown roles."""
    from squidkeeper.services.sessions.orchestrators import SETTINGS, unknown_roles

    file = directory.absolute().parent / SETTINGS
    roles = {role.name for role in policy.roles}
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        if roles and _in_force(directory, state):
            place = Location(str(file))
            message = "the policy has roles, but no program may make sessions: see squid/SESSIONS.md"
            yield Fault(place, FaultCode.SESSIONS_MISMATCH, message)
    except OSError:
        return  # of another account
    else:
        yield from unknown_roles(file, content, roles)


def _in_force(directory: Path, state: Path) -> InForce | None:
    """Read which revision of this folder is in force; None where another folder's is,
    or the state cannot be read.
    """
    from squidkeeper.policy.policy_store.revisions import revision_in_force

    found = revision_in_force(revisions_folder(state))
    return found if found and found.directory == directory.absolute() else None


def _access(sources: Sources, name: str | None, *, is_draft: bool) -> Access:
    """Find out what Squid's account cannot read. Only root can, and that account itself
    need not.

    A draft can stand where that account reads no file: it is for another place.
    """
    account = squid_account() if name is None else account_of(name)
    if account is None and name is not None:
        raise click.BadParameter(
            f"there is no account {name!r} on this machine", param_hint="--account"
        )
    if account is None:
        return Access(None, "no Squid was found here: name its account by --account")
    if os.geteuid() == account.user:
        return Access(account.name)
    if os.geteuid() != 0:
        return Access(
            account.name, f"only root, or {account.name} itself, can find out"
        )
    try:
        closed_at = unreadable_for(account, [sources.directory]).get(sources.directory)
        if is_draft and closed_at:
            return Access(
                account.name,
                f"{account.name} cannot read {closed_at}, and another policy is in force",
            )
        closed = tuple(_unreadable(sources, account))
    except PermissionError as error:
        return Access(account.name, str(error))
    required, others = (
        tuple(text for fault, text in closed if fault is wanted)
        for wanted in (True, False)
    )
    return Access(account.name, required=required, others=others)


def _unreadable(sources: Sources, account: Account) -> Iterator[tuple[bool, Fault]]:
    """Find each file of a policy that an account cannot read, or the directory alone;
    tell whether nothing loads.
    """
    directory = _NamedFile(
        sources.directory,
        Location(str(sources.directory)),
        "the policy directory",
        _NOTHING_LOADS,
    )
    places = [directory, *_places(sources)]
    found = unreadable_for(account, [place.path for place in places])
    for place in [directory] if directory.path in found else places:
        if place.path in found:
            text = _unreadable_text(place, found[place.path], account)
            yield (
                place.so == _NOTHING_LOADS,
                Fault(place.location, FaultCode.CLOSED_TO_SQUID, text),
            )


def _unreadable_text(place: _NamedFile, closed: Path, account: Account) -> str:
    why = "permission denied" if closed == place.path else f"it cannot enter {closed}"
    mode = "x" if closed != place.path else "rx" if closed.is_dir() else "r"
    file = quote(str(closed))
    how = f"give it access (chgrp {group_name(account)} {file}; chmod g+{mode} {file})"
    return f"{place.what} cannot be read by Squid's account {account.name} ({why}), so {place.so}: {how}"


def _places(sources: Sources) -> Iterator[_NamedFile]:
    from squidkeeper.policy.language.document import file_entries
    from squidkeeper.policy.policy_store.sources import policy_files

    for path in policy_files(sources.directory):
        yield _NamedFile(path, Location(str(path)), "this file", _NOTHING_LOADS)
    for section, kind, so in _NAMED_FILES:
        for document, name, path in file_entries(sources.with_local, section):
            yield _NamedFile(
                path, document.locate((section, name, "file")), f"{kind} {name!r}", so
            )


@dataclass(frozen=True, slots=True)
class _NamedFile:
    """A file of a policy: where the policy names it, what it is, and what follows if it
    cannot be read.
    """

    path: Path
    location: Location
    what: str
    so: str


_NOTHING_LOADS = "its helpers do not load the policy"
_NAMED_FILES = (
    ("lists", "list", _NOTHING_LOADS),
    ("secrets", "secret", "requests that need it are denied"),
    ("canaries", "canary", "requests are not searched for it"),
)


def _unusable_secrets(policy: Policy, sources: Sources) -> Iterator[Fault]:
    """Read the secrets as the credential helper does; those that loading has reported
    are left out.
    """
    from squidkeeper.serving.credentials import SecretStore

    for kind, named in (("secret", policy.secrets), ("canary", policy.canaries)):
        store = SecretStore(named, os.environ)
        for name, secret in named.items():
            if not _is_read(secret.source, sources):
                continue
            if problem := store.problem(name):
                yield Fault(secret.location, problem.code, str(problem))
            elif policy.watch and store.watched_length(name) < SHORTEST_WATCHED:
                short = f"{kind} {name!r} has fewer than {SHORTEST_WATCHED} characters"
                message = f"{short}, so requests are not searched for it"
                yield Fault(secret.location, FaultCode.SECRET_UNWATCHED, message)


def _is_read(source: SecretSource, sources: Sources) -> bool:
    """Whether a secret can be read here. `check` fetches none."""
    match source:
        case FileSource(path):
            return not sources.secrets[path].problem
        case EnvironmentSource(variable):
            return variable in sources.environment
        case _:
            return False


def _rendered(fragment: Path) -> frozenset[str] | None:
    """Read which parts are in force; None where that cannot be read: a draft may be on
    another machine.
    """
    from squidkeeper.serving.parts import read_in_force

    try:
        return read_in_force(fragment.read_text())
    except OSError:
        return None


def _to_install(policy: Policy, directory: Path, state: Path) -> tuple[str, ...]:
    from squidkeeper.policy.language.secret_sources import fetched_secrets

    service = Layout.around(directory.absolute(), state).service("secrets").unit
    return (
        ("fetched secrets",)
        if any(fetched_secrets(policy.secrets)) and not service.exists()
        else ()
    )


def _list_reports(
    sources: Sources, lists: Mapping[str, HostList], now: datetime
) -> Iterator[ListReport]:
    from squidkeeper.policy.language.document import file_entries

    for _, name, path in file_entries(sources.documents, "lists"):
        summary = lists[name].summary
        with suppress(OSError):  # removed since it was read: the next load reports it
            changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            age_seconds = (now - changed).total_seconds()
            yield ListReport(
                name, path, summary.patterns, summary.strange, changed, age_seconds
            )


def _text(report: CheckReport) -> str:
    lines = [
        f"{fault.location}: fault: {fault.text}" for fault in sorted(report.faults)
    ]
    lines += [
        f"{warning.location}: warning: {warning.text}"
        for warning in sorted(report.warnings)
    ]
    lines += [_list_text(listed) for listed in report.lists]
    lines += [_gate_text(report.gate)] if report.gate else []
    if report.access.not_checked:
        lines.append(
            f"not checked: what Squid's account can read ({report.access.not_checked})"
        )
    if report.parts:
        lines.append(
            f"parts of Squid's configuration in force: {', '.join(report.parts)}"
        )
    if report.install:
        lines.append(
            f"run install.sh: nothing does yet what the policy says about {', '.join(report.install)}"
        )
    found = f"{quantity(len(report.faults), 'fault')}, {quantity(len(report.warnings), 'warning')}"
    if not report.loads:
        return "\n".join([*lines, f"{report.directory} does not load: {found}"])
    grants = f", {quantity(report.grants, 'grant')}" if report.grants else ""
    rules = f"{quantity(report.rules, 'rule')}{grants}"
    return "\n".join(
        [
            *lines,
            f"{report.directory} loads: revision {report.revision}, {rules}, {found}",
        ]
    )


def _gate_text(gate: ReloadGate) -> str:
    what = f"deny more than {gate.denials:,} combinations of client, rule and host that were used"
    return f"reload gate: an edit is refused that would {what} within {duration(gate.since_seconds)}"


def _list_text(report: ListReport) -> str:
    left_out = (
        f", {quantity(report.not_understood, 'line')} not understood"
        if report.not_understood
        else ""
    )
    return f"{report.file}: list {report.name}: {quantity(report.hosts, 'host')}, {age(report.age_seconds)}{left_out}"


def _as_object(report: CheckReport) -> dict[str, object]:
    return {
        "loads": report.loads,
        "revision": report.revision,
        "rules": report.rules,
        "reload_gate": asdict(report.gate) if report.gate else None,
        "grants": report.grants,
        "faults": _rows(report.faults),
        "warnings": _rows(report.warnings),
        "lists": [_list_row(listed) for listed in report.lists],
        "install": list(report.install),
        "parts": report.parts,
        "account": {
            "name": report.access.account,
            "not_checked": report.access.not_checked or None,
        },
    }


def _list_row(report: ListReport) -> dict[str, object]:
    return {
        "name": report.name,
        "file": str(report.file),
        "hosts": report.hosts,
        "not_understood": report.not_understood,
        "changed": report.changed.isoformat(timespec="seconds"),
        "age_seconds": round(report.age_seconds),
    }


def _rows(found: tuple[Fault, ...]) -> list[dict[str, object]]:
    return [
        {
            "file": fault.location.file,
            "line": fault.location.line,
            "column": fault.location.column,
            "code": fault.code,
            "message": fault.message,
        }
        for fault in sorted(found)
    ]
