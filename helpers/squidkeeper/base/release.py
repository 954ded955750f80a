"""Which squidkeeper this is: its version, and the revision of the sources that it was
installed from, where install.sh or the image knows it.
"""

import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

# beside the environment of the program: `Layout.revision`
_REVISION: Final = Path(sys.prefix).parent / "revision"


def release() -> str:
    """Return the version, such as `0.1.0 (99ccf0e4b1c2)`."""
    revision = ""
    with suppress(OSError):
        revision = _REVISION.read_text().strip()
    number = version("squidkeeper")
    return f"{number} ({revision})" if revision else number
