"""What `squidkeeper pull` reports: a small file in its folder, which Squid's group can read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from squidkeeper.base.atomic_write import replace as write_file
from squidkeeper.base.untrusted_file import read_untrusted

FILE: Final = "status.json"
CURRENT: Final = "current"  # the link to the version in place
_LONGEST: Final = 1 << 16
# The account that writes the report reads what strangers send: what it holds is bounded for pages and metrics.
_Seconds = Annotated[float, Meta(ge=0, le=1e11)]
_Text = Annotated[str, Meta(max_length=4000)]
_Version = Annotated[str, Meta(pattern="^([0-9a-f]{40}|bundle-[0-9]{1,15}-[0-9a-f]{12})?\\Z")]


@dataclass(frozen=True, slots=True)
class PullStatus:
    """The last run; times are in seconds since 1970, None: never.

    `version` is in place since `placed`, as `signer` has signed it: a commit, or the number and hash of a bundle. It is
    empty where nothing was pulled yet. `succeeded` is when the source was last read. `refused` is the
    version of the source that is not put in place, for the `reason`; `failure` is why the source cannot be read.
    `altered`: the files in place are not those that the source has, as after an edit by hand.
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
    """Read the report; None if there is none: the policy is not pulled, or has not been yet."""
    try:
        return msgspec.json.decode(read_untrusted(folder / FILE, _LONGEST), type=PullStatus)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def patience_seconds(status: PullStatus) -> float:
    """How long the source may be unread before that is reported; the alert has the same bound."""
    return 600.0 + 3 * status.every_seconds


def write_pull_status(folder: Path, status: PullStatus) -> None:
    """Write the report; OSError if that is impossible."""
    write_file(folder / FILE, msgspec.json.encode(status))
