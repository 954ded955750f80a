"""Generations on disk: whole or not at all, one in force, the last three kept."""

import os
from errno import ENOSPC
from pathlib import Path

import pytest

from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.entries import File, Folder, Link
from squidkeeper.operate.setup.generations import (
    folder_of,
    moved,
    next_number,
    number_in_force,
    numbers,
    outdated,
    placed,
    put_in_force,
    shown_path,
    with_files,
    write_generation,
)


def made(layout: Layout, number: int) -> Path:
    folder = folder_of(layout, number)
    text = placed(f"include {layout.fragment}\n", layout, folder)
    inside = {"squid.conf": File(text.encode()), "squidkeeper.d/a": File(b"a", 0o640)}
    return write_generation(layout, number, with_files(Folder({}), inside))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout.of(tmp_path)
    found.generations.mkdir(parents=True)
    made(found, 1)
    put_in_force(found, 1)
    return found


def test_a_generation_names_its_own_files_alone(layout: Layout) -> None:
    first, second = folder_of(layout, 1), folder_of(layout, 2)
    text = (layout.generation / "squid.conf").read_text()
    assert text == f"include {first}/squidkeeper.conf\n"
    file, link = File(text.encode()), Link(str(first))
    inside = Folder({"a": Folder({"b": file, "c": link})})
    there = File(f"include {second}/squidkeeper.conf\n".encode())
    assert moved(inside, first, second) == Folder(
        {"a": Folder({"b": there, "c": link})}
    )


def test_a_file_of_a_generation_is_shown_by_the_path_that_documents_name(
    layout: Layout,
) -> None:
    shown, folder = shown_path(layout), folder_of(layout, 7)
    assert shown(folder / "local.conf") == layout.local
    assert shown(folder / "squidkeeper.d/upstreams.conf") == (
        layout.parts / "upstreams.conf"
    )
    assert shown(layout.local) == layout.local
    assert shown(folder / "gateway.yaml") == folder / "gateway.yaml"


def test_the_link_is_swapped_and_the_last_three_are_kept(layout: Layout) -> None:
    for number in (2, 3, 4):
        assert next_number(layout) == number
        made(layout, number)
        put_in_force(layout, number)
    assert (number_in_force(layout), numbers(layout)) == (4, [1, 2, 3, 4])
    assert outdated(layout) == [folder_of(layout, 1)]
    put_in_force(layout, 1)
    assert outdated(layout) == [], "the one in force stays"
    assert outdated(layout, 5) == [folder_of(layout, 2)]


@pytest.mark.parametrize("step", ["write_entry", "sync_below"])
def test_a_full_disk_leaves_what_was_there(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(f"squidkeeper.operate.setup.generations.{step}", full)
    with pytest.raises(OSError, match="No space left"):
        made(layout, 2)
    assert {path.name for path in layout.generations.iterdir()} == {"1", "current"}
    assert number_in_force(layout) == 1


def test_what_a_killed_run_has_left_goes_and_what_a_rollback_left_stays(
    layout: Layout,
) -> None:
    (layout.generations / ".2.new").mkdir()
    made(layout, 2)  # and killed ahead of the link
    made(layout, 3)
    assert numbers(layout) == [1, 3]
    assert not (layout.generations / ".2.new").exists()
    layout.generation_held.touch()
    made(layout, 4)
    assert numbers(layout) == [1, 3, 4]
