"""The process that makes sessions: its store, its policy, and its socket."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from squidkeeper.base.places import revisions_folder
from squidkeeper.base.service_notify import ALIVE, READY, notify
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.secret_sources import SessionSource
from squidkeeper.policy.published.reader import PolicyReader
from squidkeeper.services.sessions.application import Reports, SessionsApplication
from squidkeeper.services.sessions.audit import AuditLog
from squidkeeper.services.sessions.connections import Cut, Listener, cut
from squidkeeper.services.sessions.content import ContentKey
from squidkeeper.services.sessions.keeper import (
    ClientSide,
    GatewayOfSessions,
    SessionKeeper,
)
from squidkeeper.services.sessions.models import PolicyTerms
from squidkeeper.services.sessions.orchestrators import OrchestratorsInForce
from squidkeeper.services.sessions.problems import CallRefused, ProblemCode
from squidkeeper.services.sessions.reports import LastDenials, QuotaUsage, effective
from squidkeeper.services.sessions.server import bind, serve
from squidkeeper.services.sessions.session_secrets import SessionSecrets
from squidkeeper.services.sessions.tickets import SessionTickets
from squidkeeper.serving.sessions.store import SessionRow, SessionStore

SOCKET: Final = "api.sock"
SECRETS: Final = "secrets"
_CHECK_EVERY_SECONDS: Final = 0.2
_ALIVE_EVERY_SECONDS: Final = 5.0  # WatchdogSec= of the unit is longer
_FORGET_EVERY_SECONDS: Final = 3600.0
_DAY_SECONDS: Final = 86_400.0
_SECRETS_MODE: Final = 0o750  # Squid's group reads them
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SessionsOptions:
    """The options of the command."""

    directory: Path
    state: Path  # of the policy that is published
    folder: Path  # of the store
    run: Path  # of the socket, and of secrets
    settings: Path
    audit_log: Path
    access_log: Path
    listeners: tuple[Listener, ...]  # where clients connect to
    keep_days: int  # sessions that have ended


def run_sessions(
    options: SessionsOptions,
    client_side: Callable[[str | None, str | None, str | None], ClientSide],
) -> None:
    """Serve until SIGTERM; `ListenFailed` or OSError if it cannot start.

    `client_side` tells what a client with an address, a user and a token needs.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it holds secrets
    terms = lru_cache(maxsize=1)(policy_terms)
    policy: PolicyReader[CompiledPolicy] = PolicyReader(
        options.directory, revisions_folder(options.state), lambda compiled: compiled
    )
    policy.start()
    store = SessionStore(options.folder)
    store.start()
    folder = options.run / SECRETS
    folder.mkdir(mode=_SECRETS_MODE, parents=True, exist_ok=True)
    keeper = SessionKeeper(
        store,
        SessionSecrets(folder),
        ContentKey(options.folder),
        GatewayOfSessions(
            terms=lambda: terms(policy.current),
            cut=partial(_cut, options.listeners),
            client_side=client_side,
        ),
    )
    orchestrators = OrchestratorsInForce(options.settings)
    application = SessionsApplication(
        keeper,
        orchestrators,
        AuditLog(options.audit_log),
        _reports(options, lambda: _in_force(policy.current)),
        SessionTickets(keeper, options.state, lambda: _in_force(policy.current)),
    )
    path = options.run / SOCKET
    server = serve(application, bind(path), orchestrators.may_connect)
    kept_seconds = options.keep_days * _DAY_SECONDS
    follow_time = partial(_check, keeper, kept_seconds, path, _inode(path))
    threading.Thread(target=follow_time, name="time", daemon=True).start()
    notify(READY)
    server.run()


def _reports(
    options: SessionsOptions, current: Callable[[], CompiledPolicy]
) -> Reports:
    usage = QuotaUsage(options.state)
    return Reports(
        effective=lambda row: effective(current(), row),
        usage=lambda row: usage.of(current(), row),
        requests=LastDenials(options.access_log).of,
    )


def policy_terms(policy: CompiledPolicy | None) -> PolicyTerms:
    """Return the terms of the policy for sessions; `CallRefused` without one."""
    source = _in_force(policy).source
    names = {
        name
        for client in source.clients
        for name in (*(client.users or ()), *_login(client.name, client.tokens))
    }
    return PolicyTerms(
        revision=_in_force(policy).revision,
        roles={role.name: role for role in source.roles},
        networks=source.session_networks,
        secrets=frozenset(
            name
            for name, secret in source.secrets.items()
            if isinstance(secret.source, SessionSource)
        ),
        names=frozenset(names),
    )


def _in_force(policy: CompiledPolicy | None) -> CompiledPolicy:
    if policy is None:
        raise CallRefused(
            ProblemCode.NO_POLICY, "`squidkeeper check` tells what is wrong with it"
        )
    return policy


def _login(name: str, tokens: object) -> tuple[str, ...]:
    return () if tokens is None else (name,)


def _cut(listeners: Sequence[Listener], rows: Sequence[SessionRow]) -> Cut:
    """End what the addresses of sessions have open. Of one that logs in from anywhere,
    no address is known.
    """
    networks = [ip_network(row.network) for row in rows if row.network is not None]
    return cut(networks, listeners) if networks else Cut()


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _check(
    keeper: SessionKeeper, kept_seconds: float, path: Path, inode: int | None
) -> None:
    """End what is over, and forget what ended long ago. A store that cannot be written
    is tried again.

    A socket that was removed or replaced ends the process, so that it is bound again.
    """
    told = alive = forgot = -_FORGET_EVERY_SECONDS
    while True:
        now = time.monotonic()
        try:
            keeper.check()
            if now - forgot > _FORGET_EVERY_SECONDS:
                keeper.forget(time.time() - kept_seconds)
                forgot = now
        except CallRefused as error:
            if now - told > 60:
                _log.error("sessions cannot be ended: %s", error.__cause__ or error)
                told = now
        if now - alive > _ALIVE_EVERY_SECONDS:
            notify(ALIVE)
            alive = now
            if _inode(path) != inode:
                _log.error("%s is another file: this process ends", path)
                os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_CHECK_EVERY_SECONDS)
