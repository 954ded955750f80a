"""How the commands of one gateway are written.

Texts name commands as they are for the gateway of the system: `squidkeeper check`,
`./install.sh`, `squid -k rotate`, `systemctl status squid`. A gateway below a root has
a program of its own, which knows that root, and no systemd; nor has a container. For a
gateway in other places, options name them.
"""

import re
import shlex
from collections.abc import Mapping
from typing import Final

from squidkeeper.base.layout import SERVICES, Layout, uses_systemd

PLACES: Final[
    Mapping[str, str]
] = {  # options, and the fields of a layout that they name
    "--policy": "policy",
    "--state": "state",
    "--run": "run",
    "--fragment": "fragment",
    "--access-log": "access_log",
    "--config": "pull_settings",
    "--folder": "pulled",
}
FILES: Final = "[FILE]..."  # the access log and its rotated files
OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {  # of the commands that texts name
    "ask": ("--policy", "--state", "--access-log"),
    "ask approve": ("--policy", "--state", "--access-log"),
    "ask deny": ("--policy", "--state"),
    "check": ("--policy", "--state", "--fragment"),
    "client add": ("--policy",),
    "doctor": (),
    "drain": (),
    "env": ("--policy",),
    "explain": ("--policy", "--state", "--fragment"),
    "log": ("--policy", "--state", FILES),
    "pull": ("--policy", "--state", "--config", "--folder"),
    "quota": ("--policy", "--state"),
    "reload": ("--policy", "--state"),
    "why": ("--policy", "--state", "--run", FILES),
}
_BODIES: Final = "systemctl restart 'squidkeeper-bodies-*'"
RESTART_BODIES: Final = f"Run `{_BODIES}`"
_COMMANDS: Final = "|".join(sorted(OPTIONS, key=len, reverse=True))
_NAMED: Final = re.compile(
    rf"(?<![\w/.-])(?:squidkeeper (?P<name>{_COMMANDS})(?![\w-])"
    r"|(?P<squid>squid) -k(?= )"
    r"|(?P<resolver>@127\.53\.53\.53)"
    rf"|(?P<install>\./install\.sh(?![\w-])|{re.escape(_BODIES)})"
    rf"|systemctl (?P<verb>[a-z]+) (?P<unit>squid|squidkeeper-(?:{'|'.join(SERVICES)}))(?![\w.-])"
    rf"|journalctl -u squidkeeper-(?P<logged>{'|'.join(SERVICES)})(?: -n (?P<lines>[0-9]+))?"
    r"(?P<or>`, or [a-z/]+\.log(?: beside access\.log| in (?:its|the run) folder)?)?)"
)
_NAMES_A_FILE: Final = re.compile(r"[^`\n]* FILE\b")  # the text has a log of its own


def with_commands(text: str, layout: Layout, program: str = "squidkeeper") -> str:
    """Write the commands in a text as they are for a gateway; `program` is how the
    system's is called.
    """

    def written(found: re.Match[str]) -> str:
        if name := found["name"]:
            return command(
                name,
                layout,
                program,
                with_log=not _NAMES_A_FILE.match(text, found.end()),
            )
        if uses_systemd(layout.root):
            return found[0]
        return _without_systemd(found, layout)

    return _NAMED.sub(written, text)


def command(
    name: str, layout: Layout, program: str = "squidkeeper", *, with_log: bool = True
) -> str:
    """Write a command of squidkeeper with the options that name this gateway's places,
    where they are not the usual.
    """
    usual_layout = Layout.of(layout.root)
    words = [shlex.quote(str(layout.program) if layout.root else program), name]
    for option in OPTIONS[name]:
        place, usual = (
            getattr(one, PLACES.get(option, "access_log"))
            for one in (layout, usual_layout)
        )
        if option == FILES:
            words += (
                [f"{shlex.quote(str(place))}*"] if with_log and place != usual else []
            )
        elif place != usual:
            words += [option, shlex.quote(str(place))]
    return " ".join(words)


def _without_systemd(found: re.Match[str], layout: Layout) -> str:
    if found["squid"]:
        return f"{layout.squid_command} -k"
    if found["resolver"]:
        return f"@{layout.resolver}"
    if found["install"]:
        return layout.install_command
    if logged := found["logged"]:
        shows = f"tail -n {lines}" if (lines := found["lines"]) else "cat"
        # the one file
        return f"{shows} {layout.service(logged).log}" + "`" * bool(found["or"])
    return _of_process(found["verb"], found["unit"], layout)


def _of_process(verb: str, unit: str, layout: Layout) -> str:
    """Write a command that works whether the process runs or not."""
    service = None if unit == "squid" else unit.removeprefix("squidkeeper-")
    if verb == "status":  # what starts a service names its unit
        return f"pgrep -af {layout.service(service).unit if service else layout.conf}"
    if service:  # what supervises it starts it again
        pid_file = layout.service(service).pid_file
        return f'pkill -P "$(cat {pid_file})" || {layout.install_command}'
    return (
        f'kill "$(cat {layout.squid_supervisor})"'
        if verb == "stop"
        else layout.install_command
    )
