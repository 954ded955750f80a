"""Makes a bundle, on the machine of the person who signs it: what gateways would refuse is refused here."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.errors import PullRefused
from squidkeeper.policy.language.document import parse_document
from squidkeeper.policy.policy_store.sources import local_file, read_sources
from squidkeeper.services.pulling.bundle import Bundle
from squidkeeper.services.pulling.judgement import load_version
from squidkeeper.services.pulling.policy_files import check_files, is_policy_file, listed_paths

_LEAST_LOCAL: Final = b"version: 1\n"  # every gateway has a local setup


def make_bundle(folder: Path, number: int) -> bytes:
    """Make a bundle of a policy's folder, to be signed; `PullRefused` if no gateway would take it."""
    files = _read(folder, sorted(path.name for path in folder.iterdir() if is_policy_file(path.name)))
    files |= _read(folder, sorted(listed_paths(files)))
    check_files({path: len(content) for path, content in files.items()})
    _check_loads(folder)
    texts = {path: content.decode() for path, content in files.items()}
    return msgspec.json.encode(Bundle(number, texts))


def _read(folder: Path, paths: Collection[str]) -> dict[str, bytes]:
    """Read regular files below the folder: a link would publish any file that this account can read."""
    check_files(dict.fromkeys(paths, 0))
    for path in paths:
        place = folder / path
        if place.resolve() != folder.resolve() / path:
            raise PullRefused(f"{path!r} is a link, or in a folder that is one, expected a regular file in its place")
        if place.exists() and not place.is_file():
            raise PullRefused(f"{path!r} is no regular file, expected one in its place")
    return {path: (folder / path).read_bytes() for path in paths}


def _check_loads(folder: Path) -> None:
    sources = read_sources(folder)
    local = sources.local or parse_document(local_file(folder), _LEAST_LOCAL)
    load_version(replace(sources, local=local, granted=None), folder)
