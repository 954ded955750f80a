"""What an attacker with every right to an archive, but not to its key, cannot hide."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from squidkeeper.cli import main
from squidkeeper.record.chain.chain import (
    CHAIN,
    HEAD,
    append_entry,
    read_chain,
    seal_head,
)
from squidkeeper.record.chain.entries import ChainEntry, EntryKind, format_entry
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.chain.places import PLACING, FolderPlace
from squidkeeper.record.chain.verification import KeptHead, Verification
from squidkeeper.record.chain.verification import verify as verify_archive
from tests.archives import add_source, make_archive, write_part

KEY, ATTACKERS = ArchiveKey.new(), ArchiveKey.new()
ONE = "day=2026-11-21/part-00000001.parquet"
TWO = "day=2026-11-22/part-00000002.parquet"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    make_archive(tmp_path / "archive", KEY)
    return tmp_path / "archive"


def verify(archive: Path, *kept: KeptHead, key: ArchiveKey = KEY) -> Verification:
    return verify_archive(FolderPlace(archive), [key.public], kept)


def codes(archive: Path, *kept: KeptHead) -> list[tuple[str, str]]:
    return [(str(fault.code), fault.place) for fault in verify(archive, *kept).faults]


def lines_of(archive: Path) -> list[bytes]:
    return (archive / CHAIN).read_bytes().splitlines(keepends=True)


def write_lines(archive: Path, lines: list[bytes]) -> None:
    (archive / CHAIN).write_bytes(b"".join(lines))


def test_an_archive_that_nobody_changed_has_no_fault(archive: Path) -> None:
    result = verify(archive)
    assert result.faults == ()
    assert result.notes == ()
    assert (len(result.entries), result.parts) == (3, 6)
    assert result.head is not None
    assert result.head.number == 3


def change_a_byte(archive: Path) -> None:
    content = (archive / ONE).read_bytes()
    (archive / ONE).write_bytes(b"L" + content[1:])


def cut_a_part(archive: Path) -> None:
    (archive / ONE).write_bytes((archive / ONE).read_bytes()[:-1])


def remove_a_line(archive: Path) -> None:
    lines = (archive / ONE).read_bytes().splitlines(keepends=True)
    (archive / ONE).write_bytes(b"".join(lines[1:]))


def remove_a_part(archive: Path) -> None:
    (archive / ONE).unlink()


def remove_a_day(archive: Path) -> None:
    shutil.rmtree((archive / ONE).parent)


def swap_two_parts(archive: Path) -> None:
    one, two = (archive / ONE).read_bytes(), (archive / TWO).read_bytes()
    (archive / ONE).write_bytes(two)
    (archive / TWO).write_bytes(one)


def link_a_part(archive: Path) -> None:
    elsewhere = archive.parent / "elsewhere"
    (archive / ONE).rename(elsewhere)
    (archive / ONE).symlink_to(elsewhere)


def replace_a_part_by_a_pipe(archive: Path) -> None:
    (archive / ONE).unlink()
    os.mkfifo(archive / ONE)


def add_a_part(archive: Path) -> None:
    write_part(archive, 2, "2026-11-25", b"forged\n")


def add_a_part_with_the_next_number(archive: Path) -> None:
    write_part(archive, 4, "2026-11-25", b"forged\n")


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (change_a_byte, [("part-changed", ONE)]),
        (cut_a_part, [("part-cut", ONE)]),
        (remove_a_line, [("part-cut", ONE)]),
        (remove_a_part, [("part-missing", ONE)]),
        (remove_a_day, [("part-missing", ONE)]),
        (swap_two_parts, [("part-swapped", ONE), ("part-swapped", TWO)]),
        (link_a_part, [("part-missing", ONE)]),
        (replace_a_part_by_a_pipe, [("part-missing", ONE)]),
        (add_a_part, [("part-unknown", "day=2026-11-25/part-00000002.parquet")]),
        (
            add_a_part_with_the_next_number,
            [("part-unknown", "day=2026-11-25/part-00000004.parquet")],
        ),
    ],
)
def test_what_is_done_to_parts_is_found(
    archive: Path, attack: Callable[[Path], None], expected: list[tuple[str, str]]
) -> None:
    attack(archive)
    assert codes(archive) == expected


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda one, two, three: [
                one,
                two.replace(b'"rows":5', b'"rows":4', 1),
                three,
            ],
            ["line-changed:2", "line-out-of-place:3", "numbers-missing"],
        ),
        (
            lambda one, _, three: [one, three],
            ["line-out-of-place:2", "numbers-missing", *["part-unknown"] * 2],
        ),
        (
            lambda one, two, three: [two, one, three],
            [f"line-out-of-place:{number}" for number in (1, 2, 3)],
        ),
        (lambda *lines: [*lines, lines[0]], ["line-out-of-place:4"]),
    ],
    ids=["changed", "removed", "in another order", "repeated"],
)
def test_what_is_done_to_lines_of_the_chain_is_found(
    archive: Path, edit: Callable[..., list[bytes]], expected: list[str]
) -> None:
    write_lines(archive, edit(*lines_of(archive)))
    faults = verify(archive).faults
    found = [
        f"{one.code}{one.place.removeprefix(CHAIN) if one.place.startswith(CHAIN) else ''}"
        for one in faults
    ]
    assert found[: len(expected)] == expected
    assert {fault.text for fault in faults if fault.code == "numbers-missing"} <= {
        "entry 2 is missing"
    }


def test_a_chain_that_lost_its_end_is_found_by_its_head(archive: Path) -> None:
    write_lines(archive, lines_of(archive)[:2])
    shutil.rmtree(archive / "day=2026-11-24")
    (archive / "day=2026-11-23/part-00000003.parquet").unlink()
    assert codes(archive) == [("head-mismatch", HEAD)]


def test_an_entry_without_a_signature_is_found_and_removes_nothing(
    archive: Path,
) -> None:
    named = verify(archive).entries[0].parts
    append_entry(
        archive,
        ChainEntry(kind=EntryKind.TOMBSTONE, parts=named, reason="older than 90 days"),
    )
    for part in named:
        (archive / part.path).unlink()
    assert codes(archive) == [
        ("line-unsigned", f"{CHAIN}:4"),
        *(("part-missing", part.path) for part in named),
    ]


def test_an_entry_of_another_key_is_found(archive: Path) -> None:
    add_source(archive, ATTACKERS, 4)
    assert codes(archive)[:2] == [("other-key", f"{CHAIN}:4"), ("other-key", HEAD)]


def test_an_archive_that_was_sealed_again_whole_by_another_key_is_found(
    archive: Path, tmp_path: Path
) -> None:
    make_archive(tmp_path / "forged", ATTACKERS)
    found = codes(tmp_path / "forged")
    assert found[:4] == [
        *(("other-key", f"{CHAIN}:{number}") for number in (1, 2, 3)),
        ("other-key", HEAD),
    ]
    assert {code for code, _ in found[4:]} == {"part-unknown"}


def test_a_line_with_the_name_of_our_key_and_another_signature_is_found(
    archive: Path,
) -> None:
    add_source(archive, ATTACKERS, 4)
    lines = lines_of(archive)
    forged = lines[3].replace(ATTACKERS.public.id.encode(), KEY.public.id.encode())
    write_lines(archive, [*lines[:3], forged])
    assert ("line-changed", f"{CHAIN}:4") in codes(archive)


def test_a_signed_entry_is_no_head(archive: Path) -> None:
    (archive / HEAD).write_bytes(lines_of(archive)[2])
    assert codes(archive) == [("head-missing", HEAD)]


def test_a_head_that_was_changed_or_removed_is_found(archive: Path) -> None:
    head = (archive / HEAD).read_bytes()
    (archive / HEAD).write_bytes(head.replace(b'"number":3', b'"number":2'))
    assert codes(archive) == [("line-changed", HEAD)]
    (archive / HEAD).unlink()
    assert codes(archive) == [("head-missing", HEAD)]


def test_an_old_archive_put_back_whole_is_found_by_a_head_that_was_kept(
    archive: Path, tmp_path: Path
) -> None:
    shutil.copytree(archive, tmp_path / "old")
    add_source(archive, KEY, 4)
    kept = read_chain(archive)
    shutil.rmtree(archive)
    shutil.copytree(tmp_path / "old", archive)
    assert codes(archive) == []  # nothing in the archive itself can tell
    (fault,) = verify(archive, KeptHead(4, kept.digest)).faults
    assert (
        str(fault)
        == f"{CHAIN}: it ends at entry 3, and a head of number 4 was kept: an old archive was put back"
    )


def test_an_old_archive_that_went_on_is_found_by_the_digest_that_was_kept(
    archive: Path, tmp_path: Path
) -> None:
    shutil.copytree(archive, tmp_path / "old")
    add_source(archive, KEY, 4)
    kept = KeptHead(4, read_chain(archive).digest)
    shutil.rmtree(archive)
    shutil.copytree(tmp_path / "old", archive)
    add_source(archive, KEY, 4)  # as the gateway archives on
    assert codes(archive, KeptHead(3)) == []
    assert codes(archive, kept) == [("old-head", CHAIN)]


def test_a_head_of_another_chain_of_the_same_key_is_found(
    archive: Path, tmp_path: Path
) -> None:
    shutil.copytree(archive, tmp_path / "other")
    for folder in (archive, tmp_path / "other"):
        add_source(folder, KEY, 4)
    shutil.copy(tmp_path / "other" / HEAD, archive)
    assert codes(archive) == [("head-mismatch", HEAD)]


def test_a_number_that_is_used_twice_is_found(archive: Path) -> None:
    again = replace(verify(archive).entries[2], previous=read_chain(archive).digest)
    write_lines(archive, [*lines_of(archive), format_entry(again, KEY) + b"\n"])
    assert ("line-out-of-place", f"{CHAIN}:4") in codes(archive)


def test_an_archive_that_is_gone_is_found(archive: Path) -> None:
    shutil.rmtree(archive)
    archive.mkdir()
    assert codes(archive, KeptHead(3)) == [("head-missing", HEAD), ("old-head", CHAIN)]


def test_a_day_that_retention_removed_is_told_apart_from_a_missing_one(
    archive: Path,
) -> None:
    gone = tuple(
        part
        for entry in verify(archive).entries
        for part in entry.parts
        if part.day == "2026-11-21"
    )
    append_entry(
        archive,
        ChainEntry(kind=EntryKind.TOMBSTONE, parts=gone, reason="older than 90 days"),
        KEY,
    )
    assert verify(archive).notes == (
        f"{ONE}: a tombstone names it, and it is still there",
    )
    remove_a_day(archive)
    result = verify(archive)
    assert (result.faults, result.notes, result.parts) == ((), (), 5)


def test_a_run_that_was_interrupted_is_no_fault(archive: Path) -> None:
    part = write_part(archive, 4, "2026-11-25", b"half")
    (archive / PLACING).parent.mkdir()
    (archive / PLACING).write_text(f"{part.path}\n")
    with (archive / CHAIN).open("ab") as file:
        file.write(b'{"number":4')
    result = verify(archive)
    assert result.faults == ()
    assert [note.partition(": ")[2] for note in result.notes] == [
        "11 bytes of an entry are at its end: a run was interrupted",
        "of a run that is under way, or was interrupted",
    ]


def test_a_key_that_was_replaced_verifies_what_it_signed(archive: Path) -> None:
    add_source(archive, ATTACKERS, 4)
    assert (
        verify_archive(FolderPlace(archive), [KEY.public, ATTACKERS.public]).faults
        == ()
    )


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["archive", "verify", *map(str, arguments)])


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "archive.pub"
    file.write_bytes(KEY.public.pem)
    return file


def test_the_command_names_the_key_of_the_gateway(
    archive: Path, tmp_path: Path
) -> None:
    asked = "--key is missing: give the public key, as a copy that is kept elsewhere"
    assert asked in run(archive).output
    (archive.absolute().parent / "etc").mkdir()
    key = archive.absolute().parent / "etc/archive.pub"
    key.write_bytes(KEY.public.pem)
    result = run(archive)
    assert (
        result.exit_code,
        f"{asked}. This gateway's own is {key}" in result.output,
    ) == (2, True)


def test_the_command_names_every_fault_and_ends_with_1(
    archive: Path, key_file: Path
) -> None:
    change_a_byte(archive)
    (archive / TWO).unlink()
    result = run(archive, "--key", key_file)
    assert result.exit_code == 1
    assert f"part-changed  {ONE}: it was changed" in result.output
    assert f"part-missing  {TWO}: it is missing, with 5 lines" in result.output
    assert "2 faults" in result.output
    assert "without --head, an older state" in result.output


def replace_by(kind: str, file: Path) -> None:
    moved = file.rename(file.with_name(f"moved-{file.name}"))
    match kind:
        case "folder":
            file.mkdir()
        case "FIFO":
            os.mkfifo(file)
        case _:
            file.symlink_to(moved)


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link"])
@pytest.mark.parametrize(
    ("name", "code"), [(HEAD, "head-missing"), (CHAIN, "line-damaged")]
)
def test_what_is_no_file_is_a_fault_and_hides_no_other(
    archive: Path, key_file: Path, kind: str, name: str, code: str
) -> None:
    replace_by(kind, archive / name)
    (archive / "day=x").touch()
    unknown = archive / "day=2026-11-21" / "x\nOK: everything is as it was signed"
    unknown.touch()
    result = run(archive, "--key", key_file)
    assert result.exit_code == 1
    assert f"{code}  {name}: it cannot be read: " in result.output
    assert "part-unknown  day=x: it is not in the chain\n" in result.output
    assert "part-unknown  day=2026-11-21/x\\nOK: everything" in result.output
    assert not any(line.startswith("OK") for line in result.output.splitlines())


def test_a_number_without_a_digest_is_told_to_prove_little(
    archive: Path, key_file: Path
) -> None:
    digest = read_chain(archive).digest
    assert (
        "named without its SHA-256"
        in run(archive, "--key", key_file, "--head", "3").output
    )
    assert (
        "named without its SHA-256"
        not in run(archive, "--key", key_file, "--head", f"3:{digest}").output
    )


def test_the_command_prints_json_and_ends_with_0(archive: Path, key_file: Path) -> None:
    result = run(archive, "--key", key_file, "--head", "3", "--json")
    assert result.exit_code == 0
    printed = json.loads(result.output)
    assert (printed["faults"], printed["last_entry"], printed["head"]["number"]) == (
        [],
        3,
        3,
    )


@pytest.mark.parametrize("how", ["in it", "link into it", "link from it", "hard link"])
def test_the_command_refuses_a_key_that_lies_in_the_archive(
    archive: Path, tmp_path: Path, how: str
) -> None:
    inside, outside = archive / "archive.pub", tmp_path / "outside.pub"
    real = outside if how == "link from it" else inside
    real.write_bytes(KEY.public.pem)
    if how == "link into it":
        outside.symlink_to(inside)
    elif how == "link from it":
        inside.symlink_to(outside)
    elif how == "hard link":
        outside.hardlink_to(inside)
    result = run(
        archive, "--key", inside if how in ("in it", "link from it") else outside
    )
    assert result.exit_code == 1
    assert "lies in the archive" in result.output


def test_the_command_takes_a_kept_copy_of_the_head(
    archive: Path, key_file: Path, tmp_path: Path
) -> None:
    add_source(archive, KEY, 4)
    shutil.copy(archive / HEAD, tmp_path / "kept.json")
    write_lines(archive, lines_of(archive)[:3])
    seal_as_of_old(archive)
    result = run(archive, "--key", key_file, "--head", tmp_path / "kept.json")
    assert "old-head" in result.output


def seal_as_of_old(archive: Path) -> None:
    """The head of number 3 again, as an attacker has kept it."""
    (archive / HEAD).unlink()
    seal_head(archive, KEY)


def test_the_command_refuses_a_kept_head_that_the_key_did_not_sign(
    archive: Path, key_file: Path, tmp_path: Path
) -> None:
    make_archive(tmp_path / "other", ATTACKERS)
    result = run(archive, "--key", key_file, "--head", tmp_path / "other" / HEAD)
    assert result.exit_code == 1
    assert "no key of --key has signed it" in result.output


def test_the_command_refuses_what_is_no_public_key(
    archive: Path, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(KEY.pem)
    result = run(archive, "--key", file)
    assert result.exit_code == 1
    assert "no public key in PEM form is in it" in result.output
    assert "BEGIN PRIVATE" not in result.output
