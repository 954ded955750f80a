"""The load of bench.py over https: clients that each ask in a tunnel through the proxy, or in a new one each time.

    tunnels.py ADDRESS PORT kept-alive|fresh|REQUESTS SECONDS CA [HOST]

bench.py and sizing.py run it. REQUESTS is how many are asked in a tunnel before another one is opened. It says "open"
when the tunnels are, and at the end how many requests were answered, and how many tunnels were closed before a request.
A request that fails is complained of.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time

CLIENTS = 8
HOST = "bench.example"
EACH = {"kept-alive": sys.maxsize, "fresh": 1}  # requests in a tunnel


class Load:
    """The clients, and what each has counted."""

    def __init__(self, proxy: tuple[str, int], ca: str, host: str) -> None:
        self._proxy, self._host = proxy, host
        self._context = ssl.create_default_context(cafile=ca)
        self._all_open = threading.Barrier(CLIENTS, lambda: print("open", flush=True), timeout=30)
        self.answered, self.closed = [0] * CLIENTS, [0] * CLIENTS

    def client(self, number: int, each: int, seconds: float) -> None:
        """Be one of the clients, which asks so often in each tunnel."""
        tunnel = self._tunnel()
        self._all_open.wait()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            answered = ask(tunnel, f"/a/{number}/{self.answered[number]}", self._host)
            self.answered[number] += answered
            self.closed[number] += not answered
            if self.answered[number] % each == 0 or not answered:
                tunnel.close()
                tunnel = self._tunnel()

    def _tunnel(self) -> ssl.SSLSocket:
        return open_tunnel(self._proxy, self._context, self._host)


def open_tunnel(proxy: tuple[str, int], context: ssl.SSLContext, host: str = HOST) -> ssl.SSLSocket:
    """Open a tunnel through the proxy, with TLS inside."""
    plain = socket.create_connection(proxy)
    plain.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
    answer = plain.recv(65536)
    assert b" 200 " in answer, answer
    return context.wrap_socket(plain, server_hostname=host)


def ask(tunnel: ssl.SSLSocket, path: str, host: str = HOST) -> bool:
    """Ask for a path; False where the tunnel was closed while nothing was asked, which HTTP allows."""
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


def main(address: str, port: str, kind: str, seconds: str, ca: str, host: str = HOST) -> None:
    load, each = Load((address, int(port)), ca, host), EACH.get(kind) or int(kind)
    clients = [threading.Thread(target=load.client, args=(number, each, float(seconds))) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    print(sum(load.answered), sum(load.closed))


if __name__ == "__main__":
    main(*sys.argv[1:])
