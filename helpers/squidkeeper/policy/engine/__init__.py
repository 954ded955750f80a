"""The decision: pure functions of a policy, a request and a time.

`decide` is the one decision. Helpers, `explain`, a policy's tests and drift all call
it.
"""

from squidkeeper.policy.engine.body_scope import (
    decide_body,
    listed_rules,
    listed_text,
    session_of_list,
)
from squidkeeper.policy.engine.compiled_policy import CompiledPolicy, HostMatch
from squidkeeper.policy.engine.decide import Stage, asks_url, decide, decide_until_spent
from squidkeeper.policy.engine.decision import Decision, deny, unavailable
from squidkeeper.policy.engine.tunnels import checked_tunnel, mode_in_force

__all__ = [
    "CompiledPolicy",
    "Decision",
    "HostMatch",
    "Stage",
    "asks_url",
    "checked_tunnel",
    "decide",
    "decide_body",
    "decide_until_spent",
    "deny",
    "listed_rules",
    "listed_text",
    "mode_in_force",
    "session_of_list",
    "unavailable",
]
