"""Why requests failed (floor 6): the cause of each, as one sentence, and what to do."""

from squidkeeper.why.causes import CAUSES, Case, KnownCause, facts_of, judge

__all__ = ["CAUSES", "Case", "KnownCause", "facts_of", "judge"]
