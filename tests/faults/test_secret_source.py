"""A secret's file that another process has a lease on: whoever opens it as usual waits
until that lets go.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ASK = """
import sys
from pathlib import Path
from squidkeeper.base.errors import SecretUnavailable
from squidkeeper.base.faults import Location
from squidkeeper.policy.language.secret_sources import FileSource, NamedSecret
from squidkeeper.serving.credentials import SecretStore
secret = NamedSecret("token", Location("policy.yaml"), FileSource(Path(sys.argv[1])))
store = SecretStore({"token": secret}, {})
try:
    store.get("token")
except SecretUnavailable as error:
    print(error)
"""


def test_a_secret_that_would_have_to_be_waited_for_is_unavailable(
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-that-is-leased")
    descriptor = os.open(file, os.O_RDWR)
    try:
        # SIGWINCH, which nobody minds, for the kernel's question
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, 28)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        asked = subprocess.run(
            [sys.executable, "-c", ASK, file],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    finally:
        os.close(descriptor)
    assert "cannot be read" in asked.stdout
