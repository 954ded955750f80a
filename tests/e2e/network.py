"""The network of the tests: that of `squidkeeper demo`, and the packet filter of the
walkthrough.
"""

import os
import re
import subprocess
from pathlib import Path

from squidkeeper.operate.demo.network import VirtualMachine, internet, run

from .reply import Reply

__all__ = ["VirtualMachine", "filter_vm", "inside", "internet", "run", "unfilter_vm"]

WALKTHROUGH = Path(__file__).parents[2] / "squid/WALKTHROUGH.md"


def inside(
    vm: VirtualMachine, proxy: str, *command: str | Path, **environment: str
) -> Reply:
    """Run a command in the VM as an agent would; its exit status and what it printed,
    as a Reply.
    """
    settings = {
        **dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "http_proxy"), proxy),
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        vm.command(*command),
        env={**settings, "HOME": "/", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return Reply(done.returncode, (), done.stdout)


def filter_vm(port: int) -> None:
    """Load the rules of the walkthrough, for a proxy on this port."""
    [rules] = re.findall(
        r"^table inet squidkeeper \{\n.*?^\}\n",
        WALKTHROUGH.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    unfilter_vm()
    run("nft", rules.replace("dport 3129", f"dport {port}"))


def unfilter_vm() -> None:
    """Leave only the rules of slicer: the VM can send anything to the gateway."""
    run("nft", "delete table inet squidkeeper", check=False)
