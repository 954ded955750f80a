"""What people allow for a time (floor 7): grants, made, listed and revoked by commands."""

from squidkeeper.approvals.effect import Effect
from squidkeeper.approvals.granting import Granted, add_grant, preview_grant, prune_grants, remove_grant
from squidkeeper.approvals.new_grant import NewGrant

__all__ = ["Effect", "Granted", "NewGrant", "add_grant", "preview_grant", "prune_grants", "remove_grant"]
