"""How numbers, sizes and times are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from squidkeeper.base import formatting

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formatting.thousands(1234), "1,234"),
        (formatting.byte_size(0), "0 B"),
        (formatting.byte_size(999), "999 B"),
        (formatting.byte_size(1500), "1.5 KB"),
        (formatting.byte_size(12_400_000), "12 MB"),
        (formatting.byte_size(5 * 10**15), "5000 TB"),
        (formatting.milliseconds(7), "7 ms"),
        (formatting.milliseconds(1000), "1 s"),
        (formatting.milliseconds(1234), "1.2 s"),
        (formatting.milliseconds(95_000), "95 s"),
        (formatting.percent(0.0421), "4.2 %"),
        (formatting.percent(0.37), "37 %"),
        (formatting.percent(0.0001), "< 0.1 %"),
        (formatting.percent(0.0), "0 %"),
        (formatting.timestamp(NOW), "2026-11-24 12:00:00"),
        (formatting.ago(NOW, NOW), "now"),
        (formatting.ago(NOW - timedelta(seconds=59), NOW), "59 s ago"),
        (formatting.ago(NOW - timedelta(minutes=61), NOW), "1 h 1 min ago"),
        (formatting.ago(NOW + timedelta(hours=2), NOW), "in 2 h"),
        (formatting.ago(NOW - timedelta(days=400), NOW), "400 days ago"),
        (formatting.age(-5), "from the future"),
        (formatting.age(59), "less than a minute old"),
        (formatting.age(86_400), "1 day old"),
        (formatting.quantity(1, "rule"), "1 rule"),
        (formatting.quantity(1234, "stretch", "stretches"), "1,234 stretches"),
    ],
)
def test_numbers_sizes_and_times_are_written_short(written: str, expected: str) -> None:
    assert written == expected
