"""Where the gateway is whose program this is, and the folders that its helpers use."""

import os
import sys
from pathlib import Path
from typing import Final

# Each as documented, and below a root.
PREFIX: Final = Path("/opt/squidkeeper")
POLICY: Final = ("/etc/squidkeeper/policy", "etc/policy")
STATE: Final = ("/var/lib/squidkeeper", "state")
RUN: Final = ("/run/squidkeeper", "run")
BODIES_FOLDER: Final = "bodies"  # of the state folder
TRANSPARENT_FOLDER: Final = "transparent"  # likewise
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
