"""`squidkeeper archive fetch`."""

from datetime import datetime
from pathlib import Path

import click

from squidkeeper.base.formatting import byte_size, printable, quantity
from squidkeeper.cli.options import since_option


@click.command()
@click.argument("store")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@since_option
def fetch(store: str, folder: Path, since: datetime | None) -> None:
    """Fetch archives from an object store into a folder.

    STORE is s3://BUCKET/PREFIX, or the YAML file of a store. An archive below gateway=NAME gets a folder of this
    name. Parts that FOLDER has are not fetched again. Each part is compared with the SHA-256 of its entry.

    \b
    Examples:
      squidkeeper archive fetch s3://logs/squid ./copy
      squidkeeper archive verify ./copy --key ./keys

    \b
    Exit status:
      1  Something could not be fetched.
    """
    from squidkeeper.record.chain.store_settings import read_store_settings
    from squidkeeper.record.chain.stores import ObjectStore, fetch_archives
    from squidkeeper.record.log.record import format_time

    failed = False
    for one in fetch_archives(ObjectStore(read_store_settings(store)), folder, format_time(since) if since else ""):
        name = f"{one.gateway}: " if one.gateway else ""
        click.echo(f"{name}fetched {quantity(one.parts, 'part')}, {byte_size(one.bytes)}")
        for path in one.missing:
            click.echo(f"{name}{path}: the store lacks it, or has other content than its entry says", err=True)
        if one.failure:
            click.echo(printable(f"{name}not fetched: {one.failure}"), err=True)
        failed |= bool(one.missing or one.failure)
    raise SystemExit(1 if failed else 0)
