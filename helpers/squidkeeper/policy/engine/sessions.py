"""Which session a request belongs to, and whether the policy still knows its role."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.errors import PatternError
from squidkeeper.policy.engine.decision import OUTDATED, Decision, deny
from squidkeeper.policy.language.model import SESSION_REQUIRED, Policy
from squidkeeper.policy.language.roles import Role, Session
from squidkeeper.policy.protocol.request import NO_LOGIN, Request
from squidkeeper.policy.url import Address, Host

SESSIONS_UNAVAILABLE: Final = "sessions-unavailable"
SESSION_INVALID: Final = "session-invalid"
# Of the address's session, or of that of a login and of the address.
Stamp = int | tuple[int, int]
_CACHE_BYTES, _PROBLEM_BYTES = 1024 * 1024, 300
_REQUIRED: Final = "Only sessions may use this address, and none is active here."
_NO_ROLE: Final = "The policy has no role {} any longer, which the session {} has."
_NO_VALUES: Final = "The role {} no longer takes what the session {} was given. Who made it can read why."


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request gets no session: a built-in rule and the reason for the page."""

    rule: str
    reason: str


class Sessions(Protocol):
    """The active sessions, as they were at the last `refresh` or `stamp_of`.

    One line of Squid is decided by one state of them: what is kept for it has its
    stamp.
    """

    @property
    def have_tokens(self) -> bool:
        """Whether a login can be that of a session."""

    def refresh(self) -> None:
        """Take what has changed."""

    def find(
        self, client: Host | None, user: str | None, login: str | None
    ) -> Session | Refused | None:
        """Find the session of a request: that of its login, else that of its address.

        None: it has none.
        """

    def numbered(self, number: int) -> Session | None:
        """Find an active session by its number."""

    def stamp_of(self, line: bytes) -> Stamp:
        """Return a value for what `find` finds for a line of Squid: another one after
        each change of that.
        """

    def former(self, client: Host) -> str:
        """Say when the last session of an address ended; an empty text where it had
        none.
        """

    def log_in(self, name: str, sha256: str, address: Address | None) -> str:
        """Return the result of a login, one of `LOGIN_RESULTS`."""


class NoSessions:
    """No session is active."""

    have_tokens: Final = False

    def refresh(self) -> None:
        """Take what has changed, which is nothing."""

    def find(self, client: Host | None, user: str | None, login: str | None) -> None:
        """Find no session."""

    def numbered(self, number: int) -> None:
        """Find no session."""

    def stamp_of(self, line: bytes) -> Stamp:  # noqa: ARG002
        """Return the number that stands for no session."""
        return 0

    def former(self, client: Host) -> str:  # noqa: ARG002
        """Know of no former session."""
        return ""

    def log_in(self, name: str, sha256: str, address: Address | None) -> str:  # noqa: ARG002
        """Refuse a login."""
        return "unknown_client"


NO_SESSIONS: Final = NoSessions()


class PolicySessions:
    """The active sessions, as a policy knows them; `logins` are its clients
    with tokens.
    """

    def __init__(
        self, policy: Policy, sessions: Sessions, logins: Container[str | None]
    ) -> None:
        self.active = sessions
        self._roles = {role.name: role for role in policy.roles}
        self._networks = policy.session_networks
        self._logins = logins
        self._problems: BoundedCache[int, str] = BoundedCache(_CACHE_BYTES)

    def of(self, request: Request) -> tuple[Request, Decision | None]:
        """Return a request with its session, and the denial where it may not have it,
        or needs one.

        A tunnel belongs to the session that opened it, or to none.
        """
        found = self._find(request)
        if isinstance(found, Refused):
            return request, deny(found.rule, found.reason)
        request = request._replace(session=found)
        if found is not None and (problem := self._problem(found)):
            return request, deny(SESSION_INVALID, problem)
        number = None if found is None else found.number
        is_of_another = request.tunnel is not None and request.tunnel_session != number
        return request, OUTDATED if is_of_another else None

    def _find(self, request: Request) -> Session | Refused | None:
        is_login = request.login not in (None, NO_LOGIN)
        user = request.user if is_login and request.user not in self._logins else None
        found = self.active.find(request.client, user, request.login)
        if isinstance(found, Session):
            return found
        is_within = self._is_within(request.client and request.client.address)
        if found is not None:
            concerns = is_within or user or found.rule != SESSIONS_UNAVAILABLE
            return found if concerns else None
        if not is_within or request.client is None:
            return None
        former = self.active.former(request.client)
        return Refused(SESSION_REQUIRED, f"{_REQUIRED} {former}".strip())

    def may_log_in(self, request: Request) -> bool:
        """Whether a request without a login may belong to a session by one."""
        if not self.active.have_tokens:
            return False
        return self.active.find(request.client, None, None) is None

    def _is_within(self, address: Address | None) -> bool:
        return address is not None and any(
            address in network for network in self._networks
        )

    def _problem(self, session: Session) -> str:
        known = self._problems.get(session.stamp)
        if known is None:
            known = problem_of(session, self._roles)
            self._problems.add(session.stamp, known, _PROBLEM_BYTES + len(known))
        return known


def problem_of(session: Session, roles: Mapping[str, Role]) -> str:
    """Say why a policy with these roles does not know a session as it was given; else
    nothing.
    """
    role = roles.get(session.role)
    if role is None:
        return _NO_ROLE.format(session.role, session.name)
    try:
        role.check(session.values)
    except PatternError:  # its text has the pattern, which is not for the client
        return _NO_VALUES.format(session.role, session.name)
    return ""


def refused_record(policy: Policy, session: Session) -> Decision | None:
    """Deny the recorded requests of a session that a policy does not know as it was
    given.

    One that is assumed has values as its caller needs them.
    """
    if session.is_assumed:
        return None
    problem = problem_of(session, {role.name: role for role in policy.roles})
    return deny(SESSION_INVALID, problem) if problem else None
