"""`squidkeeper setup` (floor 9): what install.sh ends in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--source", type=_FOLDER, required=True, hidden=True)
@click.option("--venv", type=_FOLDER, required=True, hidden=True)
@click.option("--work", type=_FOLDER, required=True, hidden=True)
@click.option("--made", type=_FOLDER, multiple=True, hidden=True)
@click.option("--root", type=_FOLDER, help="A whole gateway in this folder, beside others.")
@click.option("--listen", default="", help="Where Squid listens.")
@click.option("--open", is_flag=True, help="Let Squid listen where the internet reaches it.")
@click.option("--policy", type=_FOLDER, help="The policy to put in place.")
@click.option("--ca-dir", type=_FOLDER, help="The folder of the CA to put in place.")
@click.option("--exporter-listen", default="", help="Where metrics and status page are served.")
@click.option("--no-exporter", is_flag=True, help="No exporter.")
@click.option("--log-bytes", default="", help="The limit of the access log with its rotations.")
@click.option("--no-start", is_flag=True, help="Neither start nor restart anything.")
@click.option("--dry-run", is_flag=True, help="Print the steps, and change nothing.")
@click.option("--uninstall", is_flag=True, help="Remove the gateway.")
def setup(**given: Any) -> None:
    """Install a gateway, or remove one.

    This is the last part of install.sh, which explains the options and checks their values.
    """
    if given["dry_run"] and given["uninstall"]:
        raise click.UsageError("--dry-run is for an installation, not for --uninstall")
    from squidkeeper.setup.options import SetupOptions
    from squidkeeper.setup.run import run_setup

    raise SystemExit(run_setup(SetupOptions(**given)))
