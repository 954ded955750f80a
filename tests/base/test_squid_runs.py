"""Samples of Squid's own counter of requests, by run of Squid."""

from __future__ import annotations

from pathlib import Path

import pytest

from squidkeeper.base.squid_counters import (
    FILE,
    SquidSample,
    read_samples,
    with_sample,
    write_samples,
)

HOUR = 3600.0


def sample(at: float, run: str = "one", requests: int = 0) -> SquidSample:
    return SquidSample(
        run=run, started=1.0, asked=at, answered=at + 0.1, requests=requests
    )


def test_the_first_of_a_run_and_of_each_hour_and_the_last_are_kept() -> None:
    samples: tuple[SquidSample, ...] = ()
    for at in range(0, int(2.5 * HOUR), 600):
        samples = with_sample(samples, sample(float(at)))
    samples = with_sample(samples, sample(2.5 * HOUR, "two"))
    samples = with_sample(samples, sample(2.6 * HOUR, "two"))
    assert [(sample.run, sample.asked) for sample in samples] == [
        ("one", 0.0),
        ("one", HOUR),
        ("one", 2 * HOUR),
        ("one", 2.5 * HOUR - 600),
        ("two", 2.5 * HOUR),
        ("two", 2.6 * HOUR),
    ]


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = (sample(1.0, requests=5), sample(2.0, "two"))
    write_samples(tmp_path, samples)
    assert read_samples(tmp_path) == samples


@pytest.mark.parametrize("content", [None, b"", b"{}", b'[{"run":1}]', b"\xff"])
def test_a_file_that_is_none_of_ours_holds_no_samples(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    assert read_samples(tmp_path) == ()
