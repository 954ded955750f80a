"""The forms in which model APIs report tokens, by the path of a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UsageForm:
    """How one API reports tokens."""

    name: str


def form_of(method: str, target: str) -> UsageForm | None:
    """Return the form of the answer to a request, by its method and its path with query; None where it is unknown."""
    del method, target
    return None
