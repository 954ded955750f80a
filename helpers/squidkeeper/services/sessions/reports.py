"""Reports on one session: what it may reach, what it has used, what it was denied."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

from squidkeeper.base.errors import InvalidRecord
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.session_values import with_session
from squidkeeper.policy.engine.sessions import SESSION_INVALID
from squidkeeper.policy.language.matching.table import written
from squidkeeper.policy.language.model import Action, Credential, Rewrite, Rule
from squidkeeper.policy.language.quotas import Counted, Quota
from squidkeeper.policy.language.roles import Session, why_invalid
from squidkeeper.policy.url import address_host
from squidkeeper.record.log.record import Record, parse_record
from squidkeeper.serving.quotas.counts import holder
from squidkeeper.serving.quotas.local_counts import FOLDER
from squidkeeper.serving.sessions.index import session_of
from squidkeeper.serving.sessions.store import SessionRow

_LOG_BYTES: Final = 8 * 1024 * 1024  # of the end of the access log
_DENIALS_AT_MOST: Final = 100
_COUNT: Final = (
    "SELECT used, ends FROM counts"
    " WHERE quota = ? AND unit = ? AND every = ? AND holder = ? AND ends > ?"
)
EntryT = TypeVar("EntryT", Rule, Rewrite, Credential)


def effective(policy: CompiledPolicy, row: SessionRow) -> dict[str, Any]:
    """Tell what a session may reach, with the values of its variables put in."""
    source, session = policy.source, session_of(row)
    role = next((role for role in source.roles if role.name == row.role), None)
    if why := why_invalid(role, row.role, row.variables):
        return _nothing(policy, row, why)
    names = _names(policy, row)
    rules = _of_session(source.rules, session, names)
    grants = _of_session(source.grants, session, names)
    rewrites = _of_session(source.rewrites, session, names)
    credentials = _of_session(source.credentials, session, names)
    return {
        "session": row.name,
        "number": row.number,
        "role": row.role,
        "revision": policy.revision,
        "rules": [_rule(rule) for rule in rules],
        "grants": [_rule(grant) for grant in grants],
        "rewrites": [_entry(rewrite) for rewrite in rewrites],
        "credentials": [
            {**_entry(credential), "headers": [*credential.form.places]}
            for credential in credentials
        ],
        "default": str(source.default_action),
    }


def _nothing(policy: CompiledPolicy, row: SessionRow, why: str) -> dict[str, Any]:
    return {
        "session": row.name,
        "number": row.number,
        "role": row.role,
        "revision": policy.revision,
        "denied_by": SESSION_INVALID,
        "reason": why,
        "rules": [],
        "grants": [],
        "rewrites": [],
        "credentials": [],
        "default": str(Action.DENY),
    }


def _names(policy: CompiledPolicy, row: SessionRow) -> tuple[str, ...]:
    """Name the role, and the policy's clients that the requests belong to, too."""
    user, client = row.name if row.token_sha256 else None, None
    if row.network is not None:
        client = address_host(ip_network(row.network).network_address)
    return (row.role, *policy.clients_of(client, user))


def _of_session(
    entries: Iterable[EntryT], session: Session, names: tuple[str, ...]
) -> Iterator[EntryT]:
    for entry in entries:
        clients = entry.match.clients
        if clients is None or not clients.isdisjoint(names):
            yield with_session(entry, session)


def _entry(entry: Rule | Rewrite | Credential) -> dict[str, Any]:
    match = written(entry.match)
    match.pop("clients", None)
    return {"name": entry.name, **match}


def _rule(rule: Rule) -> dict[str, Any]:
    facts = {
        "action": str(rule.action),
        "expires": rule.expires and rule.expires.isoformat(timespec="seconds"),
        "reason": rule.reason,
    }
    return {**_entry(rule), **{key: fact for key, fact in facts.items() if fact}}


@dataclass(frozen=True, slots=True)
class QuotaUsage:
    """Reads counts of quotas, which Squid's account writes."""

    state: Path

    def of(self, policy: CompiledPolicy, row: SessionRow) -> dict[str, Any]:
        """Tell what a session has used of its quotas, in their windows of now."""
        names = _names(policy, row)
        quotas = [quota for quota in policy.source.quotas if quota.holds_for(names)]
        return {
            "session": row.name,
            "number": row.number,
            "quotas": [*self._read(quotas, row)],
        }

    def _read(
        self, quotas: Iterable[Quota], row: SessionRow
    ) -> Iterator[dict[str, Any]]:
        for quota in quotas:
            if quota.per is Counted.RULE:
                continue  # no rule is known without a request
            named = holder(quota, "", None, "", session_of(row))
            used, ends = self._count(quota, named or "")
            yield {
                "quota": quota.name,
                "per": str(quota.per),
                "unit": str(quota.unit),
                "every": str(quota.window),
                "limit": quota.limit,
                "used": used,
                "window_ends": ends and _time(ends),
            }

    def _count(self, quota: Quota, named: str) -> tuple[int, float | None]:
        """Read a count; nothing is used where nothing was counted yet."""
        file = self.state / FOLDER / "counts.db"
        key = (quota.name, str(quota.unit), str(quota.window), named)
        try:
            uri = f"file:{quote(str(file))}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as database:
                found = database.execute(_COUNT, (*key, time.time())).fetchone()
        except sqlite3.Error:
            found = None
        return found or (0, None)


@dataclass(frozen=True, slots=True)
class LastDenials:
    """Reads the end of the access log."""

    access_log: Path

    def of(self, row: SessionRow) -> dict[str, Any]:
        """Tell the last denials of a session, the newest first."""
        found: deque[dict[str, Any]] = deque(maxlen=_DENIALS_AT_MOST)
        number = str(row.number)
        for record in self._records():
            if record.verdict == "deny" and record.session == number:
                found.append(_denial(record))
        return {
            "session": row.name,
            "number": row.number,
            "denials": [*reversed(found)],
        }

    def _records(self) -> Iterator[Record]:
        try:
            with self.access_log.open("rb") as file:
                length = file.seek(0, 2)
                if file.seek(max(0, length - _LOG_BYTES)):
                    file.readline()
                lines = file.read(_LOG_BYTES).split(b"\n")
        except OSError:
            return
        for line in lines:
            try:
                yield parse_record(line)
            except InvalidRecord:
                continue


def _denial(record: Record) -> dict[str, Any]:
    return {
        "time": record.time,
        "method": unquote(record.method),
        "url": unquote(record.url),
        "rule": unquote(record.rule),
        "status": record.status,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
