"""Requests from several clients, one after another; each answer with the time of its
request and of its arrival.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

from tests.waiting import pause, wait_for

from .gateway import Gateway
from .raw import Raw, tunnel
from .reply import NO_ANSWER, Reply

# between two requests of a client: otherwise the clients take the processors from the
# gateway
PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Answered:
    url: str
    asked: float
    came: float
    status: int | None  # None: the connection ended without an answer
    rule: str | None  # or Squid's error, where the page has no rule
    problem: str = ""  # why there is no answer


@dataclass
class Load:
    answers: list[Answered] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def statuses(self, host: str) -> list[int | None]:
        return [
            answer.status for answer in self.answers if answer.url.split("/")[2] == host
        ]

    def answered(self, scheme: str, host: str) -> bool:
        return any(
            told.url.startswith(f"{scheme}://{host}/")
            for told in list(self.answers)
            if told.status is not None
        )

    def at_least(self, more: int) -> None:
        """Wait for this many more answers."""
        goal = self._answered() + more
        wait_for(lambda: self._answered() >= goal, f"{more} more answers under load")

    def _answered(self) -> int:
        return sum(answer.status is not None for answer in list(self.answers))

    def client(
        self, gateway: Gateway, scheme: str, host: str, opened: "Opener"
    ) -> None:
        """Request one unique URL after another on one connection.

        Open another when it ends.
        """
        connection: Raw | None = None
        ahead = ""
        for number in count(1):
            if self._stop.is_set():
                break
            path = f"/{threading.get_ident()}/{number}"
            url, asked, reply, problem = (
                f"{scheme}://{host}{path}",
                time.monotonic(),
                NO_ANSWER,
                "",
            )
            try:
                reply = _reply(connection, ahead + path, host)
                if not reply:
                    # no connection yet, or one that Squid has closed while it was idle,
                    # as it may
                    _close(connection)
                    connection = None
                    connection, ahead = opened(gateway, scheme, host)
                    reply = connection.get(ahead + path, host)
            except OSError as error:
                problem = repr(error)
                pause(0.05, "refused, or cut off: no busy loop while nobody listens")
            else:
                pause(PAUSE_SECONDS, "the pace of a client")
            rule = reply.denial if reply and reply.status != 200 else None
            self.answers.append(
                Answered(
                    url, asked, time.monotonic(), reply.status or None, rule, problem
                )
            )
            if connection and (not reply or reply.header("Connection") == "close"):
                _close(connection)
                connection = None
        _close(connection)


# a connection, and what is ahead of the path of its requests
Opener = Callable[[Gateway, str, str], tuple[Raw, str]]


def by_proxy(gateway: Gateway, scheme: str, host: str) -> tuple[Raw, str]:
    """Open a connection as a client with proxy settings does."""
    return (
        (tunnel(gateway, f"{host}:443"), "")
        if scheme == "https"
        else (Raw(gateway), f"http://{host}")
    )


def _reply(connection: Raw | None, target: str, host: str) -> Reply:
    with suppress(ConnectionError):
        return connection.get(target, host) if connection else NO_ANSWER
    return NO_ANSWER


def _close(connection: Raw | None) -> None:
    if connection:
        connection.close()


@contextmanager
def load(
    gateway: Gateway, *clients: tuple[str, str], opened: Opener = by_proxy
) -> Iterator[Load]:
    """Run one client for each (scheme, host).

    The block begins when each has had an answer, so helpers have started.

    An error in a client fails the test.
    """
    running = Load()
    failures: list[BaseException] = []
    threads = [
        threading.Thread(
            target=_run, args=(running.client, gateway, *client, opened, failures)
        )
        for client in clients
    ]
    for thread in threads:
        thread.start()
    try:
        wait_for(
            lambda: all(running.answered(*client) for client in clients),
            "an answer for each client",
        )
        yield running
    finally:
        running._stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def _run(
    work: Callable[[Gateway, str, str, Opener], None],
    gateway: Gateway,
    scheme: str,
    host: str,
    opened: Opener,
    failures: list[BaseException],
) -> None:
    try:
        work(gateway, scheme, host, opened)
    except Exception as error:  # noqa: BLE001 - the thread of the test raises it
        failures.append(error)
