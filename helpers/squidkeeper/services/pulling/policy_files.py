"""The files of a version: their names and sizes, whatever a repository or a bundle holds."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from squidkeeper.base.errors import PullRefused
from squidkeeper.policy.language.document import file_entries, parse_document

FILES_AT_MOST: Final = 1000
BYTES_AT_MOST: Final = 32 << 20  # of all files
POLICY_BYTES_AT_MOST: Final = 2 << 20  # of the policy files: ten thousand rules have about 1.3 MB
SMALLER: Final = "write fewer rules, tests and aliases, and long lists of hosts as lists"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DEPTH_AT_MOST: Final = 4
_SUFFIXES: Final = (".yaml", ".yml")
_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the policy: its name, and its files by their paths in the folder.

    `signed` is what a commit's signature is for: its twins have the same. `source` is where it was read.
    """

    name: str
    files: Mapping[str, bytes]
    signed: bytes = b""
    source: str = ""


@dataclass(frozen=True, slots=True)
class PlacedVersion:
    """The version in place: its name, which is empty where there is none, and what was signed of a commit."""

    name: str = ""
    signed: bytes = b""


def check_files(sizes: Mapping[str, int]) -> None:
    """Refuse what a folder cannot hold, or a gateway does not take: by the paths of the files, and their sizes."""
    _check_sizes(sizes.values())
    for path in sizes:
        _check_name(path)
        above = next((one for one in _above(path) if one in sizes), None)
        if above is not None:
            raise PullRefused(f"{above!r} is a file, and a folder with {path!r} in it, expected one of the two")


def _above(path: str) -> Iterator[str]:
    return (str(parent) for parent in PurePosixPath(path).parents)


def _check_name(path: str) -> None:
    parts = path.split("/")
    if len(parts) > _DEPTH_AT_MOST or not all(map(_NAME.fullmatch, parts)):
        expected = f"expected up to {_DEPTH_AT_MOST} names of letters, digits and . _ -"
        raise PullRefused(f"file {path[:_SHOWN]!r} has a name that is not plain, {expected}")


def _check_sizes(sizes: Collection[int]) -> None:
    if len(sizes) > FILES_AT_MOST:
        raise PullRefused(f"there are {len(sizes):,} files, expected {FILES_AT_MOST:,} at most")
    if sum(sizes) > BYTES_AT_MOST:
        raise PullRefused(f"the files have {sum(sizes):,} bytes, expected {BYTES_AT_MOST:,} at most")


def is_policy_file(path: str) -> bool:
    """Tell whether a file is one that policies are read from."""
    return "/" not in path and path.endswith(_SUFFIXES)


def listed_paths(files: Mapping[str, bytes]) -> frozenset[str]:
    """List the paths of the lists that policy files name, as they are written; refuse files that are too large."""
    size = sum(len(content) for path, content in files.items() if is_policy_file(path))
    if size > POLICY_BYTES_AT_MOST:
        raise PullRefused(f"the policy files have {size:,} bytes, expected {POLICY_BYTES_AT_MOST:,} at most")
    documents = (parse_document(Path(path), content) for path, content in files.items() if is_policy_file(path))
    return frozenset(str(path) for *_, path in file_entries(documents, "lists"))
