"""HAProxy's configuration for a fleet: setup/haproxy.cfg with the sections of fleet.cfg."""

import re
from pathlib import Path
from typing import Final

from squidkeeper.operate.fleet.fleet_file import Fleet
from squidkeeper.operate.setup import configuration
from squidkeeper.operate.setup.configuration import BINDS, binds, substitute_once

MARK: Final = "# HAProxy in front of several gateways of squidkeeper:"  # how the file begins
STATE: Final = Path("/var/lib/haproxy")
_ONE: Final = Path(configuration.__file__).with_name("haproxy.cfg")
_SEVERAL: Final = Path(__file__).with_name("fleet.cfg")
_SECTION: Final = re.compile(r"^ *# >>> (\w+)\n(.*?)^ *# <<<\n", re.MULTILINE | re.DOTALL)
_SERVER: Final = "    server NAME ADDRESS id ID port HEALTH\n"
_CONNECTIONS: Final = 16_000  # for each worker of a gateway
_DESCRIPTORS: Final = 66_000  # for as many
_MOST_DESCRIPTORS: Final = 1_000_000  # the kernel's own limit of a process is a little more (fs.nr_open)


def render(fleet: Fleet, state: Path = STATE) -> str:
    """Render the configuration; `state` is the folder of HAProxy's sockets."""
    sections: dict[str, str] = dict(_SECTION.findall(_SEVERAL.read_text()))
    if not fleet.certificate:
        sections["tls"] = ""
    text = _SECTION.sub(lambda found: str(sections.get(found[1], found[2])), _ONE.read_text())
    return substitute_once(re.sub("\n{3,}", "\n\n", text), _replacements(fleet, state))


def _replacements(fleet: Fleet, state: Path) -> dict[str, str]:
    workers = _workers(fleet)
    servers = (f"    server {one.name} {one.authority} id {one.id} port {one.health_port}\n" for one in fleet.gateways)
    return {
        BINDS: "".join(f"    bind {one}\n" for one in binds(fleet.listen)),
        _SERVER: "".join(servers),
        "fd-hard-limit 66000": f"fd-hard-limit {min(_DESCRIPTORS * workers, _MOST_DESCRIPTORS)}",
        f"maxconn {_CONNECTIONS}\n    # One client": f"maxconn {_CONNECTIONS * workers}\n    # One client",
        "size 16k": "size 1m",  # clients at a time
        "gt 2048": f"gt {fleet.connections_per_client}",
        f"socat - {STATE}/": f"socat - {state}/",
        f"stats socket {STATE}/": f"stats socket {state}/",
    } | (_of_tls(fleet, state) if fleet.certificate else {})


def _workers(fleet: Fleet) -> int:
    return sum(one.workers for one in fleet.gateways)


def _of_tls(fleet: Fleet, state: Path) -> dict[str, str]:
    folder, socket = "/var/lib/squidkeeper/tls", f"unix@{state}/squidkeeper-tls.sock"
    end, most = "alpn http/1.1\n    maxconn", _CONNECTIONS * _workers(fleet)
    return {
        f"server tls unix@{folder}/tls.sock": f"server tls {socket}",
        f"bind unix@{folder}/tls.sock mode 600": f"bind {socket} mode 600 user haproxy",
        f"{folder}/server.pem {end} {_CONNECTIONS}\n": f"{fleet.certificate} {end} {most}\n",
    }
