"""The judgement (floor 3): pure functions of a policy and a query.

`Judge(policy).decide(query)` is the one decision; helpers, `explain` and the policy's own tests all call it.
"""

from squidkeeper.engine.decision import Decision, deny
from squidkeeper.engine.judge import Judge
from squidkeeper.engine.query import Query

__all__ = ["Decision", "Judge", "Query", "deny"]
