"""`squidkeeper generation`: what was rendered, and back to it."""

from __future__ import annotations

from pathlib import Path

import click

from squidkeeper.base.errors import SetupFailed
from squidkeeper.cli.options import root_option
from squidkeeper.cli.output import show_json


@click.group()
def generation() -> None:
    """List what was rendered for Squid, and go back to it.

    A generation is all that install.sh or an edit of the policy has rendered: Squid's
    configuration with local.conf, and a copy of gateway.yaml. The last three are kept.
    """


@generation.command("list")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_generations(root: Path | None, *, as_json: bool) -> None:
    """List the generations that are kept, the newest last.

    + marks a part or a line that came in, - one that went.
    """
    import msgspec

    from squidkeeper.base.layout import Layout
    from squidkeeper.operate.setup.rollback import generations

    found = [*generations(Layout.of(root))]
    if as_json:
        show_json([msgspec.to_builtins(one) for one in found])
        return
    for one in found:
        mark = "in force" if one.in_force else ""
        told = [*(f"+{key}" for key in one.adds), *(f"-{key}" for key in one.lacks)]
        about = one.obstacle or " ".join(told)
        line = f"{one.number:5}  {one.made:%Y-%m-%d %H:%M:%S} UTC  {mark:8}  {about}"
        click.echo(line.rstrip())


@generation.command()
@click.argument("number", type=click.IntRange(1), required=False)
@root_option
def rollback(number: int | None, root: Path | None) -> None:
    """Put a former generation in force: NUMBER, or the one before.

    Squid parses it first, and is reconfigured. It stays until the policy is edited, or
    install.sh runs. What the policy decides stays as it is: requests that need what the
    generation does not have are denied (not-rendered).
    """
    import fcntl
    import os

    from squidkeeper.base.layout import Layout
    from squidkeeper.cli.render import account_of_squid
    from squidkeeper.operate.setup.rollback import roll_back

    layout = Layout.of(root)
    try:
        # which install.sh and `squidkeeper render` hold while they run
        fcntl.flock(os.open(layout.prefix, os.O_RDONLY), fcntl.LOCK_EX)
        put_back = roll_back(layout, account_of_squid(), number)
    except (SetupFailed, OSError, ValueError) as error:
        details = error.details if isinstance(error, SetupFailed) else ""
        advice = error.advice if isinstance(error, SetupFailed) else ""
        to_do = f"\n  to do: {advice}" if advice else ""
        raise click.ClickException(f"{details}{error}{to_do}") from error
    click.echo(
        f"Generation {put_back} is in force, until the policy is edited or install.sh runs."
    )
