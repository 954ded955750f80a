"""An even load of requests that each know what must become of them, and the account of
what they got and why.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.e2e.gateway import Gateway
from tests.e2e.raw import Raw, tunnel
from tests.e2e.reply import NO_ANSWER, Reply

from .expect import MAY_ARRIVE

Outcome = str  # "200", "403 RULE", another status, or "lost"

IN_FORCE_SECONDS = 3
TOGGLED = "as the last edit says"
# What a failure may cost a client; any other wrong answer is a fault.
COST = ("lost", "403 policy-unavailable", "403 ERR_ACCESS_DENIED", "5")
MANY = 5000  # more hosts than Squid keeps certificates and answers for
ALSO_MAY_ARRIVE = MAY_ARRIVE | {
    "paths.example",
    "toggled.example",
    *(f"n{host}.many.example" for host in range(MANY)),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A request and what becomes of it; {n} is a number of its own, {many} one of many
    hosts.

    What must never arrive has "closed" in its URL.
    """

    url: str
    becomes: Outcome = "200"
    method: str = "GET"
    host: str = ""  # the Host header, where it is not the URL's


HOSTILE = [
    Case("http://open.example@closed.example/{n}", "403 invalid-request"),
    Case("http://closed.example%00.open.example/{n}", "403 invalid-request"),
    Case("http://open.example/closed/{n}", "403 invalid-request", "TRACE"),
    Case("http://paths.example/open/%2e%2e/closed/{n}", "403 ambiguous-path"),
    Case("http://paths.example/open%2f..%2fclosed/{n}", "403 ambiguous-path"),
    Case("http://paths.example/open/..;/closed/{n}", "403 ambiguous-path"),
    Case("http://paths.example/open/..\\closed/{n}", "403 ambiguous-path"),
]
MIXED = [
    Case("http://open.example/{n}"),
    Case("http://n{n}.closed.example/", "403 default"),
    Case("http://paths.example/open/{n}"),
    Case("http://paths.example/closed/{n}", "403 default"),
    Case("http://toggled.example/{n}", TOGGLED),
    Case("http://{many}/{n}"),
]
PLAIN = [case for hostile in HOSTILE for case in (*MIXED, hostile)]
OTHER_HOST = Case(
    "https://open.example/closed/{n}", "403 authority-mismatch", host="closed.example"
)
TUNNELS = [
    [Case("https://open.example/{n}")] * 48,
    [Case("https://open.example/{n}")] * 47 + [OTHER_HOST],
    [Case("https://paths.example/open/{n}")] * 48,
    [
        Case("https://paths.example/open/{n}"),
        Case("https://paths.example/closed/{n}", "403 default"),
    ]
    * 24,
    [Case("https://closed.example/{n}", "403 default")] * 48,
    [Case("https://rewritten.example/{n}")] * 48,
    [Case("https://injected.example/{n}")] * 48,
    [Case("https://toggled.example/{n}", TOGGLED)] * 48,
]
# Each client goes round its cases, on a connection that is opened again for each round
# and for each tunnel's host.
CLIENTS = [PLAIN] * 6 + [[*cases, Case("https://{many}/{n}")] for cases in TUNNELS]


@dataclass
class Account:
    """The answers to the clients, compared with what was done to the gateway
    meanwhile.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    right: Counter[Outcome] = field(default_factory=Counter)
    # what was not as it must be, with its causes
    costs: Counter[str] = field(default_factory=Counter)
    # kept connections that ended when a request came
    closed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tunnels: int = 0
    milliseconds: list[float] = field(default_factory=list)
    # from when to when a cause may cost something
    spells: list[tuple[float, float, str]] = field(default_factory=list)
    # since when, what becomes of the toggled host
    edits: list[tuple[float, Outcome]] = field(default_factory=list)

    def enter(self, case: Case, url: str, asked: float, got: Outcome) -> None:
        """Compare one answer with the expected one; one that is wrongly allowed ends
        everything.
        """
        came = time.monotonic()
        expected = (
            self._toggled(asked, came) if case.becomes == TOGGLED else {case.becomes}
        )
        causes = self._causes(asked, came)
        with self.lock:
            if got in expected:
                self.right[got] += 1
                return
            self.costs[f"{got}, {causes or 'without a cause'}"] += 1
            if not causes or not got.startswith(COST):
                self.wrong.append(
                    f"{case.method} {url}: {got}, not {' or '.join(expected)}"
                )
        if got == "200":
            self.over.set()

    def enter_closed(self, asked: float) -> None:
        with self.lock:
            self.closed[self._causes(asked, time.monotonic()) or "without a cause"] += 1

    def _causes(self, asked: float, came: float) -> str:
        causes = {
            cause
            for begin, end, cause in self.spells[-10:]
            if begin <= came and asked <= end
        }
        return " and ".join(sorted(causes))

    def _toggled(self, asked: float, came: float) -> set[Outcome]:
        since, outcome = next(edit for edit in reversed(self.edits) if edit[0] <= came)
        return (
            {outcome} if asked - since >= IN_FORCE_SECONDS else {"200", "403 toggled"}
        )

    def lost(self) -> int:
        return sum(
            number for cost, number in self.costs.items() if cost.startswith("lost")
        )

    def answered(self) -> int:
        """Requests that were answered, rightly or not, and tunnels: each of them is
        logged.
        """
        return self.right.total() + self.costs.total() - self.lost() + self.tunnels


class Client:
    """Goes round its cases at an even pace, late only where an answer was."""

    def __init__(self, gateway: Gateway, account: Account, address: str) -> None:
        self._gateway, self._account, self._address = gateway, account, address
        self._connection: Raw | None = None
        self._place = ""

    def run(
        self, cases: list[Case], numbers: range, began: float, per_second: float
    ) -> None:
        try:
            for turn, number in enumerate(numbers):
                if self._account.over.wait(
                    max(0.0, began + number / per_second - time.monotonic())
                ):
                    break
                if turn % len(cases) == 0:
                    self._close()
                self._ask(cases[turn % len(cases)], number)
        except BaseException:
            self._account.over.set()
            raise
        finally:
            self._close()

    def _ask(self, case: Case, number: int) -> None:
        url = case.url.format(n=number, many=f"n{number % MANY}.many.example")
        asked = time.monotonic()
        reply, kept = self._reply(case, url)
        if not reply and kept:
            self._account.enter_closed(asked)
            reply, _ = self._reply(case, url)
        self._account.enter(case, url, asked, outcome(reply))

    def _reply(self, case: Case, url: str) -> tuple[Reply, bool]:
        """Ask once; gives whether it was on a connection that had been kept, which HTTP
        lets a server close.
        """
        reply, kept = (
            NO_ANSWER,
            self._connection is not None and self._place == place_of(url),
        )
        try:
            reply = self._timed(self._connected(url), url, case)
        except (OSError, ValueError):
            # refused, or cut off: no busy loop while nobody listens
            self._account.over.wait(0.05)
        if (
            not reply
            or outcome(reply) == "lost"
            or reply.header("Connection") == "close"
        ):
            self._close()
        return reply, kept

    def _timed(self, connection: Raw, url: str, case: Case) -> Reply:
        target = "/" + url.split("/", 3)[3] if self._place else url
        sent = time.monotonic()
        reply = connection.get(
            target, case.host or urlsplit(url).hostname, method=case.method
        )
        with self._account.lock:
            self._account.milliseconds.append((time.monotonic() - sent) * 1000)
        return reply

    def _connected(self, url: str) -> Raw:
        """Return a connection that such a URL is asked for on: to the proxy, or a
        tunnel to its host.
        """
        place = place_of(url)
        if self._connection is None or place != self._place:
            self._close()
            self._place = place
            self._connection = (
                self._tunnel() if place else Raw(self._gateway, self._address)
            )
        return self._connection

    def _tunnel(self) -> Raw:
        opened = tunnel(self._gateway, f"{self._place}:443", client=self._address)
        with self._account.lock:
            self._account.tunnels += 1
        return opened

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


def place_of(url: str) -> str:
    """Return the host that a tunnel is needed to, empty for none."""
    return urlsplit(url).netloc if url.startswith("https:") else ""


def outcome(reply: Reply) -> Outcome:
    if not reply or int(reply.header("Content-Length") or len(reply.body)) != len(
        reply.body
    ):
        return "lost"
    return f"403 {reply.denial}" if reply.status == 403 else str(reply.status)
