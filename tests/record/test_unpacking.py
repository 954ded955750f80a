"""Of a compressed log that is damaged, all that is ahead of the damage is read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from squidkeeper.base.errors import DamagedLog
from squidkeeper.record.log.log_files import open_log

CONTENT = b"".join(os.urandom(30).hex().encode() + b"\n" for _ in range(20_000))
PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": partial(bz2.compress, compresslevel=1),
    ".xz": lzma.compress,
}
PACKED = {suffix: pack(CONTENT) for suffix, pack in PACKS.items()}


def read(file: Path, packed: bytes) -> tuple[bytes, str]:
    file.write_bytes(packed)
    content = b""
    with open_log(file) as log:
        try:
            while block := log.read(1024 * 1024):
                content += block
        except DamagedLog as error:
            return content, str(error)
    return content, ""


@pytest.mark.parametrize("suffix", PACKS)
def test_files_that_follow_each_other_and_padding_are_no_damage(tmp_path: Path, suffix: str) -> None:
    packed = PACKED[suffix]
    assert read(tmp_path / f"log{suffix}", packed) == (CONTENT, "")
    assert read(tmp_path / f"log{suffix}", packed + packed + b"\0" * 512) == (2 * CONTENT, "")
    assert read(tmp_path / f"log{suffix}", PACKS[suffix](b"")) == (b"", "")


@pytest.mark.parametrize("suffix", PACKS)
def test_damage_at_the_end_costs_nothing(tmp_path: Path, suffix: str) -> None:
    packed = PACKED[suffix]
    wrong_sum = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]
    for damaged in (packed[:-4], wrong_sum, packed + b"garbage"):
        content, damage = read(tmp_path / f"log{suffix}", damaged)
        assert (content == CONTENT, bool(damage)) == (True, True)


@pytest.mark.parametrize("suffix", PACKS)
def test_damage_in_the_middle_costs_what_follows(tmp_path: Path, suffix: str) -> None:
    packed = PACKED[suffix]
    content, damage = read(tmp_path / f"log{suffix}", packed[: len(packed) // 2])
    assert CONTENT.startswith(content)
    assert (len(content) > len(CONTENT) // 4, damage) == (True, "it ends too early")
    middle = len(packed) // 2
    changed = packed[:middle] + bytes([packed[middle] ^ 0x40]) + packed[middle + 1 :]
    content, damage = read(tmp_path / f"log{suffix}", changed)
    assert content[: len(CONTENT) // 4] == CONTENT[: len(CONTENT) // 4]
    assert damage


@pytest.mark.parametrize("suffix", PACKS)
def test_a_file_without_content_is_damaged(tmp_path: Path, suffix: str) -> None:
    for packed in (b"", b"garbage", CONTENT):
        content, damage = read(tmp_path / f"log{suffix}", packed)
        assert (content, bool(damage)) == (b"", True)
