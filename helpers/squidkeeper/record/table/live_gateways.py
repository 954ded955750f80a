"""Running gateways, asked over ssh: for the lines of a period, or for what a command tells there.

ssh is that of the person who asks: with the account, key and known hosts of ssh_config. A gateway that was taken over
can send anything, for any time: each output goes into a file of bounded size, and has one deadline for the whole.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shutil import disk_usage
from typing import Final

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.record.log.record import format_time

_SECONDS: Final = 300
_AT_ONCE: Final = 16
_TOLD_BYTES: Final = 300  # of an error
_SSH: Final = (
    *("ssh", "-T", "-C", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


@dataclass(frozen=True, slots=True)
class LiveGateways:
    """The gateways of a fleet: by name, where ssh reaches each."""

    addresses: Mapping[str, str]

    def of(self, names: Collection[str]) -> LiveGateways:
        """Choose those with these names; all without one. `UnreadableLog` where the fleet lacks one."""
        if unknown := sorted(set(names) - self.addresses.keys()):
            raise UnreadableLog(f"the fleet has no gateway {unknown[0]!r}: it has {', '.join(self.addresses)}")
        return LiveGateways({name: at for name, at in self.addresses.items() if not names or name in names})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has printed on a gateway, its exit status, and why there is nothing of it."""

    gateway: str
    output: Path
    status: int
    problem: str = ""


def ask(gateways: LiveGateways, words: Sequence[str], folder: Path) -> Iterator[Answer]:
    """Run a command of squidkeeper on all gateways at once; what each prints goes into a file in the folder."""
    most_bytes = disk_usage(folder).free // 2 // len(gateways.addresses)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = gateways.addresses.items()
        yield from pool.map(lambda one: _ask(one[0], one[1], words, folder, most_bytes), asked)


def _ask(gateway: str, address: str, words: Sequence[str], folder: Path, most_bytes: int) -> Answer:
    there = shlex.join(("sudo", "-n", "squidkeeper", *words))
    command = ("prlimit", f"--fsize={most_bytes}", *_SSH, "--", address, there)
    output, errors = folder / f"{gateway}.out", folder / f"{gateway}.err"
    with output.open("wb") as out, errors.open("wb") as told:
        try:
            status = subprocess.run(  # noqa: S603 - the person's own ssh
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=told, timeout=_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return Answer(gateway, output, -1, f"{gateway}: no whole answer within {_SECONDS} seconds")
    if status == 0 or output.stat().st_size:
        return Answer(gateway, output, status)
    with errors.open("rb") as found:
        why = " ".join(found.read(_TOLD_BYTES).decode("utf-8", "replace").split()) or f"status {status}"
    return Answer(gateway, output, status, f"{gateway} ({address}): {why}")


def fetched_lines(
    gateways: LiveGateways, folder: Path, since: datetime | None, until: datetime | None
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Fetch the lines of a period; give the files, and what is missing. `UnreadableLog` if no gateway has answered."""
    if since is None:
        raise UnreadableLog("--fleet needs --since, such as --since 1h: each gateway sends its lines of that time")
    times = ["--since", format_time(since), *(["--until", format_time(until)] if until else [])]
    answers = [*ask(gateways, ("log", "--json", "--connects", *times), folder)]
    missing = [
        one.problem or f"{one.gateway}: status {one.status}, so lines may be missing" for one in answers if one.status
    ]
    if all(one.problem for one in answers):
        raise UnreadableLog("no gateway has answered: " + "; ".join(missing))
    return tuple(one.output for one in answers if not one.problem), (*missing,)
