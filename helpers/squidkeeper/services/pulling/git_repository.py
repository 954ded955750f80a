"""A policy from git: a bare repository in which nothing is checked out and nothing
runs.

The tip's signature vouches for its tree, and so for every file; commits between need
none. The repository is a cache: where it grows too large, it is removed and fetched
again.
"""

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import PullFailed, PullRefused
from squidkeeper.services.pulling.git_command import GitCommand
from squidkeeper.services.pulling.settings import GitSource
from squidkeeper.services.pulling.signatures import (
    commit_links,
    commit_signer,
    split_commit,
)
from squidkeeper.services.pulling.versions import (
    PlacedVersion,
    Version,
    check_files,
    is_policy_file,
    listed_paths,
)

_TIP: Final = "refs/pulled/tip"
_REPOSITORY_BYTES: Final = 256 << 20
_PACKS_AT_MOST: Final = 50
_TWINS_AT_MOST: Final = 100
_REGULAR: Final = ("100644", "100755")
_KINDS: Final = {"120000": "a symbolic link", "160000": "a submodule"}
_ENTRY: Final = re.compile(
    rb"([0-7]{6}) (\w+) ([0-9a-f]{40,64}) +(-|[0-9]+)\t(.*)", re.DOTALL
)
_COMMIT: Final = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class _TreeEntry:
    path: str
    blob: str
    size: int


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What is in the repository: the tip, empty where there is none, and the files of
    the packs.
    """

    tip: str = ""
    files: frozenset[Path] = frozenset()


class GitRepository:
    """A copy of a repository, in `folder`."""

    def __init__(self, source: GitSource, folder: Path, allowed_signers: Path) -> None:
        self._source = source
        self._folder = folder
        self._allowed_signers = allowed_signers
        self._git = GitCommand(source, folder)
        self._before = _Fetched()

    def tip(self) -> str:
        """Fetch, and give the commit at the tip; `PullFailed` if the source cannot be
        read.
        """
        self._make()
        self._before = self._fetched()
        # what a git that was killed has left, locks too: no other git runs here
        self._remove_others(self._before)
        try:
            self._git.output(
                *_FETCH, "--", self._source.url, f"+{self._source.reference}:{_TIP}"
            )
        except PullFailed:
            self._remove_others(self._before)
            raise
        self._check_size()
        found = self._git.output(
            "rev-parse", "--verify", "--quiet", f"{_TIP}^{{commit}}"
        ).strip()
        if _COMMIT.fullmatch(found) is None:
            raise PullFailed(f"{self._source.reference} names no commit")
        return found.decode()

    def signer(self, tip: str) -> str:
        """Find who has signed a commit; `PullRefused` if that is no allowed
        signer now.
        """
        try:
            return commit_signer(self._commit(tip), self._allowed_signers)
        except PullRefused:  # nobody vouches for what this fetch has brought
            self._git.output(
                "update-ref",
                *((_TIP, self._before.tip) if self._before.tip else ("-d", _TIP)),
            )
            self._remove_others(self._before)
            raise

    def version(
        self, tip: str, before: PlacedVersion, *, rewound: bool = False
    ) -> Version:
        """Read the files of a commit that descends from the one before; else
        `PullRefused`.

        `rewound`: it need not descend from that.
        """
        since = self._source.since
        if since and not self._descends(tip, since):
            raise PullRefused(
                f"it does not descend from {since}, which pull.yaml names by 'since'"
            )
        if not (rewound or self._comes_after(tip, before)):
            raise PullRefused(
                f"it does not descend from {before.name}, expected a revert in place of a rewind; `squidkeeper pull"
                f" --once --accept {tip}` takes it all the same"
            )
        return Version(
            tip, self._files(tip), split_commit(self._commit(tip))[0], str(self._source)
        )

    def _comes_after(self, tip: str, before: PlacedVersion) -> bool:
        if _COMMIT.fullmatch(before.name.encode()) is None:  # nothing, or a bundle
            return True
        return self._descends(tip, before.name) or self._has_twin(tip, before.signed)

    def _descends(self, commit: str, ancestor: str) -> bool:
        return (
            self._git.run("merge-base", "--is-ancestor", ancestor, commit).status == 0
        )

    def _has_twin(self, tip: str, signed: bytes) -> bool:
        if not signed:
            return False
        tree, *parents = commit_links(signed)
        listed = self._git.run(
            "rev-list",
            "--no-commit-header",
            "--format=%H %T %P",
            tip,
            "--not",
            *parents,
        )
        lines = (line.split() for line in listed.output.decode().splitlines())
        similar = [commit for commit, *links in lines if links == [tree, *parents]]
        return any(
            split_commit(self._commit(commit))[0] == signed
            for commit in similar[:_TWINS_AT_MOST]
        )

    def _commit(self, name: str) -> bytes:
        return self._git.output("cat-file", "commit", name)

    def _files(self, commit: str) -> dict[str, bytes]:
        folder = f"{commit}:{self._source.folder}"
        listed = self._git.run("ls-tree", "-r", "-l", "-z", "--full-tree", folder)
        if listed.status != 0:
            raise PullRefused(
                f"it has no folder {self._source.folder!r}, or one that is too large"
            )
        entries = {entry.path: entry for entry in _parse_tree(listed.output)}
        policies = [entry for path, entry in entries.items() if is_policy_file(path)]
        files = self._blobs(policies)
        return files | self._blobs(
            [entries[path] for path in sorted(listed_paths(files)) if path in entries]
        )

    def _blobs(self, entries: list[_TreeEntry]) -> dict[str, bytes]:
        output = self._git.output(
            "cat-file",
            "--batch",
            given="".join(f"{one.blob}\n" for one in entries).encode(),
        )
        found, position = {}, 0
        for entry in entries:
            header = f"{entry.blob} blob {entry.size}\n".encode()
            end = position + len(header) + entry.size
            if (
                output[position : position + len(header)] != header
                or output[end : end + 1] != b"\n"
            ):
                raise PullFailed(f"git gave another object than {entry.blob}")
            found[entry.path], position = output[position + len(header) : end], end + 1
        return found

    # the disk

    def _make(self) -> None:
        """Make the repository where there is none, or one too large, or in too many
        packs: each fetch adds one.
        """
        packs = [*self._folder.glob("objects/pack/*.pack")]
        is_small = (
            len(packs) <= _PACKS_AT_MOST and _size_of(self._folder) <= _REPOSITORY_BYTES
        )
        if is_small and self._git.is_ready:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._git.init()

    def _fetched(self) -> _Fetched:
        """Name what fetches have brought that ended well: git writes packs alone, under
        another name until then.
        """
        tip = (
            self._git.run("rev-parse", "--verify", "--quiet", _TIP)
            .output.decode()
            .strip()
        )
        return _Fetched(tip, frozenset(self._folder.glob("objects/pack/pack-*")))

    def _remove_others(self, fetched: _Fetched) -> None:
        for path in (*self._folder.glob("objects/*/*"), *self._folder.rglob("*.lock")):
            if path not in fetched.files:
                path.unlink()

    def _check_size(self) -> None:
        if (size := _size_of(self._folder)) > _REPOSITORY_BYTES:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise PullFailed(
                f"the repository has {size:,} bytes, expected {_REPOSITORY_BYTES:,} at most"
            )


_FETCH: Final = (
    "fetch",
    "--quiet",
    "--force",
    "--no-tags",
    "--no-write-fetch-head",
    "--no-recurse-submodules",
    "--no-auto-maintenance",
    # git's word for no limit. With a depth, git speaks its smart protocol or fails
    "--depth=2147483647",
)


def _parse_tree(listed: bytes) -> list[_TreeEntry]:
    """Parse `ls-tree -r -l -z`; `PullRefused` where something is no regular file with a
    plain name, or too large.
    """
    entries = [
        _parse_entry(match)
        for line in listed.split(b"\0")[:-1]
        if (match := _ENTRY.fullmatch(line))
    ]
    check_files({entry.path: entry.size for entry in entries})
    return entries


def _parse_entry(match: re.Match[bytes]) -> _TreeEntry:
    mode, path = match[1].decode(), match[5].decode("utf-8", "backslashreplace")
    if mode not in _REGULAR:
        raise PullRefused(
            f"{path[:100]!r} is {_KINDS.get(mode, 'no file')}, expected regular files alone"
        )
    return _TreeEntry(path, match[3].decode(), int(match[4]))


def _size_of(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                # a small file takes a block
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total
