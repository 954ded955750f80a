"""Which changes of a policy's files are complete."""

from pathlib import Path

from squidkeeper.policy.policy_store.open_writes import OpenWrites, UnfinishedFile
from squidkeeper.policy.policy_store.sources import Sources, fingerprint, grants_file, policy_files, read_sources


class FileWatch:
    """The files of one policy, as one thread sees them: whether they have changed, and whether they are complete.

    `lock_file` is the one that all processes share; see `OpenWrites`.
    """

    def __init__(self, directory: Path, lock_file: Path | None) -> None:
        self._directory = directory
        self._writes = OpenWrites(lock_file)
        self._lists: tuple[Path, ...] = ()  # of the documents that were read last
        self._documents: object = None  # their fingerprint
        self._named: tuple[Path, ...] = ()
        self._taken: object = None

    @property
    def problem(self) -> str:
        """Why inotify cannot be used, else empty."""
        return self._writes.problem

    def changed(self) -> bool:
        """Tell whether a file has changed since `take`."""
        if fingerprint(self._directory, self._named) != self._taken:
            return True
        self._writes.read()
        return False

    def read(self) -> Sources:
        """Read the files."""
        documents = fingerprint(self._directory)
        sources = read_sources(self._directory)
        self._lists, self._documents = tuple(sources.lists), documents
        return sources

    def is_current(self, sources: Sources) -> bool:
        """Tell whether the files on disk are still those that were read."""
        return fingerprint(self._directory, sources.named) == sources.fingerprint

    def unfinished(self, *, edited: bool) -> UnfinishedFile | None:
        """Find a file that is being written: a policy file, or a list that the policy names.

        With `edited`, the policy files may have changed since `read`, and then may name other lists: only they count.
        """
        lists = () if edited and fingerprint(self._directory) != self._documents else self._lists
        files = policy_files(self._directory)
        self._writes.watch((self._directory, grants_file(self._directory).parent), files, self._lists)
        return self._writes.find((*files, *lists))

    def take(self, sources: Sources) -> None:
        """Take the files that were read as complete: only a later change counts as one."""
        self._writes.take_as_complete()
        self._named, self._taken = sources.named, sources.fingerprint
