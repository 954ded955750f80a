"""The network of the tests: that of `squidkeeper demo`, and the packet filter of the walkthrough."""

import re
from pathlib import Path

from squidkeeper.operate.demo.network import VirtualMachine, internet, run

__all__ = ["VirtualMachine", "filter_vm", "internet", "run", "unfilter_vm"]

WALKTHROUGH = Path(__file__).parents[2] / "squid/WALKTHROUGH.md"


def filter_vm(port: int) -> None:
    """Load the rules of the walkthrough, for a proxy on this port."""
    [rules] = re.findall(r"^table inet squidkeeper \{\n.*?^\}\n", WALKTHROUGH.read_text(), re.MULTILINE | re.DOTALL)
    unfilter_vm()
    run("nft", rules.replace("dport 3129", f"dport {port}"))


def unfilter_vm() -> None:
    """Leave only the rules of slicer: the VM can send anything to the gateway."""
    run("nft", "delete table inet squidkeeper", check=False)
