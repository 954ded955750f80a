"""The lines of an archive against Squid's own counter of requests."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from squidkeeper.base.squid_counters import SquidSample
from squidkeeper.record.chain.chain import append_entry, read_chain
from squidkeeper.record.chain.entries import ArchivedSource, ChainEntry, EntryKind
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.chain.line_counts import compare_lines, samples_for
from squidkeeper.record.chain.places import FolderPlace
from tests.archives import write_parquet

KEY = ArchiveKey.new()
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
DAY = "2026-11-25"
REQUEST, NONE = "http://a.example/", "error:transaction-end-before-headers"


def sample(
    after: float, requests: int, run: str = "one", started: float = -100.0
) -> SquidSample:
    """A sample so many seconds after noon, which took a tenth of a second."""
    at = NOON + after
    return SquidSample(
        run=run, started=NOON + started, asked=at, answered=at + 0.1, requests=requests
    )


def archive(
    folder: Path, lines: Iterable[tuple[float, str]], *samples: SquidSample
) -> None:
    """Archive a log with lines at times after noon, and the samples of its time."""
    chain = read_chain(folder)
    part = write_parquet(
        folder, chain.next_number, DAY, [(NOON + after, url) for after, url in lines]
    )
    squid = samples_for(chain, samples, part.last)
    source = ArchivedSource(
        name="log",
        first_line_sha256=f"{chain.next_number:064x}",
        bytes=1,
        lines=part.rows,
        squid=squid,
    )
    append_entry(
        folder, ChainEntry(kind=EntryKind.PARTS, source=source, parts=(part,)), KEY
    )


def found(folder: Path) -> list[tuple[str, str]]:
    faults = compare_lines(FolderPlace(folder), read_chain(folder).entries)
    return [(str(fault.code), fault.text) for fault in faults]


def each_second(first: int, end: int, url: str = REQUEST) -> list[tuple[float, str]]:
    return [(second + 0.5, url) for second in range(first, end)]


# a request each second, from 100 s before noon on
SAMPLES = (
    sample(10, 110),
    sample(60, 160),
    sample(100, 200),
)


UNKNOWN_START = (
    sample(60, 7, "two", started=-NOON),
    sample(100, 47, "two", started=-NOON),
)


@pytest.mark.parametrize(
    ("lines", "samples"),
    [
        (each_second(-100, 121), SAMPLES),
        (
            each_second(-100, 121) + each_second(-100, 121, NONE),
            SAMPLES,
        ),  # connections without a request
        (
            each_second(0, 121),
            SAMPLES,
        ),  # the start of the run is before the first archived line
        (each_second(-200, 121), UNKNOWN_START),  # compared between its samples
    ],
    ids=["whole", "without a request", "begun before", "begun at an unknown time"],
)
def test_lines_that_squid_counted_are_no_fault(
    tmp_path: Path, lines: list[tuple[float, str]], samples: tuple[SquidSample, ...]
) -> None:
    archive(tmp_path, lines, *samples)
    assert found(tmp_path) == []


def test_lines_that_are_missing_are_found_beyond_the_tolerance(tmp_path: Path) -> None:
    lines = each_second(-101, 121)
    archive(tmp_path, [line for line in lines if not 20 < line[0] < 30], *SAMPLES)
    text = (
        "Squid counted 50 requests, and the archive has 43 lines of them: 7 or more are missing, or a rotated log of"
        " that time is not archived yet"
    )
    assert found(tmp_path) == [("lines-missing", text)]


def test_lines_that_squid_did_not_count_are_found(tmp_path: Path) -> None:
    archive(tmp_path, each_second(-101, 121) + each_second(70, 80), *SAMPLES)
    text = "Squid counted 40 requests, and the archive has 47 lines or more: it holds lines that Squid did not count"
    assert found(tmp_path) == [("lines-surplus", text)]


@pytest.mark.parametrize("at", [59.0, 59.9, 60.05, 61.9])
def test_what_is_logged_around_a_sample_may_be_counted_on_either_side(
    tmp_path: Path, at: float
) -> None:
    burst = [(at, REQUEST)] * 1000
    for number, counted in enumerate((0, 1000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        archive(
            folder,
            [(11.5, REQUEST), *burst, (120.0, REQUEST)],
            sample(20, 1),
            sample(60, 1 + counted),
        )
        assert found(folder) == []


def test_the_lines_from_the_start_of_a_run_are_compared_where_the_archive_reaches_back_to_it(
    tmp_path: Path,
) -> None:
    archive(tmp_path, each_second(-200, 0))
    restarted = (
        sample(60, 50, "two", started=10.0),
        sample(100, 90, "two", started=10.0),
    )
    archive(
        tmp_path,
        [line for line in each_second(10, 121) if not 20 < line[0] < 30],
        *restarted,
    )
    assert [code for code, _ in found(tmp_path)] == ["lines-missing"]


def test_a_whole_log_that_is_missing_is_found(tmp_path: Path) -> None:
    archive(tmp_path, each_second(-110, 0), *SAMPLES)
    # the log from 0 to 50 was deleted before it was archived
    archive(tmp_path, each_second(50, 121), *SAMPLES)
    assert [code for code, _ in found(tmp_path)] == ["lines-missing", "lines-missing"]


def test_each_sample_is_taken_along_once_with_the_log_of_its_time(
    tmp_path: Path,
) -> None:
    archive(tmp_path, each_second(-110, 70), *SAMPLES)
    archive(tmp_path, each_second(70, 121), *SAMPLES)
    sources = [entry.source for entry in read_chain(tmp_path).entries]
    assert [source.squid for source in sources if source] == [SAMPLES[:2], SAMPLES[2:]]
    assert found(tmp_path) == []


def test_a_day_that_was_removed_is_not_compared(tmp_path: Path) -> None:
    archive(tmp_path, each_second(-110, 70), *SAMPLES)
    archive(tmp_path, each_second(70, 121), *SAMPLES)
    gone = read_chain(tmp_path).entries[0].parts
    append_entry(
        tmp_path,
        ChainEntry(kind=EntryKind.TOMBSTONE, parts=gone, reason="older than 90 days"),
        KEY,
    )
    assert found(tmp_path) == []
