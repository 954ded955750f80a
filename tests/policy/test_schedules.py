"""`when`: days and hours by the clock on the wall of a zone, beside a walk of its
minutes; and what holds when.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import PatternError, PolicyError
from squidkeeper.base.faults import FaultCode
from squidkeeper.policy.engine.timetable import Timed, Timetable, times_of_each
from squidkeeper.policy.language.lint import lint
from squidkeeper.policy.language.model import Action
from squidkeeper.policy.language.schedules import (
    EVERY_DAY,
    WEEK_DAYS,
    WHOLE_DAY,
    Hours,
    Schedule,
    all_days,
    parse_days,
    parse_hours,
    parse_zone,
)
from squidkeeper.policy.policy_store.loading import load

from ..conftest import NOW, Ask, compiled_of, write_policy

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE, MOMENT = timedelta(minutes=1), timedelta(microseconds=1)
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "UTC",
]
ZONES += ["Pacific/Apia", "America/St_Johns", "Asia/Tehran"]
# Where clocks are set: forward and back in Berlin, New York and Lord Howe (by half an
# hour); the day that Apia skipped.
SET = [
    *(datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)),
    *(datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)),
    *(datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    datetime(2011, 12, 30, 10, tzinfo=UTC),
]
minutes = st.integers(0, 24 * 60 - 1)
parts = st.builds(
    lambda start, end: Hours(start, end if end != start else 24 * 60),
    minutes,
    st.one_of(minutes, st.just(24 * 60)),
)
schedules = st.builds(
    lambda zone, days, hours: Schedule(ZoneInfo(zone), days, tuple(hours)),
    st.sampled_from(ZONES),
    st.frozensets(st.integers(0, 6), min_size=1),
    st.lists(parts, min_size=1, max_size=3),
)
times = st.one_of(
    st.builds(
        lambda near, seconds: near + timedelta(seconds=seconds),
        st.sampled_from(SET),
        st.integers(-90_000, 90_000),
    ),
    st.datetimes(datetime(1970, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),
)


def plainly_holds(schedule: Schedule, at: datetime) -> bool:
    """Read the clock on the wall: today's parts, and those of yesterday that
    end today.
    """
    wall = at.astimezone(schedule.zone)
    clock, today = 60 * wall.hour + wall.minute, wall.weekday()
    for start, end in schedule.hours:
        if start < end:
            held = [(start <= clock < end, today)]
        else:
            held = [(clock >= start, today), (clock < end, (today + 6) % 7)]
        if any(within and day in schedule.days for within, day in held):
            return True
    return False


@given(schedules, times)
def test_a_schedule_holds_as_a_walk_of_the_minutes_says(
    schedule: Schedule, at: datetime
) -> None:
    span = schedule.span(at)
    assert span.since <= at < span.until
    assert span.holds == schedule.holds(at)
    walked = max(span.since, at - timedelta(hours=30))
    while walked < span.until:  # a span is no longer than a day
        assert plainly_holds(schedule, walked) == span.holds
        walked += MINUTE
    for near in (
        span.since,
        span.until - MOMENT,
        span.until,
        span.since - MOMENT,
    ):
        assert schedule.holds(near) == plainly_holds(schedule, near)


@given(
    st.lists(st.tuples(st.none() | times, st.none() | schedules), max_size=4),
    st.lists(times, min_size=2, max_size=9),
)
def test_a_timetable_knows_what_holds_in_whatever_order_it_is_asked(
    entries: list[tuple[datetime | None, Schedule | None]], asked: list[datetime]
) -> None:
    table = Timetable(Timed(*entry) for entry in entries)
    for at in (
        *asked,
        *reversed(asked),
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
    ):
        held = [
            (expires is None or at < expires) and (when is None or when.holds(at))
            for expires, when in entries
        ]
        assert table.holding(at) == sum(
            holds << number for number, holds in enumerate(held)
        )


@given(st.lists(schedules, min_size=1, max_size=3), times)
def test_nothing_changes_between_the_changes_of_a_timetable(
    held: list[Schedule], since: datetime
) -> None:
    table, until = (
        Timetable(Timed(None, when) for when in held),
        since + timedelta(days=2),
    )
    changes = [since, *table.changes(since, until), until]
    assert changes == sorted(changes)
    for start, end in pairwise(changes):
        middle = start + (end - start) / 2
        for schedule in held:
            assert (
                schedule.holds(start)
                == schedule.holds(middle)
                == schedule.holds(max(start, end - MOMENT))
            )
    for change in changes[1:-1]:
        assert table.holding(change) != table.holding(change - MOMENT)


def test_the_times_of_each_show_what_two_zones_hold_together() -> None:
    berlin = Schedule(BERLIN, hours=(parse_hours("14:00-15:00"),))
    new_york = Schedule(
        ZoneInfo("America/New_York"), hours=(parse_hours("08:00-09:00"),)
    )
    tables = [Timetable([Timed(None, berlin)]), Timetable([Timed(None, new_york)])]
    held = {
        tuple(table.holding(at) for table in tables)
        for at in times_of_each(tables, NOW)
    }
    # in most of the year both at once: (0, 1) in some weeks alone
    assert held == {
        (0, 0),
        (1, 1),
        (0, 1),
        (1, 0),
    }


def test_the_times_of_each_show_what_two_zones_hold_together_in_ten_years() -> None:
    """Morocco's clocks are behind in Ramadan.

    In 2036 it begins while Berlin's are ahead, as in no year before.
    """
    berlin, rabat = (
        Schedule(zone, hours=(parse_hours("13:00-14:00"),))
        for zone in (BERLIN, ZoneInfo("Africa/Casablanca"))
    )
    rabat = Schedule(rabat.zone, hours=(parse_hours("11:00-12:00"),))
    tables = [Timetable([Timed(None, schedule)]) for schedule in (berlin, rabat)]
    [both] = [
        at
        for at in times_of_each(tables, NOW)
        if [table.holding(at) for table in tables] == [1, 1]
    ]
    assert (both.year, both.month) == (2036, 10)


def test_the_times_of_each_are_the_first_at_which_each_combination_holds_and_in_order() -> (
    None
):
    ends = [NOW + timedelta(days=days) for days in (-1, 3, 1)]
    tables = [
        Timetable([Timed(ends[0]), Timed(ends[1])]),
        Timetable([Timed(ends[2]), Timed(ends[1])]),
    ]
    assert times_of_each(tables, NOW) == [NOW, ends[2], ends[1]], (
        "not what has ended, and an end of both once"
    )


def test_a_schedule_is_walked_anew_after_each_end_however_late() -> None:
    """A rule that ends in years is compared with a schedule that holds on after it."""
    at_noon = Schedule(BERLIN, hours=(parse_hours("12:00-13:00"),))
    end = NOW + timedelta(days=3 * 365)
    tables = [Timetable([Timed(end)]), Timetable([Timed(None, at_noon)])]
    held = [
        tuple(table.holding(at) for table in tables)
        for at in times_of_each(tables, NOW)
    ]
    assert sorted(held) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.none() | times, st.none() | schedules), max_size=3),
    times,
    times,
)
def test_whatever_holds_later_holds_at_one_of_the_times_of_each(
    entries: list[tuple[datetime | None, Schedule | None]],
    since: datetime,
    later: datetime,
) -> None:
    tables = [Timetable([Timed(*entry)]) for entry in entries]
    held = [
        [table.holding(at) for table in tables] for at in times_of_each(tables, since)
    ]
    assert [table.holding(max(since, later)) for table in tables] in held


# --- the days on which the clock is set -----------------------------------------------

NIGHT = Schedule(
    BERLIN, all_days([parse_days("fri-sat")]), (parse_hours("22:00-06:00"),)
)
EARLY = Schedule(BERLIN, EVERY_DAY, (parse_hours("02:00-03:00"),))


@pytest.mark.parametrize(
    ("schedule", "at", "holds"),
    [
        (NIGHT, "2026-11-27T22:00:00+01:00", True),  # Friday
        (NIGHT, "2026-11-28T05:59:59+01:00", True),
        (NIGHT, "2026-11-28T06:00:00+01:00", False),
        (
            NIGHT,
            "2026-11-29T05:00:00+01:00",
            True,
        ),  # the night that started on Saturday
        (NIGHT, "2026-11-29T22:00:00+01:00", False),  # Sunday
        (
            NIGHT,
            "2026-11-27T05:00:00+01:00",
            False,
        ),  # the night that started on Thursday
        (
            EARLY,
            "2026-03-29T00:59:59Z",
            False,
        ),  # 01:59:59, and the clock goes on to 03:00
        (EARLY, "2026-03-29T01:00:00Z", False),
        (EARLY, "2026-10-25T00:30:00Z", True),  # 02:30, for the first time
        (EARLY, "2026-10-25T01:30:00Z", True),  # and for the second
        (EARLY, "2026-10-25T02:00:00Z", False),
    ],
)
def test_the_clock_on_the_wall_decides(
    schedule: Schedule, at: str, holds: bool
) -> None:
    assert schedule.holds(datetime.fromisoformat(at)) is holds


def test_a_night_is_an_hour_longer_or_shorter_when_the_clock_is_set() -> None:
    held = []
    for evening in (
        datetime(2026, 3, 28, 12, tzinfo=UTC),
        datetime(2026, 10, 24, 12, tzinfo=UTC),
    ):
        minutes = [evening + MINUTE * number for number in range(24 * 60)]
        held.append(sum(NIGHT.holds(at) for at in minutes) / 60)
    assert held == [7, 9]


# --- text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("mon", "mon"),
        ("mon-fri", "mon tue wed thu fri"),
        ("sat-mon", "sat sun mon"),
        ("sun-sat", " ".join(WEEK_DAYS)),
    ],
)
def test_days_are_names_or_ranges(text: str, days: str) -> None:
    assert parse_days(text) == {WEEK_DAYS.index(day) for day in days.split()}


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_days, "monday", "'monday' is no day of the week, expected one of mon, "),
        (parse_days, "mon-", "is no day"),
        (parse_days, "mon-fri-sun", "is no day"),
        (parse_hours, "8:00-18:00", "'8:00-18:00' is no part of a day"),
        (parse_hours, "08:00-24:01", "is no part"),
        (parse_hours, "24:00-06:00", "is no part"),
        (parse_hours, "08:00-08:00", "ends when it starts"),
        (
            parse_zone,
            "Europe/Berln",
            "there is no time zone 'Europe/Berln' \\(did you mean Europe/Berlin\\?\\)",
        ),
        (parse_zone, "../../etc/passwd", "is no time zone"),
        (parse_zone, "localtime", "is no time zone"),
        (parse_zone, "Europe", "there is no time zone 'Europe'"),
    ],
)
def test_what_is_no_schedule_says_what_is_expected(
    parse: Callable[[str], object], text: str, message: str
) -> None:
    with pytest.raises(PatternError, match=message):
        parse(text)


WHEN = "rules: [{{name: r, action: allow, hosts: [a.example], when: {}}}]"


@pytest.mark.parametrize(
    ("when", "code", "message"),
    [
        (
            "{days: [mon]}",
            FaultCode.MISSING_KEY,
            "key 'timezone' is missing, expected a time zone such as",
        ),
        (
            "{timezone: UTC, days: [mon], hour: 08:00-18:00}",
            FaultCode.UNKNOWN_KEY,
            "unknown key 'hour', did you mean 'hours'?",
        ),
        (
            "{timezone: UTC}",
            FaultCode.KEY_CHOICE,
            "none of days, hours given, expected at least one",
        ),
        (
            "{timezone: UTC, days: [funday]}",
            FaultCode.INVALID_TIME,
            "is no day of the week",
        ),
        (
            "{timezone: UTC, hours: [08:00-18:00, 9]}",
            FaultCode.WRONG_TYPE,
            "the number 9, expected text",
        ),
        ("mon-fri", FaultCode.WRONG_TYPE, "expected a mapping"),
    ],
)
def test_a_schedule_that_is_none_is_a_fault(
    tmp_path: Path, when: str, code: FaultCode, message: str
) -> None:
    with pytest.raises(PolicyError) as raised:
        compiled_of(tmp_path, WHEN.format(when))
    (fault,) = raised.value.faults
    assert (fault.code, message in fault.message) == (code, True), fault.message


def test_a_rule_holds_at_its_days_and_hours_alone(asker: Callable[[str], Ask]) -> None:
    ask = asker(
        WHEN.format(
            "{days: [mon-fri], hours: [08:00-12:00, 13:00-18:00], timezone: Europe/Berlin}"
        )
    )

    def verdict(at: str) -> tuple[Action, str]:
        decision = ask("GET https://a.example/", at=datetime.fromisoformat(at))
        return decision.action, decision.rule

    assert verdict("2026-11-26T07:59:59+01:00") == (Action.DENY, "default")
    assert verdict("2026-11-26T08:00:00+01:00") == (Action.ALLOW, "r")
    assert verdict("2026-11-26T12:30:00+01:00") == (Action.DENY, "default")
    assert verdict("2026-11-26T17:59:59+01:00") == (Action.ALLOW, "r")
    assert verdict("2026-11-28T10:00:00+01:00") == (Action.DENY, "default")  # Saturday
    assert verdict("2026-07-01T06:30:00Z") == (Action.ALLOW, "r")  # summer: 08:30 there


@pytest.mark.parametrize(
    "text",
    [
        "mon-fri 08:00-18:00 Europe/Berlin",
        "wed, sat-mon UTC",
        "22:00-06:00, 12:00-24:00 UTC",
    ],
)
def test_a_schedule_is_written_as_people_do(text: str) -> None:
    *days, zone = text.split(" ")
    hours = [part.rstrip(",") for part in days if ":" in part]
    days = [part.rstrip(",") for part in days if ":" not in part]
    parts = tuple(map(parse_hours, hours)) or (WHOLE_DAY,)
    assert (
        str(
            Schedule(
                ZoneInfo(zone), all_days(map(parse_days, days)) or EVERY_DAY, parts
            )
        )
        == text
    )


# --- tests of a policy, and warnings --------------------------------------------------


def warnings_of(directory: Path, text: str) -> list[str]:
    return [
        str(warning.code)
        for warning in load(write_policy(directory, text), NOW).warnings
    ]


def linted(directory: Path, rules: str) -> list[str]:
    compiled = compiled_of(directory, f"rules:\n{rules}")
    return [
        f"{warning.code}: {warning.message}" for warning in lint(compiled.source, NOW)
    ]


NOT_NOW = "{hours: 00:00-06:00, timezone: UTC}"  # NOW is noon
EXPECTS = 'tests: [{{request: "GET https://a.example/", expect: {}}}]'


def test_a_test_that_fails_only_because_of_the_time_of_day_is_a_warning(
    tmp_path: Path,
) -> None:
    policy = WHEN.format(NOT_NOW)
    assert warnings_of(tmp_path, f"{policy}\n{EXPECTS.format('deny')}") == []
    assert warnings_of(tmp_path, f"{policy}\n{EXPECTS.format('allow')}") == [
        "test-lapsed"
    ]


def test_a_test_that_fails_at_every_time_is_a_fault(tmp_path: Path) -> None:
    test = EXPECTS.format("allow").replace("a.example", "b.example")
    with pytest.raises(PolicyError, match="expected allow, got deny by default"):
        compiled_of(tmp_path, f"{WHEN.format(NOT_NOW)}\n{test}")


def test_a_test_knows_that_a_rule_held_on_weekdays_before_it_lapsed(
    tmp_path: Path,
) -> None:
    rule = WHEN.replace("when:", "expires: 2026-10-01T00:00:00Z, when:")
    assert warnings_of(
        tmp_path,
        f"{rule.format('{days: [sat], timezone: UTC}')}\n{EXPECTS.format('allow')}",
    ) == ["test-lapsed"]


def test_a_schedule_that_does_not_hold_before_its_rule_expires_is_a_warning(
    tmp_path: Path,
) -> None:
    rule = "  - {{name: r, action: allow, hosts: [a.example], expires: {}, when: {{days: [mon], timezone: UTC}}}}"
    (found,) = linted(tmp_path, rule.format("2026-11-27T00:00:00Z"))  # NOW is a Tuesday
    assert found.startswith("when-never: rule 'r' no longer matches")
    assert linted(tmp_path, rule.format("2026-12-01T00:00:00Z")) == []


def test_a_rule_with_a_schedule_leaves_the_rest_of_the_time_to_the_next(
    tmp_path: Path,
) -> None:
    day, night = (
        "{hours: 06:00-22:00, timezone: UTC}",
        "{hours: 22:00-06:00, timezone: UTC}",
    )
    rule = "  - {{name: {}, action: allow, hosts: [a.example], when: {}}}\n"
    later = "  - {name: always, action: deny, hosts: [a.example]}"
    assert (
        linted(tmp_path, rule.format("day", day) + rule.format("night", night) + later)
        == []
    )
    (found,) = linted(
        tmp_path, rule.format("day", day) + rule.format("same", day) + later
    )
    assert found.startswith("rule-unreachable: rule 'same' can never decide")
