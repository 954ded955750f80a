"""A compiled host list on disk, which all helpers map.

It is the trie as marisa-trie saves it, the summary as JSON, and a foot: magic, length
of the JSON, CRC-32 of all before. marisa-trie maps the file and ignores what follows
its own end.
"""

import json
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import asdict
from errno import EIO
from pathlib import Path
from typing import Any

import marisa_trie

from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.policy.language.host_lists import HostList, ListLine, ListSummary
from squidkeeper.policy.language.hosts import HostForm

UNFINISHED = ".part"
FORMAT = b"sqklist3"  # changes with whatever changes the keys of a list
_FOOT = struct.Struct(">8sII")


def read_list(path: Path) -> HostList:
    """Map a compiled list; OSError where there is none, or it is torn."""
    found = read_compiled(path)
    if found is None:
        raise OSError(EIO, "the compiled list cannot be read", str(path))
    return host_list(*found, digest=path.stem)


def host_list(summary: ListSummary, trie: Any, digest: str) -> HostList:
    """Make the list of what was compiled."""
    return HostList(
        summary=summary,
        trie=trie,
        digest=digest,
        has_wildcards=any(trie.iterkeys(HostForm.ANY.value)),
    )


def read_compiled(path: Path | None) -> tuple[ListSummary, Any] | None:
    """Map a compiled list; None where there is none, or it is torn or foreign."""
    if path is None:
        return None
    try:
        with open_untrusted(path) as file:
            summary = _read_foot(file.read())
            trie = marisa_trie.Trie()
            trie.mmap(f"/proc/self/fd/{file.fileno()}")
            with suppress(OSError):
                # the newest are those used last, for prune_cache
                os.utime(file.fileno())
    except (OSError, ValueError, KeyError, TypeError, struct.error, RuntimeError):
        return None  # missing, torn or foreign: compiled again
    return summary, trie


def _read_foot(content: bytes) -> ListSummary:
    magic, length, checksum = _FOOT.unpack(content[-_FOOT.size :])
    body = memoryview(content)[: -_FOOT.size]
    if magic != FORMAT or zlib.crc32(body) != checksum:
        raise ValueError("torn")
    raw = json.loads(bytes(body[len(body) - length :]))
    return ListSummary(
        raw["patterns"],
        tuple((version, length) for version, length in raw["prefixes"]),
        raw["strange"],
        tuple(ListLine(**line) for line in raw["first_strange"]),
        *(
            ListLine(**raw[name]) if raw[name] else None
            for name in ("widest", "wide", "exception")
        ),
    )


def write_compiled(path: Path, summary: ListSummary, trie: Any) -> None:
    """Write a compiled list; OSError if that is not possible."""
    text = json.dumps(asdict(summary)).encode()
    unfinished = path.with_suffix(f".{os.getpid()}{UNFINISHED}")
    try:
        trie.save(str(unfinished))
        with open(unfinished, "r+b") as file:
            checksum = zlib.crc32(text, zlib.crc32(file.read()))
            file.write(text + _FOOT.pack(FORMAT, len(text), checksum))
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
