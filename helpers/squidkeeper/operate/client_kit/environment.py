"""The environment of a client: variables that send its programs through the gateway and
let them trust it.

Some variables add a root (`NODE_EXTRA_CA_CERTS`), others replace all of them
(`SSL_CERT_FILE`). The first kind names the gateway's root, the second a bundle with the
public roots and the gateway's: the origin's own certificate reaches the client where a
tunnel is passed through.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple
from urllib.parse import quote

from squidkeeper.base.errors import InvalidSetting, InvalidUrl
from squidkeeper.policy.url import Host, bracketed, parse_authority

PASSWORD = "PASSWORD"  # noqa: S105 - stands in the proxy's URL until the operator replaces it
CA_PATH = "/etc/squidkeeper/ca.crt"
BUNDLE_PATH = "/etc/ssl/certs/ca-certificates.crt"
JAVA_STORE_PATH = "/etc/ssl/certs/java/cacerts"
_ALWAYS_DIRECT = ("localhost", "127.0.0.1", "::1")
# what no shell, YAML, Dockerfile or Java option reads in another way
_PATH = re.compile(r"/[A-Za-z0-9._/+@-]+")
_PROXY = re.compile(r"(https?)://([^/?#@\s]+)/?")
_DIRECT = re.compile(r"[A-Za-z0-9._:/*\[\]-]+")


class Proxy(NamedTuple):
    """The proxy as a client reaches it."""

    scheme: str
    host: Host
    port: int

    def url(self, user: str | None = None, password: str | None = None) -> str:
        """Write the URL; with a user, `PASSWORD` stands for a password that is not
        given.
        """
        shown = PASSWORD if password is None else quote(password, safe="")
        userinfo = f"{quote(user, safe='')}:{shown}@" if user is not None else ""
        return f"{self.scheme}://{userinfo}{bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What the variables of one client are made from. Paths are paths in its VM."""

    # None: a client without proxy settings, for which each name has the gateway's
    # address
    proxy: Proxy | None
    user: str | None = None
    # of the user, where it is given
    token: str | None = field(default=None, repr=False)
    ca_path: str = CA_PATH
    bundle_path: str = BUNDLE_PATH
    java_store_path: str = JAVA_STORE_PATH
    direct: tuple[str, ...] = ()  # hosts that the client reaches without the proxy

    def __post_init__(self) -> None:
        for path in (self.ca_path, self.bundle_path, self.java_store_path):
            if not _PATH.fullmatch(path):
                expected = "an absolute path of letters, digits and . _ / + @ -"
                raise InvalidSetting(
                    f"{path!r} is not a path for a client's variables, expected {expected}"
                )
        for host in self.direct:
            if not _DIRECT.fullmatch(host):
                raise InvalidSetting(
                    f"{host!r} is not a host for NO_PROXY, expected a name, address or network"
                )

    @property
    def proxy_url(self) -> str:
        """The proxy of https URLs; empty without a proxy."""
        return self.proxy.url(self.user, self.token) if self.proxy else ""

    @property
    def http_proxy_url(self) -> str:
        """The proxy of http URLs: never by TLS, which some programs do not speak to a
        proxy (Python's urllib).
        """
        return (
            self.proxy._replace(scheme="http").url(self.user, self.token)
            if self.proxy
            else ""
        )

    @property
    def no_proxy(self) -> tuple[str, ...]:
        """The hosts that are reached directly, the proxy itself among them; none
        without a proxy.
        """
        return (
            tuple(dict.fromkeys((*_ALWAYS_DIRECT, self.proxy.host.text, *self.direct)))
            if self.proxy
            else ()
        )


def parse_proxy(text: str) -> Proxy:
    """Parse the URL of a proxy: scheme, host and port, and nothing else."""
    found = _PROXY.fullmatch(text)
    try:
        host, port = parse_authority(found[2]) if found else (None, None)
    except InvalidUrl:
        host = port = None
    if found is None or host is None or port is None:
        raise InvalidSetting(
            f"{_without_password(text)!r} is not the URL of a proxy, expected http://HOST:PORT or https://HOST:PORT, "
            "without a user or a path"
        )
    return Proxy(found[1], host, port)


def _without_password(text: str) -> str:
    return re.sub(r"//[^/]*@", "//…@", text)


def variables(settings: ClientSettings) -> dict[str, str]:
    """List the variables of a client with their values, in the order of `VARIABLES`;
    less the empty ones.
    """
    values = ((name, value(settings)) for name, value in VARIABLES.items())
    return {name: value for name, value in values if value}


def _no_proxy(settings: ClientSettings) -> str:
    return ",".join(settings.no_proxy)


def _basic(settings: ClientSettings) -> str:
    return "" if settings.user is None else "basic"


def _use_proxy(settings: ClientSettings) -> str:
    return "1" if settings.proxy else ""


def _java(settings: ClientSettings) -> str:
    properties = {
        **(_java_proxy(settings.proxy, settings.no_proxy) if settings.proxy else {}),
        "javax.net.ssl.trustStore": settings.java_store_path,
        # as of every JDK: a PKCS #12 file is not read without it
        "javax.net.ssl.trustStorePassword": "changeit",
    }
    return " ".join(f"-D{name}={value}" for name, value in properties.items())


def _java_proxy(proxy: Proxy, no_proxy: Iterable[str]) -> dict[str, str]:
    host, port = proxy.host.text, str(proxy.port)
    return {
        "http.proxyHost": host,
        "http.proxyPort": port,
        "https.proxyHost": host,
        "https.proxyPort": port,
        "http.nonProxyHosts": "|".join(_java_hosts(no_proxy)),
    }


def _java_hosts(hosts: Iterable[str]) -> list[str]:
    return [
        f"[{host}]" if ":" in host and not host.startswith("[") else host
        for host in hosts
    ]


_proxy, _http_proxy, _root, _bundle = map(
    attrgetter, ("proxy_url", "http_proxy_url", "ca_path", "bundle_path")
)
# Both cases of the proxy variables: curl reads `http_proxy` in lower case only, others
# one of the two.
VARIABLES: Mapping[str, Callable[[ClientSettings], str]] = {
    "http_proxy": _http_proxy,
    "https_proxy": _proxy,
    "HTTP_PROXY": _http_proxy,
    "HTTPS_PROXY": _proxy,
    "no_proxy": _no_proxy,
    "NO_PROXY": _no_proxy,
    "SSL_CERT_FILE": _bundle,  # OpenSSL, so Python's ssl; Go; uv; Ruby
    "REQUESTS_CA_BUNDLE": _bundle,  # requests
    "CURL_CA_BUNDLE": _bundle,  # curl
    "GIT_SSL_CAINFO": _bundle,  # git
    # else git sends a login only when it is asked for one
    "GIT_HTTP_PROXY_AUTHMETHOD": _basic,
    "PIP_CERT": _bundle,
    # The roots of the system, not those that uv brings; older ones read SSL_CERT_FILE.
    "UV_SYSTEM_CERTS": lambda _: "true",
    "NODE_EXTRA_CA_CERTS": _root,  # Node, npm, Bun: adds to their own roots
    "NODE_USE_ENV_PROXY": _use_proxy,  # Node's fetch, from 22.21 and 24.5 on
    "npm_config_proxy": _http_proxy,
    "npm_config_https_proxy": _proxy,
    "npm_config_noproxy": _no_proxy,
    "npm_config_cafile": _bundle,
    "DENO_CERT": _root,  # adds
    "CARGO_HTTP_CAINFO": _bundle,
    "AWS_CA_BUNDLE": _bundle,  # the AWS command line and boto3
    "JAVA_TOOL_OPTIONS": _java,
}
