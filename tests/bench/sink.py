"""An origin for the uploads of bench.py: `sink.py ADDRESS` reads each at port 80, then
answers it.
"""

import re
import socket
import sys
import threading


def serve(connection: socket.socket) -> None:
    """Read uploads, one after another."""
    room, head = memoryview(bytearray(1 << 20)), b""
    with connection:
        while data := connection.recv(65536):
            head += data
            if b"\r\n\r\n" not in head:
                continue
            lines, _, body = head.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", lines)
            left = (int(length[1]) if length else 0) - len(body)
            while left > 0 and (got := connection.recv_into(room)):
                left -= got
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            head = b""


server = socket.create_server((sys.argv[1], 80))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
