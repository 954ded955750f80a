"""Where a credential's value comes from (floor 3)."""

from squidkeeper.secrets.secret import Secret
from squidkeeper.secrets.store import SecretStore

__all__ = ["Secret", "SecretStore"]
