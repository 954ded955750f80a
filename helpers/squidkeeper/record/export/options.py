"""What the caller chooses about the messages of an export."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How records leave. `gateway` names it in notices, and in records that do not name it themselves."""

    version: str  # of squidkeeper
    gateway: str
    full_urls: bool = False  # with query and fragment
    longest: int | None = None  # bytes of a message at most
