"""The forms of a credential (floor 2): what it puts into a request, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from squidkeeper.policy.templates import parse_template


@dataclass(frozen=True, slots=True)
class InjectedValue:
    """One value under a name: `template` with {secret} in it; with `username`, the whole is a basic credential.

    `bearer: s` is the template `Bearer {s}`; `basic` has `username` and the template of the password; `value` is its
    own template. Literal braces are doubled, as in Python's str.format.
    """

    name: str
    template: str
    secrets: tuple[str, ...]
    username: str | None = None


@dataclass(frozen=True, slots=True)
class Headers:
    """One header or more."""

    values: tuple[InjectedValue, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """What it fills in a request, as it is shown. No two credentials of a request fill the same place."""
        return tuple(value.name for value in self.values)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that it needs."""
        return _secrets(self.values)


Form = Headers


def values_of(templates: Mapping[str, str]) -> tuple[InjectedValue, ...]:
    """Make the values of templates by name."""
    return tuple(InjectedValue(name, text, parse_template(text)) for name, text in templates.items())


def _secrets(values: tuple[InjectedValue, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(secret for value in values for secret in value.secrets))
