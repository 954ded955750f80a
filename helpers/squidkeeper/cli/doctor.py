"""`squidkeeper doctor`."""

import os
from pathlib import Path

import click

from squidkeeper.base.errors import NotInstalled
from squidkeeper.base.layout import Layout
from squidkeeper.cli.options import json_option, root_option
from squidkeeper.cli.output import show_text


@click.command()
@root_option
@click.option("--strict", is_flag=True, help="Exit with 1 for a warning too.")
@click.option(
    "--deep", is_flag=True, help="Also try each helper: some 20 seconds more."
)
@json_option
def doctor(root: Path | None, strict: bool, deep: bool, as_json: bool) -> None:
    """Examine an installed gateway: configuration, policy, processes and machine.

    Run it as root. It changes nothing, and shows no secret. squid/DOCTOR.md lists the
    findings. The maintenance process runs it with --deep each day.

    \b
    Example:
      sudo squidkeeper doctor

    \b
    Exit status:
      1  A critical finding is not accepted; with --strict, also a warning.
      2  There is no gateway, or its squid.conf cannot be read.
    """
    from squidkeeper.operate.doctor.examination import as_json as json_of
    from squidkeeper.operate.doctor.examination import as_text, examine
    from squidkeeper.operate.doctor.inspection import inspect

    layout = Layout.of(root.resolve() if root else None)
    try:
        inspection = inspect(layout)
    except (NotInstalled, OSError) as error:
        unread = f"{getattr(error, 'filename', None) or layout.conf} cannot be read"
        advice = "name the gateway by --root DIR"
        reason = (
            f"{unread} ({error.strerror}): {advice}"
            if isinstance(error, OSError)
            else str(error)
        )
        as_root = "" if os.geteuid() == 0 else ", or run this as root"
        click.echo(f"squidkeeper doctor: {reason}{as_root}", err=True)
        raise SystemExit(2) from error
    diagnosis = examine(inspection, deep=deep)
    if as_json:
        click.echo(json_of(diagnosis))
    else:
        show_text(as_text(diagnosis))
    raise SystemExit(1 if diagnosis.failed(strict=strict) else 0)
