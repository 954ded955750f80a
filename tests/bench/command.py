"""What the benchmarks' commands have in common."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def options_of(text: str | None, **numbers: int) -> argparse.ArgumentParser:
    """Make a parser of options: those that count something, by their defaults, and
    where to write the figures.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in numbers.items():
        parser.add_argument(
            f"--{name}",
            metavar="N",
            type=at_least_one,
            default=default,
            help=f"default {default:,}",
        )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write the figures here too"
    )
    return parser


def at_least_one(text: str) -> int:
    """Parse an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def require(programs: Iterable[str]) -> None:
    """End where this is not root, or a program is missing that nothing can be measured
    without.
    """
    if os.geteuid():
        sys.exit(
            "run it as root: it makes a network namespace and starts Squid, which changes to its own account"
        )
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = "squid-openssl nginx-light wrk openssl iproute2"
        sys.exit(f"not there: {', '.join(missing)}; on Debian: apt install {packages}")


def written(figure: float) -> str:
    """Write a figure with three digits, or all of those ahead of its point."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Write the median of the rounds, and in brackets the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def show(number: int, rounds: int, what: str) -> None:
    """Show on a terminal how far it is; the round 0 warms up and does not count."""
    if sys.stderr.isatty():
        round_ = f"round {number}/{rounds}" if number else "warming up"
        print(f"\r{round_} {what:<60}", end="" if what else "\n", file=sys.stderr)


def save(file: Path | None, figures: Mapping[str, object]) -> None:
    """Write the figures, with what they were taken on, where a file is named."""
    if file:
        machine = {
            "cpus": os.cpu_count(),
            "python": sys.version.split()[0],
            "kernel": os.uname().release,
        }
        if shutil.which("squid"):
            machine["squid"] = subprocess.run(
                ["squid", "-v"], check=True, capture_output=True, text=True
            ).stdout[:40]
        file.write_text(json.dumps({"machine": machine, **figures}, indent=1) + "\n")


def table(
    title: str, figures: Mapping[str, Mapping[str, float | str]]
) -> Iterator[str]:
    """Write a row for each name, with a column for each figure that the first
    one has.
    """
    columns = list(next(iter(figures.values())))
    yield (
        f"| {title} | "
        + " | ".join(column.replace("_", " ") for column in columns)
        + " |"
    )
    yield "|---" * (len(columns) + 1) + "|"
    for name, found in figures.items():
        yield (
            f"| {name} | "
            + " | ".join(_cell(found.get(column, "–")) for column in columns)
            + " |"
        )


def _cell(figure: float | str) -> str:
    return figure if isinstance(figure, str) else written(figure)


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder that Squid's account can enter."""
    with tempfile.TemporaryDirectory(
        prefix="squidkeeper-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")
    ) as name:
        Path(name).chmod(0o755)
        yield Path(name)
