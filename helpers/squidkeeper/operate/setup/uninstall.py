"""The removal of a gateway.

The policy, the CA, local.conf, the logs and the packages stay.

A squid.conf of the operator's, in force or kept, stays, and must be able to do without
what goes.
"""

import os
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import (
    ACCOUNTS,
    BODIES,
    SERVICES,
    SOCKETS_OF_WORKERS,
    Layout,
    uses_systemd,
)
from squidkeeper.operate.setup.checks import faults_of, squid_parses
from squidkeeper.operate.setup.configuration import is_ours, names
from squidkeeper.operate.setup.entries import Link, read_entry, remove, text_at
from squidkeeper.operate.setup.generations import detach_conf
from squidkeeper.operate.setup.machine import (
    CONFINED,
    close_apparmor,
    run,
)
from squidkeeper.operate.setup.options import complain, say
from squidkeeper.operate.setup.processes import InstalledService, InstalledSquid
from squidkeeper.policy.policy_store.reload_gate import forced_file

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Squid has it


def uninstall(layout: Layout) -> None:
    """Remove a gateway, and put back the squid.conf that was there before it."""
    systemd = uses_systemd(layout.root)
    detach_conf(layout)
    squid, ours = (
        InstalledSquid(layout, systemd),
        is_ours(text_at(layout.conf.resolve())),
    )
    yours = layout.former_conf if ours else layout.conf
    if names(text_at(yours.resolve()), layout.fragment):
        raise SetupFailed(
            f"{yours} includes {layout.fragment}, which --uninstall removes",
            "take that line out, tell Squid if it runs with it, and run this again",
        )
    _stop(
        layout,
        "render",
        "sessions",
        "pull",
        "export",
        "archive",
        "exporter",
        "dns",
        "transparent",
        "tls",
        systemd=systemd,
    )
    if ours:
        squid.stop()
        layout.conf.unlink()
        _remove_shared(layout)
    _stop(layout, "secrets", *BODIES, "maintenance", "publisher", systemd=systemd)
    goes_on = squid.runs()  # asked before its pid file goes
    if not names(text_at(yours), layout.ssl_db):
        remove(layout.ssl_db)
    _remove_files(layout)
    if systemd:
        run("systemctl", "daemon-reload")
        _remove_account(layout)
    for program in CONFINED:
        close_apparmor(program, layout.prefix)
    if not layout.conf.exists() and layout.former_conf.exists():
        _restore_squid(layout, systemd=systemd)
    if goes_on and not ours:
        again = f"{layout.squid_command} -k reconfigure"
        say(
            "squid",
            f"it runs, and {layout.conf} is yours: unless you told Squid of it, it has lost its helpers and denies all"
            f" until: {again}",
        )
    left = " ".join(map(str, _left(layout)))
    say("uninstall", f"done. Yours to delete: {left}" if left else "done")


def _left(layout: Layout) -> list[Path]:
    folder, conf = layout.policy.parent, layout.conf
    configured = (layout.signing_cert, layout.signing_key, layout.local, conf)
    kept = [
        Path(f"{path}{end}")
        for path in configured
        for end in ("", ".previous", ".before-squidkeeper")
    ]
    kept += [layout.access_log.parent, layout.sessions_audit.parent]
    kept += [layout.archive, layout.pulled]
    inside = sorted(folder.iterdir()) if folder.exists() else []
    outside = [
        path for path in kept if os.path.lexists(path) and folder not in path.parents
    ]
    # the one that was there before is not ours
    return [path for path in (*inside, *outside) if path != conf]


def _stop(layout: Layout, *names: str, systemd: bool) -> None:
    for name in names:
        if layout.service(name).unit.exists():
            InstalledService(name, layout, systemd).stop()


def _remove_files(layout: Layout) -> None:
    previous = layout.conf.with_name(f"{layout.conf.name}.previous")
    ours = (
        previous,
        layout.fragment,
        layout.parts,
        layout.logformat,
        layout.errors,
        layout.generations,
    )
    kept = (
        layout.state,
        layout.published,
        layout.sessions,
        layout.sessions_run,
        layout.run,
        layout.applied,
        layout.ca_choices,
        layout.revision,
        forced_file(layout.policy),
    )
    services = (
        path
        for name in SERVICES
        for path in (layout.service(name).unit, layout.service(name).applied)
    )
    others = filter(
        None,
        (
            layout.archive_timer,
            layout.render_path,
            layout.logrotate,
            layout.squid_dropin,
        ),
    )
    for path in (
        *ours,
        *kept,
        *services,
        *others,
        layout.haproxy,
        layout.dns,
        layout.observe,
        layout.supervise,
    ):
        remove(path)
    shell_files = (
        *layout.completions.values(),
        layout.manual / "squidkeeper.1",
        *layout.manual.glob("squidkeeper-*.1"),
    )
    if layout.command is None or read_entry(layout.command) == Link(
        str(layout.program)
    ):
        for path in (*shell_files, *filter(None, [layout.command])):
            remove(path)
    remove(layout.program)
    for venv in layout.prefix.glob(
        "venv-*"
    ):  # this process may run from one of them: it has imported what it needs
        remove(venv)
    depth = 3 if layout.root else 1  # up to share/, which is ours below a root alone
    of_shells = dict.fromkeys(
        path.parents[level] for level in range(depth) for path in shell_files
    )
    folders = (
        layout.commands,
        layout.exports,
        layout.errors.parent,
        layout.program.parent,
        *of_shells,
        layout.prefix,
    )
    for folder in (
        *folders,
        *([layout.squid_dropin.parent] if layout.squid_dropin else []),
    ):
        with suppress(OSError):  # it is not there, or something else is in it
            folder.rmdir()


def _remove_shared(layout: Layout) -> None:
    """Remove sockets and shared memory that a killed Squid leaves, and the sockets'
    folder where it is empty.
    """
    left = (
        SOCKETS_OF_WORKERS.glob(f"{layout.squid_service}-*.ipc"),
        _SHARED_MEMORY.glob(f"{layout.squid_service}-*.shm"),
    )
    for file in chain(*left):
        remove(file)
    with suppress(OSError):
        SOCKETS_OF_WORKERS.rmdir()


def _remove_account(layout: Layout) -> None:
    if layout.account.exists():
        kept = (layout.archive, layout.pulled, layout.sessions_audit.parent)
        for folder in filter(Path.exists, kept):
            _give_to_root(folder)
        for account in {*ACCOUNTS.values()}:
            run("userdel", account)
        remove(layout.account)


def _give_to_root(kept: Path) -> None:
    for _, _, files, folder in os.fwalk(kept):
        for name in files:
            os.chown(name, 0, -1, dir_fd=folder, follow_symlinks=False)
        os.fchown(folder, 0, -1)


def _restore_squid(layout: Layout, *, systemd: bool) -> None:
    layout.former_conf.rename(layout.conf)
    good, told = squid_parses("squid", layout.conf)
    if not good:
        complain(faults_of(told) or told)
        say(
            "squid.conf",
            "the former one is back, but squid -k parse does not accept it (see above): Squid is not started",
        )
        return
    say("squid.conf", "the former one is back, and squid -k parse accepts it")
    if systemd and run("systemctl", "restart", "squid").returncode:
        say("squid", "it does not start with it all the same: journalctl -u squid")
