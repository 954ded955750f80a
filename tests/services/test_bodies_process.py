"""The process that inspects bodies: its memory, and what it loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A block above the freed ones is what keeps them with the process.
LONG_BODIES = """
from pathlib import Path
from squidkeeper.services.bodies.process import give_large_blocks_back

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024

give_large_blocks_back()
bytes(30 << 20)
before = megabytes()
bodies = [b"x" * (20 << 20) for _ in range(3)]
kept = [b"x" * 100_000 for _ in range(100)]
del bodies
print(megabytes() - before)
"""


@pytest.mark.system
def test_the_memory_of_long_bodies_goes_when_they_do() -> None:
    ended = subprocess.run([sys.executable, "-c", LONG_BODIES], capture_output=True, text=True, check=True, timeout=60)
    assert 0 < int(ended.stdout) < 30, "megabytes: what is kept has ten"


LOADED = """
import sys
import squidkeeper.services.bodies.process
print([name for name in sys.modules if "usage" in name or name in ("sqlite3", "squidkeeper.services.bodies.answers")])
"""


@pytest.mark.system
def test_what_counts_usage_is_loaded_only_where_a_request_is_metered() -> None:
    ended = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "[]\n"
