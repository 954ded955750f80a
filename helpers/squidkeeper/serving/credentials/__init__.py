"""Where a credential's value comes from."""

from squidkeeper.serving.credentials.secret import Secret
from squidkeeper.serving.credentials.store import SecretStore

__all__ = ["Secret", "SecretStore"]
