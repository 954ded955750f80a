"""What people allow for a time: grants, made, listed and revoked by commands."""

from squidkeeper.change.approvals.granting import (
    Granted,
    add_grant,
    preview_grant,
    prune_grants,
    remove_grant,
)
from squidkeeper.change.approvals.new_grant import Effect, NewGrant

__all__ = [
    "Effect",
    "Granted",
    "NewGrant",
    "add_grant",
    "preview_grant",
    "prune_grants",
    "remove_grant",
]
