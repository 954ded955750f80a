"""Files, links and folders as values: what is on disk and what should be are compared
with `==`.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.untrusted_file import open_untrusted

Owner = tuple[int, int]  # user and group
ROOT: Final[Owner] = (0, 0)
RWX: Final = os.R_OK | os.W_OK | os.X_OK
LOG_END: Final = 64 * 1024  # bytes of a log, for its last lines
_LONGEST: Final = 64 * 1024 * 1024  # bytes of a file that is compared or installed


@dataclass(frozen=True, slots=True)
class File:
    """A file. Its content can be a key, so that no repr shows it."""

    content: bytes = field(repr=False)
    mode: int = 0o644
    owner: Owner = ROOT


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder with everything in it."""

    entries: Mapping[str, Entry]
    mode: int = 0o755
    owner: Owner = ROOT


Entry = File | Link | Folder


def read_entry(path: Path) -> Entry | None:
    """Read what is at a path, without following a link; None where nothing is."""
    try:
        about = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    mode, owner = stat.S_IMODE(about.st_mode), (about.st_uid, about.st_gid)
    if stat.S_ISLNK(about.st_mode):
        return Link(str(path.readlink()))
    if stat.S_ISDIR(about.st_mode):
        found = ((child.name, read_entry(child)) for child in path.iterdir())
        return Folder({name: entry for name, entry in found if entry}, mode, owner)
    if stat.S_ISREG(about.st_mode):
        return File(read_without_links(path), mode, owner)
    raise SetupFailed(
        f"{path} is neither a file nor a folder nor a link", "move it away"
    )


def read_source(path: Path, keep: int, owner: Owner = ROOT) -> Entry:
    """Read a file or folder as it is installed: links followed, `keep` masks the modes
    rw for files, rwx else.
    """
    if path.is_dir():
        return Folder(
            {child.name: read_source(child, keep, owner) for child in path.iterdir()},
            0o755 & keep,
            owner,
        )
    runs = path.stat().st_mode & 0o111
    return File(path.read_bytes(), (0o755 if runs else 0o644) & keep, owner)


def read_without_links(path: Path, *, end: int | None = None) -> bytes:
    """Read a file, or the bytes at its end; an OSError where it is a link, a pipe or
    too long.

    Squid's account can put each of these into a folder that it owns.
    """
    with open_untrusted(path) as file:
        size = os.fstat(file.fileno()).st_size
        if end is not None:
            file.seek(max(0, size - end))
        elif size > _LONGEST:
            raise OSError(f"{path} is longer than {_LONGEST} bytes")
        return file.read(_LONGEST if end is None else end)


def text_at(path: Path, *, end: int | None = None) -> str:
    """Read a text, or its end, without the last newline; empty where
    `read_without_links` cannot read it.
    """
    try:
        return read_without_links(path, end=end).decode(errors="replace").rstrip("\n")
    except OSError:
        return ""


def owner_here(owner: Owner) -> Owner:
    """Return who owns what this process makes for an owner: an account that is not root
    gives files to nobody else.
    """
    return owner if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def as_owned_here(entry: Entry) -> Entry:
    """Return an entry as it is once `write_entry` has written it."""
    match entry:
        case Link():
            return entry
        case File():
            return replace(entry, owner=owner_here(entry.owner))
        case Folder(entries, mode, owner):
            return Folder(
                {name: as_owned_here(inner) for name, inner in entries.items()},
                mode,
                owner_here(owner),
            )


def write_entry(path: Path, entry: Entry) -> None:
    """Write an entry where nothing is, with its owner and mode."""
    match entry:
        case Link(target):
            path.symlink_to(target)
        case File(content, mode, owner):
            with open(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                file.write(content)
                os.fchown(file.fileno(), *owner_here(owner))
                os.fchmod(file.fileno(), mode)
        case Folder(entries, mode, owner):
            path.mkdir(0o700)
            for name, child in entries.items():
                write_entry(path / name, child)
            os.chown(path, *owner_here(owner))
            path.chmod(mode)


def give_folder(path: Path, owner: Owner, mode: int | None = None) -> None:
    """Change the owner of a folder, and its mode; an OSError where it is a link or
    something else.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(folder, *owner_here(owner))
        if mode is not None:
            os.fchmod(folder, mode)
    finally:
        os.close(folder)


def root_owns_below(folder: Path) -> bool:
    """Whether root owns a file or folder below a folder of another account, which
    cannot write there.
    """
    return any(True for _ in _of_root(folder))


def give_below(folder: Path, owner: Owner) -> None:
    """Hand to an account what root owns below its folder, folders with the
    usual mode.
    """
    for descriptor in _of_root(folder):
        os.fchown(descriptor, *owner)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o750)


def _of_root(folder: Path) -> Iterator[int]:
    """Open each file and folder of root's below a folder.

    The account can change names there meanwhile, so no link is followed, and no file
    that has a name elsewhere counts.
    """
    for _, folders, files, at in os.fwalk(folder) if os.geteuid() == 0 else ():
        for name in (*folders, *files):
            with suppress(OSError):  # a link, a socket, or gone
                descriptor = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at
                )
                try:
                    about = os.fstat(descriptor)
                    if about.st_uid == 0 and (
                        stat.S_ISDIR(about.st_mode) or about.st_nlink == 1
                    ):
                        yield descriptor
                finally:
                    os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
