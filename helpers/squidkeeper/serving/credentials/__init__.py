"""Where a credential's value comes from."""

from squidkeeper.serving.credentials.store import Secret, SecretStore

__all__ = ["Secret", "SecretStore"]
