"""The files of squid/ for one gateway: with its paths, addresses, accounts and
commands.
"""

import re
import resource
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from squidkeeper.base.formatting import substitute
from squidkeeper.base.gateway_commands import with_commands
from squidkeeper.base.layout import BODIES, Layout
from squidkeeper.configuration.error_pages import REQUEST_ID, files, placeholders
from squidkeeper.configuration.log_format import log_formats
from squidkeeper.configuration.rendering import FRAGMENT, fill, part_file
from squidkeeper.operate.setup.machine import Machine
from squidkeeper.operate.setup.options import SQUID, SQUIDKEEPER, port_of, reachable
from squidkeeper.record.log.record import GATEWAY_LENGTH, NONE
from squidkeeper.services.maintenance.tls import CERTIFICATE, server_names
from squidkeeper.serving.parts import Part

MARK: Final = "# Written by squidkeeper's install.sh, which replaces it: lines of your own go into local.conf."
_DETAILS: Final = Path("/usr/share/squid/errors/templates/error-details.txt")
NO_RESOLVER: Final = "none"
LOGFORMAT: Final = "squidkeeper-logformat.conf"
_TRANSPARENT: Final = re.compile(
    r"(?<=^# >>> transparent\n).*?(?=^# <<<\n)", re.MULTILINE | re.DOTALL
)
_DNS_ADDRESS: Final = "192.168.137.1"  # in dns.conf
_CERTGEN: Final = "/usr/lib/squid/security_file_certgen"
_RESOLVER: Final = "127.53.53.53"
_BODIES: Final = f"--listen {_RESOLVER}:344 "
_UNIQUE_NAME: Final = "unique_hostname squidkeeper"
_EXPORTER: Final = "127.0.0.1:9129"
_PROXY: Final = "127.0.0.1:3129"
_LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
_BEHIND_HAPROXY: Final = "127.53.53.53:13129"
_BALANCERS: Final = "acl sk_is_balancer src "
_TAKES_HEADER: Final = "proxy_protocol_access allow "
_MARK_OF_SECTION: Final = re.compile(r"^ *# (?:>>> \w+|<<<)\n", re.MULTILINE)
_ARCHIVE_SECONDS: Final = 300  # as in squidkeeper-archive.timer
_OWN_LOGIN: Final = re.compile(
    r"^(?:.*\| Processing: )?\s*auth_param\s+basic\s+program\s(?!.* login --)",
    re.MULTILINE,
)
# in the formats of the access log
_GATEWAY: Final = re.compile(r'(?<="gateway":")[^"]*(?=")')
# there, and on pages
_IN_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]+(?=\.(?:%|@Squid\{%)tS\b)")
_GATEWAY_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_RATE, _BURST = 10, 200  # denials of one client: a second, and at once
_EXEC_START: Final = re.compile(r"^ExecStart=.*$", re.MULTILINE)
# A client is one address, and a machine has up to three (IPv4, an IPv6 network,
# fe80::/64). A connection takes two descriptors of HAProxy, and four with TLS: three
# sixteenths of all, four times, are three quarters.
CLIENT_SHARE: Final = 16
_CONNECTIONS: Final = 2048  # of one client, where there are descriptors for it
_DESCRIPTORS: Final = 66_000  # of HAProxy, as its unit and haproxy.cfg have it
BINDS: Final = "    bind 0.0.0.0:3129\n    bind [::]:3129 v6only\n"


def substitute_once(text: str, replacements: Mapping[str, str]) -> str:
    """Replace texts by others, each of which a template has exactly once; ValueError
    where it was changed meanwhile.
    """
    for replacement in replacements:
        if (found := text.count(replacement)) != 1:
            raise ValueError(
                f"a template has {replacement!r} {found} times, expected once: change it there, and here"
            )
    return substitute(text, replacements)


def is_ours(conf: str) -> bool:
    """Whether install.sh wrote a squid.conf."""
    return conf.split("\n", 1)[0] == MARK


def names(conf: str, path: Path) -> bool:
    """Whether a squid.conf names a path outside of its comments."""
    return re.search(f"^[^#\n]*{re.escape(str(path))}", conf, re.MULTILINE) is not None


def binds(listen: str) -> tuple[str, ...]:
    """List the binds of HAProxy.

    For Squid both PORT and [::]:PORT mean IPv4 and IPv6.
    """
    host, _, port = listen.rpartition(":")
    four, six = f"0.0.0.0:{port}", f"[::]:{port} v6only"
    if host not in ("", "[::]"):
        return (listen,)
    return (four, six) if socket.has_dualstack_ipv6() else (four,)


def listen_of(conf: str) -> str:
    """Return where a squid.conf has Squid listen; empty where it has no http_port."""
    found = re.search(r"^http_port\s+(\S+)", conf, re.MULTILINE)
    return found[1] if found else ""


def has_own_login(text: str) -> bool:
    """Whether a configuration, or what Squid has read, has another program for basic
    authentication.
    """
    return _OWN_LOGIN.search(text) is not None


def without_login(part: str) -> str:
    """Leave out the program for logins: Squid knows one, and the operator's own
    configuration has it.
    """
    return re.sub(
        r"^# >>> program\n.*?^# <<<\n", "", part, flags=re.MULTILINE | re.DOTALL
    )


def unique_name(root: Path | None, machine: str) -> str:
    """Make what sets a gateway apart, the same in each run, from its root and the
    identity of its machine.
    """
    return sha256(f"{machine} {root}".encode()).hexdigest()[:8]


def is_gateway_name(name: str) -> bool:
    """Whether a name can stand in a format of the access log: what host names are made
    of, and `_`.
    """
    return len(name) <= GATEWAY_LENGTH and _GATEWAY_NAME.fullmatch(name) is not None


def usual_gateway_name(host_name: str) -> str:
    """Make the name of a gateway from the machine's, which can hold anything."""
    return (
        re.sub("[^A-Za-z0-9._-]+", "-", host_name)[:GATEWAY_LENGTH].strip("-._")
        or "gateway"
    )


def with_gateway(text: str, name: str) -> str:
    """Write the name of a gateway into the formats of the access log, or into
    a page.
    """
    return _IN_REQUEST_ID.sub(
        REQUEST_ID[0] if name == NONE else name, _GATEWAY.sub(name, text)
    )


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files of one gateway are rendered from."""

    source: Path
    layout: Layout
    machine: Machine
    listen: str  # where our squid.conf has Squid listen
    squid: str  # where the squid.conf in force has it listen
    exporter: str
    log_bytes: str
    archive_days: str = ""
    archive_bytes: str = ""
    archive_is_copied: bool = False  # to an object store
    tls: bool = False  # HAProxy takes the clients
    tls_names: tuple[
        str, ...
    ] = ()  # as given; else the address it listens on and the host name
    behind: tuple[
        str, ...
    ] = ()  # the addresses of load balancers on other machines, which take the clients
    transparent: tuple[
        str, ...
    ] = ()  # the addresses of the ports for clients without proxy settings
    status_from: tuple[
        str, ...
    ] = ()  # networks that may see the status page, beside this machine
    health: str = ""  # where /healthz is served to these
    resolver: str = NO_RESOLVER
    certificates: str = SQUIDKEEPER
    own_login: bool = (
        False  # the operator's configuration has a program for basic authentication
    )
    unique_name: str = ""  # what sets it apart from other gateways
    gateway: str = NONE  # its name in records
    workers: int = 1  # Squid's processes that serve

    def render(self, name: str, moved: Mapping[str, str] = {}) -> str:
        """Read a file of squid/ and replace what is documented by what this gateway
        has; `moved` holds more of it.
        """
        text = (self.source / "squid" / name).read_text()
        if self.certificates == SQUID:
            text = re.sub(
                r"^(#?)(sslcrtd_program )", _other_comment, text, flags=re.MULTILINE
            )
        if self.transparent:
            text = _TRANSPARENT.sub(
                lambda block: re.sub("^#(?! )", "", block[0], flags=re.MULTILINE), text
            )
        return substitute(text, {**self._values(), **moved})

    def _values(self) -> dict[str, str]:
        values = self.layout.replacements() | {
            _CERTGEN: str(self.machine.certgen),
            "http_port 3129": f"http_port {self._http_port}",
            # of the example of Prometheus
            '"gateway":"gw-1"': f'"gateway":"{self.gateway}"',
        }
        if self.tls or self.behind or self.transparent:
            values[f"#{_TAKES_HEADER}localhost"] = f"{_TAKES_HEADER}localhost"
        if self.behind:
            values[f"#{_BALANCERS}192.0.2.1"] = f"{_BALANCERS}{' '.join(self.behind)}"
            values[f"#{_TAKES_HEADER}sk_"] = f"{_TAKES_HEADER}sk_"
        return values | self._of_resolver() | self._of_transparent()

    @property
    def server_names(self) -> tuple[str, ...]:
        """The names and addresses in the certificate of the TLS port."""
        return self.tls_names or server_names(self.listen)

    @property
    def squid_listen(self) -> str:
        """Where our squid.conf has Squid itself listen."""
        return self.layout.behind_haproxy if self.tls else self.listen

    @property
    def _http_port(self) -> str:
        takes_header = ["require-proxy-header"] if self.tls or self.behind else []
        queues = ["worker-queues"] if self.workers > 1 else []
        return " \\\n    ".join((self.squid_listen, *takes_header, *queues))

    def squid_conf(self) -> str:
        """Render squid.conf, with the resolver that Squid asks."""
        text = self.render(
            "squid.conf", {_UNIQUE_NAME: f"{_UNIQUE_NAME}-{self.unique_name}"}
        )
        return f"{MARK}\n{text}"

    def templates(
        self, moved: Mapping[str, str] = {}, *, with_logformat: bool = False
    ) -> dict[str, str]:
        """Make the templates of this gateway, by the names of their files: what depends
        on the policy is still open.

        With `with_logformat`, squidkeeper.conf includes the format of the log, which a
        squid.conf of yours does not.
        """
        parts = {
            part_file(Part(path.stem)): f"parts/{path.name}"
            for path in (self.source / "squid/parts").iterdir()
        }
        sources = {name: name for name in (FRAGMENT, LOGFORMAT)} | parts
        placeholders = self._placeholders()
        texts = {
            name: fill(self.render(source, moved), placeholders)
            for name, source in sources.items()
        }
        if with_logformat:
            place = str(self.layout.logformat)
            texts[FRAGMENT] = f"include {moved.get(place, place)}\n{texts[FRAGMENT]}"
        if self.own_login:
            texts[part_file(Part.LOGIN)] = without_login(texts[part_file(Part.LOGIN)])
        return texts

    def _placeholders(self) -> dict[str, str]:
        """Map the placeholders that a gateway fills in.

        All workers together deny one client as often as one would.
        """
        texts = {**placeholders(), **log_formats()}
        pages = {
            name: with_commands(with_gateway(text, self.gateway), self.layout)
            for name, text in texts.items()
        }
        return pages | {
            "WORKERS": f"workers {self.workers}" if self.workers > 1 else "",
            "RATE": f"{_RATE / self.workers:g}",
            "UNLESS_TRANSPARENT": "!sk_is_transparent " if self.transparent else "",
            "BURST": str(-(-_BURST // self.workers)),
            "BODIES": self.layout.bodies,
        }

    def haproxy(self, moved: Mapping[str, str] = {}) -> str:
        """Render haproxy.cfg, with HAProxy listening where Squid would listen without
        it.
        """
        values = {
            _BEHIND_HAPROXY: self.layout.behind_haproxy,
            f"gt {_CONNECTIONS} ": f"gt {min(_CONNECTIONS, self._descriptors // CLIENT_SHARE)} ",
            BINDS: "".join(f"    bind {address}\n" for address in binds(self.listen)),
        }
        return _MARK_OF_SECTION.sub("", self.render("haproxy.cfg", {**values, **moved}))

    @property
    def _descriptors(self) -> int:
        """How many HAProxy can have: its unit raises the limit, and
        `supervise` cannot.
        """
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return (
            _DESCRIPTORS
            if self.machine.systemd or hard == resource.RLIM_INFINITY
            else min(_DESCRIPTORS, hard)
        )

    @property
    def transparent_ports(self) -> tuple[str, ...]:
        """Where clients without proxy settings are taken with TLS."""
        return tuple(
            f"[{address}]:443" if ":" in address else f"{address}:443"
            for address in self.transparent
        )

    def _of_transparent(self) -> dict[str, str]:
        queues, layout = " worker-queues" if self.workers > 1 else "", self.layout
        listens = {"13443": layout.transparent_tls, "13080": layout.transparent_http}
        return {
            f"{_RESOLVER}:{port}": f"{listen}{queues}"
            for port, listen in listens.items()
        }

    def dns(self) -> str:
        """Render the configuration of unbound, which gives every name the address of
        this gateway.
        """
        interface, answer = (
            f"    interface: {_DNS_ADDRESS}\n",
            f'    local-data: ". 60 IN A {_DNS_ADDRESS}"\n',
        )
        kinds = [
            (address, "AAAA" if ":" in address else "A") for address in self.transparent
        ]
        answers = "".join(
            answer.replace(f"A {_DNS_ADDRESS}", f"{kind} {address}")
            for address, kind in kinds
        )
        interfaces = "".join(
            f"    interface: {address}\n" for address in self.transparent
        )
        return self.render("dns.conf", {interface: interfaces, answer: answers})

    def local_conf(self) -> str:
        """Render a local.conf for the operator to edit."""
        return with_commands(self.render("local.conf"), self.layout)

    def pages(self) -> dict[str, str]:
        """Render the pages with which Squid answers; their request IDs and commands are
        for this gateway.

        Squid reads its texts about errors of TLS (`%D`) from the folder of pages too,
        and complains where there are none.
        """
        ours = {
            name: with_commands(with_gateway(text, self.gateway), self.layout)
            for name, text in files()
        }
        details = _DETAILS.read_text() if _DETAILS.exists() else ""
        return ours | {_DETAILS.name: details}

    def unit(self, service: str) -> str:
        """Render the unit of a service."""
        accounts = {
            "\nUser=proxy\n": f"\nUser={self.machine.account.name}\n",
            "Group=proxy\n": f"Group={self.machine.group}\n",
        }
        values = (
            self._addresses()
            | accounts
            | self._of_bodies()
            | (self._of_archive() if service == "archive" else {})
        )
        text = self.render(_UNITS[service], values)
        added = "".join(f" {option}" for option in self._options(service))
        return _EXEC_START.sub(lambda found: f"{found[0]}{added}", text)

    def _options(self, service: str) -> Iterator[str]:
        match service:
            case "maintenance":
                yield from self._maintenance_options()
            case "exporter":
                yield from self._exporter_options()
            case "transparent":
                yield from (f"--listen {address}" for address in self.transparent)
                yield f"--tls-to {self.layout.transparent_tls} --http-to {self.layout.transparent_http}"
            case "sessions":
                yield from self._sessions_options()
            case "export":
                yield f"--gateway {self.gateway}"
            case "render":
                yield from [f"--root {self.layout.root}"] if self.layout.root else []
                yield from [] if self.machine.systemd else ["--follow"]
            case "archive":
                yield from self._archive_options()

    def _archive_options(self) -> Iterator[str]:
        bounds = {
            "keep-days": self.archive_days,
            "keep-bytes": self.archive_bytes,
        }
        yield from (
            f"--{name} {value}"
            for name, value in bounds.items()
            if value not in ("", "auto")
        )
        yield from [] if self.machine.systemd else [f"--every {_ARCHIVE_SECONDS}"]

    def _sessions_options(self) -> Iterator[str]:
        """Name where connections of clients end (at HAProxy, Squid, or the ports for
        clients without proxy settings), and the proxy where it has one address.
        """
        yield f"--listen {reachable_by_all(self.listen)}"
        for address in self.transparent:
            shown = f"[{address}]" if ":" in address else address
            yield f"--listen {shown}:443 --listen {shown}:80"
        host = self.listen.rpartition(":")[0].strip("[]")
        if host and not ip_address(host).is_unspecified:
            yield f"--proxy http://{self.listen}"
        if self.archive_days:
            yield f"--keep-days {self.archive_days}"

    def _maintenance_options(self) -> Iterator[str]:
        if self.log_bytes not in ("", "auto"):
            yield f"--log-bytes {self.log_bytes}"
        if self.behind:
            yield "--proxy-header"
        yield from (f"--transparent {address}" for address in self.transparent)
        if self.tls:
            yield f"--tls {self.listen}"
            yield from (
                [f"--tls-name {','.join(self.tls_names)}"] if self.tls_names else []
            )
            yield f"--ca {self.layout.signing_cert} --ca-key {self.layout.signing_key}"

    def _exporter_options(self) -> Iterator[str]:
        yield from (
            f"--status-from {network}"
            for network in (*_LOOPBACK, *self.status_from)
            if self.status_from
        )
        if self.tls:
            yield f"--tls-certificate {self.layout.tls / CERTIFICATE}"
        if self.behind:
            yield f"--proxy-header --health-listen {reachable_by_all(self.health)}"
            yield from (f"--health-from {address}" for address in self.behind)
        if self.workers > 1:
            yield f"--workers {self.workers}"

    def _of_bodies(self) -> dict[str, str]:
        """Give the address; without systemd, what starts the processes after an edit
        needs the rights that they get.
        """
        rights = "CAP_FOWNER CAP_KILL"
        given = (
            {}
            if self.machine.systemd
            else {f"{rights}\n": f"{rights} CAP_SETPCAP CAP_NET_BIND_SERVICE\n"}
        )
        return {_BODIES: f"--listen {self.layout.bodies} "} | given

    def _of_archive(self) -> dict[str, str]:
        """Allow the archive the network that a copy in an object store needs, and
        without systemd its key.
        """
        network = (
            {"PrivateNetwork=yes": "PrivateNetwork=no"}
            if self.archive_is_copied
            else {}
        )
        key = (
            {}
            if self.machine.systemd
            else {"${CREDENTIALS_DIRECTORY}/archive.key": str(self.layout.archive_key)}
        )
        return network | key

    def prometheus(self) -> str:
        """Render the configuration of Prometheus."""
        return self.render("observe/prometheus.yaml", self._addresses())

    def alerts(self) -> str:
        """Render the alerts; the commands of the runbooks are for this gateway."""
        layout = self.layout
        folders = {
            "/var/log/squid": layout.access_log.parent,
            "/etc/squid/*.conf": layout.conf.parent / "*.conf",
        }
        moved = {usual: str(place) for usual, place in folders.items()} | {
            _EXPORTER: reachable(self.exporter)
        }
        return with_commands(self.render("observe/alerts.yaml", moved), layout)

    def apparmor(self, program: str) -> str:
        """List what AppArmor must let a program do; it goes by the target of a link."""
        if program == "unbound":
            return f"{self.layout.state}/resolver/* r,\n" + (
                f"{self.layout.dns} r,\n" if self.transparent else ""
            )
        prefix, root = self.layout.prefix, self.layout.root
        lines = [
            f"{prefix}/venv-*/bin/squidkeeper Ux,",
            "/run/squidkeeper-install.*/** r,",
        ]
        lines += [
            f"{root}/{what},"
            for what in ("etc/** r", "log/* rw", "run/* rwk", "state/** rwk")
            if root
        ]
        return self.render("apparmor") + "".join(f"{line}\n" for line in lines)

    def _addresses(self) -> dict[str, str]:
        return {_EXPORTER: self.exporter, _PROXY: reachable(self.squid)}

    def _of_resolver(self) -> dict[str, str]:
        line = f"#dns_nameservers {_RESOLVER}"
        if self.resolver == NO_RESOLVER:
            without = f"# Left out: {self.layout.local} has a dns_nameservers line."
            return {f" --resolver {_RESOLVER}": "", line: without}
        return {line: f"dns_nameservers {self.resolver}", _RESOLVER: self.resolver}


def _other_comment(found: re.Match[str]) -> str:
    return found[2] if found[1] else f"#{found[2]}"


_UNITS = {
    "archive": "squidkeeper-archive.service",
    "publisher": "squidkeeper-publisher.service",
    "maintenance": "squidkeeper-maintenance.service",
    "secrets": "squidkeeper-secrets.service",
    **dict.fromkeys(BODIES, "squidkeeper-bodies.service"),
    "sessions": "squidkeeper-sessions.service",
    "tls": "squidkeeper-tls.service",
    "transparent": "squidkeeper-transparent.service",
    "dns": "squidkeeper-dns.service",
    "exporter": "observe/squidkeeper-exporter.service",
    "export": "squidkeeper-export.service",
    "pull": "squidkeeper-pull.service",
    "render": "squidkeeper-render.service",
}


def reachable_by_all(listen: str) -> str:
    """Return PORT as ADDRESS:PORT of every address of the machine; ADDRESS:PORT stays
    as it is.
    """
    every = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - those that are answered are named
    return listen if ":" in listen else f"{every}:{listen}"


def usual_health(layout: Layout, listen: str) -> str:
    """Return where load balancers are answered unless it is told: on the address of the
    proxy, beside the exporter.
    """
    host, colon, port = listen.rpartition(":")
    own = int(port) + 7000 if layout.root else 9130
    return f"{host}{colon}{own - 12000 if own > 65535 else own}"


def usual_exporter(layout: Layout, listen: str) -> str:
    """Return where the exporter listens unless it is told: gateways beside each other
    have ports of their own.
    """
    port = port_of(listen) + 6000
    if not layout.root:
        port = 9129
    elif port > 65535:
        port -= 12000
    return f"127.0.0.1:{port}"
