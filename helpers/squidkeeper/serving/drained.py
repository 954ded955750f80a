"""Whether a gateway is drained: healthy for nobody, so that new clients go to other
gateways.

A file in the run folder says so. The exporter reads that it is there, and since when;
`squidkeeper drain` makes it. Squid's account can write in that folder, so nothing there
is opened or followed.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

FILE: Final = "drained"


def drained_since(run: Path) -> float | None:
    """Tell since when a gateway is drained, in seconds since 1970; None: it is not."""
    try:
        return (run / FILE).lstat().st_mtime
    except OSError:
        return None


def drain(run: Path) -> bool:
    """Drain the gateway; tell whether it was not.

    An OSError where the file cannot be made.
    """
    run.mkdir(mode=0o755, exist_ok=True)
    try:
        (run / FILE).touch(0o644, exist_ok=False)  # O_EXCL follows no link
    except FileExistsError:
        return False
    return True


def undrain(run: Path) -> bool:
    """Let the gateway be healthy again; tell whether it was drained.

    An OSError where the file cannot be removed.
    """
    with suppress(FileNotFoundError):
        (run / FILE).unlink()
        return True
    return False
