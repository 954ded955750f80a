"""What a rule asks of the body of a request: the model of `body:`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from squidkeeper.policy.language.variables import named_variables

Scalar = str | int | float | bool | None
MAX_BYTES: Final = 1_000_000  # of a body that is read, where `max` is left out
EACH: Final = "*"  # in a pointer: every item of an array


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """What may stand at a place of a JSON document: one of `values`, or a number from
    `least` to `most`.

    A text of `values` may have `*` for any characters. `absent`: nothing has to stand
    there. Without values and bounds anything may stand there; with no values (an empty
    tuple) nothing may.
    """

    values: tuple[Scalar, ...] | None = None
    least: float | None = None
    most: float | None = None
    absent: bool = False

    @property
    def typed_values(self) -> tuple[tuple[str, Scalar], ...] | None:
        """The values with their types: in Python `1`, `1.0` and `True` are equal."""
        return (
            None
            if self.values is None
            else tuple((type(value).__name__, value) for value in self.values)
        )

    def __eq__(self, other: object) -> bool:
        """Compare all fields, and the types of values."""
        return isinstance(other, Allowed) and self._key == other._key

    def __hash__(self) -> int:
        """Return a hash that is equal where these are."""
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return self.typed_values, self.least, self.most, self.absent


@dataclass(frozen=True, slots=True)
class Member:
    """A place of a JSON document, and what may stand there.

    `pointer` has the reference tokens of a JSON Pointer (RFC 6901), unescaped. `EACH`
    stands for each item of an array.
    """

    pointer: tuple[str, ...]
    allowed: Allowed


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A JSON document.

    `only` lists all members that it may have, with what is in them. None: it may have
    any.
    """

    members: tuple[Member, ...]
    only: tuple[tuple[str, ...], ...] | None = None
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True, slots=True)
class GitBody:
    """The commands of a push.

    `push` has globs: `*` is any characters but `/`, `**` any. In `options` `*` is any,
    too.

    In a deny `push` names refs alone; the rule holds where a command is for one of
    them.
    """

    push: tuple[str, ...]
    delete: bool = False
    create: bool = True
    options: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES  # of the commands, without the pack

    @property
    def variables(self) -> frozenset[str]:
        """The variables of sessions that its refs name."""
        return frozenset(name for glob in self.push for name in named_variables(glob))


@dataclass(frozen=True, slots=True)
class McpBody:
    """Messages of the Model Context Protocol over HTTP. `tools` and `methods` may have
    `*` for any characters.

    `arguments` has what the arguments of a tool must be, by its name or glob.
    """

    tools: tuple[str, ...] = ()
    arguments: Mapping[str, tuple[Member, ...]] | None = field(default=None, hash=False)
    methods: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True, slots=True)
class WrittenPush:
    """A push of a test: the refs that it updates, creates and deletes, and
    its options.
    """

    update: tuple[str, ...] = ()
    create: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


Body = JsonBody | GitBody | McpBody
