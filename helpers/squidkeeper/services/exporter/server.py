"""The exporter over HTTP: /metrics, /healthz and, to `status_from` alone, the status
page.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from waitress.server import create_server

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.language.hosts import Network
from squidkeeper.policy.url import canonical_address, parse_authority
from squidkeeper.services.bounded_connection import BoundedConnection
from squidkeeper.services.exporter.conditions import ActiveCondition

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from waitress.server import BaseWSGIServer

_THREADS = 4
_IDLE_SECONDS = 20  # also for the whole head of a request
_CLEANUP_SECONDS = 5
_HEAD_BYTES = 16 * 1024
_BODY_BYTES = 4 * 1024  # of a request: no page here takes one
_TEXT = "text/plain; charset=utf-8"
_PROXY_HEADERS: Final = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR")
_SECURITY: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


def is_among(peer: str, networks: Iterable[Network]) -> bool:
    """Whether the address of a peer, with its zone if it has one, is in one of the
    networks.
    """
    address = canonical_address(ip_address(peer.partition("%")[0]))
    return any(address in network for network in networks)


class Response(NamedTuple):
    """An answer."""

    status: str
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Application:
    """The WSGI application.

    Everybody who reaches the port gets metrics and health; `status_from` gets the page.

    The page, and everything on a port `on_loopback`, needs an address or `localhost` in
    the Host header. This stops a web site that points its own name here (DNS
    rebinding).
    """

    registry: CollectorRegistry
    health: Callable[[], tuple[ActiveCondition, ...]]
    page: Callable[[], str]
    status_from: tuple[Network, ...]
    on_loopback: bool = True

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        response = self._answer(environ)
        fixed = (
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
        )
        start_response(response.status, [*fixed, *_SECURITY, *response.headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.body]

    def _answer(self, environ: WSGIEnvironment) -> Response:
        page = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/": self._status,
        }.get(environ["PATH_INFO"])
        if page is None:
            return Response(
                "404 Not Found",
                _TEXT,
                b"The pages are /metrics, /healthz and / (the status page).\n",
            )
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return Response(
                "405 Method Not Allowed",
                _TEXT,
                b"GET or HEAD.\n",
                (("Allow", "GET, HEAD"),),
            )
        if (self.on_loopback or page == self._status) and not _is_address_or_localhost(
            environ.get("HTTP_HOST", "")
        ):
            return _forbidden(
                "Ask for an address or localhost: a page under another name could belong to anybody."
            )
        return page(environ)

    def _metrics(self, environ: WSGIEnvironment) -> Response:
        try:
            encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        except (TypeError, ValueError):  # the version there is not a number
            encode, content_type = choose_encoder("")
        return Response("200 OK", content_type, encode(self.registry))

    def _healthz(self, _: WSGIEnvironment) -> Response:
        active = self.health()
        rows = [
            {
                "code": condition.condition.code,
                "severity": condition.condition.severity,
                "detail": condition.text,
            }
            for condition in active
        ]
        body = json.dumps({"healthy": not active, "conditions": rows}, indent=2) + "\n"
        return Response(
            "503 Service Unavailable" if active else "200 OK",
            "application/json",
            body.encode(),
        )

    def _status(self, environ: WSGIEnvironment) -> Response:
        if not is_among(environ.get("REMOTE_ADDR", ""), self.status_from):
            shown_to = ", ".join(map(str, self.status_from))
            return _forbidden(
                f"The status page is for {shown_to} only. --status-from NETWORK opens it to others."
            )
        if any(header in environ for header in _PROXY_HEADERS):
            return _forbidden(
                "The status page is not shown through a proxy, which hides the client."
            )
        return Response(
            "200 OK", "text/html; charset=utf-8", self.page().encode("utf-8", "replace")
        )


def _forbidden(why: str) -> Response:
    return Response("403 Forbidden", _TEXT, f"{why}\n".encode())


def serve(application: Application, bound: socket.socket) -> BaseWSGIServer:
    """Make a server for a bound socket.

    Its `run` answers until `SystemExit` is raised in its thread.
    """
    made = create_server(
        application,
        sockets=[bound],
        threads=_THREADS,
        connection_limit=2 * BoundedConnection.in_all,  # never reached
        channel_timeout=_IDLE_SECONDS,
        cleanup_interval=_CLEANUP_SECONDS,
        max_request_header_size=_HEAD_BYTES,
        max_request_body_size=_BODY_BYTES,
        asyncore_use_poll=True,
        ident="",
    )
    server = cast("BaseWSGIServer", made)  # the type for one socket
    server.channel_class = BoundedConnection
    return server


def _is_address_or_localhost(host: str) -> bool:
    try:
        name, _ = parse_authority(host)
    except InvalidUrl:
        return False
    return name.address is not None or name.text == "localhost"
