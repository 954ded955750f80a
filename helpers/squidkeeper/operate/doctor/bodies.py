"""What is wrong with the processes that inspect bodies, where Squid's configuration has
their part.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from squidkeeper.base.gateway_commands import RESTART_BODIES
from squidkeeper.base.layout import BODIES
from squidkeeper.operate.doctor.inspection import (
    Found,
    Inspection,
    critical,
    finds,
    warning,
)
from squidkeeper.operate.doctor.listening import foreign_listeners
from squidkeeper.operate.setup.body_services import options_problem
from squidkeeper.operate.setup.options import port_of
from squidkeeper.operate.setup.processes import InstalledService
from squidkeeper.serving.parts import Part

ASKED: Final = (
    8  # connections. None of them reaches one of two processes once in 128 times
)


def _services(seen: Inspection) -> tuple[InstalledService, ...]:
    """List the processes; none where Squid does not ask them."""
    port = port_of(seen.layout.bodies)
    names = BODIES if Part.BODIES in seen.parts else ()
    return tuple(
        InstalledService(name, seen.layout, seen.squid.systemd, port=port)
        for name in names
    )


def _problems(seen: Inspection) -> list[str]:
    """Ask on several connections at once, which the two processes share; an answer
    without a problem is empty.
    """
    with ThreadPoolExecutor(ASKED) as threads:
        return [*threads.map(options_problem, [seen.layout.bodies] * ASKED)]


@finds("bodies-down")
def _bodies_down(seen: Inspection) -> Iterator[Found]:
    """Find that neither works. One without what starts it again can still answer."""
    services = _services(seen)
    if any(service.works() for service in services) or not (
        services and all(_problems(seen))
    ):
        return
    for service in services:
        unit = service.paths.unit
        problem = (
            f"does not listen on {seen.layout.bodies}"
            if unit.exists()
            else "is not installed"
        )
        yield Found(f"squidkeeper-{service.name} {problem}", str(unit))


@warning(
    "bodies-half-down",
    "One of two processes that inspect bodies does not work",
    f"Some requests wait for it, and may be denied. {RESTART_BODIES}.",
    as_root=True,
    running=True,
)
def _bodies_half_down(seen: Inspection) -> Iterator[Found]:
    down = [service for service in _services(seen) if not service.works()]
    if down and not all(_problems(seen)):
        for service in down:
            why = (
                "does not answer"
                if service.pid()
                else "does not run, or nothing starts it again"
            )
            yield Found(f"squidkeeper-{service.name} {why}", str(service.paths.unit))


@critical(
    "bodies-unanswered",
    "What inspects bodies does not answer as Squid needs it",
    f"Requests that need it are denied until then. {RESTART_BODIES}.",
    as_root=True,
    running=True,
)
def _bodies_unanswered(seen: Inspection) -> Iterator[Found]:
    if any(service.works() for service in _services(seen)) and all(
        problems := _problems(seen)
    ):
        yield Found(problems[0])


@critical(
    "bodies-foreign",
    "Another program can answer Squid about bodies",
    "End it, and have it listen elsewhere. What Squid sends there holds bodies and headers of clients.",
    as_root=True,
    running=True,
)
def _bodies_foreign(seen: Inspection) -> Iterator[Found]:
    services = _services(seen)
    for process in foreign_listeners(seen.layout.bodies, services) if services else ():
        yield Found(
            f"process {process.pid} ({process.name()}) listens on {seen.layout.bodies}"
        )
