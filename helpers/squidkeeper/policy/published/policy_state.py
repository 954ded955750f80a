"""How the policy of one process is: which revision is in force, and what is wrong with
the files.
"""

from dataclasses import dataclass

from squidkeeper.base.faults import Fault, FaultCode


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The state of the policy on disk, at the last check that found it changed.

    `revision` is in force since `loaded` (seconds since 1970); None if no policy has
    loaded. `ok`: it is the policy on disk; else `faults` tell why not, or `held` is the
    revision on disk, for which the reload gate has no verdict yet. `warnings` are those
    of the revision in force.
    """

    revision: str | None = None
    loaded: float | None = None
    ok: bool = False
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    held: str | None = None

    @property
    def problem(self) -> str:
        """The faults as text, one a line."""
        return "\n".join(map(str, self.faults))

    @property
    def gated(self) -> bool:
        """Whether the reload gate refuses the policy on disk; every helper then has the
        revision in force.
        """
        return (
            not self.ok
            and bool(self.faults)
            and self.faults[0].code is FaultCode.RELOAD_GATED
        )
