"""Which processes belong to this gateway.

Another gateway on the same machine can have the same account, commands, paths and
process numbers: in a container, or below another root.
"""

import os
import re
from pathlib import Path
from typing import Final

# NSpid in proc_pid_status(5): the number in each PID namespace, ours first
_NESTED: Final = re.compile(r"^NSpid:\s*\d+\s+\d", re.MULTILINE)


def is_own(pid: int, *shared: Path, if_hidden: bool = False) -> bool:
    """Return whether a process is of this PID namespace, and finds the same files and
    folders at these paths as this process.

    A service of systemd has a mount namespace of its own. So the paths are compared,
    and not the mount namespaces. `if_hidden` is the answer where this account may not
    see what the process finds there.
    """
    process = Path("/proc", str(pid))
    try:
        if _NESTED.search((process / "status").read_text()):
            return False
        return all(_finds(process / "root", path) for path in shared)
    except PermissionError:
        return if_hidden
    except OSError:  # it has ended, or has no such file
        return False


def _finds(root: Path, path: Path) -> bool:
    here = path.resolve()
    return os.path.samestat(here.stat(), (root / here.relative_to("/")).stat())
