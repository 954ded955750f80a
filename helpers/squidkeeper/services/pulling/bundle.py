"""A policy as a signed bundle: one JSON file with a number that rises, and its
signature beside it.
"""

import os
import re
import signal
import ssl
import sys
from collections.abc import Mapping
from hashlib import sha256
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from squidkeeper.base.errors import PullFailed, PullRefused
from squidkeeper.services.pulling import versions
from squidkeeper.services.pulling.programs import ChildBounds, Ended, run_bounded
from squidkeeper.services.pulling.settings import BundleSource, read_token
from squidkeeper.services.pulling.signatures import BUNDLE_NAMESPACE, signer_of

_BOUNDS: Final = ChildBounds(cpu_seconds=20)
_SILENCE_SECONDS: Final = 15


class Download(msgspec.Struct, frozen=True):
    """What to fetch: a URL, its bytes at most, and the time that all of it may take."""

    url: str
    longest: int
    seconds: int
    ca: str = ""
    token_file: str = ""


def download(download: Download) -> bytes:
    """Fetch a file; `PullFailed` if there is no answer of 200, or it is longer or takes
    longer than it may.
    """
    command = (sys.executable, "-P", "-m", __name__)
    ended = run_bounded(
        command,
        os.environ,
        given=msgspec.json.encode(download),
        bounds=_BOUNDS,
        needs_account=False,
    )
    if ended.status == 0:
        return ended.output
    raise PullFailed(f"{download.url} cannot be read: {_why(download, ended)}")


def _why(download: Download, ended: Ended) -> str:
    if ended.status == -signal.SIGALRM:
        return f"it has not ended within {download.seconds} s"
    if ended.status == -signal.SIGXCPU:
        return f"it takes more than {_BOUNDS.cpu_seconds} s of processor time"
    lines = ended.messages.splitlines() or [
        f"its process ended with status {ended.status}"
    ]
    return lines[-1]


def _answer(download: Download) -> bytes:
    """Read an answer of 200 whole: no redirect, no proxy, no longer than it may be."""
    parts, context = (
        urlsplit(download.url),
        ssl.create_default_context(cafile=download.ca or None),
    )
    connection = HTTPSConnection(
        parts.hostname or "", parts.port, timeout=_SILENCE_SECONDS, context=context
    )
    connection.request(
        "GET",
        parts._replace(scheme="", netloc="").geturl(),
        headers=_headers(download.token_file),
    )
    answer = connection.getresponse()
    if answer.status != 200:
        raise ValueError(
            f"status {answer.status}, expected 200: redirects are not followed"
        )
    content = answer.read(download.longest + 1)
    if len(content) > download.longest:
        raise ValueError(f"it has more than {download.longest:,} bytes")
    if answer.length:
        raise ValueError("it is cut off")
    return content


def _headers(token_file: str) -> Mapping[str, str]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "squidkeeper"}
    return (
        {**headers, "Authorization": f"Bearer {read_token(Path(token_file))}"}
        if token_file
        else headers
    )


def _main() -> None:
    download = msgspec.json.decode(sys.stdin.buffer.read(), type=Download)
    signal.alarm(download.seconds)  # it ends the process, whatever that waits for
    try:
        sys.stdout.buffer.write(_answer(download))
    except (OSError, HTTPException, ValueError, PullFailed) as error:
        raise SystemExit(str(error) or type(error).__name__) from None


if __name__ == "__main__":
    _main()


_LONGEST: Final = 2 * versions.BYTES_AT_MOST  # JSON escapes
_SIGNATURE_BYTES: Final = 64 << 10
_SECONDS: Final = 60  # for each of the two files
_DIGITS: Final = 12
_HIGHEST: Final = 10**15 - 1
_NAME: Final = re.compile(r"bundle-([0-9]{1,15})-[0-9a-f]{12}")


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle holds: the number, and the files by their paths."""

    number: int
    files: dict[str, str]


class BundleServer:
    """Where bundles are published; the one that was fetched last is in `file`, once it
    is known who has signed it.
    """

    def __init__(self, source: BundleSource, file: Path, allowed_signers: Path) -> None:
        self._source = source
        self._file = file
        self._allowed_signers = allowed_signers
        self._content = self._signature = b""

    def tip(self) -> str:
        """Fetch, and name what is published by its hash; `PullFailed` if the source
        cannot be read.
        """
        self._content = self._get(self._source.url, _LONGEST)
        self._signature = self._get(f"{self._source.url}.sig", _SIGNATURE_BYTES)
        return sha256(self._content).hexdigest()[:_DIGITS]

    def signer(self, tip: str) -> str:  # noqa: ARG002 - of what was fetched
        """Find who has signed what was fetched, and keep it; `PullRefused` if that is
        no allowed signer now.
        """
        signer = signer_of(
            self._content, self._signature, self._allowed_signers, BUNDLE_NAMESPACE
        )
        self._file.write_bytes(self._content)
        return signer

    def version(
        self, tip: str, before: versions.PlacedVersion, *, rewound: bool = False
    ) -> versions.Version:
        """Read what was kept, if its number is higher than before; else
        `PullRefused`.
        """
        try:
            bundle = msgspec.json.decode(self._file.read_bytes(), type=Bundle)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PullRefused(f"it is no bundle: {error}") from None
        files = {
            path: text.encode("utf-8", "surrogatepass")
            for path, text in bundle.files.items()
        }
        self._check_number(bundle.number, tip, before.name, rewound=rewound)
        versions.check_files({path: len(content) for path, content in files.items()})
        named = versions.listed_paths(files)
        used = {
            path: content
            for path, content in files.items()
            if versions.is_policy_file(path) or path in named
        }
        return versions.Version(
            f"bundle-{bundle.number}-{tip}", used, source=str(self._source)
        )

    def _check_number(
        self, number: int, tip: str, before: str, *, rewound: bool
    ) -> None:
        last = _NAME.fullmatch(before)
        if not 0 < number <= _HIGHEST:
            raise PullRefused(
                f"its number is {number}, expected one from 1 to {_HIGHEST:,}"
            )
        if number < self._source.since:
            raise PullRefused(
                f"its number is {number}, expected {self._source.since} at least ('since' in pull.yaml)"
            )
        if (
            last is None
            or rewound
            or number > int(last[1])
            or before.endswith(f"-{number}-{tip}")
        ):
            return
        again = f"`squidkeeper pull --once --accept {tip}` takes it all the same"
        raise PullRefused(
            f"its number is {number}, expected more than {last[1]}, which is in place; {again}"
        )

    def _get(self, url: str, longest: int) -> bytes:
        ca, token_file = (
            str(file or "") for file in (self._source.ca, self._source.token_file)
        )
        return download(Download(url, longest, _SECONDS, ca, token_file))
