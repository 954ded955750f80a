"""What a user's SQL cannot do: read or write a file, change a setting, or use the rights of root.

Three guards, each of which is enough: the statement is checked (`statement.py`), DuckDB reaches no file except the
archived parts, and the process has become an account that cannot write the record.
"""

import os
import shlex
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from squidkeeper.base.errors import QueryRefused
from squidkeeper.base.squid_account import account_of, group_name, squid_account
from squidkeeper.record.table.database import Database
from squidkeeper.record.table.file_names import quoted, quoted_literally
from squidkeeper.record.table.spill import QUERY_ACCOUNT


def lock(database: Database, readable: Iterable[Path]) -> None:
    """Close DuckDB's access to files, except these, and its settings, for the rest of the connection."""
    files = ", ".join(name for path in readable for name in (quoted(path), quoted_literally(path)))
    for setting in (f"allowed_paths = [{files}]", "enable_external_access = false", "lock_configuration = true"):
        database.connection.execute(f"SET {setting}")


def drop_rights(database: Database, readable: Collection[Path]) -> None:
    """Become `nobody`, for good, if this is root; the groups that read the archived parts stay.

    Squid's group reads the record and cannot write it. What the log holds is in memory by now.
    """
    if os.geteuid() != 0:
        return
    account = account_of(QUERY_ACCOUNT)
    if account is None:
        raise QueryRefused(f"there is no account {QUERY_ACCOUNT}: run it as an account that can read the access log")
    groups = {os.stat(path).st_gid for path in readable} - {0}
    for path in (database.spill, *database.spill.rglob("*")):
        shutil.chown(path, account.user, account.group)
    os.setgroups(sorted(groups))
    os.setgid(account.group)
    os.setuid(account.user)
    if not os.access(database.spill, os.W_OK | os.X_OK):
        raise QueryRefused(f"{database.spill}: {QUERY_ACCOUNT} cannot write there: set TMPDIR to another folder")
    for path in readable:
        if not os.access(path, os.R_OK):
            raise QueryRefused(f"{path}: {QUERY_ACCOUNT}, as which root queries, cannot read it: {_opening(path)}")


def _opening(part: Path) -> str:
    """Give the commands that let Squid's group, which a query keeps, read a part, or the whole archive around it."""
    squid = squid_account()
    group = group_name(squid) if squid else "GROUP"
    files = str(part.parents[1] if part.parent.name.startswith("day=") else part)
    commands = f"{shlex.join(('chgrp', '-R', group, files))} && {shlex.join(('chmod', '-R', 'g+rX', files))}"
    return f"{commands}; the folders above must be open to every account (chmod o+x)"
