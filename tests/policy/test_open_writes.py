"""Which files are being written: what inotify reports of them, through a lost report
too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from squidkeeper.policy.policy_store.open_writes import OpenWrites, UnfinishedFile


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy file that is not new any more."""
    file = tmp_path / "policy/policy.yaml"
    file.parent.mkdir()
    file.write_text("version: 1\n")
    return file


def watching(file: Path, lock_file: Path | None = None) -> OpenWrites:
    writes = OpenWrites(lock_file)
    writes.watch([file.parent], [file], [])
    writes.take_as_complete()
    return writes


def is_known(found: UnfinishedFile | None) -> bool | None:
    return found.known if found else None


def test_a_link_is_no_write(policy: Path) -> None:
    writes = watching(policy)
    linked = policy.with_name("linked.yaml")
    linked.hardlink_to(policy)
    symlinked = policy.with_name("symlinked.yaml")
    symlinked.symlink_to(policy)
    writes.watch([policy.parent], [policy, linked, symlinked], [])
    assert writes.find([policy, linked, symlinked]) is None


def test_other_files_of_the_folder_do_not_count(policy: Path) -> None:
    writes = watching(policy)
    with policy.with_name(".policy.yaml.swp").open("w") as file:
        file.write("swap")
        file.flush()
        assert writes.find([policy]) is None


def test_a_file_that_is_replaced_while_it_is_written_is_complete(policy: Path) -> None:
    writes = watching(policy)
    with policy.open("w") as file:
        file.write("half")
        file.flush()
        assert is_known(writes.find([policy])) is True
        new = policy.with_name(".new")
        new.write_text("version: 1\n")
        new.rename(policy)
        writes.watch([policy.parent], [policy], [])
        assert writes.find([policy]) is None
        file.write("more of the file that was replaced")
        file.flush()
        assert writes.find([policy]) is None


def test_others_learn_of_an_unfinished_file_and_of_its_end(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 0.0
    )
    first = watching(policy, tmp_path / "lock")
    with policy.open("a") as file:
        file.write("# more")
        file.flush()
        assert is_known(first.find([policy])) is True
        later = OpenWrites(tmp_path / "lock")
        later.watch([policy.parent], [policy], [])
        assert is_known(later.find([policy])) is False
    assert first.find([policy]) is None
    assert later.find([policy]) is None


def test_after_lost_reports_a_file_is_unfinished_until_it_is_quiet(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # longer than this test takes
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 600.0
    )
    writes = watching(policy)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    others = [policy.with_name(f"other{number}") for number in range(2)]
    with (
        others[0].open("w", buffering=1) as one,
        others[1].open("w", buffering=1) as two,
    ):
        for _ in range(limit // 2 + 10):  # in turn: equal reports in a row are one
            one.write("\n")
            two.write("\n")
    with policy.open("a") as file:
        file.write("# a write that is not reported")
        file.flush()
        assert is_known(writes.find([policy])) is False
        monkeypatch.setattr(
            "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 0.0
        )
        assert writes.find([policy]) is None
        file.write("# one that is")
        file.flush()
        assert is_known(writes.find([policy])) is True
    assert writes.find([policy]) is None


@pytest.mark.system
def test_a_helper_starts_no_other_program_to_use_inotify() -> None:
    script = (
        "import sys; from squidkeeper.policy.policy_store.open_writes import OpenWrites; started = []; "
        "sys.addaudithook(lambda event, _: started.append(event) if event == 'subprocess.Popen' else None); "
        "print(repr(OpenWrites().problem), started)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "'' []\n"
