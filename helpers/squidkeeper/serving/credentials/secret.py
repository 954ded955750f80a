"""A value that never prints itself."""

from dataclasses import dataclass, field

from squidkeeper.base.errors import SecretUnavailable
from squidkeeper.base.faults import FaultCode


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret value. Only `reveal` gives it, and only the reply to Squid may call that."""

    name: str
    _value: str = field(repr=False)

    def reveal(self) -> str:
        """Give the value itself."""
        return self._value


def checked_secret(name: str, source: str, value: bytes) -> Secret:
    """Make a secret of bytes that were read; one trailing newline is not part of it.

    `SecretUnavailable` if it is empty or holds more than printable ASCII: a CR or LF would split the header.
    """
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise SecretUnavailable(FaultCode.SECRET_EMPTY, f"secret {name}: {source} is empty")
    if not all(0x20 <= byte <= 0x7E for byte in value):
        message = f"secret {name}: {source} holds characters other than printable ASCII"
        raise SecretUnavailable(FaultCode.SECRET_INVALID, message)
    return Secret(name, value.decode("ascii"))
