"""Squid's account: which one it is, what it cannot read, calls with its rights in a
forked child.

Also who can change a file besides the accounts that may.
"""

import grp
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Account:
    """An account of this machine, with the group that it runs in.

    A unit's `Group=` need not be that of passwd.
    """

    name: str
    user: int
    group: int


def account_of(name: str) -> Account | None:
    """Find an account by its name."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, entry.pw_gid)


def refused_to_root(folder: Path) -> str:
    """Say why root must not write into a folder: its account could not replace what
    root makes.

    Empty: it may.
    """
    user = folder.stat().st_uid if os.geteuid() == 0 and folder.is_dir() else 0
    if user == 0:
        return ""
    try:
        owner = pwd.getpwuid(user).pw_name
    except KeyError:
        owner = f"#{user}"
    return f"{folder}: belongs to {owner}, who cannot write what root makes: sudo -u {owner} squidkeeper …"


def group_name(account: Account) -> str:
    """Name the group of an account."""
    try:
        return grp.getgrgid(account.group).gr_name
    except KeyError:
        return str(account.group)


def squid_account() -> Account | None:
    """Find the account that Squid was built to run as, as install.sh does; None where
    there is no Squid.
    """
    program = shutil.which("squid", path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if program is None:
        return None
    try:
        told = subprocess.run(  # noqa: S603 - Squid itself
            [program, "-v"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    built = _DEFAULT_USER.search(told)
    return account_of(built[1]) if built else None


def is_this(account: Account) -> bool:
    """Whether this process has the rights of an account, and no others: it runs as that
    account.
    """
    return (os.geteuid(), os.getegid()) == (account.user, account.group)


def call_as(account: Account, function: Callable[[], Any], shape: Any = Any) -> Any:
    """Call a function in a child with the rights of an account, and return its result,
    which JSON can hold.

    An OSError of the function is raised here as an OSError, as is an answer that is
    none: whoever has the account may have written it. `shape` is the type of the
    result. PermissionError where this process cannot take the rights.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(account, function, sender)
    os.close(sender)
    with open(receiver, "rb") as answer:
        found = answer.read(_LONGEST + 1)
    os.kill(child, signal.SIGKILL)  # it has nothing more to do
    os.waitpid(child, 0)
    if not found:
        raise PermissionError(f"this process cannot take the rights of {account.name}")
    try:
        result, error = msgspec.convert(json.loads(found), tuple[Any, str | None])
        if error is None:
            return msgspec.convert(result, shape)
    except (ValueError, RecursionError, msgspec.ValidationError):
        error = f"what was run as {account.name} gave no answer of the kind that was expected"
    raise OSError(error)


def call_as_owner(folder: Path, function: Callable[[], Any]) -> Any:
    """Call a function that uses a folder, as root with the rights of the account that
    owns it: see `call_as`.

    Whatever is in the folder, links and pipes too, then leads nowhere that its owner
    could not go itself.
    """
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return function()
    return call_as(Account(f"#{owner.st_uid}", owner.st_uid, owner.st_gid), function)


def become_owner(folder: Path) -> None:
    """As root, become the account that owns a folder, with the folder's group and those
    that the account is in.
    """
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups(_groups_of(owner.st_uid, owner.st_gid))
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _groups_of(user: int, group: int) -> list[int]:
    try:
        account = pwd.getpwuid(user)
    except KeyError:  # a user ID without an account, as without systemd
        return []
    return [account.pw_gid, *os.getgrouplist(account.pw_name, group)]


def unreadable_for(account: Account, paths: Iterable[Path]) -> dict[Path, Path]:
    """List the files and folders that an account has no permission to read, each with
    what is closed on the way to it.

    That is a folder above it, or itself. Nothing of them is read, and what is not there
    is left out. PermissionError where this process cannot try.
    """
    found = call_as(
        account,
        lambda: {str(path): str(closed) for path in paths if (closed := _closed(path))},
    )
    return {Path(path): Path(closed) for path, closed in found.items()}


def changed_by_others(path: Path, owners: Collection[int] = (0,)) -> str:
    """Name who can change a file, or replace what is in a folder, besides its owners;
    empty: nobody.

    In a sticky folder, nobody replaces files of others.
    """
    state = path.stat()
    sticky = stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX
    if state.st_uid not in owners:
        return f"user {state.st_uid}"
    if state.st_mode & stat.S_IWOTH and not sticky:
        return "every account"
    return (
        f"group {state.st_gid}" if state.st_mode & stat.S_IWGRP and not sticky else ""
    )


def _answer(account: Account, function: Callable[[], Any], sender: int) -> None:
    """Answer as the account, and end; no answer where its rights cannot be taken."""
    try:
        if not is_this(account):
            os.setgroups(_groups_of(account.user, account.group))
            os.setgid(account.group)
            os.setuid(account.user)
        try:
            answer = [function(), None]
        except OSError as error:
            answer = [None, str(error)]
        with open(sender, "wb") as file:
            file.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _closed(path: Path) -> Path | None:
    """Find what keeps this process from reading a path: a folder above it that it
    cannot enter, or the path itself.
    """
    try:
        if path.is_dir():
            os.listdir(path)
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except PermissionError:
        return next(
            (
                folder
                for folder in reversed(path.absolute().parents)
                if not os.access(folder, os.X_OK)
            ),
            path,
        )
    except OSError:
        return None
    return None


_DEFAULT_USER = re.compile(r"--with-default-user=([^'\s]+)")
_SBIN = "/usr/sbin:/usr/local/sbin:/usr/local/squid/sbin"
_SECONDS = 10
_LONGEST = 64 << 20  # bytes of an answer
