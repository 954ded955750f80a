"""Where a credential's value comes from (floor 3)."""

from squidkeeper.credentials.secret import Secret
from squidkeeper.credentials.store import SecretStore

__all__ = ["Secret", "SecretStore"]
