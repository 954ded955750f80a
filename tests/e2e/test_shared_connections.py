"""What one client sends, and what it is answered, never mixes with another's on a
connection to an origin.
"""

from __future__ import annotations

import os
import re
import select
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import product
from threading import Event, Thread
from typing import Self

import pytest

from tests.conftest import DOCUMENTED, WORKERS
from tests.waiting import wait_for

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
BOTH, WORDLESS = "both.example", "wordless.example"
TRUSTED = [f"{number}.read.example" for number in range(6)]  # each has its own pool
HOSTS = (FIRST, OWN, SINGLE, READ, BELOW, MIXED, EDITED, BOTH, WORDLESS, *TRUSTED)
UNNAMED = "unnamed.read.example"  # whose certificate is for the others
POLICY = """
version: 1
clients:
  a: {networks: [127.0.0.1/32]}
  b: {networks: [127.0.0.2/32]}
rules:
  - {name: single, action: allow, hosts: [single.open.example], ports: [8447], connections: single}
  - {name: open, action: allow, hosts: [.open.example], ports: [8087, 8447]}
  - {name: read, action: allow, hosts: [.read.example], PORTS, methods: [GET, HEAD], connections: shared}
  - {name: below, action: allow, hosts: [below.example], PORTS, methods: [GET], paths: [/a/**], connections: shared}
  - {name: mixed-a, action: allow, hosts: [mixed.example], PORTS, clients: [a]}
  - {name: mixed-b, action: allow, hosts: [mixed.example], PORTS, clients: [b], methods: [GET], connections: shared}
  - {name: both, action: allow, hosts: [both.example], ports: [8447], methods: [GET, HEAD], connections: shared}
  - {name: wordless, action: allow, hosts: [wordless.example], PORTS, methods: [GET, HEAD]}
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
WIDENED = POLICY.replace("[GET, HEAD], connections: shared}", "[GET, HEAD, POST]}", 1)
ROUNDS = 5
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: smuggled\r\nX-Swallowed: "


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b"
# Answers after which a connection may serve another request, and what a careless origin
# writes after them.
COMPLETE = {
    "304": b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n',
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "205": b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
    "an empty 200": ANSWER % (0, b"", b""),
    "a length": ANSWER % (5, b"", b"of-a\n"),
    "the last chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nof-a\n\r\n0\r\n\r\n"
    ),
}
LATE = {
    "an answer": ANSWER % (5, b"", b"of-a\n"),
    "an answer after a line": b"\r\n" + ANSWER % (5, b"", b"of-a\n"),
    "an answer that does not end": ANSWER % (500, b"", b"of-a\n"),
    "a body": b"<html>of-a</html>\r\n",
}
FORMS = [*product(COMPLETE, LATE)]


class Careless:
    """An origin that a client can make answer wrongly. It takes a body for the next
    request, and answers with the request line.

    It ends no connection, also where it is told to, but after `/close`, and after HEAD
    where it is told to. As servers do, it then reads what still comes. Each port takes
    TLS and what is not encrypted. HEAD is answered with a body.

    `/late/N` is answered by a form, whose late bytes come when anybody asks for
    something else: on each such connection that is still open, ahead of the answer. By
    then Squid has passed the form's answer on, as the other request follows it.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.heads: list[bytes] = []
        self.encrypted: list[bool] = []  # each of them
        self.paths: dict[socket.socket, list[bytes]] = {}  # of each connection
        self.late: list[_Late] = []
        self._context = context
        self._servers = [socket.create_server((ADDRESS, port)) for port in (PLAIN, TLS)]
        for server in self._servers:
            Thread(target=self._accept, args=(server,), daemon=True).start()

    def forget(self) -> None:
        for seen in (self.heads, self.encrypted, self.paths, self.late):
            seen.clear()

    @property
    def connections(self) -> int:
        return len(self.paths)

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
            late = stack.enter_context(_Late(connection))
            read = b""
            while more := late.recv():
                read += more
                while b"\r\n\r\n" in read:
                    head, _, read = read.partition(b"\r\n\r\n")
                    self.heads.append(head)
                    paths = self.paths.setdefault(connection, [])
                    paths.append(head.split(b" ")[1])
                    self.encrypted.append(isinstance(connection, ssl.SSLSocket))
                    self._answer(late, head)
                    if self._ends(head):
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):
                            pass
                        return

    def _answer(self, late: _Late, head: bytes) -> None:
        line = head.split(b"\r\n")[0]
        if found := re.search(rb" \S*/late/(\d+) ", line):
            complete, form = FORMS[int(found[1])]
            late.connection.sendall(COMPLETE[complete])
            late.bytes = LATE[form]
            self.late.append(late)
            return
        for other in self.late:
            other.write(by=late)
        self.late.clear()
        closing = b"Connection: close\r\n" if self._ends(head) else b""
        late.connection.sendall(ANSWER % (len(line), closing, line))

    @staticmethod
    def _ends(head: bytes) -> bool:
        line = head.split(b"\r\n")[0]
        is_told = line.startswith(b"HEAD") and b"Connection: close" in head
        return is_told or b"/close" in line

    def close(self) -> None:
        for server in self._servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()


class _Late:
    """A connection of the origin, and what it still has to write. Only its own thread
    writes; another one wakes it, and waits until it has.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.bytes = b""
        self._written = Event()
        self._woken, self._wakes = socket.socketpair()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._written.set()
        self._woken.close()
        self._wakes.close()

    def write(self, by: _Late) -> None:
        if by is self:
            self._write()
            return
        with suppress(OSError):  # it has ended
            self._wakes.sendall(b"x")
            self._written.wait()

    def recv(self) -> bytes:
        while not self._has_read_more():
            ready, _, _ = select.select([self.connection, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(1)
                self._write()
            if self.connection in ready:
                break
        return self.connection.recv(65536)

    def _has_read_more(self) -> bool:
        connection = self.connection
        return isinstance(connection, ssl.SSLSocket) and connection.pending() > 0

    def _write(self) -> None:
        with suppress(OSError):
            self.connection.sendall(self.bytes)
        self._written.set()


@pytest.fixture(scope="module")
def documented(new_gateway: NewGateway) -> Gateway:
    """A gateway whose tunnels are all opened as the walkthrough opens them."""
    gateway = new_gateway(POLICY)
    gateway.render(documented=True)
    return gateway.start()


@pytest.fixture(scope="module")
def server(all_origins: Origins) -> Iterator[Careless]:
    context = all_origins.authority.context(*HOSTS)
    with closing(Careless(context)) as server:
        yield server


@pytest.fixture
def origin(server: Careless, names: Names) -> Careless:
    for host in (*HOSTS, UNNAMED):
        names.set(host, [ADDRESS])
    server.forget()
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
    "an origin that closes": ("GET", "/close", [], ""),
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", [FIRST, READ, MIXED])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_one_client_reaches_another(
    gateway: Gateway, origin: Careless, scheme: str, host: str, attack: str
) -> None:
    method, path, lines, body = ATTACKS[attack]
    for number in range(ROUNDS):
        with (
            connected(gateway, scheme, A, host) as attacker,
            connected(gateway, scheme, B, host) as victim,
        ):
            send(attacker, scheme, host, method, path, *lines, body=body)
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


def late_bytes(
    gateway: Gateway, scheme: str, host: str, forms: Iterable[int]
) -> dict[int, str]:
    """Let A ask for each form, and B for something else; give B's wrong answers."""
    wrong = {}
    for number in forms:
        with (
            connected(gateway, scheme, A, host) as attacker,
            connected(gateway, scheme, B, host) as victim,
        ):
            answer = send(
                attacker, scheme, host, "GET", f"/late/{number}", 'If-None-Match: "x"'
            )
            assert answer.status in (200, 204, 205, 304)
            found = ask(
                victim,
                scheme,
                host,
                "GET",
                f"/b/{number}",
                "Authorization: Bearer of-b",
            )
            if found != f"GET /b/{number}":
                wrong[number] = found
    return wrong


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", [WORDLESS, FIRST, OWN])
def test_late_bytes_reach_no_other_client_without_the_word(
    gateway: Gateway, origin: Careless, scheme: str, host: str
) -> None:
    assert late_bytes(gateway, scheme, host, range(len(FORMS))) == {}
    # No answer to B can reach A later, either: they had no connection in common.
    took = [
        paths for paths in origin.paths.values() if any(b"/b/" in one for one in paths)
    ]
    assert len(took) == len(FORMS)
    assert [paths for paths in took if any(b"/late/" in one for one in paths)] == []


@pytest.mark.skipif(WORKERS in os.environ, reason="each worker has a pool of its own")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_word_trusts_an_origin_with_what_other_clients_are_answered(
    gateway: Gateway, origin: Careless, scheme: str
) -> None:
    forms = [number for number, (_, late) in enumerate(FORMS) if late == "an answer"]
    for host, number in zip(TRUSTED, forms, strict=True):
        assert late_bytes(gateway, scheme, host, [number]) == {number: "of-a\n"}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_client_that_leaves_in_the_middle_takes_nothing_of_another(
    gateway: Gateway, origin: Careless, scheme: str
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
    gateway: Gateway, origin: Careless, scheme: str
) -> None:
    for number in range(ROUNDS):
        with connected(gateway, scheme, (A, B)[number % 2], READ) as client:
            assert ask(client, scheme, READ, "GET", f"/{number}") == f"GET /{number}"
    # each worker has a pool
    assert origin.connections <= int(os.environ.get(WORKERS, "1"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_with_the_documented_bumping_nobody_shares(
    documented: Gateway, origin: Careless, scheme: str
) -> None:
    assert "sk_is_sharing" not in documented.layout.fragment.read_text()
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
    assert origin.connections == 2 * ROUNDS


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("host", "path"),
    [(READ, "/a"), (READ, "/a%20b"), (BELOW, "/a/b"), (BELOW, "/a/b%20c")],
)
def test_a_request_with_a_body_is_denied_there(
    gateway: Gateway, origin: Careless, scheme: str, host: str, path: str
) -> None:
    for lines, body in FRAMES.values():
        with connected(gateway, scheme, A, host) as client:
            answer = send(client, scheme, host, "GET", path, *lines, body=body)
            assert (answer.status, answer.rule) == (403, "invalid-request")
    assert origin.heads == []


def test_the_fault_of_a_certificate_is_on_record_there(
    gateway: Gateway, origin: Careless
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
    gateway: Gateway, origin: Careless
) -> None:
    for number in range(ROUNDS):
        with connected(gateway, "http", B, MIXED) as client:
            assert ask(client, "http", MIXED, "GET", f"/{number}") == f"GET /{number}"
    assert origin.connections == ROUNDS
    assert all(b"connection: close" in head.lower() for head in origin.heads)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_origin_that_closes_loses_no_request(
    gateway: Gateway, origin: Careless, scheme: str
) -> None:
    with connected(gateway, scheme, A, READ) as client:
        for number in range(10 * ROUNDS):
            path = f"/close/{number}"
            assert ask(client, scheme, READ, "GET", path) == f"GET {path}"


def test_a_request_over_tls_takes_no_connection_without_it(
    gateway: Gateway, origin: Careless
) -> None:
    with Raw(gateway, A) as attacker:
        assert attacker.get(f"http://{BOTH}:{TLS}/a", f"{BOTH}:{TLS}")
    with connected(gateway, "https", B, BOTH) as victim:
        assert ask(victim, "https", BOTH, "GET", "/b") == "GET /b"
    assert origin.encrypted == [False, True]


def test_a_tunnel_ends_with_the_edit_that_changes_its_mode(
    gateway: Gateway, origin: Careless
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
    wait_for(lambda: not _posts(gateway), "the policy of the other tests")


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
    gateway: Gateway, origin: Careless, host: str, closes: bool
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
    assert origin.connections == 1


# Logins that belong to their connection. Squid keeps it to the client where one space
# follows the scheme.
BOUND = ["NTLM", "Negotiate", "Kerberos", "ntlm", "NEGOTIATE"]
ODD = [
    f"{scheme}{between}of-a"
    for scheme in BOUND
    for between in ("\t", " \t", "\t ", "  ", "\xa0", "\v")
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("path", ["/a", "/a%20b"])
def test_a_login_that_squid_would_not_keep_to_its_client_is_denied_where_clients_share(
    gateway: Gateway, origin: Careless, scheme: str, path: str
) -> None:
    for login in ODD:
        with connected(gateway, scheme, A, READ) as client:
            answer = send(client, scheme, READ, "GET", path, f"Authorization: {login}")
            assert (answer.status, answer.rule) == (403, "invalid-request")
    with connected(gateway, scheme, A, READ) as client:
        for login in ("Bearer of-a", "Basic b2YtYQ==", "token"):
            found = ask(client, scheme, READ, "GET", path, f"Authorization: {login}")
            assert found == f"GET {path}"
    assert len(origin.heads) == 3


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nobody_takes_a_connection_that_another_client_has_logged_in_on(
    gateway: Gateway, origin: Careless, scheme: str
) -> None:
    for number, login in enumerate(BOUND):
        with (
            connected(gateway, scheme, A, READ) as first,
            connected(gateway, scheme, B, READ) as second,
        ):
            login_line = f"Authorization: {login} of-a"
            path = f"/a/{number}"
            assert ask(first, scheme, READ, "GET", path, login_line) == f"GET {path}"
            path = f"/b/{number}"
            assert ask(second, scheme, READ, "GET", path) == f"GET {path}"
    for paths in origin.paths.values():
        assert not any(b"/a/" in one for one in paths[:-1])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_one_login_is_sent_where_clients_share(
    gateway: Gateway, origin: Careless, scheme: str
) -> None:
    two = ("Authorization: Bearer of-a", "Authorization: NTLM\tof-a")
    with connected(gateway, scheme, A, READ) as client:
        assert ask(client, scheme, READ, "GET", "/a", *two) == "GET /a"
        assert ask(client, scheme, READ, "GET", "/none") == "GET /none"
    with connected(gateway, scheme, A, WORDLESS) as client:
        assert ask(client, scheme, WORDLESS, "GET", "/own", two[1]) == "GET /own"
    sent = [
        re.findall(rb"(?im)^authorization: (.*?)\r?$", head) for head in origin.heads
    ]
    assert sent == [[b"Bearer of-a"], [], [b"NTLM\tof-a"]]
