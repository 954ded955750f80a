"""Adds to Squid's configuration while Squid runs: what an edit of the policy needs.

Nothing is removed, so an edit that is taken back changes nothing; install.sh alone
removes parts. A failure leaves everything as it was: requests that need what is missing
are denied as before.
"""

import logging
import time
from pathlib import Path
from typing import Final

from squidkeeper.base.layout import BODIES, Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.rendering import Values, merge
from squidkeeper.operate.setup.body_services import (
    is_quota_store_known,
    start_body_services,
)
from squidkeeper.operate.setup.entries import remove
from squidkeeper.operate.setup.generations import (
    check_generation,
    folder_of,
    moved,
    next_number,
    outdated,
    read_generation,
    scratch,
    with_files,
    write_generation,
)
from squidkeeper.operate.setup.rendering import (
    Named,
    named_values,
    read_values,
    rendered_anew,
)
from squidkeeper.operate.setup.rollback import is_held
from squidkeeper.operate.setup.serving_squid import put_before_squid, tell_again
from squidkeeper.serving.parts import TOKENS_COUNTED

PAUSE_SECONDS: Final = (
    10.0  # between two reconfigures: each refuses connections for a moment
)
_log = logging.getLogger(__name__)


def written_folders(layout: Layout) -> tuple[Path, ...]:
    """List the folders that an edit can need written."""
    units = layout.service(BODIES[0]).unit.parent
    return (layout.generations, layout.state, units, scratch(layout))


def add_parts(layout: Layout, account: Account) -> bool:
    """Add what the policy needs; tell whether Squid was reconfigured.

    `SetupFailed`, OSError or ValueError where it fails; then nothing has changed.
    """
    remove(layout.render_request)  # an edit that comes now makes it again
    tell_again(layout, account)
    former = read_values(layout)
    named = _named(layout, account)
    if is_held(layout, named):
        _log.info("a rollback holds until the policy is edited")
        return False
    values = merge(former, named.values)
    if values != former and (pause := pause_after(layout, time.time())):
        time.sleep(pause)
        # of the policy as it is then
        values = merge(former, _named(layout, account).values)
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


def _named(layout: Layout, account: Account) -> Named:
    named = named_values(account, layout, layout.policy, layout.state / "lists")
    for problem in named.problems:
        _log.error(
            "a parent proxy is left out, as its password is unavailable: %s", problem
        )
    return named


def _put(layout: Layout, values: Values, account: Account) -> None:
    """Write another generation, and put it in force once Squid has parsed it."""
    former, number = layout.generation.resolve(), next_number(layout)
    folder = folder_of(layout, number)
    base = moved(read_generation(former), former, folder)
    files = rendered_anew(layout, values, account, folder)
    write_generation(layout, number, with_files(base, files))
    try:
        check_generation(layout, folder)
        put_before_squid(layout, number, values, account)
    except BaseException:
        remove(folder)
        raise
    for path in (layout.generation_held, *outdated(layout)):
        remove(path)
