"""Squid's own counters, read from its cache manager on loopback, and samples of them in
each run of Squid.

The samples are a small file in the state folder. The maintenance process takes them;
the archive takes them along, and verifying compares them with its lines. A run of Squid
lasts while its processes are the same: a worker that is started again counts from zero.
"""

import re
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from squidkeeper.base.deadline import shut, whole_exchange
from squidkeeper.base.status_file import StatusFile

FILE: Final = "squid-runs.json"
COUNTER: Final = "client_http.requests"
_EACH_SECONDS: Final = (
    3600.0  # between two samples of a run that are kept, beside its first and its last
)
_KEPT: Final = 5000  # samples: half a year without a restart
_LONGEST: Final = 4 * 1024 * 1024  # bytes
PAGE: Final = "/squid-internal-mgr/counters"
TIMEOUT_SECONDS: Final = 1.0
# A PROXY header, version 2, without addresses (LOCAL): those of the connection count.
_PROXY_HEADER: Final = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
_NUMBER = re.compile(r"[0-9]{1,300}(\.[0-9]+)?", re.ASCII)
_PAGE_BYTES = 64 * 1024  # twenty times what Squid writes


@dataclass(frozen=True, slots=True)
class SquidCounters:
    """Squid's counters by its own names.

    `problem`: why there are none. `answers`: whether Squid answered at all.
    """

    values: dict[str, float]
    problem: str | None = None
    answers: bool = False


def read_counters(host: str, port: int, *, proxy_header: bool = False) -> SquidCounters:
    """Read the counters of the Squid at this address; never fails, and takes two
    seconds at most.

    The request comes from loopback, the only source that squid.conf allows, even if
    Squid listens on another address. `proxy_header`: the port requires a PROXY header.
    """
    loopback = "::1" if ":" in host else "127.0.0.1"
    connection = HTTPConnection(
        host, port, TIMEOUT_SECONDS, source_address=(loopback, 0)
    )
    try:
        connection.connect()
        with whole_exchange(TIMEOUT_SECONDS, partial(shut, connection.sock)):
            if proxy_header:
                connection.sock.sendall(_PROXY_HEADER)
            connection.request("GET", PAGE)
            response = connection.getresponse()
            page = response.read(_PAGE_BYTES)
    except TimeoutError:
        return SquidCounters({}, "timed out")
    except (OSError, HTTPException) as error:
        return SquidCounters({}, str(error) or type(error).__name__)
    finally:
        connection.close()
    if response.status != 200:
        problem = f"{PAGE} is answered {response.status}: does squid.conf open it for this address?"
        return SquidCounters({}, problem, answers=True)
    values = parse_counters(page)
    return SquidCounters(
        values, None if values else f"{PAGE} holds no counters", answers=True
    )


def parse_counters(page: bytes) -> dict[str, float]:
    """Parse the page: lines of `name = number`; ignore others."""
    pairs = (line.partition(" = ") for line in page.decode("latin-1").splitlines())
    return {name.strip(): float(value) for name, _, value in pairs if _is_number(value)}


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SquidSample:
    """Squid's counter at one time: somewhen from `asked` to `answered`.

    Times are in seconds since 1970.

    `started`: when a run began to count from zero; 0 where one of several workers was
    started again.
    """

    run: str
    started: float = 0.0
    asked: float
    answered: float
    requests: int


def read_samples(state: Path) -> tuple[SquidSample, ...]:
    """Read the samples, oldest first; none where there is no file, or one that is none
    of ours.
    """
    return _samples_file(state).read() or ()


def write_samples(state: Path, samples: tuple[SquidSample, ...]) -> None:
    """Write the newest samples; OSError if that is impossible."""
    _samples_file(state).write(samples[-_KEPT:])


def _samples_file(state: Path) -> StatusFile[tuple[SquidSample, ...]]:
    return StatusFile(state / FILE, tuple[SquidSample, ...], longest=_LONGEST)


def with_sample(
    samples: tuple[SquidSample, ...], sample: SquidSample
) -> tuple[SquidSample, ...]:
    """Add a sample.

    It replaces the last one, unless that is the first of its run or of its hour.
    """
    before = samples[-2] if len(samples) > 1 else None
    last = samples[-1] if samples else None
    if (
        last
        and before
        and last.run == before.run == sample.run
        and _hour(last) == _hour(before)
    ):
        return (*samples[:-1], sample)
    return (*samples, sample)


def _hour(sample: SquidSample) -> float:
    return sample.asked // _EACH_SECONDS
