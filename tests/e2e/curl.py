"""curl as a client of the gateway: the certificate verified against the gateway's CA,
never `-k`.
"""

import os
import subprocess
from pathlib import Path

from .gateway import Gateway
from .reply import NO_ANSWER, Reply, parse_head


class CurlFailed(Exception):
    """curl ended without an HTTP answer; `code` is its exit status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"curl: exit {code}: {text}")
        self.code = code


def curl(
    gateway: Gateway, url: str, *options: str | Path, client: str = "127.0.0.1"
) -> Reply:
    """Fetch a URL through the gateway, from this client address, as it is written (no
    dot segment removed).
    """
    fixed = (
        "curl",
        "-q",
        "-sS",
        "-i",
        "--suppress-connect-headers",
        "--path-as-is",
        "--max-time",
        "60",
        "--noproxy",
        "",
    )
    proxy: list[str | Path] = [
        "--proxy",
        f"http://{gateway.authority}",
        "--cacert",
        gateway.ca,
        "--interface",
        client,
    ]
    done = subprocess.run(
        [*fixed, *proxy, *options, url],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env=clean(),
    )
    if done.returncode:
        raise CurlFailed(done.returncode, done.stderr.decode())
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    while head.startswith(
        (b"HTTP/1.1 1", b"HTTP/1.0 1")
    ):  # 100 Continue comes ahead of the answer
        head, _, body = body.partition(b"\r\n\r\n")
    status, headers = parse_head(head)
    return Reply(status, headers, body)


def answer(
    gateway: Gateway, url: str, *options: str | Path, client: str = "127.0.0.1"
) -> Reply:
    """As `curl`, but NO_ANSWER where there is none: Squid starts again, or closes its
    port while it reconfigures.
    """
    try:
        return curl(gateway, url, *options, client=client)
    except CurlFailed:
        return NO_ANSWER


def clean() -> dict[str, str]:
    """The environment without proxies of the machine's own."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy")
    }
