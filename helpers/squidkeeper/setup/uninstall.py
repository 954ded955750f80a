"""The removal of a gateway (floor 7). The policy, the CA, local.conf, the logs and the packages stay.

A squid.conf of the operator's, in force or kept, stays, and must be able to do without what goes.
"""

from __future__ import annotations

from contextlib import suppress

from squidkeeper.errors import SetupFailed
from squidkeeper.setup.apparmor import CONFINED, close_apparmor
from squidkeeper.setup.checks import faults_of, squid_parses
from squidkeeper.setup.configuration import is_ours, names
from squidkeeper.setup.console import complain, say
from squidkeeper.setup.entries import Link, read_entry, remove, text_at
from squidkeeper.setup.layout import FETCHER, SERVICES, Layout
from squidkeeper.setup.machine import run, uses_systemd
from squidkeeper.setup.processes import InstalledService, InstalledSquid


def uninstall(layout: Layout) -> None:
    """Remove a gateway, and put back the squid.conf that was there before it."""
    systemd = uses_systemd(layout.root)
    squid, ours = InstalledSquid(layout, systemd), is_ours(text_at(layout.conf))
    yours = layout.former_conf if ours else layout.conf
    if names(text_at(yours), layout.fragment):
        raise SetupFailed(
            f"{yours} includes {layout.fragment}, which --uninstall removes",
            "take that line out, tell Squid if it runs with it, and run this again",
        )
    _stop("exporter", layout, systemd=systemd)
    _stop("tls", layout, systemd=systemd)
    if ours:
        squid.stop()
        layout.conf.unlink()
    _stop("secrets", layout, systemd=systemd)
    _stop("maintenance", layout, systemd=systemd)
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
    say(
        "uninstall",
        f"done. Yours to delete: {layout.policy} {layout.commands} {layout.ca_cert.parent} {layout.signing_cert}"
        f" {layout.signing_key} (and *.previous, *.before-squidkeeper) {layout.local} {layout.access_log.parent}",
    )


def _stop(name: str, layout: Layout, *, systemd: bool) -> None:
    if layout.service(name).unit.exists():
        InstalledService(name, layout, systemd).stop()


def _remove_files(layout: Layout) -> None:
    previous = layout.conf.with_name(f"{layout.conf.name}.previous")
    ours = (previous, layout.fragment, layout.pages, layout.logformat, layout.policy_lines, layout.errors)
    kept = (layout.state, layout.run, layout.applied, layout.ca_choices)
    services = (path for name in SERVICES for path in (layout.service(name).unit, layout.service(name).applied))
    for path in (*ours, *kept, *services, layout.haproxy, layout.observe, layout.supervise):
        remove(path)
    if layout.command and read_entry(layout.command) == Link(str(layout.program)):
        remove(layout.command)
    remove(layout.program)
    for venv in layout.prefix.glob("venv-*"):  # this process may run from one of them: it has imported what it needs
        remove(venv)
    for folder in (layout.commands, layout.errors.parent, layout.program.parent, layout.prefix):
        with suppress(OSError):  # it is not there, or something else is in it
            folder.rmdir()


def _remove_account(layout: Layout) -> None:
    if layout.account.exists():
        run("userdel", FETCHER)
        remove(layout.account)


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
