"""Values that a program prints.

Whoever writes the policy must not run any program as the account of `squidkeeper
secrets`: only root's own ones, in the folder that root has named at the installation.
"""

import asyncio
import json
import os
import signal
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import SourceFailed
from squidkeeper.base.squid_account import changed_by_others
from squidkeeper.policy.language.secret_sources import CommandSource
from squidkeeper.services.fetching.endpoints import parse_expires_at
from squidkeeper.serving.credentials.fetched_values import FetchedValue

_OUTPUT_BYTES: Final = 64 * 1024
_END_SECONDS: Final = 2
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HANDED_ON: Final = "CREDENTIALS_DIRECTORY"  # systemd's credentials of this service


async def run_command(
    source: CommandSource, commands: Path, now: float
) -> FetchedValue:
    """Run the program and read its standard output; `SourceFailed` without a word of
    what it prints.
    """
    program = checked_program(source.run[0], commands)
    output = await _output(program, source)
    return parse_output(output, now)


def parse_output(output: bytes, now: float) -> FetchedValue:
    """Read a value: the text itself or, where it starts with a brace, JSON with `value`
    and `expires_at`.
    """
    if not output.startswith(b"{"):
        return FetchedValue(
            output.decode("latin-1").removesuffix("\n").removesuffix("\r")
        )
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("value"), str):
        raise SourceFailed(
            "the output starts with '{' and is not JSON, expected a text 'value' in it"
        )
    return FetchedValue(
        answer["value"], parse_expires_at(answer.get("expires_at"), now)
    )


def checked_program(name: str, commands: Path) -> Path:
    """Resolve every link, then require a program of root's below the folder of commands
    that nobody else can change.
    """
    try:
        folder = commands.resolve(strict=True)
        program = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "too many links"
        raise SourceFailed(
            f"the program is not in the folder {commands}: {reason}"
        ) from error
    if folder not in program.parents:
        raise SourceFailed(
            f"the program is {program}, expected one in the folder {folder}"
        )
    for path in (program, *program.parents):
        if changed_by_others(path):
            raise SourceFailed(
                f"{path} can be changed by others than root: chown root {path} && chmod go-w {path}"
            )
    if not stat.S_ISREG(program.stat().st_mode) or not os.access(program, os.X_OK):
        raise SourceFailed(
            f"{program} cannot be executed, expected a program (chmod 0755)"
        )
    return program


async def _output(program: Path, source: CommandSource) -> bytes:
    """Run a program in a process group of its own, which ends with it or at the
    timeout.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *source.run[1:],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(os.environ),
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise SourceFailed(
            f"{program} cannot be started: {getattr(error, 'strerror', None) or 'is it a program?'}"
        ) from error
    try:
        async with asyncio.timeout(source.timeout_seconds):
            output = await _bounded(process)
            status = await process.wait()
    except TimeoutError:
        raise SourceFailed(
            f"{program} has not ended after {source.timeout_seconds} s (timeout)"
        ) from None
    finally:
        await _end(process)
    if status:
        ended = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise SourceFailed(
            f"{program} ended with {ended}, expected 0 and the value on standard output"
        )
    return output


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the process group, and wait for the end of the program.

    asyncio sees that end only once the output has been read. A descendant in another
    process group may hold it open.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            while process.stdout and await process.stdout.read(_OUTPUT_BYTES):
                pass
            await process.wait()


async def _bounded(process: asyncio.subprocess.Process) -> bytes:
    output = b""
    while process.stdout and (data := await process.stdout.read(_OUTPUT_BYTES)):
        output += data
        if len(output) > _OUTPUT_BYTES:
            raise SourceFailed(
                f"the output is longer than {_OUTPUT_BYTES >> 10} KB, expected a value"
            )
    return output


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    kept = {_HANDED_ON: ours[_HANDED_ON]} if _HANDED_ON in ours else {}
    return {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/", **kept}
