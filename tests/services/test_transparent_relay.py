"""Connections of clients through the relay, to a Squid that the test plays."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from squidkeeper.base.helper_metrics import TransparentResult
from squidkeeper.services.transparent import relay as relay_module
from squidkeeper.services.transparent.client_hello import HELLO_BYTES, server_name
from squidkeeper.services.transparent.connection import KEPT_BYTES, UNAVAILABLE, Port
from squidkeeper.services.transparent.relay import TransparentRelay
from tests.client_hellos import hello, of_openssl, padded, sni
from tests.waiting import stays, wait_for

pytestmark = pytest.mark.system

HELLO = of_openssl("api.example.com")
CONNECT = b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by RST
SECONDS = 20  # for what is not to take long
MEGABYTE = 1 << 20


class Relay:
    """A running relay with both ports, and Squid's port, where the test answers."""

    def __init__(self, most: int, most_of_one: int, host: str) -> None:
        self.results: list[TransparentResult] = []
        self._ended = False
        self.made: list[socket.socket] = []  # closed at the end
        self._host = host
        self.squid = self.kept(listener("127.0.0.1"))
        self.relay = TransparentRelay(
            lambda result, client: self.results.append(result), most, most_of_one
        )
        self._ports = {name: listener(host) for name in ("https", "http")}
        for name, port in self._ports.items():
            self.relay.listen(port, Port(name, self.squid.getsockname()))
        self._thread = threading.Thread(
            target=self.relay.run, args=[lambda: not self._ended]
        )
        self._thread.start()

    def kept(self, made: socket.socket) -> socket.socket:
        made.settimeout(SECONDS)
        self.made.append(made)
        return made

    def end(self) -> None:
        self._ended = True
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        for made in self.made:
            made.close()

    def client(self, port: str = "https", source: str | None = None) -> socket.socket:
        place = self._ports[port].getsockname()[:2]
        made = self.kept(
            socket.create_connection(place, SECONDS, (source, 0) if source else None)
        )
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def called(self) -> socket.socket:
        """The next connection to Squid."""
        return self.kept(self.squid.accept()[0])

    def opened(self) -> tuple[socket.socket, socket.socket]:
        """A client and Squid, with a tunnel between them whose hello has come."""
        client = self.client()
        client.sendall(HELLO)
        squid = self.called()
        take(squid, proxy_line(client) + CONNECT)
        squid.sendall(ESTABLISHED)
        take(squid, HELLO)
        return client, squid

    def counted(self, *results: TransparentResult) -> None:
        wait_for(
            lambda: self.results == [*results], lambda: f"{results}, not {self.results}"
        )


def listener(host: str) -> socket.socket:
    return socket.create_server(
        (host, 0),
        family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        backlog=512,
    )


def proxy_line(client: socket.socket) -> bytes:
    (host, port, *_), (to, to_port, *_) = client.getsockname(), client.getpeername()
    return (
        f"PROXY TCP{6 if ':' in host else 4} {host} {to} {port} {to_port}\r\n".encode()
    )


def take(sock: socket.socket, expected: bytes) -> None:
    """Read what is expected, and no more."""
    got = b""
    while len(got) < len(expected):
        data = sock.recv(len(expected) - len(got))
        assert data, f"ended after {got!r}"
        got += data
    assert got == expected


def rest(sock: socket.socket) -> bytes:
    """Read to the end; a reset is one too."""
    got = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65536):
            got += data
    return got


@contextmanager
def running(
    most: int = 1000, most_of_one: int = 100, host: str = "127.0.0.1"
) -> Iterator[Relay]:
    relay = Relay(most, most_of_one, host)
    try:
        yield relay
    finally:
        relay.end()


@pytest.fixture
def relay() -> Iterator[Relay]:
    with running() as made:
        yield made


OPENED, ENDED = TransparentResult.OPENED, TransparentResult.ENDED


def test_squid_is_told_who_calls_and_where_to_and_gets_each_byte(relay: Relay) -> None:
    client, squid = relay.opened()
    client.sendall(b"from the client")
    take(squid, b"from the client")
    squid.sendall(b"from Squid")
    take(client, b"from Squid")
    client.close()
    assert rest(squid) == b""
    squid.close()
    relay.counted(OPENED, ENDED)


def test_http_reaches_squid_as_it_came(relay: Relay) -> None:
    client = relay.client("http")
    client.sendall(b"PROXY TCP4 192.0.2.9 192.0.2.1 1 80\r\n")
    squid = relay.called()
    take(squid, proxy_line(client) + b"PROXY TCP4 192.0.2.9 192.0.2.1 1 80\r\n")
    squid.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    squid.close()
    assert rest(client) == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    client.close()
    relay.counted(OPENED, ENDED)


def test_a_client_of_ipv6_is_told() -> None:
    with running(host="::1") as relay:
        client, squid = relay.opened()
        squid.close()
        assert rest(client) == b""


@pytest.mark.parametrize(
    ("sent", "piece"),
    [
        (hello(sni(b"api.example.com")), 1),
        (HELLO, 1),
        (padded(sni(b"api.example.com"), HELLO_BYTES), 1000),
    ],
    ids=["small", "of OpenSSL", "64 KB"],
)
def test_a_hello_can_come_in_pieces(relay: Relay, sent: bytes, piece: int) -> None:
    client = relay.client()
    for at in range(0, len(sent), piece):
        client.sendall(sent[at : at + piece])
    squid = relay.called()
    take(squid, proxy_line(client) + CONNECT)
    squid.sendall(ESTABLISHED)
    take(squid, sent)


def test_a_hello_that_comes_byte_for_byte_is_read_three_times(
    monkeypatch: pytest.MonkeyPatch, relay: Relay
) -> None:
    read: list[int] = []

    def counting(data: bytes) -> str:
        read.append(len(data))
        return server_name(data)

    monkeypatch.setattr(relay_module, "server_name", counting)
    client = relay.client()
    for at in range(len(HELLO)):
        client.sendall(HELLO[at : at + 1])
    take(relay.called(), proxy_line(client) + CONNECT)
    assert len(read) <= 3, "its first byte, the header of its record, all of it"


def test_what_comes_behind_a_hello_or_an_answer_is_passed_on(relay: Relay) -> None:
    early = random.Random(1).randbytes(300_000)
    client = relay.client()
    threading.Thread(target=client.sendall, args=[HELLO + early]).start()
    squid = relay.called()
    take(squid, proxy_line(client) + CONNECT)
    for at in range(len(ESTABLISHED) - 1):
        squid.sendall(ESTABLISHED[at : at + 1])
    squid.sendall(ESTABLISHED[-1:] + b"at once")
    take(squid, HELLO + early)
    take(client, b"at once")


def test_what_squid_sends_with_its_answer_is_passed_on_at_once(relay: Relay) -> None:
    client = relay.client()
    client.sendall(HELLO)
    squid = relay.called()
    squid.sendall(ESTABLISHED + b"at once")
    take(client, b"at once")


ENDS: dict[str, Callable[[socket.socket], None]] = {
    "reset": lambda client: reset(client),
    "half-closed": lambda client: client.shutdown(socket.SHUT_WR),
}


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_squid_does_not_answer_a_client_that_has_gone(
    relay: Relay, end: Callable[[socket.socket], None]
) -> None:
    client = relay.client()
    client.sendall(HELLO)
    squid = relay.called()
    take(squid, proxy_line(client) + CONNECT)
    end(client)
    with pytest.raises(ConnectionResetError):
        squid.recv(1)
    relay.counted(TransparentResult.GONE)


def test_a_reset_of_http_is_one_for_squid(relay: Relay) -> None:
    client = relay.client("http")
    client.sendall(b"GET / HTTP/1.1\r\n")
    squid = relay.called()
    take(squid, proxy_line(client) + b"GET / HTTP/1.1\r\n")
    reset(client)
    with pytest.raises(ConnectionResetError):
        squid.recv(1)
    relay.counted(OPENED, ENDED)


def test_a_client_that_half_closes_before_its_hello_is_whole_is_gone_at_once(
    relay: Relay,
) -> None:
    client = relay.client()
    client.sendall(HELLO[:100])
    client.shutdown(socket.SHUT_WR)
    assert rest(client) == b""
    relay.counted(TransparentResult.GONE)


REFUSED = {
    "an address": (hello(sni(b"192.0.2.1")), "no_server_name", b"\x15\3\3\0\2\2\x70"),
    "no name": (hello(b""), "no_server_name", b"\x15\3\3\0\2\2\x70"),
    "no name, and more behind": (
        hello(b"") + b"x" * 1000,
        "no_server_name",
        b"\x15\3\3\0\2\2\x70",
    ),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", "not_tls", b""),
    "SSL 2.0": (b"\x80\x2e\1\3\1\0\x15\0\0\0\x10" + b"c" * 37, "not_tls", b""),
    "70,000 bytes": (
        (b"\x16\3\1\x40\0" + b"\1\xff\xff\xff" + b"x" * 16380) * 5,
        "not_tls",
        b"",
    ),
    "nothing": (b"", "gone", b""),
}


@pytest.mark.parametrize(("sent", "result", "answer"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_never_reaches_squid(
    relay: Relay, sent: bytes, result: str, answer: bytes
) -> None:
    client = relay.client()
    with suppress(OSError):  # it may be closed before the last byte
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
    if answer:
        take(client, answer)
        assert client.recv(1) == b"", "no reset, which could overtake the alert"
    assert rest(client) == b""
    relay.counted(TransparentResult(result))
    relay.squid.setblocking(False)
    with pytest.raises(BlockingIOError):
        relay.squid.accept()


@pytest.mark.parametrize(
    ("port", "sent"),
    [("https", HELLO[:100]), ("https", b""), ("http", b"")],
    ids=["a part", "https", "http"],
)
def test_a_silent_client_is_closed(
    monkeypatch: pytest.MonkeyPatch, relay: Relay, port: str, sent: bytes
) -> None:
    for name in ("HELLO_SECONDS", "FIRST_BYTE_SECONDS"):
        monkeypatch.setattr(relay_module, name, 0.5)
    client = relay.client(port)
    client.sendall(sent)
    assert rest(client) == b""
    relay.counted(TransparentResult.TIMEOUT)


def test_an_error_of_ours_ends_one_connection_and_is_logged_once_without_what_was_sent(
    monkeypatch: pytest.MonkeyPatch, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(data: bytes) -> str:
        if data.startswith(b"secret"):
            raise ValueError(data)
        return server_name(data)

    monkeypatch.setattr(relay_module, "server_name", broken)
    client, squid = relay.opened()
    for _ in range(3):
        other = relay.client()
        other.sendall(b"secret")
        assert rest(other) == b""
    client.sendall(b"still served")
    take(squid, b"still served")
    [line] = caplog.messages
    assert line.startswith("a connection has failed: ValueError in broken, line ")


ANSWERS = {
    "a denial": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nno secret",
    "a question for a login": b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "a head without an end": b"HTTP/1.1 200 OK\r\n" + b"x" * 9000,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_any_other_answer_of_squid_is_an_alert(relay: Relay, answer: bytes) -> None:
    client = relay.client()
    client.sendall(HELLO)
    squid = relay.called()
    take(squid, proxy_line(client) + CONNECT)
    squid.sendall(answer)
    assert rest(client) == b"\x15\3\3\0\2\2\x31", "access_denied"
    relay.counted(TransparentResult.SQUID_REFUSED)


def test_a_squid_that_is_away_is_waited_for(relay: Relay) -> None:
    place = relay.squid.getsockname()
    relay.squid.close()
    client = relay.client()
    client.sendall(HELLO)
    stays(lambda: not relay.results, 0.6, "the client to wait")
    relay.squid = relay.kept(socket.create_server(place))
    squid = relay.called()
    take(squid, proxy_line(client) + CONNECT)
    squid.sendall(ESTABLISHED)
    take(squid, HELLO)


def test_a_connection_that_squid_drops_without_an_answer_is_made_again(
    relay: Relay,
) -> None:
    client = relay.client()
    client.sendall(HELLO)
    for linger in (RESET, struct.pack("ii", 0, 0)):
        dropped = relay.called()
        dropped.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        dropped.close()
    squid = relay.called()
    take(squid, proxy_line(client) + CONNECT)
    squid.sendall(ESTABLISHED)
    take(squid, HELLO)


@pytest.mark.parametrize(
    ("port", "told"), [("https", b"\x15\3\3\0\2\2\x50"), ("http", UNAVAILABLE)]
)
def test_a_squid_that_stays_away_is_told(
    monkeypatch: pytest.MonkeyPatch, relay: Relay, port: str, told: bytes
) -> None:
    monkeypatch.setattr(relay_module, "CONNECT_SECONDS", 0.5)
    relay.squid.close()
    client = relay.client(port)
    client.sendall(HELLO)
    assert rest(client) == told
    relay.counted(TransparentResult.SQUID_UNREACHABLE)


def test_a_squid_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, relay: Relay
) -> None:
    monkeypatch.setattr(relay_module, "ANSWER_SECONDS", 0.5)
    client = relay.client()
    client.sendall(HELLO)
    assert rest(client) == b"\x15\3\3\0\2\2\x50", "internal_error"
    relay.counted(TransparentResult.SQUID_UNREACHABLE)


# --- bytes ----------------------------------------------------------------------------


def digest_of(sock: socket.socket) -> Callable[[], str]:
    """Read to the end in a thread; what is returned waits for it."""
    found = hashlib.sha256()

    def read() -> None:
        while data := sock.recv(random.randrange(1, 100_000)):
            found.update(data)

    thread = threading.Thread(target=read)
    thread.start()

    def result() -> str:
        thread.join(SECONDS)
        return found.hexdigest()

    return result


def test_much_passes_both_ways_at_once_and_ends_in_halves(relay: Relay) -> None:
    client, squid = relay.opened()
    sent = {client: os.urandom(20 * MEGABYTE), squid: os.urandom(20 * MEGABYTE)}
    got = {client: digest_of(squid), squid: digest_of(client)}

    def send(sock: socket.socket) -> None:
        sock.sendall(sent[sock])
        sock.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=send, args=[sock]) for sock in sent]
    for thread in threads:
        thread.start()
    for sock, content in sent.items():
        assert got[sock]() == hashlib.sha256(content).hexdigest()
    relay.counted(OPENED, ENDED)


@pytest.mark.parametrize("first", ["client", "squid"])
def test_one_half_can_end_and_the_other_goes_on(relay: Relay, first: str) -> None:
    client, squid = relay.opened()
    ending, other = (client, squid) if first == "client" else (squid, client)
    ending.sendall(b"the last")
    ending.shutdown(socket.SHUT_WR)
    assert rest(other) == b"the last"
    other.sendall(b"x" * MEGABYTE)
    other.close()
    assert rest(ending) == b"x" * MEGABYTE
    relay.counted(OPENED, ENDED)


@pytest.mark.parametrize("first", ["client", "squid"])
def test_a_reset_ends_both(relay: Relay, first: str) -> None:
    client, squid = relay.opened()
    ending, other = (client, squid) if first == "client" else (squid, client)
    ending.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ending.close()
    assert rest(other) == b""
    relay.counted(OPENED, ENDED)


def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken for a second; return how many bytes were."""
    sock.settimeout(1)
    sent = 0
    with suppress(TimeoutError):
        while sent < 100 * MEGABYTE:
            sent += sock.send(b"x" * 65536)
    return sent


@pytest.mark.parametrize("slow", ["client", "squid"])
def test_who_does_not_read_slows_down_the_other_alone(relay: Relay, slow: str) -> None:
    client, squid = relay.opened()
    reader, writer = (client, squid) if slow == "client" else (squid, client)
    sent = fill(writer)
    assert sent < 12 * MEGABYTE, (
        "what the kernel holds, nearly all of it for the writer"
    )
    for end in relay.relay._ends.values():
        for queue in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            assert end.socket.getsockopt(socket.SOL_SOCKET, queue) <= 2 * KEPT_BYTES
        assert (
            end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            == 64 << 10
        )
    used = os.times()
    other, its_squid = relay.opened()
    other.sendall(b"still served")
    take(its_squid, b"still served")
    stays(lambda: True, 0.5, "a blocked connection")
    assert sum(os.times()[:2]) - sum(used[:2]) < 0.3, "no processor is used for it"
    writer.shutdown(socket.SHUT_WR)
    assert len(rest(reader)) == sent


def test_a_client_that_never_closes_is_closed_after_squid(
    monkeypatch: pytest.MonkeyPatch, relay: Relay
) -> None:
    monkeypatch.setattr(relay_module, "HALF_CLOSED_SECONDS", 0.5)
    client, squid = relay.opened()
    squid.sendall(b"the last")
    squid.close()
    relay.counted(OPENED, ENDED)
    assert rest(client) == b"the last"


def test_an_idle_connection_stays(
    monkeypatch: pytest.MonkeyPatch, relay: Relay
) -> None:
    for name in (
        "HELLO_SECONDS",
        "CONNECT_SECONDS",
        "ANSWER_SECONDS",
        "HALF_CLOSED_SECONDS",
    ):
        monkeypatch.setattr(relay_module, name, 0.4)
    client, squid = relay.opened()
    stays(lambda: relay.results == [OPENED], 1, "the connection")
    client.sendall(b"late")
    take(squid, b"late")


# --- bounds ---------------------------------------------------------------------------


def test_one_client_does_not_have_all_connections() -> None:
    with running(most_of_one=5) as relay:
        mine = [relay.client() for _ in range(5)]
        assert rest(relay.client()) == b""
        relay.counted(TransparentResult.TOO_MANY)
        is_served(relay, relay.client(source="127.0.0.2"))
        mine[0].close()
        relay.counted(TransparentResult.TOO_MANY, TransparentResult.GONE)
        is_served(relay, relay.client())


def test_few_connections_of_a_client_wait_for_squid_and_the_others_get_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "ASKING_OF_ONE", 2)
    with running() as relay:
        waiting = []
        for _ in range(5):
            waiting.append(relay.client())
            waiting[-1].sendall(HELLO)
        first, second = relay.called(), relay.called()
        is_served(relay, relay.client(source="127.0.0.2"))
        waiting[2].close()
        relay.counted(TransparentResult.GONE)
        first.sendall(ESTABLISHED)
        third = relay.called()
        take(third, proxy_line(waiting[3]) + CONNECT)
        second.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        take(relay.called(), proxy_line(waiting[4]) + CONNECT)


def test_who_gets_no_turn_is_refused(
    monkeypatch: pytest.MonkeyPatch, relay: Relay
) -> None:
    monkeypatch.setattr(relay_module, "ASKING_OF_ONE", 0)
    monkeypatch.setattr(relay_module, "ANSWER_SECONDS", 0.5)
    client = relay.client()
    client.sendall(HELLO)
    assert rest(client) == b""
    relay.counted(TransparentResult.TOO_MANY)


def test_many_clients_together_leave_room_for_another() -> None:
    with running(most=100) as relay:
        for number in range(300):
            relay.client(source=f"127.0.1.{number % 10}")
        wait_for(lambda: len(relay.results) > 200, "most of them to be refused")
        is_served(relay, relay.client(source="127.0.2.1"))


def is_served(relay: Relay, client: socket.socket) -> None:
    client.sendall(HELLO)
    take(relay.called(), proxy_line(client) + CONNECT)
