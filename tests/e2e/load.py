"""Requests without a pause from several clients, each answer kept with when it was asked and when it came."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from .gateway import Gateway
from .network import wait_for
from .raw import Raw, tunnel


@dataclass(frozen=True, slots=True)
class Answered:
    url: str
    asked: float
    came: float
    status: int | None  # None: the connection ended without an answer
    rule: str | None


@dataclass
class Load:
    answers: list[Answered] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def statuses(self, host: str) -> list[int | None]:
        return [answer.status for answer in self.answers if answer.url.split("/")[2] == host]

    def at_least(self, more: int) -> None:
        """Wait for this many more answers."""
        goal = self._answered() + more
        wait_for(lambda: self._answered() >= goal, f"{more} more answers under load", seconds=60)

    def _answered(self) -> int:
        return sum(answer.status is not None for answer in list(self.answers))

    def client(self, gateway: Gateway, scheme: str, host: str) -> None:
        """Ask for one unique URL after another on a kept-alive connection, opened again where it ends."""
        connection: Raw | None = None
        for number in count(1):
            if self._stop.is_set():
                break
            target = f"/{threading.get_ident()}/{number}"
            url, asked, reply = f"{scheme}://{host}{target}", time.monotonic(), None
            try:
                connection = connection or _open(gateway, scheme, host)
                reply = connection.get(target if scheme == "https" else url, host)
            except OSError:
                time.sleep(0.05)  # refused, or cut off: no busy loop while nobody listens
            rule = reply.rule if reply and reply.status != 200 else None
            self.answers.append(Answered(url, asked, time.monotonic(), reply.status if reply else None, rule))
            if connection and (reply is None or reply.header("Connection") == "close"):
                connection.close()
                connection = None
        if connection:
            connection.close()


def _open(gateway: Gateway, scheme: str, host: str) -> Raw:
    return tunnel(gateway, f"{host}:443") if scheme == "https" else Raw(gateway)


@contextmanager
def load(gateway: Gateway, *clients: tuple[str, str]) -> Iterator[Load]:
    """Keep one client for each (scheme, host) busy while the block runs; what fails in a client fails the test."""
    running = Load()
    failures: list[BaseException] = []
    threads = [threading.Thread(target=_run, args=(running.client, gateway, *client, failures)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running._stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def _run(
    work: Callable[[Gateway, str, str], None], gateway: Gateway, scheme: str, host: str, failures: list[BaseException]
) -> None:
    try:
        work(gateway, scheme, host)
    except Exception as error:  # noqa: BLE001 - told by the test's own thread
        failures.append(error)
