"""How a policy was used: which rule decided which requests, each distinct question
judged once.

The policy tells which rule decided, not the record: another revision may have been in
force then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.change.learning.path_shapes import Evidence, PathShapes, shape_of
from squidkeeper.change.replay.judge import decided, passes

# that the table has to have
from squidkeeper.change.replay.replay import (
    COLUMNS as COLUMNS,
)
from squidkeeper.change.replay.replay import DECISIVE, rows_at_their_times
from squidkeeper.policy.engine import CompiledPolicy, Decision
from squidkeeper.policy.language.paths import Beginning
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.policy.url import (
    Host,
    address_host,
    parse_address,
    parse_host,
    parse_url,
    readings,
    unrecorded_url,
)
from squidkeeper.record.log.host_judging import (
    ANY_TIME,
    RecordedHost,
    RecordedHosts,
    SameFor,
    asker_of,
    beginnings_of,
)
from squidkeeper.record.log.record import NONE, Record, parse_time
from squidkeeper.record.log.recorded_sessions import (
    NO_SESSIONS,
    RecordedSessions,
    Unknown,
)
from squidkeeper.record.log.requests import as_sent, token
from squidkeeper.record.table.questions import QuestionTable, in_utc
from squidkeeper.record.table.row_judging import Judgements, insert, judge_rows

if TYPE_CHECKING:
    import duckdb

    from squidkeeper.policy.language.model import Rule
    from squidkeeper.policy.language.paths import PathPattern

_BATCH: Final = 5000
_USES: Final = f"""
    CREATE OR REPLACE TABLE tighten_uses AS
    SELECT place, client, user, session, host, coalesce(method, '{NONE}') AS method, split_part(url, '?', 1) AS base,
        count(*) AS requests, min(time) AS first, max(time) AS last, list(DISTINCT time::DATE) AS days
    FROM tighten_judged JOIN tighten_places USING (answer) GROUP BY ALL
"""  # noqa: S608 - of constants
_SPAN: Final = "sum(requests)::BIGINT, min(first), max(last)"
_EVIDENCE: Final = f"""{_SPAN}, list_distinct(flatten(list(days))), list(DISTINCT client),
    list(DISTINCT coalesce(user, client))
"""
_HOSTS_AT_MOST: Final = (
    2_000  # of a rule; one that was used for more is not narrowed to some of them
)
_METHODS_AT_MOST: Final = 100  # clients can make up methods
_ANYONE: Final = frozenset({""})  # whoever asked: all that was allowed has to stay so
_SCHEME: Final = (
    "CASE WHEN contains(base, '://') THEN split_part(base, '://', 1) ELSE 'https' END"
)
_ANSWERS: Final = "answer INTEGER, place INTEGER"


@dataclass(frozen=True, slots=True)
class Attribution:
    """The rule that decided, whether the request passes, and what it got.

    `observed` is as it is recorded.
    """

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
        """What decides about a usual URL whose path has one reading; None where more of
        the URL does.
        """
        return beginnings_of([self.host])

    def judge(self, record: Record) -> Attribution | None:
        """Attribute one of these requests.

        None where a tunnel passed through that the policy would look into, or where the
        body decides.
        """
        at = parse_time(record) if self.depends_on_time else ANY_TIME
        url = None if record.method == CONNECT else unrecorded_url(as_sent(record))
        decision = decided(self.policy, self.host, url, at)
        return None if decision is None or decision.by_body else _attribution(decision)


class AttributionJudge:
    """Attributes recorded requests to the entries of a policy."""

    def __init__(self, policy: CompiledPolicy, sessions: RecordedSessions) -> None:
        self._policy = policy
        self._hosts = RecordedHosts(sessions)

    def askers(self, record: Record) -> tuple[str, ...]:
        """Return what the policy knows of client and user."""
        return (asker_of(self._policy, record),)

    def question(self, record: Record) -> AttributedHost:
        """Return what to ask about a record, and all others of its asker, method, host
        and tunnel.
        """
        return AttributedHost(self._policy, self._hosts.of(self._policy, record))


def _attribution(decision: Decision) -> Attribution:
    if not passes(decision):
        return Attribution(decision.rule, passes=False, observed=decision.observed)
    return Attribution(
        decision.rule,
        passes=True,
        credentials=tuple(credential.name for credential in decision.credentials),
        rewrite=decision.rewritten.rewrite.name if decision.rewritten else None,
        observed=decision.observed,
    )


@dataclass(slots=True)
class RuleUse:
    """What a rule decided: `requests` of them, and `tunnels`: CONNECTs in which no
    request came.

    `evidence` is of both. Where `hosts` or `paths` is None, some host or path has no
    pattern of its own.
    """

    requests: int = 0
    tunnels: int = 0
    evidence: Evidence | None = None
    clients: set[str] = field(default_factory=set)
    hosts: dict[Host, Evidence] | None = field(default_factory=dict)
    methods: set[str] = field(default_factory=set)
    schemes: set[str] = field(default_factory=set)
    paths: dict[PathPattern | None, PathShapes] | None = field(default_factory=dict)


@dataclass(slots=True)
class PolicyUse:
    """How the entries of a policy were used in a period; `rules` by their names, also
    those of presets and grants.

    `clients` counts the requests of each client of the policy, and of the sessions of
    each role, whatever was decided.
    """

    requests: int = 0
    first: datetime | None = None
    last: datetime | None = None
    addresses: int = 0
    rules: dict[str, RuleUse] = field(default_factory=dict)
    observed: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)
    lists: Counter[str] = field(default_factory=Counter)
    credentials: Counter[str] = field(default_factory=Counter)
    rewrites: Counter[str] = field(default_factory=Counter)
    set_apart: Mapping[str, int] = field(default_factory=dict)

    def of(self, rule: Rule) -> RuleUse:
        """Return how a rule was used."""
        return self.rules.get(rule.name) or RuleUse()


def measure(
    connection: duckdb.DuckDBPyConnection,
    policy: CompiledPolicy,
    rows: str = "requests",
    sessions: RecordedSessions = NO_SESSIONS,
) -> PolicyUse:
    """Judge the rows of a table or view with the `COLUMNS` of `requests` by a policy,
    and count what decided.
    """
    questions = QuestionTable(connection, rows, sessions)
    timed = rows_at_their_times(connection, policy)
    judge = AttributionJudge(policy, sessions)
    judged = judge_rows(connection, "tighten", timed, judge, DECISIVE)
    return _Measurement(connection, policy, questions, judged, sessions).result()


class _Measurement:
    """Reads what was judged into a `PolicyUse`.

    A `place` is the number of a rule and of whether requests pass.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        policy: CompiledPolicy,
        questions: QuestionTable,
        judged: Judgements[Attribution | None],
        sessions: RecordedSessions,
    ) -> None:
        self._sessions = sessions
        self._connection = connection
        self._policy = policy
        self._use = PolicyUse(set_apart=questions.set_apart)
        self._rules = {rule.name: rule for rule in policy.source.rules_and_grants}
        self._count_answers(judged)
        connection.execute(_USES)

    def _count_answers(self, judged: Judgements[Attribution | None]) -> None:
        self._places: dict[tuple[str, bool], int] = {}
        rows = []
        for number, answer in enumerate(judged.answers):
            if answer is None:
                continue
            count = judged.counts[answer]
            rows.append(
                (
                    number,
                    self._places.setdefault(
                        (answer.rule, answer.passes), len(self._places)
                    ),
                )
            )
            self._use.credentials.update(dict.fromkeys(answer.credentials, count))
            if answer.rewrite is not None:
                self._use.rewrites[answer.rewrite] += count
            if answer.observed is not None:
                self._use.observed[answer.observed.partition(":")[2]] += count
        insert(self._connection, "tighten_places", _ANSWERS, rows)

    def result(self) -> PolicyUse:
        use = self._use
        rows = self._each(
            "SELECT sum(requests)::BIGINT, min(first), max(last), count(DISTINCT client)"
        )
        for requests, first, last, addresses in rows:
            use.requests, use.first, use.last, use.addresses = (
                requests or 0,
                in_utc(first),
                in_utc(last),
                addresses,
            )
        self._read_clients()
        names = {
            place: name
            for (name, passes), place in self._places.items()
            if self._counts(name, passes=passes)
        }
        for place, name in names.items():
            self._read_rule(
                place, self._rules[name], use.rules.setdefault(name, RuleUse())
            )
        return use

    def _counts(self, name: str, *, passes: bool) -> bool:
        """Whether such requests are a use of the rule: an allow that allows, a deny or
        an ask that denies.
        """
        rule = self._rules.get(name)
        return rule is not None and passes is (rule.verdict == "allow")

    def _read_clients(self) -> None:
        for place, client, user, number, requests in self._each(
            "SELECT place, client, user, session, sum(requests)::BIGINT",
            "GROUP BY place, client, user, session",
        ):
            names = self._policy.clients_of(_address(client), token(user or NONE))
            session = self._sessions.numbered(number or NONE)
            if session is not None and session is not Unknown.SESSION:
                names = (*names, session.role)
            self._use.clients.update(dict.fromkeys(names, requests))
            rule, passes = self._names[place]
            if self._counts(rule, passes=passes):
                self._use.rules.setdefault(rule, RuleUse()).clients.update(names)

    @property
    def _names(self) -> list[tuple[str, bool]]:
        return list(self._places)

    def _read_rule(self, place: int, rule: Rule, use: RuleUse) -> None:
        ((count, first, last, days, machines, senders),) = self._each(
            f"SELECT {_EVIDENCE}", f"WHERE place = {place}"
        )
        seen = (frozenset(days), frozenset(machines), frozenset(senders))
        use.evidence = Evidence(count, in_utc(first), in_utc(last), *seen)
        self._read_hosts(place, rule, use)
        rows = f"WHERE place = {place} GROUP BY ALL"
        for method, scheme, requests in self._each(
            f"SELECT method, {_SCHEME}, sum(requests)::BIGINT", rows
        ):
            use.schemes.add(scheme)
            if method == CONNECT and rule.verdict == "allow" and not rule.passthrough:
                use.tunnels += requests
                continue
            use.requests += requests
            if len(use.methods) < _METHODS_AT_MOST:
                use.methods.add(method)
        if rule.verdict == "allow" and not rule.passthrough and rule.preset is None:
            self._read_paths(place, rule, use)

    def _read_hosts(self, place: int, rule: Rule, use: RuleUse) -> None:
        for text, *span in self._each(
            f"SELECT host, {_SPAN}", f"WHERE place = {place} GROUP BY host"
        ):
            host = _host(text)
            held = [
                name
                for name in rule.match.lists or ()
                if host and host in self._policy.source.lists[name]
            ]
            self._use.lists.update(dict.fromkeys(held, span[0]))
            if host is None or use.hosts is None or len(use.hosts) >= _HOSTS_AT_MOST:
                use.hosts = None
            else:
                use.hosts[host] = _evidence(*span)

    def _read_paths(self, place: int, rule: Rule, use: RuleUse) -> None:
        rows = f"WHERE place = {place} AND method <> '{CONNECT}' GROUP BY base"
        for base, *span in self._each(f"SELECT base, {_SPAN}", rows):
            path = _path(base)
            shape = None if path is None else shape_of(path)
            pattern = None if path is None else _pattern_of(rule, path)
            if (
                shape is None
                or use.paths is None
                or (pattern is None and rule.match.paths is not None)
            ):
                use.paths = None
                return
            use.paths.setdefault(pattern, PathShapes()).add(shape, _evidence(*span))

    def _each(self, select: str, rest: str = "") -> Iterator[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(f"{select} FROM tighten_uses {rest}")
            while rows := cursor.fetchmany(_BATCH):
                yield from rows


def _pattern_of(rule: Rule, path: str) -> PathPattern | None:
    patterns = rule.match.paths
    read = readings(path) if patterns else ()
    return next(
        (
            pattern
            for pattern in patterns or ()
            if all(pattern.match(reading) is not None for reading in read)
        ),
        None,
    )


def _evidence(count: int, first: datetime, last: datetime) -> Evidence:
    return Evidence(count, in_utc(first), in_utc(last), frozenset(), _ANYONE, _ANYONE)


def _host(text: str | None) -> Host | None:
    if text is None:
        return None
    try:
        return parse_host(
            f"[{text}]" if ":" in text and not text.startswith("[") else text
        )
    except InvalidUrl:
        return None


def _path(base: str) -> str | None:
    try:
        return parse_url(unrecorded_url(base)).path
    except InvalidUrl:
        return None


def _address(text: str | None) -> Host | None:
    try:
        return address_host(parse_address(text or ""))
    except InvalidUrl:
        return None
