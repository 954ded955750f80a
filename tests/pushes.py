"""Bodies of `POST …/git-receive-pack`, as clients of git write them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

_NO_OBJECTS = b"PACK\0\0\0\2\0\0\0\0"
PACK = _NO_OBJECTS + hashlib.sha1(_NO_OBJECTS).digest()
PUSH_TYPE = "application/x-git-receive-pack-request"
OF_GIT = " report-status-v2 side-band-64k object-format=sha1 agent=git/2.47.3"
OLD, NEW, NONE = ("1" * 40, "2" * 40, "0" * 40)


def packet(data: bytes | str) -> bytes:
    """Return a packet (gitprotocol-common)."""
    data = data.encode() if isinstance(data, str) else data
    return b"%04x%b" % (len(data) + 4, data)


def update(ref: str, old: str = OLD, new: str = NEW) -> str:
    """Return a command."""
    return f"{old} {new} {ref}"


def commands(first: str, *others: str, capabilities: str = OF_GIT) -> bytes:
    """Return the commands of a push with their flush."""
    return b"".join((packet(f"{first}\0{capabilities}"), *map(packet, others), b"0000"))


def push(*refs: str, capabilities: str = OF_GIT) -> bytes:
    """Return a push that updates refs."""
    return commands(*map(update, refs), capabilities=capabilities) + PACK


def push_with_options(
    options: Iterable[str], *refs: str, capabilities: str = OF_GIT
) -> bytes:
    """Return a push that updates refs, with push options."""
    lines = commands(*map(update, refs), capabilities=f"{capabilities} push-options")
    return b"".join((lines, *map(packet, options), b"0000", PACK))
