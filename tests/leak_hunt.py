"""The search for secrets where none may be: in files, processes, pages and output, as
they are or encoded.

Data is made plain first: in lower case, with percent-encoding, `\\x` escapes and HTML
entities undone. One comparison then finds a value in any case: plain, hexadecimal, and
base64 wherever it stands in what was encoded.
"""

import base64
import bz2
import fnmatch
import gzip
import html
import lzma
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

import re2

SHORTEST = 8  # characters: a shorter value is found by chance
_BEGINNING = 16  # bytes of each form that are looked for first
_UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_ROUNDS = 4  # how often a value may be encoded
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_READ_PROCESSES = "for f in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do echo @$f; cat $f; done 2>/dev/null"
NOBODY = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")


class Hunt:
    """The hunt for named secrets.

    What it finds is told by the secret's name and its form, never by its value.
    """

    def __init__(self, secrets: Mapping[str, str], allowed: Iterable[str] = ()) -> None:
        """Hunt for these values; `allowed` are patterns of the files in which a value
        must be.
        """
        self._forms = {
            (name, form): data
            for name, value in secrets.items()
            if len(value) >= SHORTEST
            for form, data in forms(value.encode("latin-1"))
        }
        self._beginnings = _any_of({data[:_BEGINNING] for data in self._forms.values()})
        self._allowed = tuple(allowed)

    def in_data(self, place: str, data: bytes | str) -> list[str]:
        """Name each secret that is in the data."""
        plain = made_plain(data.encode() if isinstance(data, str) else data)
        versions = {
            "plain": plain,
            "hex": plain,
            "base64": plain.replace(b"-", b"+").replace(b"_", b"/"),
        }
        if not any(
            self._beginnings.search(version) for version in {*versions.values()}
        ):
            return []
        return [
            f"{place}: {name} ({form})"
            for (name, form), value in self._forms.items()
            if value in versions[form.split()[0]]
        ]

    def in_folder(self, folder: Path) -> list[str]:
        """Name each secret in the name or the content of a file under the folder."""
        return [found for file in self._files(folder) for found in self._in_file(file)]

    def _files(self, folder: Path) -> Iterator[Path]:
        for directory, folders, names in os.walk(folder):
            # the program, which holds no data
            folders[:] = [name for name in folders if not name.startswith("venv-")]
            yield from (Path(directory) / name for name in names)

    def _in_file(self, file: Path) -> list[str]:
        found = self.in_data(f"the name of {file}", file.name)
        if file.is_symlink() or not file.is_file() or self._is_allowed(file):
            return found
        unpack = _UNPACKERS.get(file.suffix, bytes)
        return found + self.in_data(str(file), unpack(file.read_bytes()))

    def _is_allowed(self, file: Path) -> bool:
        return any(fnmatch.fnmatch(str(file), pattern) for pattern in self._allowed)

    def in_processes(self) -> list[str]:
        """Name each secret that any account can read in the command line or the
        environment of a process.
        """
        done = subprocess.run(
            [*NOBODY, "sh", "-c", _READ_PROCESSES],
            capture_output=True,
            env={},
            check=False,
        )
        assert b"@/proc/1/cmdline" in done.stdout
        parts = done.stdout.split(b"@/proc/")
        return [
            found
            for part in parts
            for found in self.in_data(f"/proc/{part[:20].split()[:1]}", part)
        ]


def _any_of(values: Iterable[bytes]) -> re2._Regexp:
    """Return an expression for any of these: one pass over the data.

    One search for each took a hundred times as long.

    With long values RE2 runs out of memory for its automaton, and is slower than that.
    """
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes
    options.max_mem = 256 << 20  # at most
    return re2.compile(b"|".join(map(re2.escape, values)), options)


def forms(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the forms of a value that are looked for in plain data: as it is,
    hexadecimal, base64 by its alignment.
    """
    yield "plain", made_plain(raw)
    yield "hex", raw.hex().encode()
    for skip in range(3):  # how many of its bytes the group before it takes
        yield f"base64 {skip}", base64.b64encode(raw[skip:]).rstrip(b"=")[:-1].lower()


def made_plain(data: bytes) -> bytes:
    """Return data in lower case, with its encodings undone."""
    data = data.lower()
    for _ in range(_ROUNDS):
        before = data
        data = _ESCAPE.sub(
            lambda found: bytes.fromhex(found[1].decode()), unquote_to_bytes(data)
        ).lower()
        if b"&" in data:
            data = html.unescape(data.decode("latin-1")).encode("latin-1", "replace")
        data = data.replace(b'\\"', b'"').replace(b"\\\\", b"\\")
        if data == before:
            break
    return data
