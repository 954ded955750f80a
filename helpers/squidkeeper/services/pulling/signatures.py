"""Whose signature a version has: `ssh-keygen -Y`, with the operator's file of allowed
signers.

The clock of the gateway counts, not a time that whoever signs has written: a key whose
time is over signs nothing that a gateway does not have yet, whatever date its commit
has.

Anyone can write a signature of a commit in another way that holds too: other line ends
in its armor are enough. That makes another commit, with another hash, of the same
signed content: a twin. The signed content tells commits apart.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from squidkeeper.base.errors import PullFailed, PullRefused
from squidkeeper.services.pulling.programs import UNNAMED, ChildBounds, run_bounded

GIT_NAMESPACE: Final = "git"
BUNDLE_NAMESPACE: Final = "squidkeeper-policy"
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
_BOUNDS: Final = ChildBounds(seconds=10.0)
_LONGEST: Final = 64 << 10


def signer_of(
    content: bytes, signature: bytes, allowed_signers: Path, namespace: str
) -> str:
    """Find who has signed a content; `PullRefused` if that is no allowed signer now."""
    if not signature:
        raise PullRefused(
            "it is not signed, expected the SSH signature of an allowed signer"
        )
    if len(signature) > _LONGEST or not signature.startswith(
        b"-----BEGIN SSH SIGNATURE-----"
    ):
        raise PullRefused(
            "its signature is not an SSH signature, expected one by `gpg.format ssh`"
        )
    if not allowed_signers.is_file():
        raise PullRefused(
            f"{allowed_signers} cannot be read: nobody's signature counts"
        )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "signature"
        file.write_bytes(signature)
        keygen = ("ssh-keygen", "-Y")
        files = ("-f", str(allowed_signers), "-s", str(file))
        found = run_bounded(
            (*keygen, "find-principals", *files), _ENVIRONMENT, bounds=_BOUNDS
        )
        if found.messages.startswith(UNNAMED):
            raise PullFailed(
                f"ssh-keygen cannot run as an account without a name: {found.messages}"
            )
        names = (
            found.output.decode("utf-8", "replace").splitlines()
            if found.status == 0
            else []
        )
        for name in names:
            verify = (*keygen, "verify", *files, "-I", name, "-n", namespace)
            if (
                run_bounded(verify, _ENVIRONMENT, given=content, bounds=_BOUNDS).status
                == 0
            ):
                return name
    if names:
        raise PullRefused(
            f"the signature by the key of {names[0]!r} does not hold: for other content, use or time"
        )
    raise PullRefused(
        "it is signed by a key that is none of an allowed signer, or whose time is over"
    )


BYTES_AT_MOST: Final = 1 << 20
_SIGNATURE: Final = re.compile(rb"^gpgsig (.*\n(?: .*\n)*)", re.MULTILINE)
_LINK: Final = re.compile(rb"^(?:tree|parent) ([0-9a-f]+)$", re.MULTILINE)


def commit_signer(commit: bytes, allowed_signers: Path) -> str:
    """Find who has signed a commit; `PullRefused` if that is no allowed signer now."""
    if len(commit) > BYTES_AT_MOST:
        raise PullRefused(
            f"its commit has {len(commit):,} bytes, expected {BYTES_AT_MOST:,} at most"
        )
    return signer_of(*split_commit(commit), allowed_signers, GIT_NAMESPACE)


def split_commit(commit: bytes) -> tuple[bytes, bytes]:
    """Split a commit into what was signed and the signature, which is empty if there is
    none.
    """
    headers, separator, message = commit.partition(b"\n\n")
    found = _SIGNATURE.search(headers + b"\n")
    if found is None:
        return commit, b""
    signed = (headers + b"\n")[: found.start()] + (headers + b"\n")[found.end() :]
    return signed + separator[1:] + message, found[1].replace(b"\n ", b"\n")


def commit_links(signed: bytes) -> tuple[str, ...]:
    """Return the tree of a commit, and its parents."""
    return tuple(link.decode() for link in _LINK.findall(signed.partition(b"\n\n")[0]))
