"""Clients that know their answers: each asks for what it may have and for what it may
not, again and again.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.e2e.raw import Raw
from tests.e2e.reply import Reply
from tests.waiting import pause, wait_for

from .fleet import Fleet

# between two requests of a client: the gateways share the processors with the clients
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Question:
    """A host that clients ask for, and the statuses that are right at this moment."""

    host: str
    right: Callable[[], frozenset[int]]
    scheme: str = "http"  # or https: a tunnel for each request


def always(host: str, *statuses: int, scheme: str = "http") -> Question:
    return Question(host, lambda: frozenset(statuses), scheme)


BASIC = (always("open.example", 200), always("closed.example", 403))


@dataclass
class FleetLoad:
    """What came of the requests so far.

    All but those in held tunnels are on connections of their own.
    """

    fleet: Fleet
    right: Counter[str] = field(default_factory=Counter)  # by host
    wrongly_allowed: list[str] = field(default_factory=list)
    wrongly_denied: list[str] = field(default_factory=list)
    # no answer, or neither an allowed one nor a denial
    lost: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)  # held tunnels that ended
    longest_seconds: float = 0  # that a client has waited for an answer, or for its end
    _stop: threading.Event = field(default_factory=threading.Event)

    def at_least(self, more: int) -> None:
        """Wait for this many more right answers."""
        goal = self.right.total() + more
        wait_for(lambda: self.right.total() >= goal, f"{more} more right answers")

    def client(self, address: str, questions: tuple[Question, ...]) -> None:
        """Ask in turn, each time on a connection of its own."""
        number = 0
        while not self._stop.is_set():
            for question in questions:
                number += 1
                self._ask(address, f"/{address}/{number}", question)
                pause(PAUSE_SECONDS, "the pace of a client")

    def _ask(self, address: str, path: str, question: Question) -> None:
        before, begun = question.right(), time.monotonic()
        reply = self.fleet.ask(address, path, question.host, question.scheme)
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - begun)
        right = before | question.right()  # an edit may come in between
        what = (
            f"{time.strftime('%X')} {address} {question.scheme}://{question.host}{path}"
        )
        self._note(what, question.host, reply, right)

    def _note(self, what: str, host: str, reply: Reply, right: frozenset[int]) -> None:
        status = reply.status
        if reply and status == 200 and not what.endswith(json.loads(reply.body)["url"]):
            self.lost.append(f"{what}: the answer to another request")
        elif status in right:
            self.right[host] += 1
        elif status == 200:
            self.wrongly_allowed.append(what)
        elif reply and status == 403:
            self.wrongly_denied.append(f"{what}: {reply.rule}")
        else:
            self.lost.append(f"{what}: {status}")

    def holder(self, address: str, host: str) -> None:
        """Hold a tunnel open, and ask in it; open another where it ends."""
        held: Raw | None = None
        while not self._stop.is_set():
            try:
                held = held or self.fleet.tunnel(address, host)
            except OSError as error:
                self.lost.append(
                    f"{time.strftime('%X')} {address} CONNECT {host}: {error}"
                )
            if held and not _serves(held, host):
                self.cut.append(f"{time.strftime('%X')} {address} {host}")
                held.close()
                held = None
            pause(4 * PAUSE_SECONDS, "the pace of a client")
        if held:
            held.close()


def _serves(held: Raw, host: str) -> bool:
    with suppress(OSError):
        reply = held.get("/held", host)
        return reply.status == 200
    return False


@contextmanager
def load(
    fleet: Fleet,
    addresses: tuple[str, ...],
    questions: tuple[Question, ...] = BASIC,
    holders: tuple[str, ...] = (),
) -> Iterator[FleetLoad]:
    """Run one client for each address meanwhile, and one that holds a tunnel for each
    of `holders`.
    """
    running = FleetLoad(fleet)
    threads = [
        threading.Thread(target=running.client, args=(address, questions))
        for address in addresses
    ]
    threads += [
        threading.Thread(target=running.holder, args=(holder, "open.example"))
        for holder in holders
    ]
    for thread in threads:
        thread.start()
    try:
        running.at_least(2 * len(addresses))
        yield running
    finally:
        running._stop.set()
        for thread in threads:
            thread.join()
