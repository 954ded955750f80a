"""Where a credential's value comes from (floor 4)."""

from squidkeeper.credentials.secret import Secret
from squidkeeper.credentials.store import SecretStore

__all__ = ["Secret", "SecretStore"]
