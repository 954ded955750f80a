"""The transaction of an installation: applies steps, keeps what they replace, and puts
it back.

What a step replaces lies beside it, as NAME.squidkeeper-old, until the transaction is
committed. Nobody else would use that name: NAME.old could be what an operator moved
away. A rollback stops what was started, puts the files back, newest first, and starts
what ran before.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import EXDEV
from functools import partial
from pathlib import Path
from time import time
from typing import Final

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import call_as
from squidkeeper.operate.setup.body_services import make_shared
from squidkeeper.operate.setup.configuration import listen_of
from squidkeeper.operate.setup.entries import (
    LOG_END,
    RWX,
    Entry,
    File,
    Folder,
    Link,
    give_below,
    give_folder,
    remove,
    text_at,
    write_entry,
)
from squidkeeper.operate.setup.generations import number_in_force, sync_below
from squidkeeper.operate.setup.machine import (
    Machine,
    is_additions,
    last_lines,
    quietly,
    reload_apparmor,
)
from squidkeeper.operate.setup.options import port_of
from squidkeeper.operate.setup.plan import STARTS, SetupStep, StepKind
from squidkeeper.operate.setup.processes import InstalledService, InstalledSquid
from squidkeeper.services.maintenance.own_addresses import prepare_own_addresses
from squidkeeper.services.maintenance.tls import put_server_certificate

_TELLS: Final = {
    StepKind.START_SQUID: "started",
    StepKind.RESTART_SQUID: "restarted",
    StepKind.RECONFIGURE_SQUID: "reconfigured",
}


_PLAIN: Final = Folder({})


class Transaction:
    """The steps of one run that were applied, until it is committed or rolled back."""

    def __init__(
        self,
        layout: Layout,
        machine: Machine,
        squid: InstalledSquid,
        store: Path,
        say: Callable[[str, str], None],
        server_certificate: Path = Path(),
    ) -> None:
        self._layout = layout
        self._machine = machine
        self._squid = squid
        self.services: Mapping[str, InstalledService] = {}
        self._store = store  # the certificate store that was prepared
        self._server_certificate = server_certificate  # as prepared
        self._say = say
        self._touched: dict[Path, bool] = {}  # and whether something was there
        self._stopped: dict[
            InstalledSquid | InstalledService, bool
        ] = {}  # and whether it ran

    def apply(self, step: SetupStep) -> None:
        """Apply a step; an OSError or `SetupFailed` where it fails, after which the
        transaction is rolled back.
        """
        match step:
            case SetupStep(
                StepKind.MAKE | StepKind.GIVE_TO_ROOT | StepKind.GIVE_BACK,
                path,
                Folder() as folder,
            ):
                self._have_directory(path, folder)
            case SetupStep(StepKind.REMOVE, path):
                self._set_aside(path)
            case SetupStep(StepKind.STOP_SERVICE, unit):
                self._stop(self.services[unit.stem.removeprefix("squidkeeper-")])
            case SetupStep(StepKind.PUT, path, entry) if entry:
                self._put(path, entry)
            case SetupStep(StepKind.OPEN_APPARMOR, path, entry) if entry:
                self._put(path, entry)
                reload_apparmor(path)
            case SetupStep(action, note, File() as entry):
                self._start(action, note, entry)
            case SetupStep(action, path):
                self._apply_to_state(action, path)

    def _apply_to_state(self, action: StepKind, path: Path) -> None:
        """Make accounts, or change a folder of Squid's account, which could have put a
        link there: as that account, which root is not.
        """
        machine = self._machine
        match action:
            case StepKind.PUT_STORE:
                self._set_aside(path)
                call_as(
                    machine.account, lambda: str(shutil.copytree(self._store, path))
                )
            case StepKind.MAKE_ACCOUNTS:
                quietly("systemd-sysusers", path)
            case StepKind.MAKE_AS_SQUID | StepKind.MAKE_SHARED:
                self._touched[path] = False
                is_shared = action is StepKind.MAKE_SHARED
                make = make_shared if is_shared else partial(Path.mkdir, mode=0o750)
                call_as(machine.account, lambda: make(path))
            case StepKind.GIVE_TO_SQUID:
                self._give_to_squid(path)
                self._say("state", f"given to {machine.account.name}: {path}")
            case StepKind.MAKE_SERVER_CERTIFICATE:
                self._touched.setdefault(path, path.exists())
                call_as(
                    machine.account,
                    lambda: put_server_certificate(path, self._server_certificate),
                )
            case StepKind.WRITE_OWN_ADDRESSES:
                call_as(machine.account, lambda: prepare_own_addresses(path))
            case (
                StepKind.LABEL
            ):  # systemd's Squid may write only what is labelled as its own
                layout = self._layout
                store = [layout.ssl_db] if layout.ssl_db.exists() else []
                quietly(
                    "restorecon",
                    "-R",
                    layout.prefix,
                    layout.conf.parent,
                    "/etc/squidkeeper",
                    *store,
                )
                shown = [layout.published] if layout.published.exists() else []
                quietly("chcon", "-R", "-t", "squid_cache_t", path, *shown)

    def _give_to_squid(self, path: Path) -> None:
        account, owner = self._machine.account, self._machine.owner
        if not call_as(account, lambda: os.access(path, RWX)):
            give_folder(path, owner)
            call_as(account, lambda: path.chmod(0o750))
        give_below(path, owner)

    def remove_leftovers(self, *paths: Path) -> None:
        """Remove what a run that was killed has left beside these paths."""
        for path in paths:
            remove(_aside(path))
            remove(_new(path))

    def commit(self) -> None:
        """Remove what was kept for a rollback."""
        for path in self._touched:
            with suppress(OSError):  # the next run that replaces the file removes it
                remove(_aside(path))

    def roll_back(self) -> list[str]:
        """Put everything back; list what could not be."""
        for process in reversed(self._stopped):
            with suppress(SetupFailed, OSError):
                process.stop()
        problems = [
            problem
            for path in reversed(self._touched)
            for problem in self._restore(path)
        ]
        with suppress(SetupFailed):
            if self._machine.systemd and self._touched:
                quietly("systemctl", "daemon-reload")
        for process in (process for process, ran in self._stopped.items() if ran):
            with suppress(SetupFailed, OSError):
                process.start()
        if self._stopped.get(self._squid):
            problems += self._check_squid()
        return problems

    def _restore(self, path: Path) -> list[str]:
        try:
            _put_back(path, existed=self._touched[path])
            if is_additions(path):
                reload_apparmor(path)
        except (OSError, SetupFailed) as error:
            return [f"{path}: {error}"]
        return []

    def _check_squid(self) -> list[str]:
        if not self._squid.comes_up(
            port_of(listen_of(text_at(self._layout.conf.resolve())))
        ):
            return [
                f"Squid does not start with its files any more: read {self._layout.cache_log}"
            ]
        if self._layout.applied.exists():
            # Squid has read what was put back: it is no news to the next run
            os.utime(self._layout.applied)
        return []

    # Files

    def _put(self, path: Path, entry: Entry) -> None:
        self._make_directory(path.parent)
        new = _new(path)
        remove(new)
        try:
            write_entry(new, entry)
        except BaseException:  # a full disk, or a signal
            remove(new)
            raise
        self._set_aside(path, by_link=isinstance(entry, File | Link))
        if path == self._layout.generation:
            sync_below(self._layout.generations)
        new.rename(path)

    def _set_aside(self, path: Path, *, by_link: bool = False) -> None:
        if path in self._touched:
            return
        aside = _aside(path)
        remove(aside)
        self._touched[path] = os.path.lexists(path)
        if by_link and (path.is_file() or path.is_symlink()):
            os.link(path, aside, follow_symlinks=False)
        elif self._touched[path]:
            _move(path, aside)

    def _have_directory(self, path: Path, folder: Folder) -> None:
        if path.is_dir():
            give_folder(path, folder.owner, folder.mode)
            if folder.owner[0]:
                give_below(path, folder.owner)
        else:
            self._make_directory(path, folder)

    def _make_directory(self, path: Path, folder: Folder = _PLAIN) -> None:
        if not path.is_dir():
            self._make_directory(path.parent)
            self._touched[path] = False
            write_entry(path, folder)

    # Processes

    def _stop(self, process: InstalledSquid | InstalledService) -> None:
        self._stopped.setdefault(process, process.runs())
        process.stop()

    def _start(self, action: StepKind, note: Path, entry: File) -> None:
        if action in STARTS:
            self._start_service(self.services[STARTS[action]], note, entry)
        else:
            self._tell_squid(action, note, entry)

    def _start_service(
        self, service: InstalledService, note: Path, entry: File
    ) -> None:
        self._stop(service)
        service.start()
        if not service.comes_up():
            what = (
                f"does not listen on port {service.port}"
                if service.port
                else "does not run"
            )
            raise SetupFailed(
                f"the service {service.name} {what}", details=service.log_tail()
            )
        self._put(note, entry)
        listen = entry.content.decode().rpartition(" ")[0]
        self._say(
            service.name, f"started, on http://{listen}/" if listen else "started"
        )

    def _tell_squid(self, action: StepKind, note: Path, entry: File) -> None:
        began, squid, done = time(), self._squid, _TELLS[action]
        if action is StepKind.RECONFIGURE_SQUID:
            self._stopped.setdefault(squid, True)
            squid.reconfigure()
        else:
            self._stop(squid)
            squid.start()
        listen = entry.content.decode().split(" ")[0]
        if not squid.comes_up(port_of(listen)):
            log = self._layout.cache_log
            advice = f"read the lines above, from {log}"
            raise SetupFailed(
                f"Squid does not listen on {listen}",
                advice,
                last_lines(text_at(log, end=LOG_END)),
            )
        self._put(note, entry)
        # what is written from then on is news to the next run
        os.utime(note, (began, began))
        number = number_in_force(self._layout)
        self._put(self._layout.generation_told, File(f"{number}\n".encode()))
        self._say(
            "squid",
            done
            if action is StepKind.RECONFIGURE_SQUID
            else f"{done}, process {squid.pid()}",
        )


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.squidkeeper-old")


def _move(path: Path, aside: Path) -> None:
    """Rename what is at a path.

    A folder of a lower layer of overlayfs, as of an image, is copied: EXDEV.
    """
    try:
        path.rename(aside)
    except OSError as error:
        if error.errno != EXDEV:
            raise
        # so that a copy that fails is never put back
        copied = aside.with_name(f"{aside.name}-copy")
        remove(copied)
        quietly("cp", "--archive", "--no-target-directory", path, copied)
        copied.rename(aside)
        remove(path)


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.squidkeeper-new")


def _put_back(path: Path, *, existed: bool) -> None:
    remove(_new(path))
    aside = _aside(path)
    if not existed:
        remove(path)
    elif os.path.lexists(aside):
        if any(here.is_dir() and not here.is_symlink() for here in (path, aside)):
            remove(path)  # a folder neither replaces nor is replaced by rename
        aside.replace(path)
        remove(aside)  # a rename between two links to one file does nothing
