"""The probe of a client as one file (floor 4), in Python or for a POSIX shell, from the table of programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources

from squidkeeper.client_kit.environment import ClientSettings, variables
from squidkeeper.client_kit.probe_table import PROGRAMS, REACHED, REASON, RULE, STATUS, SYMPTOMS, ProbedProgram

_EMPTY = 'json.loads("{}")  # noqa: UP006 - replaced by `squidkeeper probe`'
_NO_VARIABLE = "put the root of the gateway into the trust store of the system"


class ProbeForm(StrEnum):
    """The forms of `squidkeeper probe`."""

    PYTHON = "python"
    SH = "sh"


@dataclass(frozen=True, slots=True)
class ClientProbe:
    """What is tried in a VM, and what has to be there. Texts and URLs hold no secret."""

    client: str
    settings: ClientSettings
    root: str  # of the gateway, in PEM form
    allowed: tuple[str, ...]
    denied: tuple[str, ...]

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables that the client has to have."""
        return variables(self.settings)

    def export(self, names: Iterable[str]) -> str:
        """Write the line of a shell that sets variables."""
        return " ".join(["export", *(f"{name}={shlex.quote(self.variables[name])}" for name in names)])

    def set_roots(self, program: ProbedProgram) -> str:
        """Say how a program comes to trust the gateway."""
        return self.export(program.roots) if program.roots else _NO_VARIABLE


def write_probe(probe: ClientProbe, form: ProbeForm) -> str:
    """Write the probe in one form."""
    return _FORMS[form](probe)


def _python(probe: ClientProbe) -> str:
    kit = {
        "client": probe.client,
        "proxy": probe.settings.proxy.url(),
        "variables": dict(probe.variables),
        "ca_path": probe.settings.ca_path,
        "bundle_path": probe.settings.bundle_path,
        "root": probe.root,
        "allowed": probe.allowed,
        "denied": probe.denied,
        "status": STATUS,
        "rule": RULE,
        "reason": REASON,
        "reached": REACHED,
        "set_proxy": probe.export(_proxy_names(probe)),
        "symptoms": [(one.pattern, one.meaning, one.fix) for one in SYMPTOMS],
        "programs": [
            {
                "name": one.name,
                "program": one.program,
                "command": one.command,
                "asks_below": one.asks_below,
                "set_roots": probe.set_roots(one),
            }
            for one in PROGRAMS
        ],
    }
    script = resources.files(__package__).joinpath("probe_script.py").read_text("utf-8")
    return "#!/usr/bin/env python3\n" + script.replace(_EMPTY, f"json.loads({json.dumps(kit)!r})")


def _sh(probe: ClientProbe) -> str:
    settings, quote = probe.settings, shlex.quote
    values = {
        "TITLE": quote(f"Probe of {probe.client}, proxy {settings.proxy.url()}"),
        "CA_PATH": quote(settings.ca_path),
        "BUNDLE_PATH": quote(settings.bundle_path),
        "ROOT": quote(probe.root.strip()),
        "STATUS": quote(STATUS),
        "RULE": quote(RULE),
        "REASON": quote(REASON),
        "REACHED": quote(REACHED),
        "ALLOWED": quote(" ".join(probe.allowed)),
        "DENIED": quote(" ".join(probe.denied)),
        "VARIABLES": "\n".join(
            f'    variable {name} {quote(value)} "${name}"' for name, value in probe.variables.items()
        ),
        "SYMPTOMS": "\n".join(
            f"    symptom {quote(one.pattern)} {quote(one.meaning)} {_sh_fix(one.fix, probe)} && return"
            for one in SYMPTOMS
        ),
        "PROGRAMS": "\n".join(
            " ".join(
                [
                    "try",
                    one.name,
                    one.program,
                    _yes_or_no(one.asks_below),
                    *map(quote, (probe.set_roots(one), one.command)),
                ]
            )
            for one in PROGRAMS
        ),
    }
    text = resources.files(__package__).joinpath("templates/probe.sh").read_text("utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _sh_fix(fix: str, probe: ClientProbe) -> str:
    """Write a remedy as a word of the shell; the roots differ from program to program."""
    filled = fix.replace("{proxy}", probe.settings.proxy.url()).replace(
        "{set_proxy}", probe.export(_proxy_names(probe))
    )
    return shlex.quote(filled).replace("{set_roots}", "'\"$set_roots\"'")


def _yes_or_no(holds: bool) -> str:
    return "yes" if holds else "no"


def _proxy_names(probe: ClientProbe) -> list[str]:
    return [name for name in probe.variables if name.lower() in ("http_proxy", "https_proxy")]


_FORMS: Mapping[ProbeForm, Callable[[ClientProbe], str]] = {ProbeForm.PYTHON: _python, ProbeForm.SH: _sh}
