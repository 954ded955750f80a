"""The clients of bench.py and sizing.py over https, each in a tunnel through the proxy.

They need Python alone.

    clients.py load|transparent ADDRESS PORT CA kept-alive|fresh|REQUESTS SECONDS [HOST]
    clients.py told ADDRESS PORT CA

`load` asks without a pause, REQUESTS in a tunnel before another one is opened. It says
"open" when the tunnels are, and at the end how many requests were answered, and how
many tunnels were closed before a request. A request that fails is complained of.
`transparent` does the same without CONNECT: it begins with TLS. `told` reads lines,
`open` a tunnel or `ask` in the last one, and says "done" after each. Its tunnels stay
open until its input ends.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

CLIENTS = 8
HOST = "bench.example"
EACH = {"kept-alive": sys.maxsize, "fresh": 1}  # requests in a tunnel
Proxy = tuple[str, int]


class Load:
    """The clients, and what each has counted."""

    def __init__(self, opened: Callable[[], ssl.SSLSocket], host: str) -> None:
        self._opened, self._host = opened, host
        self._all_open = threading.Barrier(
            CLIENTS, lambda: print("open", flush=True), timeout=30
        )
        self.answered, self.closed = [0] * CLIENTS, [0] * CLIENTS

    def client(self, number: int, each: int, seconds: float) -> None:
        """Be one of the clients, which asks so often in each tunnel."""
        tunnel = self._opened()
        self._all_open.wait()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            answered = ask(tunnel, f"/a/{number}/{self.answered[number]}", self._host)
            self.answered[number] += answered
            self.closed[number] += not answered
            if self.answered[number] % each == 0 or not answered:
                tunnel.close()
                tunnel = self._opened()


def open_tunnel(
    proxy: Proxy,
    context: ssl.SSLContext,
    host: str = HOST,
    *,
    transparent: bool = False,
) -> ssl.SSLSocket:
    """Open a tunnel through the proxy, with TLS inside."""
    plain = socket.create_connection(proxy)
    if not transparent:
        plain.sendall(
            f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode()
        )
        answer = plain.recv(65536)
        assert b" 200 " in answer, answer
    return context.wrap_socket(plain, server_hostname=host)


def ask(tunnel: ssl.SSLSocket, path: str, host: str = HOST) -> bool:
    """Ask for a path; False where the tunnel was closed while nothing was asked, which
    HTTP allows.
    """
    tunnel.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"hello\n"):
        got = tunnel.recv(65536)
        if not got and not answer:
            return False
        assert got, answer
        answer += got
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return True


def load(
    opened: Callable[..., ssl.SSLSocket], kind: str, seconds: str, host: str = HOST
) -> None:
    """Ask without a pause."""
    made, each = Load(partial(opened, host), host), EACH.get(kind) or int(kind)
    clients = [
        threading.Thread(target=made.client, args=(number, each, float(seconds)))
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    print(sum(made.answered), sum(made.closed))


def told(proxy: Proxy, context: ssl.SSLContext) -> None:
    """Follow the lines."""
    held: list[ssl.SSLSocket] = []
    for number, line in enumerate(sys.stdin):
        if line == "open\n":
            held.append(open_tunnel(proxy, context))
        elif not ask(held[-1], f"/a/{number}"):
            sys.exit("the tunnel was closed")
        print("done", flush=True)


def main(what: str, address: str, port: str, ca: str, *more: str) -> None:
    proxy, context = (address, int(port)), ssl.create_default_context(cafile=ca)
    if what == "told":
        told(proxy, context)
    else:
        load(
            partial(open_tunnel, proxy, context, transparent=what == "transparent"),
            *more,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
