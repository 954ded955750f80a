"""A policy from git (floor 7): a bare repository in which nothing is checked out and nothing runs.

The tip's signature vouches for its tree, and so for every file; commits between need none. The repository is a cache:
where it grows too large, it is removed and fetched again.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.errors import PullFailed, PullRefused
from squidkeeper.formatting import printable
from squidkeeper.pull_settings import GitSource
from squidkeeper.pulling.policy_files import Version, check_name, check_sizes, is_policy_file, listed_paths
from squidkeeper.pulling.programs import Ended, run_bounded
from squidkeeper.pulling.signatures import GIT_NAMESPACE, signer_of

_TIP: Final = "refs/pulled/tip"
_REPOSITORY_BYTES: Final = 256 << 20
_PACKS_AT_MOST: Final = 50
_REGULAR: Final = ("100644", "100755")
_KINDS: Final = {"120000": "a symbolic link", "160000": "a submodule"}
_ENTRY: Final = re.compile(rb"([0-7]{6}) (\w+) ([0-9a-f]{40,64}) +(-|[0-9]+)\t(.*)", re.DOTALL)
_HEADERS: Final = re.compile(rb"tree ([0-9a-f]{40,64})\n")
_SIGNATURE: Final = re.compile(rb"^gpgsig (.*\n(?: .*\n)*)", re.MULTILINE)
_COMMIT: Final = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
# Whatever a system, an account or a repository has set. A URL of another protocol is refused, also in a redirect.
_CONFIGURATION: Final = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.bigFileThreshold": "1m",
    "core.attributesFile": "/dev/null",
    "fetch.fsckObjects": "true",
    "fetch.unpackLimit": "1",
    "fetch.recurseSubmodules": "false",
    "fetch.writeCommitGraph": "false",
    "pack.threads": "1",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    "protocol.https.allow": "always",
    "protocol.ssh.allow": "always",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "100",
    "http.lowSpeedTime": "30",
    "credential.helper": "",
    "core.askPass": "",
}


@dataclass(frozen=True, slots=True)
class _TreeEntry:
    path: str
    blob: str
    size: int


class GitRepository:
    """A copy of a repository, in `folder`."""

    def __init__(self, source: GitSource, folder: Path, allowed_signers: Path) -> None:
        self._source = source
        self._folder = folder
        self._allowed_signers = allowed_signers

    def tip(self) -> str:
        """Fetch, and give the commit at the tip; `PullFailed` if the source cannot be read."""
        self._make()
        try:
            self._git(*_FETCH, "--", self._source.url, f"+{self._source.reference}:{_TIP}")
        finally:
            self._tidy()
        self._check_size()
        found = self._git("rev-parse", "--verify", "--quiet", f"{_TIP}^{{commit}}").output.strip()
        if _COMMIT.fullmatch(found) is None:
            raise PullFailed(f"{self._source.reference} names no commit")
        return found.decode()

    def version(self, commit: str, before: str, *, rewound: bool = False) -> Version:
        """Read the files of a commit that is signed and descends from the one before; else `PullRefused`.

        `rewound`: it need not descend from that.
        """
        content, signature = split_commit(self._git("cat-file", "commit", commit).output)
        signer = signer_of(content, signature, self._allowed_signers, GIT_NAMESPACE)
        last = "" if rewound or not _COMMIT.fullmatch(before.encode()) else before  # a bundle was pulled before
        for ancestor in filter(None, (self._source.since, last)):
            if not self._descends(commit, ancestor):
                raise PullRefused(
                    f"it does not descend from {ancestor}, expected a revert in place of a rewind; `squidkeeper pull"
                    f" --once --accept {commit}` takes it all the same"
                    if ancestor != self._source.since
                    else f"it does not descend from {ancestor}, which pull.yaml names by 'since'"
                )
        tree = _HEADERS.match(content)
        if tree is None:
            raise PullRefused("it is no commit with a tree")
        return Version(commit, signer, self._files(tree[1].decode()))

    def _descends(self, commit: str, ancestor: str) -> bool:
        return self._run("merge-base", "--is-ancestor", ancestor, commit).status == 0

    def _files(self, tree: str) -> dict[str, bytes]:
        """Read the policy files of the folder, and the lists that they name."""
        folder = f"{tree}:{self._source.folder}"
        listed = self._run("ls-tree", "-r", "-l", "-z", "--full-tree", folder)
        if listed.status != 0:
            raise PullRefused(f"it has no folder {self._source.folder!r}, or one that is too large")
        entries = {entry.path: entry for entry in _parse_tree(listed.output)}
        policies = [entry for path, entry in entries.items() if is_policy_file(path)]
        files = self._blobs(policies)
        return files | self._blobs([entries[path] for path in sorted(listed_paths(files)) if path in entries])

    def _blobs(self, entries: list[_TreeEntry]) -> dict[str, bytes]:
        output = self._git("cat-file", "--batch", given="".join(f"{one.blob}\n" for one in entries).encode()).output
        found, position = {}, 0
        for one in entries:
            header = f"{one.blob} blob {one.size}\n".encode()
            end = position + len(header) + one.size
            if output[position : position + len(header)] != header or output[end : end + 1] != b"\n":
                raise PullFailed(f"git gave another object than {one.blob}")
            found[one.path], position = output[position + len(header) : end], end + 1
        return found

    # git

    def _git(self, *arguments: str, given: bytes = b"", inside: bool = True) -> Ended:
        ended = self._run(*arguments, given=given, inside=inside)
        if ended.status != 0:
            raise PullFailed(f"git {arguments[0]} failed: {printable(ended.message) or f'status {ended.status}'}")
        return ended

    def _run(self, *arguments: str, given: bytes = b"", inside: bool = True) -> Ended:
        command = ("git", *(("--git-dir", str(self._folder)) if inside else ()), *arguments)
        return run_bounded(command, self._environment(), given=given)

    def _environment(self) -> dict[str, str]:
        settings = {**_CONFIGURATION, **self._access()}
        numbered = {f"GIT_CONFIG_KEY_{number}": key for number, key in enumerate(settings)}
        numbered |= {f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(settings.values())}
        return {**_ENVIRONMENT, "GIT_SSH_COMMAND": self._ssh(), "GIT_CONFIG_COUNT": str(len(settings)), **numbered}

    def _access(self) -> Mapping[str, str]:
        """Give what https needs; a token stands in no command line."""
        source, access = self._source, {}
        if source.ca:
            access["http.sslCAInfo"] = str(source.ca)
        if source.token_file:
            access["http.extraHeader"] = f"Authorization: Basic {_basic(source.token_file)}"
        return access

    def _ssh(self) -> str:
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no", "ConnectTimeout=20"]
        options += [f"UserKnownHostsFile={self._source.known_hosts or '/dev/null'}", "GlobalKnownHostsFile=/dev/null"]
        options += ["IdentitiesOnly=yes", "PermitLocalCommand=no", "ProxyCommand=none"]
        words = ["ssh", "-F", "/dev/null", *(word for one in options for word in ("-o", one))]
        words += ["-i", str(self._source.key)] if self._source.key else []
        return shlex.join(words)

    # The disk

    def _make(self) -> None:
        """Make the repository where there is none, or one in too many packs: each fetch adds one."""
        packs = [*self._folder.glob("objects/pack/*.pack")]
        if (self._folder / "HEAD").is_file() and len(packs) <= _PACKS_AT_MOST:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._git("init", "--quiet", "--bare", "--template=", str(self._folder), inside=False)

    def _tidy(self) -> None:
        """Remove what a torn fetch has left."""
        for path in self._folder.glob("objects/pack/tmp_*"):
            with suppress(OSError):
                path.unlink()

    def _check_size(self) -> None:
        if (size := _size_of(self._folder)) > _REPOSITORY_BYTES:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise PullFailed(f"the repository has {size:,} bytes, expected {_REPOSITORY_BYTES:,} at most")


_FETCH: Final = (
    "fetch",
    "--quiet",
    "--force",
    "--no-tags",
    "--no-write-fetch-head",
    "--no-recurse-submodules",
    "--no-auto-maintenance",
)
_ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:ssh",
    "GIT_PROTOCOL_FROM_USER": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
}


def split_commit(commit: bytes) -> tuple[bytes, bytes]:
    """Split a commit into what was signed and the signature, which is empty if there is none."""
    headers, separator, message = commit.partition(b"\n\n")
    found = _SIGNATURE.search(headers + b"\n")
    if found is None:
        return commit, b""
    signed = (headers + b"\n")[: found.start()] + (headers + b"\n")[found.end() :]
    return signed + separator[1:] + message, found[1].replace(b"\n ", b"\n")


def _parse_tree(listed: bytes) -> Iterator[_TreeEntry]:
    """Parse `ls-tree -r -l -z`; `PullRefused` where something is no regular file with a plain name, or too large."""
    found = [match for line in listed.split(b"\0")[:-1] if (match := _ENTRY.fullmatch(line))]
    check_sizes(int(match[4]) if match[4] != b"-" else 0 for match in found)
    for match in found:
        mode, path = match[1].decode(), match[5].decode("utf-8", "backslashreplace")
        if mode not in _REGULAR:
            raise PullRefused(f"{path[:100]!r} is {_KINDS.get(mode, 'no file')}, expected regular files alone")
        check_name(path)
        yield _TreeEntry(path, match[3].decode(), int(match[4]))


def _basic(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except OSError as error:
        raise PullFailed(f"{file}: {error.strerror}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise PullFailed(f"{file} holds no token, expected one line")
    return base64.b64encode(f"x-access-token:{token}".encode()).decode()


def _size_of(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
