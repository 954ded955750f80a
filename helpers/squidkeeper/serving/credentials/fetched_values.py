"""The values that `squidkeeper secrets` fetches: a file each, in the folder `secrets`
of the run folder.

The folder is on a tmpfs, and its group is Squid's: its account reads the files, and
cannot change them. A file is named by the definition of its source, so the value of an
edited source is never used.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

FOLDER: Final = "secrets"  # in the run folder
VALUE_SUFFIX: Final = ".value"


@dataclass(frozen=True, slots=True)
class FetchedValue:
    """A value, and when it expires, in seconds since 1970; None: its source does not
    say.
    """

    value: str = field(repr=False)
    expires_at: float | None = None

    def expired(self, now: float) -> bool:
        """Whether it must not be used any more."""
        return self.expires_at is not None and now >= self.expires_at


def value_file(folder: Path, key: str) -> Path:
    """Name the file of a source, by the key of its definition."""
    return folder / f"{key}{VALUE_SUFFIX}"


def format_value(value: FetchedValue) -> bytes:
    """Make the content of such a file."""
    return msgspec.json.encode(value)


def parse_value(content: bytes) -> FetchedValue:
    """Parse the content of such a file; ValueError if it is none."""
    return msgspec.json.decode(content, type=FetchedValue)
