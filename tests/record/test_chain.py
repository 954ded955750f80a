"""The chain of an archive: entries, torn lines, numbers, the head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from squidkeeper.base.errors import ArchiveInUse
from squidkeeper.record.chain.chain import (
    CHAIN,
    HEAD,
    append_entry,
    read_chain,
    seal_head,
    unknown_parts,
    write_lock,
)
from squidkeeper.record.chain.entries import (
    FIRST_PREVIOUS,
    ArchivedPart,
    ArchivedSource,
    ChainEntry,
    EntryKind,
    digest,
)
from squidkeeper.record.chain.keys import ArchiveKey

KEY = ArchiveKey.new()


def entry_of(number: int, day: str = "2026-11-25") -> ChainEntry:
    part = ArchivedPart(
        path=f"day={day}/part-{number:08d}.parquet", sha256="ab" * 32, bytes=10, rows=2
    )
    source = ArchivedSource(
        name=f"access.log.{number}",
        first_line_sha256=f"{number:064x}",
        bytes=100,
        lines=2,
    )
    return ChainEntry(kind=EntryKind.PARTS, source=source, parts=(part,))


def test_an_entry_is_read_as_it_was_appended(tmp_path: Path) -> None:
    first = append_entry(tmp_path, entry_of(1), KEY)
    second = append_entry(tmp_path, entry_of(2))
    chain = read_chain(tmp_path)
    assert chain.entries == (first, second)
    lines = (tmp_path / CHAIN).read_bytes().splitlines()
    assert [first.number, second.number] == [1, 2]
    assert [first.previous, second.previous] == [FIRST_PREVIOUS, digest(lines[0])]
    assert [chain.archived_bytes(f"{number:064x}") for number in (1, 2, 3)] == [
        100,
        100,
        0,
    ]
    assert (tmp_path / CHAIN).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("torn", [b"{", b'{"number":2,"previous":"', b"\0" * 10_000])
def test_a_torn_last_line_is_no_entry_and_is_cut_off(
    tmp_path: Path, torn: bytes
) -> None:
    first = append_entry(tmp_path, entry_of(1))
    with (tmp_path / CHAIN).open("ab") as file:
        file.write(torn)
    assert read_chain(tmp_path).entries == (first,)
    second = append_entry(tmp_path, entry_of(2))
    assert read_chain(tmp_path).entries == (first, second)
    assert read_chain(tmp_path).damaged == ()
    assert (tmp_path / CHAIN).read_bytes().endswith(b"}\n")


def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        append_entry(tmp_path, entry_of(number))
    lines = (tmp_path / CHAIN).read_bytes().splitlines(keepends=True)
    (tmp_path / CHAIN).write_bytes(lines[0] + b"garbage\n" + lines[2])
    chain = read_chain(tmp_path)
    assert [entry.number for entry in chain.entries] == [1, 3]
    assert chain.damaged[0].startswith(
        f"{tmp_path / CHAIN}:2: this is no entry of a chain"
    )
    assert chain.next_number == 4


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "day=2026-11-25/../../x.parquet",
        "day=2026-11-25/part-1.parquet",
        "part-00000001.parquet",
    ],
)
def test_the_path_of_a_part_never_leads_out_of_the_archive(
    tmp_path: Path, path: str
) -> None:
    entry = entry_of(1)
    append_entry(tmp_path, replace(entry, parts=(replace(entry.parts[0], path=path),)))
    assert read_chain(tmp_path).entries == ()
    assert "this is no part's path" in read_chain(tmp_path).damaged[0]


@pytest.mark.parametrize("size", [-1, 2**63])
def test_the_size_of_a_part_is_one_that_a_file_can_have(
    tmp_path: Path, size: int
) -> None:
    entry = entry_of(1)
    append_entry(tmp_path, replace(entry, parts=(replace(entry.parts[0], bytes=size),)))
    assert read_chain(tmp_path).entries == ()
    assert "$.parts[0].bytes" in read_chain(tmp_path).damaged[0]


def test_a_tombstone_takes_its_parts_out(tmp_path: Path) -> None:
    append_entry(tmp_path, entry_of(1))
    append_entry(tmp_path, entry_of(2, "2026-11-26"))
    append_entry(
        tmp_path,
        ChainEntry(
            kind=EntryKind.TOMBSTONE,
            parts=entry_of(1).parts,
            reason="older than 90 days",
        ),
    )
    chain = read_chain(tmp_path)
    assert list(chain.parts) == ["day=2026-11-26/part-00000002.parquet"]
    # a log that is archived is not archived again after its day is gone
    assert chain.archived_bytes(f"{1:064x}") == 100


def test_a_chain_continues_itself_and_what_it_was_but_no_longer_one(
    tmp_path: Path,
) -> None:
    digests = [read_chain(tmp_path).digest]
    chains = [read_chain(tmp_path)]
    for number in (1, 2):
        append_entry(tmp_path, entry_of(number))
        chains.append(read_chain(tmp_path))
        digests.append(chains[-1].digest)
    found = [[chain.continues(digest) for digest in ("", *digests)] for chain in chains]
    assert found == [
        [False, True, False, False],
        [False, True, True, False],
        [False, True, True, True],
    ]


def test_two_runs_exclude_each_other(tmp_path: Path) -> None:
    with (
        write_lock(tmp_path),
        pytest.raises(ArchiveInUse, match="another run"),
        write_lock(tmp_path),
    ):
        pass
    with write_lock(tmp_path):
        pass


def test_parts_that_no_entry_names_are_unknown(tmp_path: Path) -> None:
    entry = append_entry(tmp_path, entry_of(1), KEY)
    others = tuple(
        f"day=2026-11-25/part-{name}.parquet" for name in ("00000001-0009", "00000003")
    )
    for name in (entry.parts[0].path, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert unknown_parts(tmp_path, read_chain(tmp_path)) == others


def test_a_number_is_never_used_twice_where_the_head_knows_a_higher_one(
    tmp_path: Path,
) -> None:
    append_entry(tmp_path, entry_of(1), KEY)
    append_entry(tmp_path, entry_of(2), KEY)
    (tmp_path / CHAIN).write_bytes(b"")
    assert append_entry(tmp_path, entry_of(3), KEY).number == 3


def test_the_head_is_that_of_the_last_line(tmp_path: Path) -> None:
    append_entry(tmp_path, entry_of(1), KEY)
    head = seal_head(tmp_path, KEY)
    assert (head.number, head.digest) == (
        1,
        digest((tmp_path / CHAIN).read_bytes().rstrip(b"\n")),
    )
    assert (tmp_path / HEAD).stat().st_mode & 0o777 == 0o640


def test_a_key_never_shows_itself() -> None:
    assert "PRIVATE" not in repr(KEY)
    assert ArchiveKey.parse(KEY.pem).public == KEY.public
