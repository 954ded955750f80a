"""How templates are filled, and how numbers, sizes and times are written for people.

humanize is not used: it writes "a minute ago" and "1.5 kB", and rounds durations to one
unit.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

_THOUSAND: Final = 1000
_SIZES: Final = ("KB", "MB", "GB", "TB")
_SMALLEST_SHARE, _SMALL_SHARE = 0.001, 0.1
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def substitute(text: str, replacements: Mapping[str, str]) -> str:
    """Replace texts by others, the longest first; no replacement is replaced again."""
    found = re.compile(
        "|".join(map(re.escape, sorted(replacements, key=len, reverse=True)))
    )
    return found.sub(lambda match: replacements[match[0]], text)


def thousands(number: int) -> str:
    """Write a number with commas between thousands: `12,345`."""
    return f"{number:,}"


def quantity(number: int, noun: str, nouns: str = "") -> str:
    """Write a number with its noun: `1 rule`, `2 rules`; `nouns` is an irregular
    plural.
    """
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def printable(text: str) -> str:
    """Show text of others in one line: characters that are not printable as escapes."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in text
    )


def byte_size(count: int) -> str:
    """Write a number of bytes in the unit that leaves two or three digits: `1.5 KB`,
    `12 MB`.
    """
    if count < _THOUSAND:
        return f"{count} B"
    power = min((len(str(count)) - 1) // 3, len(_SIZES))
    value = count / _THOUSAND**power
    return f"{value:.{1 if value < 10 else 0}f} {_SIZES[power - 1]}"


def milliseconds(value: int) -> str:
    """Write a duration to two or three digits: `7 ms`, `1.2 s`, `95 s`."""
    if value < _THOUSAND:
        return f"{value} ms"
    is_exact = value % _THOUSAND == 0
    return (
        f"{value / _THOUSAND:.{1 if value < 10 * _THOUSAND and not is_exact else 0}f} s"
    )


def percent(share: float) -> str:
    """Write a share: `4.2 %`, `37 %`, `< 0.1 %`."""
    if 0 < share < _SMALLEST_SHARE:
        return f"< {_SMALLEST_SHARE:.1%}".replace("%", " %")
    return f"{share:.{1 if 0 < share < _SMALL_SHARE else 0}%}".replace("%", " %")


def timestamp(at: datetime) -> str:
    """Write a time to the second, without its zone: `2026-11-24 12:00:00`."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


def utc_time(at: datetime) -> str:
    """Write a time to the second, as a policy has it: `2026-11-24T12:00:00Z`."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def utc_seconds(seconds: float) -> str:
    """Write a time that is counted from 1970 on, in the same form."""
    return utc_time(datetime.fromtimestamp(seconds, UTC))


def duration(seconds: float) -> str:
    """Write a duration in its one or two largest units: `3 s`, `4 min`, `2 h 5 min`, `3
    days`.
    """
    whole_seconds = int(abs(seconds))
    if whole_seconds < _MINUTE:
        return f"{whole_seconds} s"
    if whole_seconds < _HOUR:
        return f"{whole_seconds // _MINUTE} min"
    if whole_seconds < _DAY:
        hours, minutes = whole_seconds // _HOUR, whole_seconds % _HOUR // _MINUTE
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return quantity(whole_seconds // _DAY, "day")


def age(seconds: float) -> str:
    """Write how old a file is: `3 days old`, `2 h 5 min old`."""
    if seconds < 0:
        return "from the future"
    return "less than a minute old" if seconds < _MINUTE else f"{duration(seconds)} old"


def ago(at: datetime, now: datetime) -> str:
    """Write a time relative to now: `4 min ago`, `in 2 h`, `now`."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {duration(seconds)}" if seconds < 0 else f"{duration(seconds)} ago"
