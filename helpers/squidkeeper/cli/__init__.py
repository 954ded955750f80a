"""The command line (floor 9): one command per file, imported when it is called, so that helpers start fast."""

from importlib import import_module
from typing import Any

import click

from squidkeeper.cli.output_failures import told_output_failures

_HELPERS = ("acl", "rewrite", "credential", "throttle", "certificate", "login", "watch", "meter")
_COMMANDS = (
    "check",
    "explain",
    "diff",
    "log",
    "why",
    "report",
    "query",
    "replay",
    "learn",
    "tighten",
    "archive",
    "demo",
    "doctor",
    "drain",
    "reload",
    "env",
    "probe",
    "brief",
    "preset",
    "schema",
    "seal",
    "client",
    "grant",
    "ask",
    "quota",
    "exporter",
    "maintain",
    "secrets",
    "export",
    "pull",
    "render",
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; name the one that was meant."""
        from difflib import get_close_matches  # late: only a mistake needs it

        if args[0] not in _COMMANDS and (near := get_close_matches(args[0], _COMMANDS, 1)):
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with told_output_failures():
            return super().invoke(ctx)


@click.group(cls=LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="squidkeeper")
def main() -> None:
    """Turn Squid with SSL-bump into the egress gateway of AI agents.

    `check`, `explain`, `diff`, `log`, `why`, `report`, `query`, `replay`, `learn`, `tighten`, `archive`, `doctor` and
    `demo` are for people.
    `drain` sends new clients to other gateways, and waits until this one is idle.
    `reload` shows an edit that the reload gate holds back or has refused, and accepts it.
    `env`, `probe` and `brief` print what a client needs.
    `preset` shows the rules that are shipped, `schema` prints the JSON Schema of a policy file for editors.
    `grant` allows requests for a time.
    `ask` lists the questions of clients that wait for a person. `quota` shows what is used of each quota.
    `client` makes and revokes the tokens of clients. `seal` makes sealed tokens and the keys for them.
    `acl`, `rewrite`, `credential`, `throttle`, `certificate`, `login`, `watch` and `meter` are the helpers that Squid
    starts.
    `exporter`, `maintain`, `secrets`, `render`, `export` and `pull` are services beside Squid. `setup` is a part of
    install.sh.
    """
