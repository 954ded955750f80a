"""What the benchmarks' commands have in common."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable


def at_least_one(text: str) -> int:
    """Parse an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def require(programs: Iterable[str]) -> None:
    """End where this is not root, or a program is missing that nothing can be measured without."""
    if os.geteuid():
        sys.exit("run it as root: it makes a network namespace and starts Squid, which changes to its own account")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = "squid-openssl nginx-light wrk openssl iproute2"
        sys.exit(f"not there: {', '.join(missing)}; on Debian: apt install {packages}")


def written(figure: float) -> str:
    """Write a figure with three digits, or all of those ahead of its point."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def show(number: int, rounds: int, what: str) -> None:
    """Show on a terminal how far it is; the round 0 warms up and does not count."""
    if sys.stderr.isatty():
        round_ = f"round {number}/{rounds}" if number else "warming up"
        print(f"\r{round_} {what:<60}", end="" if what else "\n", file=sys.stderr)
