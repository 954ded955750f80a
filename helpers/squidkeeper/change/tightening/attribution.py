"""Which entries of a policy decided a recorded request."""

from dataclasses import dataclass

from squidkeeper.change.replay.judge import decided, passes
from squidkeeper.policy.engine import CompiledPolicy, Decision
from squidkeeper.policy.language.paths import Beginning
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.policy.url import unrecorded_url
from squidkeeper.record.log.judging import ANY_TIME, RecordedHost, RecordedHosts, SameFor, asker_of, beginnings_of
from squidkeeper.record.log.record import Record, parse_time
from squidkeeper.record.log.requests import as_sent


@dataclass(frozen=True, slots=True)
class Attribution:
    """The rule that decided, whether the request passes, and what it got. `observed` is as it is recorded."""

    rule: str
    passes: bool
    credentials: tuple[str, ...] = ()
    rewrite: str | None = None
    observed: str | None = None


@dataclass(frozen=True, slots=True)
class AttributedHost:
    """What is asked about all requests of one asker, method, host and tunnel."""

    policy: CompiledPolicy
    host: RecordedHost

    @property
    def same_for(self) -> SameFor:
        """For which URLs the answer is the same."""
        return SameFor.USUAL_URLS if self.host.is_recorded_alike else SameFor.NO_OTHER

    @property
    def silent(self) -> bool:
        """Every request counts."""
        return False

    @property
    def depends_on_time(self) -> bool:
        """Whether the time of a request matters."""
        return self.host.match.depends_on_time

    @property
    def beginnings(self) -> frozenset[Beginning] | None:
        """What decides about a usual URL whose path has one reading; None where more of the URL does."""
        return beginnings_of([self.host])

    def judge(self, record: Record) -> Attribution | None:
        """Attribute one of these requests; None where a tunnel passed through that the policy would look into."""
        at = parse_time(record) if self.depends_on_time else ANY_TIME
        url = None if record.method == CONNECT else unrecorded_url(as_sent(record))
        decision = decided(self.policy, self.host, url, at)
        return None if decision is None else _attribution(decision)


class AttributionJudge:
    """Attributes recorded requests to the entries of a policy."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        self._hosts = RecordedHosts()

    def askers(self, record: Record) -> tuple[str, ...]:
        """Give what the policy knows of client and user."""
        return (asker_of(self._policy, record),)

    def question(self, record: Record) -> AttributedHost:
        """Give what to ask about a record, and all others of its asker, method, host and tunnel."""
        return AttributedHost(self._policy, self._hosts.of(self._policy, record))


def _attribution(decision: Decision) -> Attribution:
    if not passes(decision):
        return Attribution(decision.rule, passes=False, observed=decision.observed)
    return Attribution(
        decision.rule,
        passes=True,
        credentials=tuple(one.name for one in decision.credentials),
        rewrite=decision.rewritten.rewrite.name if decision.rewritten else None,
        observed=decision.observed,
    )
