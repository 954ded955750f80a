"""`squidkeeper archive verify`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.base.errors import InvalidEntry
from squidkeeper.base.formatting import printable, quantity
from squidkeeper.base.layout import Layout
from squidkeeper.cli.options import (
    DEFAULT_ARCHIVE,
    DEFAULT_LAYOUT,
    json_option,
    since_option,
)
from squidkeeper.cli.output import progress, show_json

if TYPE_CHECKING:
    from squidkeeper.record.chain.keys import ArchivePublicKey
    from squidkeeper.record.chain.places import ArchivePlace
    from squidkeeper.record.chain.verification import KeptHead, Verification

_NUMBER = re.compile(r"(\d{1,12})(?::([0-9a-f]{64}))?", re.ASCII)
_KEYS = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("archive", metavar="[ARCHIVE]", default=str(DEFAULT_ARCHIVE))
@click.option(
    "--key",
    metavar="FILE|DIR",
    type=_KEYS,
    help="The public key that you keep elsewhere, or a folder of NAME.pub.",
)
@click.option(
    "--head",
    "heads",
    metavar="NUMBER:SHA256|FILE|STORE",
    multiple=True,
    help="A head that you keep elsewhere; a bare NUMBER proves only the number of entries. Repeatable.",
)
@since_option
@json_option
def verify(
    archive: str,
    key: Path | None,
    heads: tuple[str, ...],
    since: datetime | None,
    as_json: bool,
) -> None:
    """Verify an archive: parts, chain, head, and lines by Squid's counter.

    ARCHIVE is a folder, s3://BUCKET/PREFIX, or the YAML file of a store. Of many
    gateways (gateway=NAME), each archive is verified by its own key, and --head names a
    store.

    Without --head, an older copy of the archive in its place passes. Take a head from
    the journal, the SIEM or the object store. With --since, parts without a later
    record are not verified; the chain always is.

    \b
    Exit status:
      1  Something is not as it was signed, or cannot be read.
    """
    if key is None:
        raise click.UsageError(_without_key(archive))
    try:
        places = _places(archive)
        if places[1:] and not key.is_dir():
            raise click.ClickException(
                f"{archive} has archives of many gateways: --key DIR, with NAME.pub for each"
            )
        with progress("verifying"):
            results = {
                str(place): _verified(place, key, heads, Path(archive), since)
                for place in places
            }
        results |= dict(_missing(archive, key, {place.gateway for place in places}))
    except OSError as error:
        raise click.ClickException(failure(archive, error)) from None
    if as_json:
        made = [_as_object(result, name) for name, result in results.items()]
        show_json(made if key.is_dir() else made[0])
    else:
        click.echo(
            "\n\n".join(
                _as_text(result, name, kept=bool(heads))
                for name, result in results.items()
            )
        )
    raise SystemExit(1 if any(result.faults for result in results.values()) else 0)


def _verified(
    place: ArchivePlace,
    key: Path,
    heads: tuple[str, ...],
    archive: Path,
    since: datetime | None,
) -> Verification:
    from squidkeeper.record.chain.keys import read_public_keys
    from squidkeeper.record.chain.verification import verify as verify_archive
    from squidkeeper.record.log.record import format_time

    file = key / f"{place.gateway}.pub" if key.is_dir() else key
    _refuse_a_key_inside(file, archive)
    keys = read_public_keys(file)
    kept = tuple(_kept_head(head, keys, place.gateway) for head in heads)
    return _with_lines(
        place,
        verify_archive(place, keys, kept, format_time(since) if since else ""),
        since,
    )


def _missing(
    archive: str, keys: Path, there: Collection[str]
) -> Iterator[tuple[str, Verification]]:
    from squidkeeper.record.chain.verification import (
        ArchiveFault,
        ArchiveFaultCode,
        Verification,
    )

    for file in sorted(keys.glob("*.pub")) if keys.is_dir() else ():
        if file.stem not in there:
            name, text = (
                f"gateway={file.stem}",
                f"there is no archive of this gateway, and {keys} has its key",
            )
            fault = ArchiveFault(ArchiveFaultCode.ARCHIVE_MISSING, name, text)
            yield f"{archive}/{name}", Verification((), 0, 0, None, (fault,), ())


def _without_key(archive: str) -> str:
    asked = "--key is missing: give the public key, as a copy that is kept elsewhere"
    there = [
        one.archive_pub
        for one in (DEFAULT_LAYOUT, Layout.of(Path(archive).absolute().parent))
    ]
    keys = [file for file in there if file.exists()]
    return f"{asked}. This gateway's own is {keys[-1]}" if keys else asked


def failure(archive: str | Path, error: OSError) -> str:
    """Return why an archive cannot be read or written."""
    closed = "permission denied: only root and Squid's account can read the archive, only root and its owner write it"
    reason = (
        closed
        if isinstance(error, PermissionError)
        else (error.strerror or str(error)).lower()
    )
    return f"{os.fsdecode(error.filename) if error.filename else archive}: {reason}"


def _places(archive: str) -> tuple[ArchivePlace, ...]:
    from squidkeeper.record.chain.places import FolderPlace, archives_in
    from squidkeeper.record.chain.store_settings import is_store, read_store_settings

    if is_store(archive):
        from squidkeeper.record.chain.stores import ObjectStore

        return ObjectStore(read_store_settings(archive)).archives()
    if not Path(archive).is_dir():
        raise click.ClickException(f"{archive}: there is no archive here")
    return tuple(map(FolderPlace, archives_in(Path(archive))))


def _with_lines(
    place: ArchivePlace, result: Verification, since: datetime | None
) -> Verification:
    """Add what the lines themselves show: how many there are, compared with Squid's own
    counter.
    """
    from squidkeeper.record.chain.line_counts import compare_lines
    from squidkeeper.record.log.record import format_time

    begin = format_time(since) if since else ""
    left = [
        part.path
        for entry in result.entries
        for part in entry.parts
        if not part.is_of(begin, "")
    ]
    broken = [*(fault.place for fault in result.faults), *left]
    return replace(
        result, faults=(*result.faults, *compare_lines(place, result.entries, broken))
    )


def _refuse_a_key_inside(file: Path, folder: Path) -> None:
    """Refuse a key that whoever changed the archive could have changed with it, also by
    another name of the file.
    """
    if not file.exists():
        raise click.ClickException(
            f"{file}: there is no such file, expected the public key of this gateway"
        )
    about = file.stat()
    inside = file.resolve().is_relative_to(folder.resolve()) or Path(
        file.absolute()
    ).is_relative_to(folder.absolute())
    if inside or (
        about.st_nlink > 1
        and any(
            _is_same(path, about.st_ino, about.st_dev) for path in folder.rglob("*")
        )
    ):
        what = f"--key {file} lies in the archive, so whoever changed that could have replaced it"
        raise click.ClickException(
            f"{what}: use the copy of archive.pub that you keep elsewhere"
        )


def _is_same(path: Path, inode: int, device: int) -> bool:
    about = path.lstat()
    return (about.st_ino, about.st_dev) == (inode, device)


def _kept_head(text: str, keys: tuple[ArchivePublicKey, ...], gateway: str) -> KeptHead:
    """Parse a head that was kept: its number, perhaps with its SHA-256, or a signed
    copy, which is verified.
    """
    from squidkeeper.record.chain.chain import HEAD
    from squidkeeper.record.chain.entries import parse_head
    from squidkeeper.record.chain.store_settings import is_store
    from squidkeeper.record.chain.verification import KeptHead

    if match := _NUMBER.fullmatch(text):
        return KeptHead(int(match[1]), match[2])
    if not is_store(text) and not Path(text).is_file():
        raise click.BadParameter(
            f"{text!r} is no number, NUMBER:SHA256, file or store", param_hint="--head"
        )
    if is_store(text):
        kept = b"".join(
            place.read(HEAD) for place in _places(text) if place.gateway == gateway
        )
    else:
        kept = Path(text).read_bytes()
    try:
        head, content, signature = parse_head(kept)
    except InvalidEntry as error:
        raise InvalidEntry(f"--head {text}: {error}") from None
    if signature is None or not any(key.verifies(signature, content) for key in keys):
        raise InvalidEntry(f"--head {text}: no key of --key has signed it")
    return KeptHead(head.number, head.digest)


def _as_object(result: Verification, archive: str) -> dict[str, object]:
    entry = result.entries[-1] if result.entries else None
    return {
        "archive": archive,
        "entries": len(result.entries),
        "last_entry": entry.number if entry else 0,
        "parts": result.parts,
        "bytes": result.bytes,
        "head": asdict(result.head) if result.head else None,
        "faults": [asdict(fault) for fault in result.faults],
        "notes": list(result.notes),
    }


def _as_text(result: Verification, archive: str, *, kept: bool) -> str:
    head = f"{result.head}, of {result.head.time}" if result.head else "none"
    lines = [f"{fault.code}  {fault}" for fault in result.faults]
    lines += [f"note  {printable(note)}" for note in result.notes]
    if not kept:
        lines.append(
            "note  without --head, an older state of the whole archive that was put back is not found"
        )
    held = (
        quantity(len(result.entries), "entry", "entries"),
        quantity(result.parts, "part"),
        f"{result.bytes:,} bytes",
    )
    lines.append(f"archive {archive}: {', '.join(held)}")
    lines.append(f"head {head}")
    lines.append(
        quantity(len(result.faults), "fault")
        if result.faults
        else "OK: everything is as it was signed"
    )
    return "\n".join(lines)
