"""Commits as git stores them: what was signed, by whom, and what it comes after.

Anyone can write a signature in another way that holds too: other line ends in its armor are enough. That makes another
commit, with another hash, of the same signed content: a twin. The signed content is what tells commits apart.
"""

import re
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import PullRefused
from squidkeeper.services.pulling.signatures import GIT_NAMESPACE, signer_of

BYTES_AT_MOST: Final = 1 << 20
_SIGNATURE: Final = re.compile(rb"^gpgsig (.*\n(?: .*\n)*)", re.MULTILINE)
_LINK: Final = re.compile(rb"^(?:tree|parent) ([0-9a-f]+)$", re.MULTILINE)


def commit_signer(commit: bytes, allowed_signers: Path) -> str:
    """Find who has signed a commit; `PullRefused` if that is no allowed signer now."""
    if len(commit) > BYTES_AT_MOST:
        raise PullRefused(f"its commit has {len(commit):,} bytes, expected {BYTES_AT_MOST:,} at most")
    return signer_of(*split_commit(commit), allowed_signers, GIT_NAMESPACE)


def split_commit(commit: bytes) -> tuple[bytes, bytes]:
    """Split a commit into what was signed and the signature, which is empty if there is none."""
    headers, separator, message = commit.partition(b"\n\n")
    found = _SIGNATURE.search(headers + b"\n")
    if found is None:
        return commit, b""
    signed = (headers + b"\n")[: found.start()] + (headers + b"\n")[found.end() :]
    return signed + separator[1:] + message, found[1].replace(b"\n ", b"\n")


def commit_links(signed: bytes) -> tuple[str, ...]:
    """Give the tree of a commit, and its parents."""
    return tuple(link.decode() for link in _LINK.findall(signed.partition(b"\n\n")[0]))
