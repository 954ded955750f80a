"""The hunt for secrets finds each that is planted, in every encoding and in every kind
of place.
"""

import base64
import bz2
import gzip
import html
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.leak_hunt import Hunt

VALUE = 'sk-Canary+of/the_Hunt~01?"\\%41&<end>'
CALM = "nothing of interest, canary neither"

ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "upper case": str.upper,
    "lower case": str.lower,
    "swapped case": str.swapcase,
    "percent-encoded": lambda text: quote(text, safe=""),
    "percent-encoded in lower case": lambda text: quote(text, safe="").lower(),
    "percent-encoded twice": lambda text: quote(quote(text, safe=""), safe=""),
    "percent-encoded whole": lambda text: "".join(
        f"%{ord(character):02x}" for character in text
    ),
    "hex": lambda text: text.encode().hex(),
    "hex in upper case": lambda text: text.encode().hex().upper(),
    "escaped": lambda text: "".join(f"\\x{ord(character):02x}" for character in text),
    "JSON": json.dumps,
    "HTML": html.escape,
    "HTML, percent-encoded": lambda text: quote(html.escape(text)),
    "base64, percent-encoded": lambda text: quote(
        base64.b64encode(text.encode()), safe=""
    ),
    **{
        f"base64 after {skip} bytes": lambda text, skip=skip: base64.b64encode(
            b"x" * skip + text.encode()
        ).decode()  # type: ignore[misc]
        for skip in range(6)
    },
    **{
        f"base64 before {more} bytes": lambda text, more=more: base64.b64encode(
            text.encode() + b"x" * more
        ).decode()  # type: ignore[misc]
        for more in range(3)
    },
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(
        f"user:{text}".encode()
    ).decode(),
    "base64 of a swapped case": lambda text: (
        base64.b64encode(text.encode()).decode().swapcase()
    ),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_a_secret_is_found_in_each_encoding(encode: Callable[[str], str]) -> None:
    hunt = Hunt({"canary": VALUE, "other": "sk-another-secret"})
    found = hunt.in_data("the page", f"before {encode(VALUE)} after")
    assert {leak.partition(" (")[0] for leak in found} == {"the page: canary"}, found
    assert VALUE not in str(found)
    assert hunt.in_data("the page", f"before {encode(CALM)} after") == []


@pytest.mark.parametrize(
    "name",
    [
        "log/cache.log",
        "log/access.log.1",
        "state/helpers/slot-01",
        "core",
        "etc/policy/.policy.yaml.new",
    ],
)
def test_a_secret_is_found_in_each_file_of_a_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\0\xff" * 1000 + VALUE.encode() + b"\0")
    (tmp_path / "calm").write_text(CALM)
    assert Hunt({"canary": VALUE}).in_folder(tmp_path) == [f"{file}: canary (plain)"]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_a_secret_is_found_in_a_compressed_log(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / f"access.log.1{suffix}").write_bytes(pack(VALUE.encode()))
    assert Hunt({"canary": VALUE}).in_folder(tmp_path) == [
        f"{tmp_path}/access.log.1{suffix}: canary (plain)"
    ]


def test_a_secret_is_found_in_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "sk-named-canary.txt").write_text(CALM)
    assert Hunt({"canary": "sk-named-canary"}).in_folder(tmp_path) == [
        f"the name of {tmp_path}/sk-named-canary.txt: canary (plain)"
    ]


def test_only_the_listed_files_may_hold_a_secret(tmp_path: Path) -> None:
    for name in ("secrets/token", "other/token"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(VALUE)
    assert Hunt({"canary": VALUE}, ["*/secrets/*"]).in_folder(tmp_path) == [
        f"{tmp_path}/other/token: canary (plain)"
    ]


@pytest.mark.system
def test_a_hunt_in_which_no_gateway_sends_a_canary_fails() -> None:
    asked = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "--canaries",
        f"{__file__}::test_a_secret_is_found_in_the_name_of_a_file",
    ]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout
    assert (
        "canaries: 0 gateways, 0 of them sent 0 requests with canaries: failed"
        in done.stdout
    )
    assert done.returncode == 1


@pytest.mark.system
@pytest.mark.parametrize(
    ("account", "place"),
    [("nobody", "command line"), ("nobody", "environment"), ("root", "command line")],
)
def test_a_secret_is_found_in_a_process_where_others_can_read_it(
    account: str, place: str
) -> None:
    command = [
        "setpriv",
        "--reuid",
        account,
        "--regid",
        "nogroup",
        "--clear-groups",
        "--pdeathsig",
        "KILL",
        "cat",
    ]
    environment = dict(os.environ)
    if place == "environment":
        environment["KEY"] = VALUE
    else:
        command += ["-", VALUE]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        process.stdout.read(1)  # it runs, and no longer as a copy of this process
        found = Hunt({"canary": VALUE}).in_processes()
        process.kill()
    assert len(found) == 1, found
    assert "canary (plain)" in found[0]


def test_a_long_value_is_found_whole_not_by_its_beginning() -> None:
    value = "".join(f"{number:06}" for number in range(5_000))
    hunt = Hunt({"long": value})
    assert hunt.in_data("here", f"before {value} after") == ["here: long (plain)"]
    assert hunt.in_data("here", value[:-1]) == []
