"""Values of a policy file as faults describe them: some of them YAML reads as something
else than text.
"""

from dataclasses import dataclass
from typing import Final

NULL: Final = "nothing"
_SHOWN_AT_MOST: Final = 60


@dataclass(frozen=True, slots=True)
class Unquoted:
    """A scalar without quotes that YAML does not read as text, and the policy not as a
    number, true or false.
    """

    text: str
    meaning: str

    @property
    def null(self) -> bool:
        """Whether there is nothing at all."""
        return self.meaning == NULL


def describe(value: object) -> str:
    """Describe a value, as faults do."""
    if isinstance(value, Unquoted):
        return "nothing" if value.null else shortened(value.text)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"the number {value}"
    if isinstance(value, str):
        return repr(shortened(value)) if value else "empty text"
    return "a list" if isinstance(value, list) else "a mapping"


def kind(value: object) -> str:
    """Return the kind of a value, and nothing of its content."""
    return (
        "a plain value"
        if isinstance(value, str | int) or _has_text(value)
        else describe(value)
    )


def _has_text(value: object) -> bool:
    return isinstance(value, Unquoted) and not value.null


def quote_it(value: object) -> str:
    """Return how to fix a value that YAML reads as something else than text because it
    has no quotes.
    """
    if isinstance(value, Unquoted):
        return f" (quote it: without quotes YAML reads it as {value.meaning})"
    if isinstance(value, bool | int):
        return " (quote it)"
    return (
        " (quote it, if it is one that starts with '{')"
        if isinstance(value, dict)
        else ""
    )


def shortened(text: str) -> str:
    """Cut a text to what a message shows."""
    return text if len(text) <= _SHOWN_AT_MOST else f"{text[:_SHOWN_AT_MOST]}…"
