"""`report` and `why` hold 500 MB at most, whatever the length of the log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.access_logs import write_log

LINES = 1_600_000
MOST_KILOBYTES = 500_000
PEAK = """
import resource, sys
from squidkeeper.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


@pytest.mark.system
@pytest.mark.long
def test_a_long_log_is_read_within_500_megabytes(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write_log(log, LINES, ("0123456789ab",))
    for command in ("report", "why"):
        run = subprocess.run(
            [sys.executable, "-c", PEAK, command, str(log), "--policy", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,  # `why` exits with 1 where something failed
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        assert run.stdout
        assert int(run.stderr.split()[-1]) < MOST_KILOBYTES, command
