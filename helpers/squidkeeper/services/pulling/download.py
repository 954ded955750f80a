"""One file over https, fetched by a process of its own: no server holds the one that pulls for long."""

import os
import signal
import ssl
import sys
from collections.abc import Mapping
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from squidkeeper.base.errors import PullFailed
from squidkeeper.services.pulling.programs import ChildBounds, Ended, run_bounded
from squidkeeper.services.pulling.settings import read_token

_BOUNDS: Final = ChildBounds(cpu_seconds=20)
_SILENCE_SECONDS: Final = 15


class Download(msgspec.Struct, frozen=True):
    """What to fetch: a URL, its bytes at most, and the time that all of it may take."""

    url: str
    longest: int
    seconds: int
    ca: str = ""
    token_file: str = ""


def download(one: Download) -> bytes:
    """Fetch a file; `PullFailed` if there is no answer of 200, or it is longer or takes longer than it may."""
    command = (sys.executable, "-P", "-m", __name__)
    ended = run_bounded(command, os.environ, given=msgspec.json.encode(one), bounds=_BOUNDS, needs_account=False)
    if ended.status == 0:
        return ended.output
    raise PullFailed(f"{one.url} cannot be read: {_why(one, ended)}")


def _why(one: Download, ended: Ended) -> str:
    if ended.status == -signal.SIGALRM:
        return f"it has not ended within {one.seconds} s"
    if ended.status == -signal.SIGXCPU:
        return f"it takes more than {_BOUNDS.cpu_seconds} s of processor time"
    lines = ended.messages.splitlines() or [f"its process ended with status {ended.status}"]
    return lines[-1]


def _answer(one: Download) -> bytes:
    """Read an answer of 200 whole: no redirect, no proxy, no longer than it may be."""
    parts, context = urlsplit(one.url), ssl.create_default_context(cafile=one.ca or None)
    connection = HTTPSConnection(parts.hostname or "", parts.port, timeout=_SILENCE_SECONDS, context=context)
    connection.request("GET", parts._replace(scheme="", netloc="").geturl(), headers=_headers(one.token_file))
    answer = connection.getresponse()
    if answer.status != 200:
        raise ValueError(f"status {answer.status}, expected 200: redirects are not followed")
    content = answer.read(one.longest + 1)
    if len(content) > one.longest:
        raise ValueError(f"it has more than {one.longest:,} bytes")
    if answer.length:
        raise ValueError("it is cut off")
    return content


def _headers(token_file: str) -> Mapping[str, str]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "squidkeeper"}
    return {**headers, "Authorization": f"Bearer {read_token(Path(token_file))}"} if token_file else headers


def _main() -> None:
    one = msgspec.json.decode(sys.stdin.buffer.read(), type=Download)
    signal.alarm(one.seconds)  # it ends the process, whatever that waits for
    try:
        sys.stdout.buffer.write(_answer(one))
    except (OSError, HTTPException, ValueError, PullFailed) as error:
        raise SystemExit(str(error) or type(error).__name__) from None


if __name__ == "__main__":
    _main()
