"""What Squid's own counter of requests was, in each run of Squid: a small file in the state folder.

The maintenance process samples it; the archive takes the samples along, and verifying compares them with its lines.
A run of Squid lasts while its processes are the same: a worker that is started again counts from zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.untrusted_file import read_untrusted

FILE: Final = "squid-runs.json"
COUNTER: Final = "client_http.requests"
_EACH_SECONDS: Final = 3600.0  # between two samples of a run that are kept, beside its first and its last
_KEPT: Final = 5000  # samples: half a year without a restart
_LONGEST: Final = 4 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SquidSample:
    """Squid's counter at one time: somewhen from `asked` to `answered`. Times are in seconds since 1970.

    `started`: when a run began to count from zero; 0 where one of several workers was started again.
    """

    run: str
    started: float = 0.0
    asked: float
    answered: float
    requests: int


def read_samples(state: Path) -> tuple[SquidSample, ...]:
    """Read the samples, oldest first; none where there is no file, or one that is none of ours."""
    try:
        return msgspec.json.decode(read_untrusted(state / FILE, _LONGEST), type=tuple[SquidSample, ...])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ()


def format_samples(samples: Iterable[SquidSample]) -> bytes:
    """Format the content of the file: the newest samples."""
    return msgspec.json.encode(tuple(samples)[-_KEPT:])


def with_sample(samples: tuple[SquidSample, ...], sample: SquidSample) -> tuple[SquidSample, ...]:
    """Add a sample. It replaces the last one, unless that is the first of its run or of its hour."""
    before = samples[-2] if len(samples) > 1 else None
    last = samples[-1] if samples else None
    if last and before and last.run == before.run == sample.run and _hour(last) == _hour(before):
        return (*samples[:-1], sample)
    return (*samples, sample)


def _hour(sample: SquidSample) -> float:
    return sample.asked // _EACH_SECONDS
