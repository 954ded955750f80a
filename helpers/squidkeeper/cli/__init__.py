"""The command line: one command per file, imported when it is called, so that helpers
start fast.
"""

from importlib import import_module
from typing import Any

import click

from squidkeeper.cli.failures import told_failures, told_missing

GROUPS = {  # what people do, with a line for each command that fits beside its name
    "Policy": {
        "check": "Check a policy: faults, warnings and its tests",
        "explain": "Explain what the gateway does with METHOD URL, and why",
        "diff": "Compare what two policies mean",
        "replay": "Judge recorded requests by a policy not in force yet",
        "learn": "Draft a policy from what clients used",
        "tighten": "Show what of a policy nobody used, and narrow it",
        "reload": "Show an edit that the reload gate refused, or accept it",
        "preset": "Show the rules that are shipped",
        "schema": "Print the JSON Schema of a policy file, for editors",
    },
    "Watch": {
        "why": "Tell why requests failed, and what to do",
        "log": "Show requests of the access log",
        "report": "Report on a period: clients, hosts and denials",
        "query": "Query the access log and the archive by SQL",
        "quota": "Show what is used of each quota, or reset one",
        "archive": "Archive rotated logs, and verify an archive",
    },
    "Approve": {
        "ask": "List and answer the questions of clients",
        "grant": "Allow requests for a time",
    },
    "Clients": {
        "client": "Make, list and revoke tokens of clients",
        "session": "Make, show and end sessions of programs",
        "env": "Print the variables that a client needs",
        "probe": "Print a file that checks a client from inside its VM",
        "brief": "Print what a client may reach, and why not the rest",
        "seal": "Seal a secret, so that a client can hold it",
    },
    "Operate": {
        "doctor": "Examine an installed gateway",
        "drain": "Send new clients to other gateways",
        "generation": "List what was rendered for Squid, and go back to it",
        "pull": "Pull the policy from git, or as a signed bundle",
        "export": "Send records to a SIEM",
        "demo": "Show the gateway at work on this machine",
        "setup": "Install or remove a gateway; install.sh starts this",
    },
    "Started as services": {
        "exporter": "Serve metrics, health and the status page",
        "maintain": "Run the resolver, and limit the logs",
        "secrets": "Fetch the secrets that have a source",
        "sessions": "Serve the calls that make sessions",
        "bodies": "Inspect bodies of requests",
        "transparent": "Take clients without proxy settings",
        "render": "Add parts to Squid's configuration after an edit",
    },
    "Started by Squid": {
        "publish": "Publish the policy to the helpers",
        "acl": "Decide requests",
        "rewrite": "Rewrite URLs",
        "credential": "Give the headers to inject",
        "watch": "Search requests for secrets",
        "meter": "Count requests by quotas",
        "throttle": "Delay denials",
        "login": "Check the tokens of clients",
        "certificate": "Make the certificates of hosts",
    },
}
_MEANT = {  # what people type, and this program names otherwise
    "help": "squidkeeper --help lists the commands, squidkeeper COMMAND --help explains one.",
    "status": "squidkeeper doctor examines the gateway. The exporter serves the status page.",
    "version": "squidkeeper --version prints the version.",
}
_COMMANDS = tuple(name for commands in GROUPS.values() for name in commands)


def _meant(written: str) -> str:
    from difflib import get_close_matches  # late: only a mistake needs it

    near = get_close_matches(written, _COMMANDS, 1)
    return _MEANT.get(written) or (f"Did you mean {near[0]!r}?" if near else "")


class LateGroup(click.Group):
    """A group whose commands are modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the commands."""
        return list(_COMMANDS)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - as above
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the commands by what people do, without an import of any."""
        width = max(map(len, _COMMANDS))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(width), does) for name, does in commands.items()]
                )

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
        if args[0] not in _COMMANDS and (meant := _meant(args[0])):
            raise click.UsageError(f"No such command {args[0]!r}. {meant}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with told_failures(), told_missing(ctx):
            return super().invoke(ctx)


def _show_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from squidkeeper.base.release import release

        click.echo(f"squidkeeper, version {release()}")
        context.exit()


@click.group(cls=LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Turn Squid with SSL-bump into the egress gateway of AI agents.

    `squidkeeper COMMAND --help` tells more about a command. The installation adds the
    manual pages squidkeeper(1) and squidkeeper-COMMAND(1) to share/, and completion for
    bash, zsh and fish.
    """
