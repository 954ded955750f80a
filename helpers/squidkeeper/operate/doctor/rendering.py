"""What keeps the next edit of the policy out of force, where it is the first to need a
part of Squid's configuration: what renders it makes no account, and cannot write
everywhere.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from squidkeeper.base.layout import ACCOUNTS, BODIES
from squidkeeper.base.squid_account import account_of
from squidkeeper.operate.doctor.inspection import Found, Inspection, critical
from squidkeeper.operate.setup.machine import run
from squidkeeper.operate.setup.part_additions import written_folders

_UNIT: Final = "squidkeeper-render"


@critical(
    "edit-not-renderable",
    "An edit that is the first to need a part of Squid's configuration cannot come into force",
    "Run `./install.sh`. Until then the requests of such an edit are denied.",
    as_root=True,
)
def _edit_not_renderable(seen: Inspection) -> Iterator[Found]:
    layout, account = seen.layout, ACCOUNTS[BODIES[0]]
    for name in BODIES:
        template = layout.templates / layout.service(name).unit.name
        if not template.exists():
            yield Found("it is missing", str(template))
    if seen.squid.systemd and account_of(account) is None:
        yield Found(f"there is no account {account}", str(layout.account))
    opened = _opened() if seen.squid.systemd else (Path("/"),)
    for folder in written_folders(layout):
        if not os.access(folder, os.W_OK):
            yield Found("it cannot be written, or is not there", str(folder))
        elif not any(folder.is_relative_to(path) for path in opened):
            yield Found(f"ReadWritePaths of {_UNIT} does not name it", str(folder))


def _opened() -> tuple[Path, ...]:
    """List what systemd lets the service write, with lines of the operator's own."""
    show = ("systemctl", "show", "--value", "--property")
    if run(*show, "ProtectSystem", _UNIT).stdout.strip() != "strict":
        return (Path("/"),)
    told = run(*show, "ReadWritePaths", _UNIT).stdout.split()
    return tuple(Path(path.lstrip("-+")) for path in told)
