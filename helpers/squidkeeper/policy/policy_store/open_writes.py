"""Which files of a policy are being written.

inotify(7) reports a write (IN_MODIFY) and the close of a file that was open for writing
(IN_CLOSE_WRITE). Between the two, a file is unfinished. Nothing else shows Squid's
account what another account has open.

inotify reports no write that began before the watch. A file that is new to this process
is therefore unfinished until it has not changed for `_QUIET_SECONDS`, and for as long
as another process knows that a file is unfinished. A process that knows so holds a
shared lock on a file that all of them share; the kernel releases it with the process.

Any report also means that a file may have changed. Without one, the files need not be
read each time.
"""

import ctypes
import fcntl
import os
import stat
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import inotify_simple
from inotify_simple import Event, INotify, flags

# The C library that the process has loaded. inotify_simple sets this only where it is
# None, by running ldconfig: 4 to 20 ms at each start of a helper.
inotify_simple._libc = ctypes.CDLL(None, use_errno=True)

_Inode = tuple[int, int]
_Name = str | Path


@dataclass(frozen=True, slots=True)
class UnfinishedFile:
    """A file that is being written, since when (seconds since 1970), and whether that
    is known or only possible.
    """

    path: Path
    since: float
    known: bool


class OpenWrites:
    """The writes to the files of one policy, as one thread sees them.

    `problem` tells why inotify cannot be used, else it is empty. All processes share
    `lock_file`. `reported`: there was a report since the owner has set it to false.
    """

    def __init__(self, lock_file: Path | None = None) -> None:
        self.problem = ""
        self.reported = True
        self._lock_file = lock_file
        self._lock: int | None = None
        self._inotify: INotify | None = None
        self._watched: dict[int, tuple[str, _Inode | None]] = {}
        self._descriptors: dict[str, int] = {}  # of the files
        self._open: dict[_Inode, float] = {}
        self._closed: set[_Inode] = set()
        self._files: set[str] = set()
        self._new: dict[str, float] = {}
        try:
            self._inotify = INotify(nonblocking=True)
            weakref.finalize(
                self, self._inotify.close
            ).atexit = False  # a thread may still use it then
        except OSError as error:
            self.problem = _reason("inotify cannot be used", error)

    def watch(
        self, folders: Iterable[_Name], files: Iterable[_Name], named: Iterable[_Name]
    ) -> None:
        """Watch the policy's files in some folders, those that they name, and the
        folders of all of them.

        Later files of these folders are not new to this process: the watch of the
        folder reports them.
        """
        self.read()  # the kernel reports each watch that it has removed
        first = not self._watched
        of_policy, of_lists = set(map(str, files)), set(map(str, named))
        now = time.time()
        unknown = (of_lists | (of_policy if first else set())) - self._files
        self._new.update((path, now) for path in unknown)
        self._files = of_policy | of_lists
        self._new = {
            path: since for path, since in self._new.items() if path in self._files
        }
        watched = {
            self._add(folder, _FOLDER_EVENTS)
            for folder in dict.fromkeys(
                [*map(str, folders), *_real_folders(self._files)]
            )
        }
        self._descriptors = {path: self._watch_file(path) for path in self._files}
        self._forget_all_but(watched | set(self._descriptors.values()))

    def find(self, files: Iterable[_Name]) -> UnfinishedFile | None:
        """Find one of the files, all of which are watched, that is unfinished; a known
        one first.
        """
        self.read()
        states = {path: state for path in self._files if (state := _state(path))}
        inodes = {path: _inode(state) for path, state in states.items()}
        of_files = set(inodes.values())
        self._open = {
            inode: since for inode, since in self._open.items() if inode in of_files
        }
        self._tell_others()
        paths = [path for path in map(str, files) if path in states]
        for path in paths:
            if inodes[path] in self._open:
                return UnfinishedFile(Path(path), self._open[inodes[path]], known=True)
        return next(
            (
                UnfinishedFile(Path(path), self._new[path], known=False)
                for path in paths
                if self._is_new(path, states)
            ),
            None,
        )

    def take_as_complete(self) -> None:
        """Treat the files that are new to this process as complete: they are loaded
        now, and watched from now on.
        """
        self._new.clear()
        self._closed.clear()

    def read(self) -> None:
        """Read the reports of inotify."""
        for event in self._inotify.read(0) if self._inotify else ():
            self.reported = self.reported or self._may_change(event)
            if event.mask & flags.Q_OVERFLOW:
                self._start_over()
            elif event.mask & flags.IGNORED:  # the file is gone
                self._watched.pop(event.wd, None)
            else:
                self._note(event)

    def _may_change(self, event: Event) -> bool:
        """Whether a report may be of a file of the policy; another file of a folder,
        such as a log, is not watched itself.
        """
        is_of_folder = event.name and not event.mask & _NAMES_CHANGE
        return not is_of_folder or bool(self.problem)

    def _note(self, event: Event) -> None:
        path, inode = self._watched.get(event.wd, (None, None))
        state = _state(os.path.join(path, event.name)) if path and event.name else None
        inode = _inode(state) if state else inode
        if inode is None:
            return
        if event.mask & (flags.CLOSE_WRITE | flags.MOVED_TO):
            self._open.pop(inode, None)
            if self._new:
                self._closed.add(inode)
        elif event.mask & flags.MODIFY or _is_just_created(event, state):
            self._open.setdefault(inode, time.time())

    def _is_new(self, path: str, states: Mapping[str, os.stat_result]) -> bool:
        """Whether a file is new to this process and may be unfinished; a complete one
        is no longer new.
        """
        if path not in self._new:
            return False
        if _inode(states[path]) not in self._closed and self._may_be_open(states[path]):
            return True
        del self._new[path]
        return False

    def _may_be_open(self, state: os.stat_result) -> bool:
        return abs(time.time() - state.st_ctime) < _QUIET_SECONDS or self._others_know()

    def _start_over(self) -> None:
        """Treat each file as new: the kernel has dropped reports."""
        self._open.clear()
        self._closed.clear()
        self._new = dict.fromkeys(self._files, time.time())

    # inotify

    def _watch_file(self, path: str) -> int:
        """Watch a file; one that is watched is not added again, unless it was
        replaced.
        """
        descriptor = self._descriptors.get(path, _NO_WATCH)
        state = _state(path)
        if state and self._watched.get(descriptor) == (path, _inode(state)):
            return descriptor
        return self._add(path, _FILE_EVENTS)

    def _add(self, path: str, events: int) -> int:
        """Watch a path; gives its watch descriptor, or one that does not exist if that
        fails.
        """
        if self._inotify is None:
            return _NO_WATCH
        try:
            descriptor = self._inotify.add_watch(path, events)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return _NO_WATCH  # loading the policy reports it
        except OSError as error:
            self.problem = self.problem or _reason(
                f"inotify cannot watch {path}", error
            )
            return _NO_WATCH
        state = _state(path) if events == _FILE_EVENTS else None
        self._watched[descriptor] = (path, _inode(state) if state else None)
        return int(descriptor)

    def _forget_all_but(self, watched: set[int]) -> None:
        for descriptor in self._watched.keys() - watched:
            del self._watched[descriptor]
            with suppress(OSError):  # the kernel has removed it with the file
                self._inotify and self._inotify.rm_watch(descriptor)

    # The other processes

    def _tell_others(self) -> None:
        if self._open:
            self._lock = self._open_lock_file() if self._lock is None else self._lock
            if self._lock is not None:
                # if another process tries it now, the next call takes it
                _takes_lock(self._lock, fcntl.LOCK_SH)
        elif self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _others_know(self) -> bool:
        file = self._open_lock_file()
        if file is None:
            return False
        try:
            return not _takes_lock(file, fcntl.LOCK_EX)
        finally:
            os.close(file)

    def _open_lock_file(self) -> int | None:
        if self._lock_file is None:
            return None
        try:
            return os.open(
                self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640
            )
        except OSError:
            return None  # no folder yet, or a full disk


def _takes_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_just_created(event: Event, state: os.stat_result | None) -> bool:
    return bool(
        event.mask & flags.CREATE
        and state
        and stat.S_ISREG(state.st_mode)
        and not state.st_size
    )


def _real_folders(paths: set[str]) -> set[str]:
    """Find the folders that files are really in; most files share one."""
    links = {path for path in paths if os.path.islink(path)}
    folders = {os.path.dirname(path) for path in paths - links}
    of_links = {os.path.dirname(os.path.realpath(link)) for link in links}
    return {*map(os.path.realpath, folders), *of_links}


def _state(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _inode(state: os.stat_result) -> _Inode:
    return state.st_dev, state.st_ino


def _reason(what: str, error: OSError) -> str:
    return f"{what} ({error.strerror}), so a file that is edited in place may be loaded half-written: {_LIMITS}"


_LIMITS = "raise the limits under fs.inotify in sysctl, and replace files by rename"
_QUIET_SECONDS = 2.0
_NO_WATCH = -1
# EXCL_UNLINK: a file that was replaced and is still written to is reported under the
# name of the new one otherwise.
_NAMES_CHANGE = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
_FILE_EVENTS = flags.MODIFY | flags.CLOSE_WRITE | flags.ATTRIB
_FOLDER_EVENTS = _NAMES_CHANGE | _FILE_EVENTS | flags.MOVE_SELF | flags.EXCL_UNLINK
