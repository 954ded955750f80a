"""Adds to Squid's configuration while Squid runs: what an edit of the policy needs.

Nothing is removed, so an edit that is taken back changes nothing; install.sh alone
removes parts. A failure leaves everything as it was: requests that need what is missing
are denied as before.
"""

import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.formatting import substitute
from squidkeeper.base.layout import BODIES, Layout, uses_systemd
from squidkeeper.base.squid_account import Account
from squidkeeper.operate.setup import checks
from squidkeeper.operate.setup.body_services import (
    is_quota_store_known,
    start_body_services,
)
from squidkeeper.operate.setup.configuration import listen_of
from squidkeeper.operate.setup.entries import (
    File,
    read_entry,
    remove,
    text_at,
    write_entry,
)
from squidkeeper.operate.setup.options import port_of
from squidkeeper.operate.setup.processes import InstalledSquid
from squidkeeper.operate.setup.rendering import (
    named_values,
    put_rendered,
    read_templates,
    read_values,
    rendered_files,
)
from squidkeeper.operate.setup.sockets import is_open, wait_until
from squidkeeper.serving.parts import TOKENS_COUNTED
from squidkeeper.serving.rendering import Values, merge

PAUSE_SECONDS: Final = (
    10.0  # between two reconfigures: each refuses connections for a moment
)
_LISTEN_SECONDS: Final = 20.0
_SCRATCH: Final = Path("/run")  # AppArmor lets Squid read squidkeeper-install.* there
_log = logging.getLogger(__name__)


def written_folders(layout: Layout) -> tuple[Path, ...]:
    """List the folders that an edit can need written."""
    units = layout.service(BODIES[0]).unit.parent
    return (layout.fragment.parent, layout.parts, layout.state, units, _scratch(layout))


def add_parts(layout: Layout, account: Account) -> bool:
    """Add what the policy needs; tell whether Squid was reconfigured.

    `SetupFailed`, OSError or ValueError where it fails; then nothing has changed.
    """
    remove(layout.render_request)  # an edit that comes now makes it again
    former = read_values(layout)
    values = _needed(layout, account, former)
    if values != former and (pause := pause_after(layout, time.time())):
        time.sleep(pause)
        values = _needed(layout, account, former)  # of the policy as it is then
    if values == former:
        if TOKENS_COUNTED in values.keys and is_quota_store_known(layout):
            # the store of quotas can have another address
            start_body_services(layout, account, values)
        return False
    _put(layout, values, account)
    _log.info(
        "in force now: %s",
        ", ".join(sorted({*values.in_force} - {*former.in_force})) or "other values",
    )
    return True


def pause_after(layout: Layout, now: float) -> float:
    """Return how long to wait after the last edit that added something.

    The first edit after a run of install.sh waits for nothing.
    """
    rendered = layout.rendered.stat().st_mtime
    installed = layout.applied.stat().st_mtime if layout.applied.exists() else 0.0
    pause = rendered + PAUSE_SECONDS - now
    return pause if rendered > installed and 0 < pause <= PAUSE_SECONDS else 0.0


def _needed(layout: Layout, account: Account, former: Values) -> Values:
    named = named_values(account, layout, layout.policy, layout.state / "lists")
    for problem in named.problems:
        _log.error(
            "a parent proxy is left out, as its password is unavailable: %s", problem
        )
    return merge(former, named.values)


def _put(layout: Layout, values: Values, account: Account) -> None:
    files = rendered_files(layout, read_templates(layout), values, account)
    _parse(layout, files)
    if values.inspects_bodies:
        # Ahead of Squid, which does without it for a while where it is not there.
        start_body_services(layout, account, values)
    before = {path: read_entry(path) for path in files}
    try:
        put_rendered(files)
        _reconfigure(layout)
    except BaseException:
        for path, entry in reversed(
            before.items()
        ):  # the core first: it names no part that is gone
            remove(path)
            if entry:
                write_entry(path, entry)
        _signal(layout)
        raise


def _parse(layout: Layout, files: Mapping[Path, File]) -> None:
    with TemporaryDirectory(
        prefix="squidkeeper-install.", dir=_scratch(layout)
    ) as name:
        folder = Path(name)
        (folder / layout.parts.name).mkdir()
        moved = {
            str(path): str(folder / path.name)
            for path in (layout.parts, layout.fragment, layout.logformat)
        }
        texts = {path: file.content.decode() for path, file in files.items()} | {
            layout.conf: layout.conf.read_text()
        }
        for path, text in texts.items():
            (folder / path.relative_to(layout.conf.parent)).write_text(
                substitute(text, moved)
            )
        checks.check_prepared(layout.squid_service, folder / layout.conf.name)


def _scratch(layout: Layout) -> Path:
    return _SCRATCH if os.access(_SCRATCH, os.W_OK) else layout.run


def _reconfigure(layout: Layout) -> None:
    """Have Squid read the files, and wait until it listens again.

    One that does not run reads them when it starts.
    """
    listen = listen_of(text_at(layout.conf))
    if _signal(layout) and listen:
        time.sleep(1)  # it closes its port before it opens it again
        if not wait_until(_LISTEN_SECONDS, lambda: is_open(port_of(listen))):
            raise SetupFailed(
                f"Squid does not listen on {listen} any more",
                f"read {layout.cache_log}",
            )


def _signal(layout: Layout) -> bool:
    pid = InstalledSquid(layout, uses_systemd(layout.root)).pid()
    if pid is None:
        return False
    os.kill(pid, signal.SIGHUP)
    return True
