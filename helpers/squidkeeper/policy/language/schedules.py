"""When a rule holds: days and hours by the clock on the wall of a time zone.

The clock decides, and nothing else. Where it is put forward, the hour that it skips
never comes; where it is put back, the hour that comes twice counts twice.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from squidkeeper.base.errors import PatternError

WEEK_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
EVERY_DAY = frozenset(range(len(WEEK_DAYS)))
_HOURS = re.compile(
    r"([01][0-9]|2[0-3]):([0-5][0-9])-(?:([01][0-9]|2[0-3]):([0-5][0-9])|24:00)"
)
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z0-9_+-]{1,31}){0,2}")
# in some databases, and of no place
_OF_A_MACHINE = (
    "localtime",
    "posixrules",
    "Factory",
)
_EXPECTED_DAYS = "one of mon, tue, wed, thu, fri, sat, sun, or a range such as mon-fri"
_EXPECTED_HOURS = 'a range such as "08:00-18:00" or "22:00-06:00", at most until 24:00'
_EXPECTED_ZONE = "a name such as Europe/Berlin or UTC"
# Beyond these years a zone's clock could leave what a datetime holds.
_FIRST, _LAST = datetime(2, 1, 1, tzinfo=UTC), datetime(9998, 1, 1, tzinfo=UTC)
_LAST_LISTED, _CYCLE = datetime(2088, 1, 1, tzinfo=UTC), timedelta(days=29 * 366)


class Hours(NamedTuple):
    """A part of a day, in minutes since midnight; one that ends before it starts ends
    on the next day.
    """

    start: int
    end: int


WHOLE_DAY = Hours(0, DAY_MINUTES)


class SteadySpan(NamedTuple):
    """A span of time in which nothing changes: from `since`, until before `until`."""

    holds: bool
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Schedule:
    """The days and hours at which a rule holds.

    `days` are those on which a part starts; 0 is Monday.
    """

    zone: tzinfo
    days: frozenset[int] = EVERY_DAY
    hours: tuple[Hours, ...] = (WHOLE_DAY,)

    def __str__(self) -> str:
        """Write it as people do: `mon-fri 08:00-18:00 Europe/Berlin`."""
        parts = [
            _days_text(self.days),
            ", ".join(map(_hours_text, self.hours)),
            str(self.zone),
        ]
        return " ".join(filter(None, parts))

    def holds(self, at: datetime) -> bool:
        """Whether it holds at a time."""
        return self._holds(_within_years(at).astimezone(self.zone).replace(tzinfo=None))

    def span(self, at: datetime) -> SteadySpan:
        """Return the span around a time in which no part begins or ends, no day begins,
        and no clock is set.
        """
        if at < _FIRST:
            return SteadySpan(self.holds(at), datetime.min.replace(tzinfo=UTC), _FIRST)
        if at >= _LAST:
            return SteadySpan(self.holds(at), _LAST, datetime.max.replace(tzinfo=UTC))
        at = at.astimezone(UTC)
        wall = at.astimezone(self.zone).replace(tzinfo=None)
        midnight = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        edges = sorted(
            {0, DAY_MINUTES, *(edge for hours in self.hours for edge in hours)}
        )
        place = bisect_right(edges, _minute(wall))
        since = at - (wall - midnight - timedelta(minutes=edges[place - 1]))
        until = at + (midnight + timedelta(minutes=edges[place]) - wall)
        since, until = self._last_set(since, at), self._next_set(at, until)
        return SteadySpan(self._holds(wall), max(since, _FIRST), min(until, _LAST))

    def holds_between(self, since: datetime, until: datetime) -> bool:
        """Whether it holds at some time between two; in two weeks it does, whatever
        clock is set.
        """
        at, last = since, min(until, since + _TWO_WEEKS)
        while at < last:
            span = self.span(at)
            if span.holds:
                return True
            at = span.until
        return until > last

    def _holds(self, wall: datetime) -> bool:
        minute, today = _minute(wall), wall.weekday()
        return any(self._holds_part(part, minute, today) for part in self.hours)

    def _holds_part(self, part: Hours, minute: int, today: int) -> bool:
        if part.start < part.end:
            return today in self.days and part.start <= minute < part.end
        if minute >= part.start:
            return today in self.days
        return minute < part.end and (today - 1) % len(WEEK_DAYS) in self.days

    def _last_set(self, since: datetime, at: datetime) -> datetime:
        return (
            since
            if self._offset(since) == self._offset(at)
            else _set_between(self.zone, since, at)
        )

    def _next_set(self, at: datetime, until: datetime) -> datetime:
        return (
            until
            if self._offset(until - _MOMENT) == self._offset(at)
            else _set_between(self.zone, at, until)
        )

    def _offset(self, at: datetime) -> timedelta | None:
        return offset_of(self.zone, at)


def offset_of(zone: tzinfo, at: datetime) -> timedelta | None:
    """Return what the clock of a zone is ahead of UTC."""
    return _within_years(at).astimezone(zone).utcoffset()


def times_of_setting(
    zone: tzinfo, since: datetime, until: datetime
) -> Iterator[datetime]:
    """Yield when the clock of a zone is set between two times."""
    at, until = _within_years(since), _within_years(until)
    before = offset_of(zone, at)
    while at < until:
        day = min(at + _DAY, until)
        after = day.astimezone(zone).utcoffset()
        if after != before:
            yield _set_between(zone, at, day)
        at, before = day, after


def clocks_are_known_until(at: datetime) -> datetime:
    """Return a time after which clocks are set as they were before, from a time on.

    The IANA database lists years up to 2087 (Ramadan in Morocco). Then rules hold. The
    days of the week on which they set a clock repeat after 28 years.
    """
    return min(max(at, _LAST_LISTED), _LAST - _CYCLE) + _CYCLE


def _set_between(zone: tzinfo, first: datetime, last: datetime) -> datetime:
    """Find when a clock is set, once, between two times: a whole second."""
    offset = offset_of(zone, first)
    low, high = int(first.timestamp()), int(last.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        if offset_of(zone, datetime.fromtimestamp(middle, UTC)) == offset:
            low = middle
        else:
            high = middle
    return datetime.fromtimestamp(high, UTC)


def _days_text(days: frozenset[int]) -> str:
    if days == EVERY_DAY:
        return ""
    firsts = [day for day in sorted(days) if (day - 1) % len(WEEK_DAYS) not in days]
    return ", ".join(_range_text(first, days) for first in firsts)


def _range_text(first: int, days: frozenset[int]) -> str:
    last = next(
        day
        for day in range(first, first + len(WEEK_DAYS))
        if (day + 1) % len(WEEK_DAYS) not in days
    )
    return (
        WEEK_DAYS[first]
        if last == first
        else f"{WEEK_DAYS[first]}-{WEEK_DAYS[last % len(WEEK_DAYS)]}"
    )


def _hours_text(part: Hours) -> str:
    return (
        ""
        if part == WHOLE_DAY
        else "-".join(f"{edge // 60:02}:{edge % 60:02}" for edge in part)
    )


_MOMENT, _DAY, _TWO_WEEKS = (
    timedelta(microseconds=1),
    timedelta(days=1),
    timedelta(weeks=2),
)


def _minute(wall: datetime) -> int:
    return wall.hour * 60 + wall.minute


def _within_years(at: datetime) -> datetime:
    return min(max(at, _FIRST), _LAST).astimezone(UTC)


# --- text -----------------------------------------------------------------------------


def parse_days(text: str) -> frozenset[int]:
    """Read a day of the week, or a range of days, which may pass the end of
    the week.
    """
    first, dash, last = text.partition("-")
    if first not in WEEK_DAYS or (dash and last not in WEEK_DAYS):
        raise PatternError(f"{text!r} is no day of the week, expected {_EXPECTED_DAYS}")
    start, end = WEEK_DAYS.index(first), WEEK_DAYS.index(last or first)
    return frozenset(
        (start + day) % len(WEEK_DAYS)
        for day in range((end - start) % len(WEEK_DAYS) + 1)
    )


def parse_hours(text: str) -> Hours:
    """Read a part of a day."""
    match = _HOURS.fullmatch(text)
    if match is None:
        raise PatternError(f"{text!r} is no part of a day, expected {_EXPECTED_HOURS}")
    start = int(match[1]) * 60 + int(match[2])
    end = DAY_MINUTES if match[3] is None else int(match[3]) * 60 + int(match[4])
    if start == end:
        raise PatternError(
            f"{text!r} ends when it starts, expected {_EXPECTED_HOURS} (00:00-24:00 is the whole day)"
        )
    return Hours(start, end)


def parse_zone(text: str) -> tzinfo:
    """Read the name of a time zone of the IANA database."""
    from zoneinfo import ZoneInfo  # late: only a schedule needs it

    if not _ZONE.fullmatch(text) or text in _OF_A_MACHINE:
        raise PatternError(
            f"{text[:_SHOWN]!r} is no time zone, expected {_EXPECTED_ZONE}"
        )
    try:
        return ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise PatternError(
            f"there is no time zone {text!r}{_meant(text)}, expected {_EXPECTED_ZONE}"
        ) from None


def _meant(text: str) -> str:
    from difflib import get_close_matches
    from zoneinfo import available_timezones

    near = get_close_matches(text, available_timezones(), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def all_days(parts: Iterable[frozenset[int]]) -> frozenset[int]:
    """Join days."""
    return frozenset().union(*parts)


_SHOWN = 60  # characters
