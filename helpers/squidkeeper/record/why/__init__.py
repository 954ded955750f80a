"""Why requests failed: the cause of each, as one sentence, and what to do."""

from squidkeeper.record.why.causes import CAUSES, KnownCause, facts_of, judge

__all__ = ["CAUSES", "KnownCause", "facts_of", "judge"]
