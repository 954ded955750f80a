"""The sessions of a gateway: made, changed and ended, by the rights of who calls.

This process alone writes the store, so it has all active sessions in memory.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_network
from threading import RLock
from typing import Any, Final

from squidkeeper.base.errors import SessionGone, SessionTaken
from squidkeeper.policy.language.roles import LONGEST_TTL, why_invalid
from squidkeeper.services.sessions.connections import Cut
from squidkeeper.services.sessions.content import Content, ContentKey
from squidkeeper.services.sessions.models import (
    NAME,
    NAME_EXPECTED,
    ExchangedSession,
    Judging,
    ListedSession,
    ListTaken,
    PolicyTerms,
    SessionAsked,
    SessionChange,
    SessionEnded,
    SessionListed,
    SessionPage,
    SessionsEnded,
    SessionShown,
    SessionState,
    judge_kept,
    judged,
    judged_or_faults,
    refuse_list,
)
from squidkeeper.services.sessions.orchestrators import Orchestrator
from squidkeeper.services.sessions.problems import (
    CallRefused,
    FieldProblem,
    ProblemCode,
    pointer,
)
from squidkeeper.services.sessions.session_secrets import SessionSecrets
from squidkeeper.serving.sessions.answers import StoredAnswer, with_answer
from squidkeeper.serving.sessions.clock import TimeNow
from squidkeeper.serving.sessions.store import (
    EXPIRED,
    NewSession,
    SessionRow,
    SessionStore,
    place_of,
)

_PREFIX: Final = "sqk_"  # as of tokens of clients
_TOKEN_BYTES: Final = 32
# Squid keeps an OK until the second whole second after it.
KEPT_SECONDS: Final = 2.5
_CUT_AGAIN_SECONDS: Final = 2.2  # before an address can be used again
_CUT_AT_START_SECONDS: Final = 600.0  # whose end may not have been cut
_CUT_SECONDS: Final = 0.02  # of the usual cut
_LIST_AT_MOST: Final = 20_000
_PAGE: Final = (100, 1000)  # usual, and at most
_LOOK_SECONDS: Final = 0.2  # for sessions that are over
_A_SECOND: Final = 1.0
_OTHER: Final = "the session has another value"
_CHANGES: Final = (
    "PATCH changes address, secrets and ttl; to change another field, end it first"
)
_NOTE: Final = (
    "connections of a session without an address are not cut: each new request in them is denied"
    " (tunnel-outdated), and what is under way goes on"
)


@dataclass(frozen=True, slots=True)
class ClientSide:
    """What a session's programs need: the proxy's URL, and their variables.

    Nothing where the gateway has no address that is surely the right one.
    """

    proxy: str | None = None
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class GatewayOfSessions:
    """What the keeper needs of the gateway.

    `terms` raises `CallRefused` without a policy. `cut` ends what sessions have open.
    `client_side` takes an address, a user and a token.
    """

    terms: Callable[[], PolicyTerms]
    cut: Callable[[Sequence[SessionRow]], Cut]
    client_side: Callable[[str | None, str | None, str | None], ClientSide]


@dataclass(frozen=True, slots=True)
class Kept:
    """What a call has made of a session, with the version that `If-Match` names."""

    shown: SessionShown
    version: str
    is_new: bool = False


class SessionKeeper:
    """The sessions. Its calls come from several threads."""

    def __init__(
        self,
        store: SessionStore,
        secret_values: SessionSecrets,
        key: ContentKey,
        around: GatewayOfSessions,
        now: Callable[[], TimeNow] = TimeNow.now,
    ) -> None:
        self._store = store
        self._secrets = secret_values
        self._key = key
        self._around = around
        self._now = now
        self._lock = RLock()
        self._active: dict[str, SessionRow] = {}  # by name
        self._numbers = Counter[str]()  # of active sessions, by orchestrator
        # when a name or network was left; at the start none is known, so all wait
        self._left: dict[str, float] = {}
        self._began = time.monotonic()
        self._look_at = 0.0  # for sessions that are over
        self._cut_again: deque[tuple[float, SessionRow]] = deque()
        self._being_cut = Counter[str]()  # how often, by place
        for row in store.active():
            self._take(row)
        for row in store.ended_since(now().wall - _CUT_AT_START_SECONDS):
            self._cut_later(row)
        secret_values.keep([row.number for row in self._active.values()])

    # --- calls ------------------------------------------------------------------------

    def put(self, caller: Orchestrator, name: str, data: Mapping[str, Any]) -> Kept:
        """Make a session, or find that it is there."""
        if not NAME.fullmatch(name):
            fault = FieldProblem(pointer("name"), f"expected {NAME_EXPECTED}")
            raise CallRefused(ProblemCode.INVALID_SESSION, fault.detail, [fault])
        terms = self._around.terms()
        asked = judged(SessionAsked, data, Judging(terms, caller))
        return self._put(caller, name, asked, terms)

    def put_exchanged(
        self, caller: Orchestrator, name: str, asked: ExchangedSession
    ) -> Kept:
        """Make the session of a signed token, or find that it is there."""
        return self._put(caller, name, asked, self._around.terms())

    def terms(self) -> PolicyTerms:
        """Return what the policy in force has for sessions."""
        return self._around.terms()

    def get(self, caller: Orchestrator, name: str) -> Kept:
        """Show a session; one that has ended too, as long as it is known."""
        return self._kept(self._of(caller, name), self._around.terms())

    def change(
        self,
        caller: Orchestrator,
        name: str,
        data: Mapping[str, Any],
        version: str | None,
    ) -> Kept:
        """Change a session whose version the caller has seen."""
        if version is None:
            raise CallRefused(
                ProblemCode.IF_MATCH_MISSING,
                "send the ETag of the session that you saw",
            )
        terms, row = self._around.terms(), self._active_of(caller, name)
        self._check_number(caller)
        judging = Judging(terms, caller.with_roles_of_tokens(), role=row.role)
        stays = None if data.get("address") is not None else row.network
        judge_kept(row.role, row.labels, stays, judging)
        asked = judged(SessionChange, data, judging)
        with self._ready(None, *_places(asked.address)):
            row = self._active_of(caller, name)
            _check_version(row, version)
            changed = self._changed(row, asked, terms)
        if changed.network != row.network:
            self._cut([row])
        return self._kept(changed, terms)

    def end(
        self, caller: Orchestrator, name: str, version: str | None = None
    ) -> SessionsEnded:
        """End a session, at the version that the caller has seen, if it says one;
        nothing where it is gone.
        """
        with self._lock:
            row = self._active.get(name)
            if row is None:
                return SessionsEnded(ended=[])
            _check_own(caller, row)
            if version is not None:
                _check_version(row, version)
            self._end([row], "deleted")
        return self._ended([row])

    def end_labelled(
        self, caller: Orchestrator, labels: Mapping[str, str]
    ) -> SessionsEnded:
        """End the sessions of the caller that have all of the labels."""
        with self._lock:
            rows = [row for row in self._own(caller) if _has(row, labels)]
            self._end(rows, "deleted")
        return self._ended(rows)

    def page(
        self, caller: Orchestrator, labels: Mapping[str, str], after: int, limit: int
    ) -> SessionPage:
        """Show active sessions of the caller, by their numbers."""
        terms = self._around.terms()
        with self._lock:
            found = [
                row
                for row in self._own(caller)
                if row.number > after and _has(row, labels)
            ]
        found.sort(key=lambda row: row.number)
        some = found[: limit or _PAGE[0]]
        more = str(some[-1].number) if len(found) > len(some) else None
        return SessionPage(
            sessions=[self._kept(row, terms).shown for row in some], next=more
        )

    def take_list(self, caller: Orchestrator, data: Mapping[str, Any]) -> ListTaken:
        """Make the sessions of the caller those of a list: what is not in it ends."""
        terms = self._around.terms()
        listed = _judged_list(data, terms, caller)
        names = {asked.name for asked in listed}
        with self._lock:
            gone = [row for row in self._own(caller) if row.name not in names]
            replaced = [
                row
                for asked in listed
                if (row := self._active.get(asked.name)) is not None
                and row.orchestrator == caller.name
                and self._other_fields(row, asked)
            ]
            self._end(gone, "not listed")
            self._end(replaced, "replaced")
        others = {row.name for row in replaced}
        ended = self._ended([*gone, *replaced])
        taken = [self._listed(caller, asked, terms, others) for asked in listed]
        with _told_store():
            self._store.sync()
        return ListTaken(sessions=taken, **ended.model_dump())

    def numbered(self, caller: Orchestrator, number: int) -> SessionRow | None:
        """Find an active session of the caller by its number."""
        rows = (row for row in self._own(caller) if row.number == number)
        return next(rows, None)

    def answer(self, number: int, new: StoredAnswer) -> StoredAnswer:
        """Keep an answer to a ticket of an active session; return the one that holds,
        which may be an earlier one.
        """
        at = TimeNow.now()
        with self._lock:
            rows = (row for row in self._active.values() if row.number == number)
            row = next(rows, None)
            if row is None:
                raise CallRefused(ProblemCode.NO_TICKET, "its session has ended")
            found = next((one for one in row.answers if one.ticket == new.ticket), None)
            if found is not None and not found.is_over(at):
                if found.is_same(new):
                    return found
                raise CallRefused(
                    ProblemCode.ANSWERED_OTHERWISE, f"{found.by} has answered it"
                )
            answers = with_answer(row.answers, new, at)
            if answers is None:
                raise CallRefused(
                    ProblemCode.TOO_MANY_ANSWERS, "wait until an approval lapses"
                )
            with _told_store():
                self._take(self._store.answer(number, answers))
            return new

    # --- time -------------------------------------------------------------------------

    def check(self) -> None:
        """End what is over, and cut what came by an answer that Squid has kept; called
        a few times a second.
        """
        with self._lock:
            self._shorten()
            over = self._end_over()
            now = time.monotonic()
            self._left = {
                key: when
                for key, when in self._left.items()
                if now - when < KEPT_SECONDS
            }
            again = []
            while self._cut_again and self._cut_again[0][0] <= now:
                again.append(self._cut_again.popleft()[1])
        if over or again:
            self._cut([*over, *again])

    def forget(self, before: float) -> None:
        """Forget the sessions that ended before a time."""
        with _told_store():
            self._store.purge(before)

    def row_of(self, caller: Orchestrator, name: str) -> SessionRow:
        """Find a session of the caller; `CallRefused` where there is none."""
        return self._of(caller, name)

    # --- parts ------------------------------------------------------------------------

    def _put(
        self,
        caller: Orchestrator,
        name: str,
        asked: SessionAsked,
        terms: PolicyTerms,
        *,
        synced: bool = True,
    ) -> Kept:
        with self._ready(name, *_places(asked.address)):
            row = self._active.get(name)
            if row is not None:
                return self._again(caller, row, asked, terms)
            self._check_free(caller, name, terms)
            if isinstance(asked, ExchangedSession):
                self._check_unused(name)
            return self._create(caller, name, asked, terms, synced=synced)

    def _again(
        self,
        caller: Orchestrator,
        row: SessionRow,
        asked: SessionAsked,
        terms: PolicyTerms,
    ) -> Kept:
        if row.orchestrator != caller.name:
            raise CallRefused(
                ProblemCode.NAME_TAKEN,
                f"{row.name!r} is a session of another orchestrator",
            )
        if others := self._other_fields(row, asked):
            raise CallRefused(
                ProblemCode.OTHER_CONTENT,
                f"session {row.number} has this name and differs in {', '.join(others)}: {_CHANGES}",
                [FieldProblem(pointer(name), _OTHER) for name in others],
            )
        self._check_number(caller)
        self._write_secrets(row.number, _revealed(asked))
        lifetime = self._lifetime(
            row.created, asked.ttl, row.role, terms, _until(asked)
        )
        extends = lifetime >= self._rest(row) + _A_SECOND
        if extends:
            with _told_store():
                row = self._take(self._store.change(row.number, lifetime=lifetime))
        kept = self._kept(row, terms)
        return replace(kept, shown=kept.shown.model_copy(update={"extended": extends}))

    def _check_free(self, caller: Orchestrator, name: str, terms: PolicyTerms) -> None:
        if name in terms.names:
            raise CallRefused(
                ProblemCode.NAME_TAKEN, f"{name!r} is a proxy user of the policy"
            )
        self._check_number(caller, more=1)

    def _check_number(self, caller: Orchestrator, more: int = 0) -> None:
        has, most = self._numbers[caller.name], caller.sessions_at_most
        if has + more > most:
            raise CallRefused(
                ProblemCode.TOO_MANY_SESSIONS,
                f"{caller.name} has {has} sessions, and its bound is {most}: end some first",
            )

    def _check_unused(self, name: str) -> None:
        """Refuse a signed token whose session has ended."""
        with _told_store():
            former = self._store.by_name(name)
        if former is not None:
            raise CallRefused(
                ProblemCode.TOKEN_USED,
                f"session {former.number} had this token: ask the platform for another",
            )

    def _create(
        self,
        caller: Orchestrator,
        name: str,
        asked: SessionAsked,
        terms: PolicyTerms,
        *,
        synced: bool,
    ) -> Kept:
        token, hashed = None, asked.token_sha256
        if asked.address is None and hashed is None:
            token = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
            hashed = sha256(token.encode()).hexdigest()
        values = _revealed(asked)
        hashes, until = self._key.hashes(values), _until(asked)
        content = Content(asked.ttl, token is not None, hashes, until)
        new = NewSession(
            name=name,
            role=asked.role,
            network=asked.address,
            token_sha256=hashed,
            variables={key: tuple(of) for key, of in asked.variables.items()},
            labels=asked.labels,
            secrets=tuple(sorted(values)),
            orchestrator=caller.name,
            lifetime=self._lifetime(
                self._now().wall, asked.ttl, asked.role, terms, until
            ),
            content=content.text(),
        )
        with _told_store():
            row = self._store.create(
                new, lambda number: self._make_secrets(number, values), synced=synced
            )
        kept = self._kept(self._take(row), terms, token)
        return replace(kept, is_new=True)

    def _changed(
        self, row: SessionRow, asked: SessionChange, terms: PolicyTerms
    ) -> SessionRow:
        values, content = _revealed(asked), Content.parse(row.content)
        lifetime = None
        if asked.ttl is not None:
            lifetime = self._lifetime(
                row.created, asked.ttl, row.role, terms, content.until
            )
        content = Content(
            asked.ttl if asked.ttl is not None else content.ttl,
            content.made_token,
            {**content.secrets, **self._key.hashes(values)},
            content.until,
        )
        former = self._secrets.of(row.number)
        self._write_secrets(row.number, values)
        try:
            with _told_store():
                changed = self._store.change(
                    row.number,
                    lifetime=lifetime,
                    network=asked.address,
                    secrets=tuple(sorted({*row.secrets, *values})),
                    content=content.text(),
                )
        except CallRefused:
            self._secrets.restore(row.number, former)
            raise
        if changed.network != row.network:
            self._leave(row)
            self._cut_later(row)
        return self._take(changed)

    def _other_fields(self, row: SessionRow, asked: SessionAsked) -> list[str]:
        """Name the fields that a session was given in another way."""
        content = Content.parse(row.content)
        given = {key: tuple(values) for key, values in asked.variables.items()}
        token = None if content.made_token else row.token_sha256
        is_same = {
            "role": row.role == asked.role,
            "address": row.network == asked.address,
            "variables": {k: tuple(of) for k, of in row.variables.items()} == given,
            "labels": dict(row.labels) == asked.labels,
            "token_sha256": token == asked.token_sha256,
            "ttl": (content.ttl, content.until) == (asked.ttl, _until(asked)),
            "secrets": content.secrets == self._key.hashes(_revealed(asked)),
        }
        return [name for name, same in is_same.items() if not same]

    def _make_secrets(self, number: int, values: Mapping[str, str]) -> None:
        with _told_secrets():
            self._secrets.make(number, values)

    def _write_secrets(self, number: int, values: Mapping[str, str]) -> None:
        with _told_secrets():
            self._secrets.put(number, values)

    @contextmanager
    def _ready(self, name: str | None, *places: str) -> Iterator[None]:
        """Wait until nothing of a former session holds for a name or network, and keep
        others out.
        """
        while True:
            with self._lock:
                self._cut_again.extendleft((0, row) for row in self._end_over())
                wait = self._seconds_to_wait(name, places)
                if wait <= 0:
                    yield
                    return
            time.sleep(wait)

    def _seconds_to_wait(self, name: str | None, places: Sequence[str]) -> float:
        if name in self._active:
            return 0  # it is asked about the session that is there
        if any(self._being_cut[place] for place in places):
            return _CUT_SECONDS
        left = (*places, *([] if name is None else [name]))
        since = max((self._left.get(key, self._began) for key in left), default=0)
        return since + KEPT_SECONDS - time.monotonic()

    def _shorten(self) -> None:
        """Have no session live longer than the policy in force lets its role."""
        try:
            roles = self._around.terms().roles
        except CallRefused:  # no policy
            return
        late = {
            role
            for row in self._active.values()
            if (role := roles.get(row.role)) is not None
            and row.ends > row.created + role.ttl + _A_SECOND
        }
        for role in late:
            with _told_store():
                for row in self._store.shorten(role.name, role.ttl):
                    self._take(row)

    def _end_over(self) -> list[SessionRow]:
        now = time.monotonic()
        if now < self._look_at:
            return []
        at = self._now()
        over = [row for row in self._active.values() if row.expired(at)]
        self._end(over, EXPIRED)
        left = (row.seconds_left(at) for row in self._active.values())
        self._look_at = now + min((_LOOK_SECONDS, *left))
        return over

    def _end(self, rows: Sequence[SessionRow], why: str) -> None:
        if rows:
            with _told_store():
                self._store.end_all([row.number for row in rows], why)
        for row in rows:
            self._secrets.remove(row.number)
            if self._active.pop(row.name, None) is not None:
                self._numbers[row.orchestrator] -= 1
            self._leave(row)
            self._cut_later(row)

    def _cut_later(self, row: SessionRow) -> None:
        self._cut_again.append((time.monotonic() + _CUT_AGAIN_SECONDS, row))

    def _cut(self, rows: Sequence[SessionRow]) -> Cut:
        """Cut what sessions have open that were ended, or have left an address.

        What another active session has open stays.
        """
        used = defaultdict[str, list[IPv4Network | IPv6Network]](list)
        with self._lock:
            for network in (row.network for row in self._active.values()):
                if network is not None:
                    used[place_of(network)].append(ip_network(network))
            free = [row for row in rows if not _is_used(row.network, used)]
            places = [place_of(row.network) for row in free if row.network]
            self._being_cut.update(places)  # a successor waits for the end of it
        try:
            return self._around.cut(free)
        finally:
            with self._lock:
                self._being_cut.subtract(places)
                self._being_cut = +self._being_cut

    def _leave(self, row: SessionRow) -> None:
        now = time.monotonic()
        self._left[row.name] = now
        if row.network is not None:
            self._left[place_of(row.network)] = now

    def _take(self, row: SessionRow) -> SessionRow:
        if row.name not in self._active:
            self._numbers[row.orchestrator] += 1
        self._active[row.name] = row
        self._look_at = 0.0 if row.expired(TimeNow.now()) else self._look_at
        return row

    def _own(self, caller: Orchestrator) -> list[SessionRow]:
        with self._lock:
            rows = [*self._active.values()]
        return [row for row in rows if row.orchestrator == caller.name]

    def _of(self, caller: Orchestrator, name: str) -> SessionRow:
        with self._lock:
            row = self._active.get(name)
        if row is None and NAME.fullmatch(name):
            with _told_store():
                row = self._store.by_name(name)
        if row is None:
            raise CallRefused(ProblemCode.NO_SESSION, f"there is no session {name!r}")
        _check_own(caller, row)
        return row

    def _active_of(self, caller: Orchestrator, name: str) -> SessionRow:
        row = self._of(caller, name)
        if row.ended is not None:
            raise CallRefused(
                ProblemCode.NO_SESSION, f"session {row.number}, {name!r}, has ended"
            )
        return row

    def _ended(self, rows: Sequence[SessionRow]) -> SessionsEnded:
        """Cut what sessions have open that were ended."""
        cut = self._cut(rows)
        return SessionsEnded(
            ended=[SessionEnded(name=row.name, number=row.number) for row in rows],
            left=cut.left,
            problem=cut.problem or None,
            note=_NOTE if any(row.network is None for row in rows) else None,
        )

    def _listed(
        self,
        caller: Orchestrator,
        asked: ListedSession,
        terms: PolicyTerms,
        replaced: set[str],
    ) -> SessionListed:
        try:
            kept = self._put(caller, asked.name, asked, terms, synced=False)
        except CallRefused as error:
            return SessionListed(
                name=asked.name, result="refused", problem=error.problem.as_object()
            )
        if kept.is_new:
            return SessionListed(
                name=asked.name,
                result="replaced" if asked.name in replaced else "created",
                session=kept.shown,
            )
        return SessionListed(
            name=asked.name,
            result="extended" if kept.shown.extended else "kept",
            session=kept.shown,
        )

    def _kept(
        self, row: SessionRow, terms: PolicyTerms, token: str | None = None
    ) -> Kept:
        state, reason = self._state(row, terms)
        user = row.name if row.token_sha256 else None
        side = self._around.client_side(row.network, user, token)
        return Kept(
            SessionShown(
                name=row.name,
                number=row.number,
                role=row.role,
                state=state,
                reason=reason,
                orchestrator=row.orchestrator,
                address=_shown_network(row.network),
                variables={key: [*values] for key, values in row.variables.items()},
                labels=dict(row.labels),
                secrets=[*row.secrets],
                has_token=row.token_sha256 is not None,
                created=_time(row.created),
                expires=_time(row.ends),
                ended=None if row.ended is None else _time(row.ended),
                revision=terms.revision,
                proxy=side.proxy,
                env=None if row.ended is not None or not side.env else dict(side.env),
                token=token,
            ),
            version_of(row),
        )

    def _state(
        self, row: SessionRow, terms: PolicyTerms
    ) -> tuple[SessionState, str | None]:
        if row.ended is not None:
            return SessionState.ENDED, row.ended_why
        if row.expired(self._now()):
            return SessionState.ENDED, EXPIRED
        role = terms.roles.get(row.role)
        if why := why_invalid(role, row.role, row.variables):
            return SessionState.INVALID, why
        if missing := self._secrets.missing(row.number, row.secrets):
            names = ", ".join(missing)
            return SessionState.SECRETS_MISSING, f"give these again: {names}"
        return SessionState.ACTIVE, None

    def _lifetime(
        self,
        created: float,
        ttl: int | None,
        role: str,
        terms: PolicyTerms,
        until: float | None,
    ) -> float:
        """Return how long a session lives from now on: its role, and the end of its
        signed token, bound the whole.
        """
        known = terms.roles.get(role)
        most = known.ttl if known else LONGEST_TTL
        ends = created + most
        if until is not None:
            ends = min(ends, until)
        return min(ttl or most, ends - self._now().wall)

    def _rest(self, row: SessionRow) -> float:
        """Return how long a session still lives, by the clock that ends it first."""
        at = self._now()
        by_wall = row.ends - at.wall
        if row.boot != at.boot:
            return by_wall
        return min(by_wall, row.boot_ends - at.since_boot)


@contextmanager
def _told_secrets() -> Iterator[None]:
    """Answer that the values of secrets cannot be written."""
    try:
        yield
    except OSError as error:
        raise CallRefused(
            ProblemCode.STORE_UNAVAILABLE,
            f"the values of secrets cannot be kept: {error.strerror}",
        ) from error


@contextmanager
def _told_store() -> Iterator[None]:
    """Answer what the store refuses."""
    try:
        yield
    except SessionTaken as error:
        code = ProblemCode.ADDRESS_TAKEN
        if error.field == "name":
            code = ProblemCode.NAME_TAKEN
        fields = [FieldProblem(pointer(error.field), "another session has it")]
        detail = f"another session has this {error.field}: end it first"
        raise CallRefused(code, detail, fields) from error
    except SessionGone as error:
        raise CallRefused(ProblemCode.NO_SESSION, "the session has ended") from error
    except OSError as error:
        raise _unavailable() from error


def _unavailable() -> CallRefused:
    """Say nothing of the machine: the log of the service has the cause."""
    return CallRefused(
        ProblemCode.STORE_UNAVAILABLE,
        "nothing has changed; the log of this service has the cause: try again once its operators have removed it",
    )


def _is_used(
    network: str | None, used: Mapping[str, Sequence[IPv4Network | IPv6Network]]
) -> bool:
    if network is None:
        return False
    return any(map(ip_network(network).overlaps, used.get(place_of(network), ())))


def _until(asked: SessionAsked) -> float | None:
    """Return when the signed token of a session ends."""
    return asked.until if isinstance(asked, ExchangedSession) else None


def version_of(row: SessionRow) -> str:
    """Write the version of a session, as its ETag."""
    return f'"{row.number}-{row.change}"'


def _check_version(row: SessionRow, given: str) -> None:
    """Refuse another version than those of If-Match; a weak tag is none of them."""
    if not {"*", version_of(row)} & {tag.strip() for tag in given.split(",")}:
        raise CallRefused(
            ProblemCode.CHANGED_MEANWHILE,
            f"the session is at {version_of(row)}: read it again",
        )


def _judged_list(
    data: Mapping[str, Any], terms: PolicyTerms, caller: Orchestrator
) -> list[ListedSession]:
    items, faults = data.get("sessions"), list[FieldProblem]()
    for key in data.keys() - {"sessions"}:
        faults.append(FieldProblem(pointer(key), "unknown field"))
    if not isinstance(items, list) or len(items) > _LIST_AT_MOST:
        expected = f"expected a list of at most {_LIST_AT_MOST:,} sessions"
        refuse_list([*faults, FieldProblem(pointer("sessions"), expected)])
    listed: list[ListedSession] = []
    names: set[str] = set()
    for number, item in enumerate(items):
        judging = Judging(terms, caller, at=("sessions", number))
        if not isinstance(item, dict):
            faults.append(FieldProblem(pointer(*judging.at), "expected an object"))
            continue
        made, found = judged_or_faults(ListedSession, item, judging)
        faults += found
        if made is not None:
            if made.name in names:
                place = pointer(*judging.at, "name")
                faults.append(FieldProblem(place, "the name is there twice"))
            names.add(made.name)
            listed.append(made)
    if faults:
        refuse_list(faults)
    return listed


def _check_own(caller: Orchestrator, row: SessionRow) -> None:
    if row.orchestrator != caller.name:
        raise CallRefused(
            ProblemCode.SESSION_OF_ANOTHER,
            f"{row.name!r} is a session of another orchestrator",
        )


def _has(row: SessionRow, labels: Mapping[str, str]) -> bool:
    return all(row.labels.get(name) == value for name, value in labels.items())


def _revealed(asked: SessionAsked | SessionChange) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in asked.secrets.items()}


def _shown_network(network: str | None) -> str | None:
    """Write an address without the bits of a network of itself alone."""
    if network is None:
        return None
    found = ip_network(network)
    return str(found.network_address) if found.num_addresses == 1 else network


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _places(network: str | None) -> tuple[str, ...]:
    return () if network is None else (place_of(network),)
