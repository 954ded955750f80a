"""The judge of a replay: asks two policies about a recorded request, and compares what
they decide.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from squidkeeper.change.difference.consequences import form_texts
from squidkeeper.change.replay.result import Flip, FlipKind
from squidkeeper.policy.engine import CompiledPolicy, Decision, Stage, decide
from squidkeeper.policy.language.model import Action
from squidkeeper.policy.language.paths import Beginning
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.policy.url import unrecorded_url
from squidkeeper.record.log.host_judging import (
    ANY_TIME,
    RecordedHost,
    RecordedHosts,
    SameFor,
    asker_of,
    beginnings_of,
)
from squidkeeper.record.log.record import Record, parse_time
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS, RecordedSessions
from squidkeeper.record.log.requests import as_sent


@dataclass(frozen=True, slots=True)
class Difference:
    """What a replay shows about a request; where there is nothing, the answer is None.

    `disagrees`: the access log has another verdict than the old policy. `unseen`: one
    policy would look into a tunnel that passed through, and what it would decide there
    is not known. `unread`: the body would decide, which no record has.
    """

    flip: Flip | None = None
    observed: str | None = None
    disagrees: bool = False
    unseen: bool = False
    unread: bool = False


_UNSEEN, _UNREAD = Difference(unseen=True), Difference(unread=True)


@dataclass(frozen=True, slots=True)
class ReplayedHost:
    """What is asked about all requests of one asker, method, host, tunnel and recorded
    verdict.
    """

    old: CompiledPolicy
    new: CompiledPolicy
    hosts: tuple[RecordedHost, RecordedHost]
    usual: Difference | None  # the answer for every usual URL, where it is settled
    same_for: SameFor
    depends_on_time: bool  # whether the time of a request matters

    @property
    def silent(self) -> bool:
        """Whether there is nothing to show about a usual URL."""
        return self.same_for is SameFor.USUAL_URLS and self.usual is None

    @property
    def beginnings(self) -> frozenset[Beginning] | None:
        """What decides about a usual URL whose path has one reading; None where more of
        the URL does.
        """
        return beginnings_of(self.hosts)

    def judge(self, record: Record) -> Difference | None:
        """Compare the policies about one of these requests; its time is that at which
        it was asked.
        """
        at = parse_time(record) if self.depends_on_time else ANY_TIME
        url = None if record.method == CONNECT else unrecorded_url(as_sent(record))
        old, new = self.hosts
        return _difference(
            decided(self.old, old, url, at),
            decided(self.new, new, url, at),
            record.verdict,
        )


class ReplayJudge:
    """Judges recorded requests by two policies, each as the session that asked."""

    def __init__(
        self,
        old: CompiledPolicy,
        new: CompiledPolicy,
        sessions: RecordedSessions = NO_SESSIONS,
    ) -> None:
        self._old = old
        self._new = new
        self._hosts = RecordedHosts(sessions)

    def askers(self, record: Record) -> tuple[str, ...]:
        """Return what the policies know of client and user."""
        return asker_of(self._old, record), asker_of(self._new, record)

    def question(self, record: Record) -> ReplayedHost:
        """Return what to ask about a record, and all others of its asker, method, host,
        tunnel and verdict.
        """
        hosts = self._hosts.of(self._old, record), self._hosts.of(self._new, record)
        settled = all(host.is_recorded_alike for host in hosts)
        usual = None
        if settled:
            asked = zip((self._old, self._new), hosts, strict=True)
            old, new = (
                _seen(policy, host, host.decision, ANY_TIME) for policy, host in asked
            )
            usual = _difference(old, new, record.verdict)
        timed = any(host.match.depends_on_time for host in hosts)
        same_for = SameFor.USUAL_URLS if settled else SameFor.NO_OTHER
        return ReplayedHost(self._old, self._new, hosts, usual, same_for, timed)


def decided(
    policy: CompiledPolicy, host: RecordedHost, url: str | None, at: datetime
) -> Decision | None:
    """Decide a recorded request; None where the policy would look into a tunnel that
    passed through.
    """
    return _seen(policy, host, decide(policy, host.match, at, Stage.ALL, url), at)


def _seen(
    policy: CompiledPolicy, host: RecordedHost, decision: Decision, at: datetime
) -> Decision | None:
    """Return a decision, or None where the policy would look into a tunnel that passed
    through.
    """
    if decision.allowed or not host.match.spliced:
        return decision
    looked_into = decide(policy, host.match._replace(spliced=False), at, Stage.HOST)
    return None if passes(looked_into) else decision


def _difference(
    old: Decision | None, new: Decision | None, verdict: str
) -> Difference | None:
    if old is None or new is None:
        return _UNSEEN
    if old.by_body or new.by_body:
        if _asked(old) == _asked(new):  # the same rules decide by the same body
            return None
        if new.by_body:
            return _UNREAD
        # as the body has decided
        old = replace(old, action=Action(verdict if verdict == "allow" else "deny"))
    flip, disagrees = _flip(old, new), verdict != ("allow" if passes(old) else "deny")
    return (
        Difference(flip, new.observed, disagrees)
        if flip or disagrees or new.observed is not None
        else None
    )


def _asked(decision: Decision) -> object:
    """Return the rules that the body decides among, and what they ask."""
    rules = [
        (rule.name, rule.action, rule.observe, rule.body) for rule in decision.by_body
    ]
    return rules, _credentials(decision), _target(decision)


def passes(decision: Decision) -> bool:
    """Whether a request passes: a tunnel in which every request is asked about opens,
    and lets none through.
    """
    return decision.allowed and not decision.asks


def _flip(old: Decision, new: Decision) -> Flip | None:
    passed, would_pass = passes(old), passes(new)
    if passed is would_pass and (
        not passed or _gives_nothing(old, new)
    ):  # the usual case
        return None
    had, has = _credentials(old), _credentials(new)
    gained, lost = _names(has - had), _names(had - has)
    rewrites = (
        (_rewrite(new), _rewrite(old)) if _target(old) != _target(new) else (None, None)
    )
    if passed is not would_pass:
        kind = FlipKind.OPENED if would_pass else FlipKind.DENIED
    elif gained or lost or rewrites != (None, None):
        kind = FlipKind.CHANGED
    else:
        return None
    return Flip(
        kind, new.rule, old.rule, gained, lost, *rewrites, new.observed, new.asks
    )


def _gives_nothing(old: Decision, new: Decision) -> bool:
    return not (old.credentials or new.credentials or old.rewritten or new.rewritten)


def _credentials(decision: Decision) -> set[tuple[str, ...]]:
    """Return each credential by its name and what it injects, which an edit can change
    under the same name.
    """
    return (
        {(held.name, *form_texts(held.form)) for held in decision.credentials}
        if passes(decision)
        else set()
    )


def _names(credentials: set[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted(name for name, *_ in credentials))


def _rewrite(decision: Decision) -> str | None:
    return (
        decision.rewritten.rewrite.name
        if passes(decision) and decision.rewritten
        else None
    )


def _target(decision: Decision) -> object:
    if not passes(decision) or decision.rewritten is None:
        return None
    rewrite = decision.rewritten.rewrite
    return rewrite.name, rewrite.redirect, decision.rewritten.url
