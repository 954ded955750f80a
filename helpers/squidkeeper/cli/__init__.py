"""The command line (floor 9): one command per file, imported when it is called, so that helpers start fast."""

from __future__ import annotations

from importlib import import_module

import click

_HELPERS = ("acl", "rewrite", "credential", "throttle", "certificate", "login", "watch")
_COMMANDS = (
    "check",
    "explain",
    "log",
    "report",
    "demo",
    "doctor",
    "env",
    "probe",
    "brief",
    "seal",
    "client",
    "exporter",
    "maintain",
    "secrets",
    "setup",
    *_HELPERS,
)


class LateGroup(click.Group):
    """A group whose commands are modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="squidkeeper")
def main() -> None:
    """Turn Squid with SSL-bump into the egress gateway of AI agents.

    `check`, `explain`, `log`, `report`, `doctor` and `demo` are for people. `env`, `probe` and `brief` print what a
    client needs.
    `client` makes and revokes the tokens of clients. `seal` makes sealed tokens and the keys for them.
    `acl`, `rewrite`, `credential`, `throttle`, `certificate`, `login` and `watch` are the helpers that Squid starts.
    `exporter`, `maintain` and `secrets` are services beside Squid. `setup` is a part of install.sh.
    """
