"""The variables of a client in the form of each consumer.

The values hold no character that the forms read differently (environment.py refuses
such), so each form stays short.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

import yaml

from squidkeeper.operate.client_kit.environment import (
    PASSWORD,
    ClientSettings,
    variables,
)

_PROFILE = "/etc/profile.d/squidkeeper.sh"
_FEDORA = "/etc/pki/"  # where update-ca-trust writes the bundle
# Debian and Alpine, Fedora
_ANCHORS = (
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
)


class EnvironmentForm(StrEnum):
    """The forms of `squidkeeper env`."""

    SH = "sh"
    DOTENV = "dotenv"
    JSON = "json"
    CLOUD_INIT = "cloud-init"
    DOCKERFILE = "dockerfile"


@dataclass(frozen=True, slots=True)
class ClientEnvironment:
    """The environment of one client, and the gateway's root certificate in PEM form
    where the form holds it.
    """

    client: str
    settings: ClientSettings
    root: str = ""

    @property
    def comments(self) -> tuple[str, ...]:
        """What a reader of the output has to know, a line each."""
        settings = self.settings
        update = (
            "update-ca-trust"
            if settings.bundle_path.startswith(_FEDORA)
            else "update-ca-certificates"
        )
        lines = [
            f"The environment of {self.client}, by squidkeeper env.",
            f"{settings.ca_path}: the gateway's root certificate.",
            f"{settings.bundle_path}: the public roots and the gateway's ({update} makes it).",
        ]
        if settings.user is not None and settings.token is None:
            lines.append(
                f"Replace {PASSWORD} with the token of the client, or the password of the proxy user, percent-encoded."
            )
        return tuple(lines)


def write_environment(environment: ClientEnvironment, form: EnvironmentForm) -> str:
    """Write the environment in one form."""
    return _FORMS[form](environment)


def _comments(environment: ClientEnvironment) -> str:
    return "".join(f"# {line}\n" for line in environment.comments)


def _sh(environment: ClientEnvironment) -> str:
    exports = (
        f"export {name}={shlex.quote(value)}\n"
        for name, value in variables(environment.settings).items()
    )
    return _comments(environment) + "".join(exports)


def _dotenv(environment: ClientEnvironment) -> str:
    """Write `NAME=VALUE` lines: docker's --env-file takes what follows the `=` as it
    is, quotes included.
    """
    return _comments(environment) + _assignments(variables(environment.settings))


def _assignments(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _json(environment: ClientEnvironment) -> str:
    return json.dumps(variables(environment.settings), indent=2) + "\n"


def _cloud_init(environment: ClientEnvironment) -> str:
    """Write user data: the root in the system's trust store and as a file, the
    variables for shells and services.

    Keys: https://docs.cloud-init.io/en/latest/reference/modules.html (Write Files, CA
    Certificates, Apt Configure).
    """
    settings = environment.settings
    config: dict[str, object] = {
        "write_files": [
            {
                "path": settings.ca_path,
                "permissions": "0644",
                "content": environment.root,
            },
            {"path": _PROFILE, "permissions": "0644", "content": _sh(environment)},
            {
                "path": "/etc/environment",
                "append": True,
                "content": _assignments(variables(settings)),
            },
        ],
        "ca_certs": {"trusted": [environment.root]},
    }
    if settings.proxy:
        config["apt"] = {
            "http_proxy": settings.http_proxy_url,
            "https_proxy": settings.proxy_url,
        }
    text = yaml.dump(
        config, Dumper=_Block, sort_keys=False, allow_unicode=True, width=1000
    )
    return "#cloud-config\n" + _comments(environment) + text


class _Block(yaml.SafeDumper):
    """Writes texts of several lines as blocks, as people do."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Block.add_representer(str, _write_text)


def _dockerfile(environment: ClientEnvironment) -> str:
    """Write instructions for an image of Debian, Ubuntu, Alpine or Fedora, with or
    without its ca-certificates.

    Without that package the bundle is the root alone, until the package is installed
    and makes the bundle again.
    """
    settings, values = environment.settings, variables(environment.settings)
    pem = " \\\n        ".join(
        shlex.quote(line) for line in environment.root.splitlines()
    )
    folders = " ".join(
        dict.fromkeys(
            [
                str(PurePosixPath(path).parent)
                for path in (settings.ca_path, settings.bundle_path)
            ]
        )
    )
    commands = (
        f"mkdir -p {folders}",
        f"printf '%s\\n' \\\n        {pem} \\\n        > {settings.ca_path}",
        f"for anchors in {' '.join(_ANCHORS)}; do \\\n"
        f'        if [ -d "${{anchors%/*}}" ]; then '
        f'mkdir -p "$anchors" && cp {settings.ca_path} "$anchors/squidkeeper.crt"; fi; done',
        "{ update-ca-certificates || update-ca-trust "
        f"|| cat {settings.ca_path} >> {settings.bundle_path}; }} 2>/dev/null",
    )
    env = " \\\n    ".join(
        f"{name}={_docker_quoted(value)}" for name, value in values.items()
    )
    return (
        _comments(environment)
        + "RUN "
        + " \\\n    && ".join(commands)
        + f"\nENV {env}\n"
    )


def _docker_quoted(value: str) -> str:
    return (
        '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
    )


_FORMS: Mapping[EnvironmentForm, Callable[[ClientEnvironment], str]] = {
    EnvironmentForm.SH: _sh,
    EnvironmentForm.DOTENV: _dotenv,
    EnvironmentForm.JSON: _json,
    EnvironmentForm.CLOUD_INIT: _cloud_init,
    EnvironmentForm.DOCKERFILE: _dockerfile,
}
