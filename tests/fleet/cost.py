"""What a fault has cost: the row of a table that each test of test_faults.py leaves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from tests.e2e.origin import Origins
from tests.waiting import wait_for

from .fleet import CLIENTS
from .load import FleetLoad, load
from .whole import LIMIT, TOKEN, Whole

ASKING, HOLDING = CLIENTS[:9], CLIENTS[9:12]
AFTER = 60  # right answers after the fault is over
COLUMNS = (
    "fault",
    "answered right",
    "lost",
    "tunnels cut",
    "wrongly allowed",
    "wrongly denied",
    "longest wait",
    f"quota, of {LIMIT}",
    "edits",
    "until all agreed",
    "alerts",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


@dataclass
class Cost:
    """What came of the requests of one fault.

    A credential that was not where it must be is `misplaced`.
    """

    fault: str
    running: FleetLoad
    host: str  # whose quota nobody had used before
    given: int = 0  # requests of that quota that have reached the origin
    misplaced: list[str] = field(default_factory=list)
    agreed_seconds: list[float] = field(default_factory=list)
    alerts: set[str] = field(default_factory=set)

    @property
    def row(self) -> str:
        run = self.running
        edits, agreed = (
            self.agreed_seconds,
            f"{max(self.agreed_seconds):.0f} s" if self.agreed_seconds else "–",
        )
        alerts = (
            ", ".join(
                sorted(alert.removeprefix("Squidkeeper") for alert in self.alerts)
            )
            or "none"
        )
        counts = (
            run.right.total(),
            len(run.lost),
            len(run.cut),
            len(run.wrongly_allowed) + len(self.misplaced),
        )
        rest = (
            len(run.wrongly_denied),
            f"{run.longest_seconds:.1f} s",
            self.given,
            len(edits),
            agreed,
            alerts,
        )
        return f"| {' | '.join(map(str, (self.fault, *counts, *rest)))} |"

    def use_up(self) -> None:
        """Use what is left of the quota, by clients of all gateways."""
        fleet = self.running.fleet

        def denied(address: str) -> bool:
            return fleet.get(address, f"/used/{time.monotonic()}", self.host) == 403

        for address in ASKING:
            wait_for(
                lambda address=address: denied(address),  # type: ignore[misc] # mypy does not take a default in a lambda
                f"the end of the quota of {self.host}",
            )

    def look_at(self, origins: Origins) -> None:
        """Count what has reached the origins."""
        seen = origins.seen[:]
        self.given = sum(asked.values("Host") == [self.host] for asked in seen)
        for request in seen:
            wanted = (
                [f"Bearer {TOKEN}"]
                if request.values("Host") == ["secret.example"]
                else []
            )
            if request.values("Authorization") != wanted:
                self.misplaced.append(
                    f"{request.url}: {len(request.values('Authorization'))} credentials"
                )


@contextmanager
def cost(
    whole: Whole, origins: Origins, fault: str, number: int, *, edits: bool = True
) -> Iterator[Cost]:
    """Let clients ask meanwhile, and edits go on; then use up the quota, and count."""
    begun, edited, before = (
        time.monotonic(),
        len(whole.editor.agreed_seconds),
        whole.alerts(1),
    )
    with load(whole.fleet, ASKING, whole.questions(number), HOLDING) as running:
        found = Cost(fault, running, f"counted-{number}.example")
        with whole.editor.editing() if edits else nullcontext():
            yield found
            running.at_least(AFTER)
    found.use_up()
    found.look_at(origins)
    found.agreed_seconds = whole.editor.agreed_seconds[edited:]
    found.alerts = whole.alerts(time.monotonic() - begun) - before
