"""What the last `squidkeeper doctor --deep` found, in a file of the state folder."""

from dataclasses import dataclass
from typing import Final

import msgspec

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import call_as_owner
from squidkeeper.base.untrusted_file import read_untrusted

_LONGEST: Final = 65_536  # bytes of the file


@dataclass(frozen=True, slots=True)
class DeepFinding:
    """One case of a deep check, by the code of the check."""

    code: str
    detail: str
    place: str


@dataclass(frozen=True, slots=True)
class DeepResult:
    """When the deep checks ended, in seconds since 1970, and what they found."""

    at: float
    findings: tuple[DeepFinding, ...]


def read_deep_result(layout: Layout) -> DeepResult | None:
    """Read the last result; None where there is none, or one of another version."""
    try:
        return msgspec.json.decode(
            read_untrusted(layout.deep_result, _LONGEST), type=DeepResult
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def keep_deep_result(layout: Layout, result: DeepResult) -> None:
    """Write the result, as the account that owns the state folder; OSError where it
    cannot be written.
    """
    text = msgspec.json.encode(result)
    call_as_owner(layout.state, lambda: replace(layout.deep_result, text))
