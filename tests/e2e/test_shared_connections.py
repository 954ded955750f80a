"""What one client sends, and what it is answered, never mixes with another's on a
connection to an origin.
"""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from threading import Thread

import pytest

from tests.conftest import DOCUMENTED, WORKERS
from tests.waiting import pause, wait_for

from .dns import Names
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import Raw, tunnel
from .reply import NO_ANSWER, Reply

pytestmark = pytest.mark.skipif(
    DOCUMENTED in os.environ, reason="nothing is shared with `--bump documented`"
)

ADDRESS = "203.0.113.20"
PLAIN, TLS = 8087, 8447
A, B = "127.0.0.1", "127.0.0.2"
FIRST, OWN, SINGLE = "first.open.example", "own.open.example", "single.open.example"
READ, BELOW, MIXED, EDITED = (
    "read.example",
    "below.example",
    "mixed.example",
    "edited.read.example",
)
BOTH = "both.example"
HOSTS = (FIRST, OWN, SINGLE, READ, BELOW, MIXED, EDITED, BOTH)
UNNAMED = "unnamed.read.example"  # whose certificate is for the others
POLICY = """
version: 1
clients:
  a: {networks: [127.0.0.1/32]}
  b: {networks: [127.0.0.2/32]}
rules:
  - {name: single, action: allow, hosts: [single.open.example], ports: [8447], connections: single}
  - {name: open, action: allow, hosts: [.open.example], ports: [8087, 8447]}
  - {name: read, action: allow, hosts: [.read.example], PORTS, methods: [GET, HEAD]}
  - {name: below, action: allow, hosts: [below.example], PORTS, methods: [GET], paths: [/a/**]}
  - {name: mixed-a, action: allow, hosts: [mixed.example], PORTS, clients: [a]}
  - {name: mixed-b, action: allow, hosts: [mixed.example], PORTS, clients: [b], methods: [GET, HEAD]}
  - {name: both, action: allow, hosts: [both.example], ports: [8447], methods: [GET, HEAD]}
rewrites:
  - {name: moved, hosts: [first.open.example], ports: [8447], paths: [/moved/**], to: "https://a.open.example{path}"}
"""
# A host is shared over https only where none may send plain http to the port.
POLICY = "".join(
    line.replace("name: ", f"name: {scheme}-").replace(
        "PORTS", f"ports: [{port}], schemes: [{scheme}]"
    )
    for line in POLICY.splitlines(keepends=True)
    for scheme, port in (("https", TLS), ("http", PLAIN))
    if "PORTS" in line or scheme == "https"
)
WIDENED = POLICY.replace("[GET, HEAD]}", "[GET, HEAD, POST]}", 1)
ROUNDS = 5
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: smuggled\r\nX-Swallowed: "


class IgnoresBodies:
    """An origin to which a body is the next request. It answers with the request line.

    It ends no connection, also where it is told to, but after `/close`, and after HEAD
    where it is told to. As servers do, it then reads what still comes. Each port takes
    TLS and what is not encrypted. `/twice` is answered again 20 ms later, and HEAD with
    a body.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.heads: list[bytes] = []
        self.encrypted: list[bool] = []  # each of them
        self.connections: set[socket.socket] = set()
        self._context = context
        self._servers = [socket.create_server((ADDRESS, port)) for port in (PLAIN, TLS)]
        for server in self._servers:
            Thread(target=self._accept, args=(server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                Thread(
                    target=self._serve, args=(server.accept()[0],), daemon=True
                ).start()

    def _serve(self, accepted: socket.socket) -> None:
        with suppress(OSError), ExitStack() as stack:
            connection = stack.enter_context(accepted)
            if accepted.recv(1, socket.MSG_PEEK) == b"\x16":
                connection = stack.enter_context(
                    self._context.wrap_socket(connection, server_side=True)
                )
            read = b""
            while more := connection.recv(65536):
                self.connections.add(connection)
                read += more
                while b"\r\n\r\n" in read:
                    head, _, read = read.partition(b"\r\n\r\n")
                    self.heads.append(head)
                    self.encrypted.append(isinstance(connection, ssl.SSLSocket))
                    line = head.split(b"\r\n")[0]
                    is_head = line.startswith(b"HEAD")
                    closing = (
                        b"Connection: close\r\n"
                        if is_head and b"Connection: close" in head
                        else b""
                    )
                    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n" % (
                        len(line),
                        closing,
                    )
                    connection.sendall(answer if is_head else answer + line)
                    if is_head or b"/twice" in line:
                        pause(
                            0.02,
                            "the rest comes when Squid may use the connection for another",
                        )
                        connection.sendall(line if is_head else answer + line)
                    if b"/close" in line or closing:
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):
                            pass
                        return

    def close(self) -> None:
        for server in self._servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()


@pytest.fixture(scope="module")
def documented(new_gateway: NewGateway) -> Gateway:
    """A gateway whose tunnels are all opened as the walkthrough opens them."""
    gateway = new_gateway(POLICY)
    gateway.render(documented=True)
    return gateway.start()


@pytest.fixture(scope="module")
def server(all_origins: Origins) -> Iterator[IgnoresBodies]:
    context = all_origins.authority.context(*HOSTS)
    with closing(IgnoresBodies(context)) as server:
        yield server


@pytest.fixture
def origin(server: IgnoresBodies, names: Names) -> IgnoresBodies:
    for host in (*HOSTS, UNNAMED):
        names.set(host, [ADDRESS])
    server.heads.clear()
    server.encrypted.clear()
    server.connections.clear()
    return server


def connected(gateway: Gateway, scheme: str, client: str, host: str) -> Raw:
    return (
        Raw(gateway, client)
        if scheme == "http"
        else tunnel(gateway, f"{host}:{TLS}", client=client)
    )


def send(
    client: Raw,
    scheme: str,
    host: str,
    method: str,
    path: str,
    *lines: str,
    body: str = "",
) -> Reply:
    """Send a request, and give the answer."""
    authority = f"{host}:{PLAIN if scheme == 'http' else TLS}"
    target = f"http://{authority}{path}" if scheme == "http" else path
    client.send(
        "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {authority}", *lines])
        + "\r\n\r\n"
        + body
    )
    return client.answer(method)


def ask(
    client: Raw,
    scheme: str,
    host: str,
    method: str,
    path: str,
    *lines: str,
    body: str = "",
) -> str:
    """Send a request; give the request line that the origin has answered, without its
    version.
    """
    answer = send(client, scheme, host, method, path, *lines, body=body)
    return answer.text.removesuffix(" HTTP/1.1") if answer else ""


FRAMES = {
    "length": ([f"Content-Length: {len(SMUGGLED)}"], SMUGGLED),
    "chunked": (
        ["Transfer-Encoding: chunked"],
        f"{len(SMUGGLED):x}\r\n{SMUGGLED}\r\n0\r\n\r\n",
    ),
}


ATTACKS: dict[str, tuple[str, str, list[str], str]] = {
    "nothing": ("GET", "/a", [], ""),
    "POST with a length": ("POST", "/a", *FRAMES["length"]),
    "POST in chunks": ("POST", "/a", *FRAMES["chunked"]),
    "GET with a length": ("GET", "/a", *FRAMES["length"]),
    "GET in chunks": ("GET", "/a", *FRAMES["chunked"]),
    "GET with an underscore": ("GET", "/a", [f"Content_Length: {len(SMUGGLED)}"], ""),
    "HEAD that is answered with a body": ("HEAD", "/a", [], ""),
    "a second answer": ("GET", "/twice", [], ""),
    "an origin that closes": ("GET", "/close", [], ""),
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", [FIRST, READ, MIXED])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_one_client_reaches_another(
    gateway: Gateway, origin: IgnoresBodies, scheme: str, host: str, attack: str
) -> None:
    method, path, lines, body = ATTACKS[attack]
    for number in range(ROUNDS):
        with (
            connected(gateway, scheme, A, host) as attacker,
            connected(gateway, scheme, B, host) as victim,
        ):
            send(attacker, scheme, host, method, path, *lines, body=body)
            if attack == "a second answer":
                pause(0.05, "longer than the origin waits")
            path_of_b = f"/b/{number}"
            authorization = f"Authorization: Bearer of-b-{number}"
            assert (
                ask(victim, scheme, host, "GET", path_of_b, authorization)
                == f"GET {path_of_b}"
            )
    assert [
        head
        for head in origin.heads
        if b"of-b-" in head and not head.startswith(b"GET /b/")
    ] == []
    assert [head for head in origin.heads if b"Content_Length" in head] == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_client_that_leaves_in_the_middle_takes_nothing_of_another(
    gateway: Gateway, origin: IgnoresBodies, scheme: str
) -> None:
    for number in range(ROUNDS):
        with (
            connected(gateway, scheme, A, READ) as attacker,
            connected(gateway, scheme, B, READ) as victim,
        ):
            target = f"http://{READ}:{PLAIN}/left" if scheme == "http" else "/left"
            attacker.send(f"GET {target} HTTP/1.1\r\nHost: {READ}\r\n\r\n").abandon()
            assert (
                ask(victim, scheme, READ, "GET", f"/b/{number}") == f"GET /b/{number}"
            )


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_clients_share_a_connection_where_nothing_with_a_body_is_allowed(
    gateway: Gateway, origin: IgnoresBodies, scheme: str
) -> None:
    for number in range(ROUNDS):
        with connected(gateway, scheme, (A, B)[number % 2], READ) as client:
            assert ask(client, scheme, READ, "GET", f"/{number}") == f"GET /{number}"
    # each worker has a pool
    assert len(origin.connections) <= int(os.environ.get(WORKERS, "1"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_with_the_documented_bumping_nobody_shares(
    documented: Gateway, origin: IgnoresBodies, scheme: str
) -> None:
    assert not (documented.root / "etc/squidkeeper.d/shared.conf").exists()
    for number in range(ROUNDS):
        with (
            connected(documented, scheme, A, READ) as attacker,
            connected(documented, scheme, B, READ) as victim,
        ):
            send(
                attacker, scheme, READ, "GET", "/a", *FRAMES["length"][0], body=SMUGGLED
            )
            assert (
                ask(victim, scheme, READ, "GET", f"/b/{number}") == f"GET /b/{number}"
            )
    assert len(origin.connections) == 2 * ROUNDS


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("host", "path"),
    [(READ, "/a"), (READ, "/a%20b"), (BELOW, "/a/b"), (BELOW, "/a/b%20c")],
)
def test_a_request_with_a_body_is_denied_there(
    gateway: Gateway, origin: IgnoresBodies, scheme: str, host: str, path: str
) -> None:
    for lines, body in FRAMES.values():
        with connected(gateway, scheme, A, host) as client:
            answer = send(client, scheme, host, "GET", path, *lines, body=body)
            assert (answer.status, answer.rule) == (403, "invalid-request")
    assert origin.heads == []


def test_the_fault_of_a_certificate_is_on_record_there(
    gateway: Gateway, origin: IgnoresBodies
) -> None:
    with tunnel(gateway, f"{UNNAMED}:{TLS}") as client:
        answer = send(client, "https", UNNAMED, "GET", "/")
    assert answer.status in (502, 503)
    fault = "SQUID_X509_V_ERR_DOMAIN_MISMATCH"
    wait_for(
        lambda: any(
            fault in line["error_detail"]
            for line in gateway.log()
            if UNNAMED in line["url"]
        )
    )
    assert origin.heads == []


def test_over_plain_http_nobody_shares_what_one_client_may_send_a_body_to(
    gateway: Gateway, origin: IgnoresBodies
) -> None:
    for number in range(ROUNDS):
        with connected(gateway, "http", B, MIXED) as client:
            assert ask(client, "http", MIXED, "GET", f"/{number}") == f"GET /{number}"
    assert len(origin.connections) == ROUNDS
    assert all(b"connection: close" in head.lower() for head in origin.heads)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_origin_that_closes_loses_no_request(
    gateway: Gateway, origin: IgnoresBodies, scheme: str
) -> None:
    with connected(gateway, scheme, A, READ) as client:
        for number in range(10 * ROUNDS):
            path = f"/close/{number}"
            assert ask(client, scheme, READ, "GET", path) == f"GET {path}"


def test_a_request_over_tls_takes_no_connection_without_it(
    gateway: Gateway, origin: IgnoresBodies
) -> None:
    with Raw(gateway, A) as attacker:
        assert attacker.get(f"http://{BOTH}:{TLS}/a", f"{BOTH}:{TLS}")
    with connected(gateway, "https", B, BOTH) as victim:
        assert ask(victim, "https", BOTH, "GET", "/b") == "GET /b"
    assert origin.encrypted == [False, True]


def test_a_tunnel_ends_with_the_edit_that_changes_its_mode(
    gateway: Gateway, origin: IgnoresBodies
) -> None:
    with tunnel(gateway, f"{EDITED}:{TLS}") as client:
        assert ask(client, "https", EDITED, "GET", "/before") == "GET /before"
        gateway.write("policy.yaml", WIDENED)
        answer = wait_for(
            lambda: denied(send(client, "https", EDITED, "GET", "/after"))
        )
        assert (answer.rule, answer.line("Retry")) == ("tunnel-outdated", "can help")
        assert "Open a new one." in answer.text
    # Squid keeps an answer for a second
    wait_for(lambda: _posts(gateway), "a new tunnel that takes a body")
    gateway.write("policy.yaml", POLICY)


def _posts(gateway: Gateway) -> bool:
    with tunnel(gateway, f"{EDITED}:{TLS}") as client:
        return (
            ask(client, "https", EDITED, "POST", "/new", "Content-Length: 1", body="x")
            == "POST /new"
        )


def denied(answer: Reply) -> Reply:
    return answer if answer.status == 403 else NO_ANSWER


@pytest.mark.parametrize(("host", "closes"), [(OWN, False), (SINGLE, True)])
def test_a_tunnel_with_a_server_of_its_own_keeps_it_after_a_body_unless_its_rule_says_single(
    gateway: Gateway, origin: IgnoresBodies, host: str, closes: bool
) -> None:
    with tunnel(gateway, f"{host}:{TLS}") as client:
        assert ask(client, "https", host, "GET", "/own") == "GET /own"
        assert (
            ask(client, "https", host, "POST", "/own", "Content-Length: 1", body="x")
            == "POST /own"
        )
    assert [b"connection: close" in head.lower() for head in origin.heads] == [
        False,
        closes,
    ]
    assert len(origin.connections) == 1
