"""A client of sizing.py that does what it reads, line by line, and says "done": `open` a tunnel, or `ask` in it.

    told_client.py ADDRESS PORT CA

Tunnels stay open until its input ends.
"""

from __future__ import annotations

import ssl
import sys

from tunnels import ask, open_tunnel  # type: ignore[import-not-found] # beside this script


def main(address: str, port: str, ca: str) -> None:
    """Follow the lines."""
    context, held = ssl.create_default_context(cafile=ca), list[ssl.SSLSocket]()
    for number, line in enumerate(sys.stdin):
        if line == "open\n":
            held.append(open_tunnel((address, int(port)), context))
        elif not ask(held[-1], f"/a/{number}"):
            sys.exit("the tunnel was closed")
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
