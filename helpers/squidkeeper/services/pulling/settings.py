"""What `squidkeeper pull` reads and reports: `pull.yaml`, which is the operator's, and
`status.json` in its folder.

`pull.yaml` says where a policy is pulled from, and whose signature counts. Squid's
group can read `status.json`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from squidkeeper.base.errors import PatternError, PullFailed
from squidkeeper.base.status_file import StatusFile
from squidkeeper.base.untrusted_file import read_regular
from squidkeeper.policy.language.secret_sources import parse_period

SETTINGS: Final = "pull.yaml"  # beside the policy's folder
EVERY_SECONDS: Final = 30
_EVERY: Final = (5, 86400)
_URL: Final = re.compile(
    r"(https|ssh)://(?:([A-Za-z0-9._-]{1,64})@)?([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/[!-~]*)"
)
_REFERENCE: Final = re.compile(
    r"(?!.*(?:\.\.|\.lock$|//|/\.))[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}(?<![./])"
)
_FOLDER: Final = re.compile(
    r"(?!.*(?:^|/)\.\.?(?:/|$))[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*"
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class GitSource:
    """A folder of a git repository, at the tip of a branch or at a tag."""

    url: str
    reference: str  # refs/heads/… or refs/tags/…
    folder: str = ""  # empty: the whole tree
    since: str = ""  # a commit that each tip descends from
    key: Path | None = None
    known_hosts: Path | None = None
    ca: Path | None = None
    token_file: Path | None = None

    def __str__(self) -> str:
        return " ".join(
            filter(None, (self.url, self.reference.split("/", 2)[2], self.folder))
        )


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A signed file at an https URL, with its signature beside it: `URL.sig`."""

    url: str
    since: int = 0  # the lowest number
    ca: Path | None = None
    token_file: Path | None = None

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class PullSettings:
    """The settings of `squidkeeper pull`.

    Without a ceiling, a signed policy may open everything.
    """

    source: GitSource | BundleSource
    allowed_signers: Path
    every_seconds: int = EVERY_SECONDS
    ceiling: Path | None = None


def read_pull_settings(file: Path) -> PullSettings:
    """Read the settings; `PullFailed` says what is wrong with them."""
    try:
        read = msgspec.yaml.decode(file.read_bytes(), type=_PullFile, dec_hook=_as_path)
        return _settings(read)
    except OSError as error:
        raise PullFailed(f"{file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PullFailed(f"{file}: {error}") from None
    except PatternError as error:
        raise PullFailed(f"{file}: {error}") from None


def read_token(file: Path) -> str:
    """Read the token of a `token_file`; `PullFailed` says what is wrong with the file,
    and shows nothing of it.
    """
    try:
        token = read_regular(file).decode().strip()
    except OSError as error:
        raise PullFailed(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isascii() or not token.isprintable():
        raise PullFailed(f"{file} holds no token, expected one line")
    return token


def _as_path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise ValueError("expected the path of a file")
    return Path(value)


class _SourceInFile(msgspec.Struct, forbid_unknown_fields=True):
    git: str = ""
    bundle: str = ""
    branch: str = ""
    tag: str = ""
    path: str = ""
    since: str | int = ""
    key: Path | None = None
    known_hosts: Path | None = None
    ca: Path | None = None
    token_file: Path | None = None


class _PullFile(msgspec.Struct, forbid_unknown_fields=True):
    source: _SourceInFile
    allowed_signers: Path
    every: str = f"{EVERY_SECONDS}s"
    ceiling: Path | None = None


def _settings(read: _PullFile) -> PullSettings:
    given = read.source
    if bool(given.git) == bool(given.bundle):
        raise PatternError("source: expected exactly one of git and bundle")
    source = _git(given) if given.git else _bundle(given)
    paths = (
        read.allowed_signers,
        read.ceiling,
        given.key,
        given.known_hosts,
        given.ca,
        given.token_file,
    )
    if relative := next(
        (path for path in paths if path and not path.is_absolute()), None
    ):
        raise PatternError(
            f"{relative} is a relative path, expected one that begins with /"
        )
    return PullSettings(
        source, read.allowed_signers, parse_period(read.every, *_EVERY), read.ceiling
    )


def _git(source: _SourceInFile) -> GitSource:
    scheme = _scheme(source.git)
    if bool(source.branch) == bool(source.tag):
        raise PatternError("source: expected exactly one of branch and tag")
    reference = (
        f"refs/heads/{source.branch}" if source.branch else f"refs/tags/{source.tag}"
    )
    _check(_REFERENCE, source.branch or source.tag, "the name of a branch or tag")
    _check(
        _FOLDER, source.path or "policy", "a folder of the repository, such as policy"
    )
    _check(_COMMIT, str(source.since or "0" * 40), "the whole hash of a commit")
    if scheme == "ssh" and source.known_hosts is None:
        raise PatternError(
            "source: known_hosts is missing, expected the file with the server's host key"
        )
    if scheme == "ssh" and (source.ca or source.token_file):
        raise PatternError(
            "source: ca and token_file are for https, expected key and known_hosts with ssh"
        )
    if scheme == "https" and (source.key or source.known_hosts):
        raise PatternError(
            "source: key and known_hosts are for ssh, expected ca or token_file with https"
        )
    access = (source.key, source.known_hosts, source.ca, source.token_file)
    return GitSource(source.git, reference, source.path, str(source.since), *access)


def _bundle(source: _SourceInFile) -> BundleSource:
    if _scheme(source.bundle) != "https":
        raise PatternError(
            "source: a bundle is read over https, expected https://HOST/…"
        )
    if any((source.branch, source.tag, source.path, source.key, source.known_hosts)):
        raise PatternError("source: a bundle has url, since, ca and token_file alone")
    since = source.since or 0
    if not isinstance(since, int):
        raise PatternError(
            "source: since is the lowest number of a bundle, expected a number"
        )
    return BundleSource(source.bundle, since, source.ca, source.token_file)


def _scheme(url: str) -> str:
    found = _URL.fullmatch(url)
    if found is None or (found[1] == "https" and found[2]):
        raise PatternError(
            f"{url!r} is no source, expected https://HOST/PATH or ssh://USER@HOST/PATH"
        )
    return found[1]


def _check(pattern: re.Pattern[str], text: str, expected: str) -> None:
    if pattern.fullmatch(text) is None:
        raise PatternError(f"source: {text!r} is not {expected}")


FILE: Final = "status.json"
CURRENT: Final = "current"  # the link to the version in place
# The account that writes the report reads what strangers send: what it holds is bounded
# for pages and metrics.
_Seconds = Annotated[float, Meta(ge=0, le=1e11)]
_Text = Annotated[str, Meta(max_length=4000)]
_Version = Annotated[
    str, Meta(pattern="^([0-9a-f]{40}|bundle-[0-9]{1,15}-[0-9a-f]{12})?\\Z")
]


@dataclass(frozen=True, slots=True)
class PullStatus:
    """The last run; times are in seconds since 1970, None: never.

    `version` is in place since `placed`, as `signer` has signed it: a commit, or the
    number and hash of a bundle. It is empty where nothing was pulled yet. `succeeded`
    is when the source was last read. `refused` is the version of the source that is not
    put in place, for the `reason`; `failure` is why the source cannot be read.
    `altered`: the files in place are not those that the source has, as after an edit by
    hand.
    """

    source: _Text = ""
    every_seconds: Annotated[int, Meta(ge=0, le=86400)] = 0
    ended: _Seconds | None = None
    succeeded: _Seconds | None = None
    version: _Version = ""
    signer: _Text = ""
    placed: _Seconds | None = None
    refused: _Text = ""
    reason: _Text = ""
    failure: _Text = ""
    has_ceiling: bool = False
    altered: bool = False


def read_pull_status(folder: Path) -> PullStatus | None:
    """Read the report; None if there is none: the policy is not pulled, or has not been
    yet.
    """
    return _status_file(folder).read()


def patience_seconds(status: PullStatus) -> float:
    """How long the source may be unread before that is reported; the alert has the same
    bound.
    """
    return 600.0 + 3 * status.every_seconds


def write_pull_status(folder: Path, status: PullStatus) -> None:
    """Write the report; OSError if that is impossible."""
    _status_file(folder).write(status)


def _status_file(folder: Path) -> StatusFile[PullStatus]:
    return StatusFile(folder / FILE, PullStatus)
