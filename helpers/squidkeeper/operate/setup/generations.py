"""Generations: each is all that was rendered for a gateway, in a folder of its own.

Its files name each other by this folder, so whoever reads one never reads those of two.
A link leads to the generation in force. One that is there is never changed.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from squidkeeper.base import atomic_write
from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.formatting import substitute
from squidkeeper.base.layout import Layout
from squidkeeper.configuration.rendering import FRAGMENT
from squidkeeper.operate.setup import checks
from squidkeeper.operate.setup.configuration import LOGFORMAT, is_ours
from squidkeeper.operate.setup.entries import (
    Entry,
    File,
    Folder,
    Link,
    read_entry,
    remove,
    text_at,
    write_entry,
)

KEPT: Final = 3
CONF: Final = "squid.conf"
LOCAL: Final = "local.conf"
ERRORS: Final = "errors"
PARTS: Final = "squidkeeper.d"
VALUES: Final = f"{PARTS}/values.json"
SETTINGS: Final = "gateway.yaml"
TEMPLATES: Final = "templates"
VERSION: Final = "version"  # names the program and the sources of what was rendered
_READ: Final = re.compile(rf"[^/]+\.conf|{PARTS}/.+\.conf|{ERRORS}/ERR_.+")
_SCRATCH: Final = Path("/run")  # AppArmor lets Squid read squidkeeper-install.* there


def public_paths(layout: Layout) -> dict[str, Path]:
    """Map what is in a generation to the path that documents name."""
    return {
        CONF: layout.conf,
        FRAGMENT: layout.fragment,
        LOGFORMAT: layout.logformat,
        LOCAL: layout.local,
        ERRORS: layout.errors,
        PARTS: layout.parts,
    }


def public_links(layout: Layout) -> dict[Path, Link]:
    """Return the links from these paths; local.conf is a file of the operator's."""
    return {
        path: Link(os.path.relpath(layout.generation / name, path.parent))
        for name, path in public_paths(layout).items()
        if name != LOCAL
    }


def detach_conf(layout: Layout) -> None:
    """Take a squid.conf of the operator's, who has written it through the link, out of
    the generation.
    """
    text = text_at(layout.conf.resolve())
    is_link = read_entry(layout.conf) == public_links(layout)[layout.conf]
    if is_link and text and not is_ours(text):
        atomic_write.replace(layout.conf, layout.conf.read_bytes(), 0o644)


def shown_path(layout: Layout) -> Callable[[Path], Path]:
    """Return what gives the path that documents name for a file of a generation."""
    public = public_paths(layout)

    def shown(path: Path) -> Path:
        if layout.generations not in path.parents:
            return path
        _, name, *rest = path.relative_to(layout.generations).parts
        return public[name].joinpath(*rest) if name in public else path

    return shown


def placed(text: str, layout: Layout, folder: Path) -> str:
    """Have a text name the files of a generation in place of the public paths."""
    names = public_paths(layout).items()
    return substitute(
        text, {str(path): str(folder / name) for name, path in names if name != CONF}
    )


def moved(generation: Folder, former: Path, folder: Path) -> Folder:
    """Return a generation as it is in another folder."""
    old, new = f"{former}/".encode(), f"{folder}/".encode()
    found: dict[str, Entry] = {}
    for name, entry in generation.entries.items():
        match entry:
            case File(content):
                found[name] = replace(entry, content=content.replace(old, new))
            case Folder():
                found[name] = moved(entry, former, folder)
            case Link():
                found[name] = entry
    return replace(generation, entries=found)


def with_files(base: Folder, files: Mapping[str, Entry]) -> Folder:
    """Return a folder with other files, by their paths in it."""
    found = dict(base.entries)
    for path, entry in files.items():
        name, _, rest = path.partition("/")
        inner = found.get(name)
        within = inner if isinstance(inner, Folder) else Folder({})
        found[name] = with_files(within, {rest: entry}) if rest else entry
    return replace(base, entries=found)


def contents_in_force(
    layout: Layout, entries: Mapping[Path, Entry]
) -> dict[str, bytes]:
    """Return what Squid reads of the generation in force among entries by their
    paths.
    """
    link = entries.get(layout.generation)
    if not isinstance(link, Link):
        return {}
    folder = layout.generations / link.target
    return contents(layout, folder, entries.get(folder))


def contents(
    layout: Layout, folder: Path, generation: Entry | None
) -> dict[str, bytes]:
    """Return what Squid reads of a generation: each file, without the name of the
    folder.
    """
    if not isinstance(generation, Folder):
        return {}
    files = _files(moved(generation, folder, layout.generation))
    return {name: content for name, content in files if _READ.fullmatch(name)}


def _files(entry: Entry, path: str = "") -> Iterator[tuple[str, bytes]]:
    if isinstance(entry, Folder):
        for name, inner in sorted(entry.entries.items()):
            yield from _files(inner, f"{path}/{name}" if path else name)
    elif isinstance(entry, File):
        yield path, entry.content


def folder_of(layout: Layout, number: int) -> Path:
    """Return the folder of a generation."""
    return layout.generations / str(number)


def numbers(layout: Layout) -> list[int]:
    """List the generations that are there, the oldest first."""
    names = (path.name for path in layout.generations.glob("[0-9]*"))
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def number_in_force(layout: Layout) -> int | None:
    """Return the number of the generation in force; None: there is none."""
    with suppress(OSError, ValueError):
        return int(layout.generation.readlink().name)
    return None


def next_number(layout: Layout) -> int:
    """Return the number of the next generation."""
    return max(numbers(layout), default=0) + 1


def outdated(layout: Layout, *new: int) -> list[Path]:
    """List the folders that are no longer kept once there are new ones: the one in
    force always is.
    """
    found = sorted({*numbers(layout), *new})
    kept = {*found[-KEPT:], *new, number_in_force(layout)}
    return [folder_of(layout, number) for number in found if number not in kept]


def write_generation(layout: Layout, number: int, generation: Folder) -> Path:
    """Write a generation, and have it on disk whole or not at all."""
    layout.generations.mkdir(exist_ok=True)
    for left in (*layout.generations.glob(".*"), *_left_by_killed(layout)):
        remove(left)
    folder = folder_of(layout, number)
    new = folder.with_name(f".{number}.new")
    try:
        write_entry(new, generation)
        sync_below(new)
        new.rename(folder)
    except BaseException:  # a full disk, or a signal
        remove(new)
        raise
    return folder


def _left_by_killed(layout: Layout) -> list[Path]:
    """List the generations that a run has written, and was killed ahead of the link."""
    current = number_in_force(layout)
    if current is None or layout.generation_held.exists():
        return []
    return [folder_of(layout, one) for one in numbers(layout) if one > current]


def sync_below(folder: Path) -> None:
    """Have everything in a folder on disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            opened = os.open(path, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)


def put_in_force(layout: Layout, number: int) -> None:
    """Have the link lead to a generation, by one rename."""
    new = layout.generation.with_name(".current.new")
    remove(new)
    new.symlink_to(str(number))
    new.rename(layout.generation)
    sync_below(layout.generations)


def check_generation(layout: Layout, folder: Path) -> None:
    """Have Squid parse a generation, also in a squid.conf of yours; `SetupFailed` names
    the faults.
    """
    conf = text_at(layout.conf.resolve())
    if is_ours(conf):
        checks.check_prepared(layout.squid_service, folder / CONF)
        return
    with TemporaryDirectory(prefix="squidkeeper-install.", dir=scratch(layout)) as name:
        prepared = Path(name) / CONF
        prepared.write_text(placed(conf, layout, folder))
        checks.check_prepared(layout.squid_service, prepared)


def scratch(layout: Layout) -> Path:
    """Return where what is tried lies."""
    return _SCRATCH if os.access(_SCRATCH, os.W_OK) else layout.run


def read_generation(folder: Path) -> Folder:
    """Read a generation; `SetupFailed` where it is not there."""
    entry = read_entry(folder)
    if not isinstance(entry, Folder):
        raise SetupFailed(f"there is no generation {folder}", "run ./install.sh")
    return entry
