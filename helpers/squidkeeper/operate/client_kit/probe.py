"""The probe of a client as one file, in Python or for a POSIX shell, from the table of
programs.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import NamedTuple

from squidkeeper.base.formatting import substitute
from squidkeeper.operate.client_kit.environment import ClientSettings, variables
from squidkeeper.operate.client_kit.probe_table import (
    PROGRAMS,
    PROXY_IS_SET,
    PROXY_VARIABLES,
    REACHED,
    REASON,
    RULE,
    STATUS,
    SYMPTOMS,
    SYMPTOMS_WITHOUT_PROXY,
    ProbedProgram,
    Symptom,
)

_EMPTY = 'json.loads("{}")  # noqa: UP006 - replaced by `squidkeeper probe`'
_NO_PROXY = dict.fromkeys(PROXY_VARIABLES, "")
_NO_VARIABLE = "put the root of the gateway into the trust store of the system"


class ProbeForm(StrEnum):
    """The forms of `squidkeeper probe`."""

    PYTHON = "python"
    SH = "sh"


class Remedy(NamedTuple):
    """What to do while one of these variables is not right, and what once all of them
    are.
    """

    variables: tuple[str, ...]
    unset: str
    set: str


@dataclass(frozen=True, slots=True)
class ClientProbe:
    """What is tried in a VM, and what has to be there.

    Texts and URLs hold no secret.
    """

    client: str
    settings: ClientSettings
    root: str  # of the gateway, in PEM form
    allowed: tuple[str, ...]
    denied: tuple[str, ...]

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables that the client has to have; without proxy settings, those of a
        proxy have to be empty.
        """
        return variables(self.settings) | ({} if self.settings.proxy else _NO_PROXY)

    @property
    def title(self) -> str:
        """The first line of what the probe prints."""
        proxy = self.settings.proxy
        return f"Probe of {self.client}, {f'proxy {proxy.url()}' if proxy else 'without a proxy'}"

    @property
    def symptoms(self) -> tuple[Symptom, ...]:
        """What can go wrong."""
        return SYMPTOMS if self.settings.proxy else SYMPTOMS_WITHOUT_PROXY

    def export(self, names: Iterable[str]) -> str:
        """Write the line of a shell that sets variables."""
        return " ".join(
            [
                "export",
                *(f"{name}={shlex.quote(self.variables[name])}" for name in names),
            ]
        )

    def set_roots(self, program: ProbedProgram) -> Remedy:
        """Say how a program comes to trust the gateway."""
        if not program.roots:
            return Remedy((), _NO_VARIABLE, _NO_VARIABLE)
        return Remedy(
            program.roots,
            self.export(program.roots),
            self._fill(program.if_roots_are_set),
        )

    def set_proxy(self, program: ProbedProgram) -> Remedy:
        """Say how a program comes to use the proxy, or none."""
        names = tuple(name for name in program.proxy if name in self.variables)
        return Remedy(
            names,
            self.export(names),
            program.if_proxy_is_set if self.settings.proxy else PROXY_IS_SET,
        )

    @property
    def fills(self) -> Mapping[str, str]:
        """What stands in the fixes of all programs."""
        export = self.export(
            name
            for name in self.variables
            if name.lower() in ("http_proxy", "https_proxy")
        )
        proxy = self.settings.proxy
        address = proxy.url() if proxy else "the address that names have here"
        listener = "Squid" if proxy else "squidkeeper-transparent"
        return {"proxy": address, "listener": listener, "export_proxy": export}

    def _fill(self, remedy: str) -> str:
        settings = self.settings
        return substitute(
            remedy,
            {
                "{ca_path}": settings.ca_path,
                "{java_store_path}": settings.java_store_path,
            },
        )


def write_probe(probe: ClientProbe, form: ProbeForm) -> str:
    """Write the probe in one form."""
    return _FORMS[form](probe)


def _python(probe: ClientProbe) -> str:
    kit = {
        "title": probe.title,
        "transparent": probe.settings.proxy is None,
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
        "symptoms": [
            (symptom.pattern, symptom.meaning, symptom.fix, symptom.of_gateway)
            for symptom in probe.symptoms
        ],
        "fills": dict(probe.fills),
        "programs": [
            {
                "name": program.name,
                "program": program.program,
                "command": program.command,
                "asks_below": program.asks_below,
                "set_roots": probe.set_roots(program),
                "set_proxy": probe.set_proxy(program),
            }
            for program in PROGRAMS
        ],
    }
    script = resources.files(__package__).joinpath("probe_script.py").read_text("utf-8")
    return "#!/usr/bin/env python3\n" + script.replace(
        _EMPTY, f"json.loads({json.dumps(kit)!r})"
    )


def _sh(probe: ClientProbe) -> str:
    settings, quote = probe.settings, shlex.quote
    fills = {name: quote(value) for name, value in probe.fills.items()}
    # which differ from program to program
    fills |= {
        "set_roots": '"$set_roots"',
        "set_proxy": '"$set_proxy"',
    }
    in_quotes = {f"{{{name}}}": f"'{word}'" for name, word in fills.items()}
    values = {
        "TITLE": quote(probe.title),
        "TRANSPARENT": _yes_or_no(settings.proxy is None),
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
            f'    variable {name} {quote(value)} "${name}"'
            for name, value in probe.variables.items()
        ),
        "SYMPTOMS": "\n".join(
            f"    symptom {quote(one.pattern)} {quote(one.meaning)} {substitute(quote(one.fix), in_quotes)} "
            f"{_yes_or_no(one.of_gateway)} && return"
            for one in probe.symptoms
        ),
        "PROGRAMS": "\n".join(
            " ".join(
                [
                    "try",
                    tool.name,
                    tool.program,
                    *map(
                        quote,
                        (
                            tool.asks_below,
                            *_words(probe.set_roots(tool)),
                            *_words(probe.set_proxy(tool)),
                            tool.command,
                        ),
                    ),
                ]
            )
            for tool in PROGRAMS
        ),
    }
    text = (
        resources.files(__package__).joinpath("templates/probe.sh").read_text("utf-8")
    )
    return substitute(text, {f"@{name}@": value for name, value in values.items()})


def _words(remedy: Remedy) -> tuple[str, str, str]:
    return " ".join(remedy.variables), remedy.unset, remedy.set


def _yes_or_no(holds: bool) -> str:
    return "yes" if holds else "no"


_FORMS: Mapping[ProbeForm, Callable[[ClientProbe], str]] = {
    ProbeForm.PYTHON: _python,
    ProbeForm.SH: _sh,
}
