"""Where the gateway is whose program this is, and the folders that its helpers use."""

import os
import sys
from pathlib import Path
from stat import S_ISDIR, S_ISVTX
from typing import Final

# Each as documented, and below a root.
PREFIX: Final = Path("/opt/squidkeeper")
POLICY: Final = ("/etc/squidkeeper/policy", "etc/policy")
STATE: Final = ("/var/lib/squidkeeper", "state")
RUN: Final = ("/run/squidkeeper", "run")
BODIES_FOLDER: Final = "bodies"  # of the state folder
TRANSPARENT_FOLDER: Final = "transparent"  # likewise
_REVISIONS_FOLDER: Final = "revisions"  # likewise
# the root of the gateway that commands are about, as in a container
ROOT_VARIABLE: Final = "SQUIDKEEPER_ROOT"


def own_root() -> Path | None:
    """Return the root of the gateway whose program this is; None for the system's, and
    for no gateway's.
    """
    for program in (
        Path(os.path.abspath(sys.argv[0])),
        Path(sys.prefix).parent / "bin/squidkeeper",
    ):
        # as install.sh links it
        if os.path.islink(program) and os.readlink(program).startswith("../venv-"):
            root = program.parents[1]
            return None if root == PREFIX else root
    return None


def default_root() -> Path | None:
    """Return the root of the gateway that commands are about without options."""
    root = os.environ.get(ROOT_VARIABLE)
    return Path(root) if root else own_root()


def placed(place: tuple[str, str], root: Path | None) -> Path:
    """Return a place of the system's gateway, or of the one below a root."""
    usual, below = place
    return root / below if root else Path(usual)


def publisher_folder(state: Path) -> Path:
    """Name the folder of the account that publishes the policy: it is beside the state
    folder.
    """
    return Path(f"{os.path.abspath(state)}-published")


def revisions_folder(state: Path) -> Path:
    """Return where a gateway has what is in force, and was: in the folder of the
    account that publishes it, or in the state folder where there is no such account.
    """
    own = publisher_folder(state)
    return own if _can_be_trusted(own) else state / _REVISIONS_FOLDER


def lists_folder(state: Path) -> Path:
    """Return where whoever publishes the policy keeps compiled lists."""
    own = publisher_folder(state)
    return (own if _can_be_trusted(own) else state) / "lists"


def _can_be_trusted(folder: Path) -> bool:
    """Whether a folder is there, in one where not every account can make one."""
    try:
        around = os.stat(folder.parent)
        return S_ISDIR(os.lstat(folder).st_mode) and not around.st_mode & S_ISVTX
    except OSError:
        return False


def sessions_folder(state: Path) -> Path:
    """Name the folder of the account that makes sessions: it is beside the state
    folder.
    """
    return Path(f"{os.path.abspath(state)}-sessions")
