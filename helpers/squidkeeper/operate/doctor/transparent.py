"""What is wrong with the ports 53, 80 and 443 for clients without proxy settings, where
install.sh was given them.
"""

import re
from collections.abc import Iterator
from typing import Final

from squidkeeper.operate.doctor.inspection import Found, Inspection, critical
from squidkeeper.operate.doctor.listening import foreign_listeners
from squidkeeper.operate.setup.entries import text_at
from squidkeeper.operate.setup.processes import InstalledService

_PORTS: Final = (
    (53, "tcp", "dns"),
    (53, "udp", "dns"),
    (80, "tcp", "transparent"),
    (443, "tcp", "transparent"),
)
_ASKS_OTHERS: Final = re.compile(
    r"^\s*(?:(?:forward|stub|auth)-zone|include(?:-toplevel)?|rpz)\s*:.*", re.MULTILINE
)


@critical(
    "transparent-port-taken",
    "Another program listens where clients without proxy settings come",
    "End it, or have it listen elsewhere. systemd-resolved: remove `DNSStubListenerExtra`. dnsmasq: `bind-interfaces`,"
    " and `except-interface` for the bridge of the VMs.",
    as_root=True,
    running=True,
)
def _port_taken(seen: Inspection) -> Iterator[Found]:
    for host in seen.transparent:
        for port, protocol, name in _PORTS:
            service = InstalledService(name, seen.layout, seen.squid.systemd)
            for process in foreign_listeners(f"{host}:{port}", [service], protocol):
                yield Found(
                    f"process {process.pid} ({process.name()}) listens on {host}:{port} ({protocol})"
                )


@critical(
    "transparent-lines-missing",
    "Lines of squid.conf for clients without proxy settings are missing or were edited",
    "Run `./install.sh`. Until then these clients do not get through, or a login of theirs is Squid's.",
)
def _lines_missing(seen: Inspection) -> Iterator[Found]:
    lines = (
        (
            "http_port",
            (seen.layout.transparent_tls, "require-proxy-header", "ssl-bump"),
        ),
        (
            "http_port",
            (
                seen.layout.transparent_http,
                "require-proxy-header",
                "accel",
                "vhost",
                "allow-direct",
            ),
        ),
        ("http_access", ("deny", "sk_is_transparent", "sk_note_no_login", "!all")),
    )
    for name, words in lines if seen.transparent else ():
        if not any({*words} <= {*directive.words} for directive in seen.named(name)):
            yield Found(f"{name} {' '.join(words)}", str(seen.layout.conf))


@critical(
    "transparent-asks-others",
    "The resolver of clients can ask other servers, so data can leave in names",
    "Remove the line, or run `./install.sh`, which writes the file again.",
)
def _asks_others(seen: Inspection) -> Iterator[Found]:
    text = text_at(seen.layout.dns)
    for found in _ASKS_OTHERS.finditer(text):
        yield Found(
            found[0].strip(),
            f"{seen.layout.dns}:{text.count(chr(10), 0, found.start()) + 1}",
        )
