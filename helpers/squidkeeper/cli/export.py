"""`squidkeeper export`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

import click

from squidkeeper.base.errors import InvalidExport
from squidkeeper.cli.helper_options import path_option, state_option
from squidkeeper.cli.options import DEFAULT_LOG, archive_option, file_option

if TYPE_CHECKING:
    from squidkeeper.record.export.targets import ExportTarget


@click.command()
@click.option(
    "--format", "format_name", metavar="FORMAT", help="ocsf, ecs, cef, otlp or json."
)
@click.option(
    "--to",
    metavar="DESTINATION",
    help="syslog+tls://HOST:PORT, syslog+tcp://HOST:PORT, https://HOST/PATH or file:/PATH."
    " [default for otlp: OTEL_EXPORTER_OTLP_ENDPOINT]",
)
@click.option(
    "--urls",
    type=click.Choice(["path", "full"]),
    default="path",
    help="full: send URLs with their query.",
)
@path_option("--ca", metavar="FILE", help="The receiver's CA, instead of the system's.")
@path_option(
    "--headers",
    metavar="FILE",
    help="Headers for https, one a line, in a file of mode 0640.",
)
@click.option("--name", help="The export's name, in its position and in metrics.")
@path_option(
    "--config",
    help="A folder with NAME.yaml for each export, instead of the options above.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Check options and files, and send nothing.",
)
@file_option("--access-log", DEFAULT_LOG, "Squid's access log.")
@state_option()
@archive_option("The archive whose head is sent too.")
@click.option(
    "--gateway",
    metavar="NAME",
    default=gethostname,
    help="The gateway's name. [default: the host name]",
)
def export(
    format_name: str | None,
    to: str | None,
    urls: str,
    ca: Path | None,
    headers: Path | None,
    name: str | None,
    config: Path | None,
    check: bool,
    access_log: Path,
    state: Path,
    archive: Path,
    gateway: str,
) -> None:
    """Send each record of the access log to a SIEM, until SIGTERM.

    Each record is sent at least once, through rotations, restarts and crashes. If
    records are lost, the export sends a notice about the gap.

    \b
    Examples:
      squidkeeper export --config /etc/squidkeeper/export --check
      squidkeeper export --format json --to file:/tmp/records.ndjson

    \b
    Exit status:
      1  It could not start.
    """
    from squidkeeper.record.export.process import ExportProcess, run_exports

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    targets = _targets(format_name, to, urls, ca, headers, name, config)
    for target in targets:
        click.echo(f"{target.name}: {target.format} to {target.destination}", err=True)
    if (
        check and not config
    ):  # install.sh checks files of a service whose folders are still to come
        _check_places(targets, access_log, state)
    if not check:
        run_exports(targets, ExportProcess(access_log, state, archive, gateway))


def _check_places(
    targets: tuple[ExportTarget, ...], access_log: Path, state: Path
) -> None:
    from squidkeeper.policy.destination import Transport
    from squidkeeper.record.export_status import FOLDER

    access_log.open("rb").close()
    folders = [
        Path(one.destination.target).parent
        for one in targets
        if one.destination.transport is Transport.FILE
    ]
    positions = state / FOLDER
    for folder in (positions if os.path.isdir(positions) else state, *folders):
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidExport(
                f"{folder}: there is no such folder that this account can write in"
            )


def _targets(
    format_name: str | None,
    to: str | None,
    urls: str,
    ca: Path | None,
    headers: Path | None,
    name: str | None,
    config: Path | None,
) -> tuple[ExportTarget, ...]:
    from squidkeeper.record.export.targets import make_target, read_targets

    if config:
        if format_name or to or ca or headers or name or urls == "full":
            raise click.UsageError(
                "--config has exports in files: leave the options of one export out"
            )
        return read_targets(config)
    if not format_name:
        raise click.UsageError(
            "name a format by --format, or the folder of exports by --config"
        )
    target = make_target(
        name=name,
        format_name=format_name,
        to=to,
        full_urls=urls == "full",
        ca=ca,
        headers=headers,
        environment=os.environ,
    )
    return (target,)
