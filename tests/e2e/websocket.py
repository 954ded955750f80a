"""A WebSocket to chat.example:9443 through a tunnel that Squid bumps."""

from __future__ import annotations

import socket
import ssl

from websockets.sync.client import ClientConnection, connect

from .gateway import Gateway

_AUTHORITY = "chat.example:9443"


def open_websocket(
    gateway: Gateway, path: str = "/", client: str = "127.0.0.1"
) -> ClientConnection:
    opened = socket.create_connection(gateway.address, source_address=(client, 0))
    request = f"CONNECT {_AUTHORITY} HTTP/1.1\r\nHost: {_AUTHORITY}\r\n\r\n"
    opened.sendall(request.encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = opened.recv(1000)
        assert more, head
        head += more
    assert head.startswith(b"HTTP/1.1 200"), head
    context = ssl.create_default_context(cafile=str(gateway.ca))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    url = f"wss://{_AUTHORITY}{path}"
    return connect(url, sock=opened, ssl=context, compression=None)
