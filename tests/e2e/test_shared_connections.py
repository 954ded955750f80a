"""What one client sends, and what it is answered, never mixes with another's on a connection to an origin."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from threading import Thread

import pytest

from .dns import Names
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import Raw, tunnel

ADDRESS = "203.0.113.20"
PLAIN, TLS = 8087, 8447
HOSTS = ("shared.open.example", "own.open.example", "single.open.example")
POLICY = """
version: 1
rules:
  - {name: single, action: allow, hosts: [single.open.example], ports: [8447], connections: single}
  - {name: open, action: allow, hosts: [.open.example], ports: [8087, 8447]}
rewrites:
  - {name: moved, hosts: [shared.open.example], ports: [8447], paths: [/moved/**], to: "https://a.open.example{path}"}
"""
ROUNDS = 10
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: smuggled\r\nX-Swallowed: "


class IgnoresBodies:
    """An origin to which a body is the next request. It answers with the request line, and ends no connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.heads: list[bytes] = []
        self.connections: set[socket.socket] = set()
        self._context = context
        self._servers = [socket.create_server((ADDRESS, port)) for port in (PLAIN, TLS)]
        for server in self._servers:
            Thread(target=self._accept, args=(server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                Thread(target=self._serve, args=(server.accept()[0], server), daemon=True).start()

    def _serve(self, accepted: socket.socket, server: socket.socket) -> None:
        with suppress(OSError), ExitStack() as stack:
            connection = stack.enter_context(accepted)
            if server is self._servers[1]:
                connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            read = b""
            while more := connection.recv(65536):
                self.connections.add(connection)
                read += more
                while b"\r\n\r\n" in read:
                    head, _, read = read.partition(b"\r\n\r\n")
                    self.heads.append(head)
                    line = head.split(b"\r\n")[0]
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(line) + line)

    def close(self) -> None:
        for server in self._servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway(POLICY).start()


@pytest.fixture(scope="module")
def server(all_origins: Origins) -> Iterator[IgnoresBodies]:
    context = all_origins.authority.context(*HOSTS)
    with closing(IgnoresBodies(context)) as server:
        yield server


@pytest.fixture
def origin(server: IgnoresBodies, names: Names) -> IgnoresBodies:
    for host in HOSTS:
        names.set(host, [ADDRESS])
    server.heads.clear()
    server.connections.clear()
    return server


def connected(gateway: Gateway, scheme: str, client: str, host: str = "shared.open.example") -> Raw:
    return Raw(gateway, client) if scheme == "http" else tunnel(gateway, f"{host}:{TLS}", client=client)


def ask(client: Raw, scheme: str, method: str, path: str, *lines: str, body: str = "") -> str:
    """Send a request to the shared host; give the request line that the origin has answered, without its version."""
    authority = f"shared.open.example:{PLAIN if scheme == 'http' else TLS}"
    target = f"http://{authority}{path}" if scheme == "http" else path
    client.send("\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {authority}", *lines]) + "\r\n\r\n" + body)
    answer = client.answer(method)
    return answer.text.removesuffix(" HTTP/1.1") if answer else ""


FRAMES = {
    "length": ([f"Content-Length: {len(SMUGGLED)}"], SMUGGLED),
    "chunked": (["Transfer-Encoding: chunked"], f"{len(SMUGGLED):x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("method", "frame"), [("POST", "length"), ("POST", "chunked"), ("GET", "length")])
def test_a_body_reaches_no_request_of_another_client(
    gateway: Gateway, origin: IgnoresBodies, scheme: str, method: str, frame: str
) -> None:
    lines, body = FRAMES[frame]
    for number in range(ROUNDS):
        with connected(gateway, scheme, "127.0.0.1") as attacker, connected(gateway, scheme, "127.0.0.2") as victim:
            assert ask(attacker, scheme, method, "/a", *lines, body=body) == f"{method} /a"
            path = f"/b/{number}"
            assert ask(victim, scheme, "GET", path, f"Authorization: Bearer of-b-{number}") == f"GET {path}"
    assert [head for head in origin.heads if b"of-b-" in head and not head.startswith(b"GET /b/")] == []


@pytest.mark.parametrize(("host", "closes"), [("own.open.example", False), ("single.open.example", True)])
def test_a_tunnel_with_a_server_of_its_own_keeps_it_after_a_body_unless_its_rule_says_single(
    gateway: Gateway, origin: IgnoresBodies, host: str, closes: bool
) -> None:
    with tunnel(gateway, f"{host}:{TLS}") as client:
        for method in ("GET", "POST"):
            lines = ["Content-Length: 1"] if method == "POST" else []
            head = "\r\n".join([f"{method} /own HTTP/1.1", f"Host: {host}:{TLS}", *lines])
            answer = client.send(f"{head}\r\n\r\n" + "x" * len(lines)).answer(method)
            assert answer is not None
            assert answer.text == f"{method} /own HTTP/1.1"
    assert [b"connection: close" in head.lower() for head in origin.heads] == [False, closes]
    assert len(origin.connections) == 1
