"""The service that publishes the policy into a folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from squidkeeper.base.places import publisher_folder, revisions_folder
from squidkeeper.policy.policy_store.revisions import (
    revision_in_force,
    stored_revisions,
)
from squidkeeper.policy.published import places
from squidkeeper.policy.published.reader import PolicyReader
from squidkeeper.policy.published.state_file import read_state

from ..waiting import pause, wait_for

pytestmark = pytest.mark.system

RULE = "rules: [{{name: r{0}, action: allow, hosts: [h{0}.example]}}]\n"
BAD = "rules: [{name: r, action: maybe}]\n"


class Site:
    """A policy, a state folder, and the folder of the service beside it."""

    def __init__(self, root: Path) -> None:
        self.policy, self.state = root / "policy", root / "state"
        self.folder = publisher_folder(self.state)
        self.policy.mkdir()
        self.state.mkdir()
        self.folder.mkdir()
        self.edit(0)

    def edit(self, number: int) -> None:
        self.write(RULE.format(number))

    def write(self, text: str) -> None:
        new = self.policy / ".new"
        new.write_text(f"version: 1\n{text}")
        new.rename(self.policy / "policy.yaml")

    def command(self, *options: str) -> list[str]:
        places = ("--policy", str(self.policy), "--state", str(self.state))
        return [sys.executable, "-m", "squidkeeper", "publish", *options, *places]

    @contextmanager
    def service(self, **environment: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            self.command("--service"),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.terminate()
            process.communicate(timeout=60)

    def rules(self) -> list[str]:
        """Read what is in force, as a helper that starts reads it."""
        reader: PolicyReader[list[str]] = PolicyReader(
            self.policy,
            revisions_folder(self.state),
            lambda policy: [rule.name for rule in policy.source.rules],
        )
        reader.check()
        return reader.current or []

    def comes(self, number: int) -> None:
        wait_for(lambda: self.rules() == [f"r{number}"], f"edit {number} in force")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_an_edit_comes_into_force_in_the_folder_beside_the_state(site: Site) -> None:
    assert revisions_folder(site.state) == site.folder
    with site.service():
        site.comes(0)
        site.edit(1)
        site.comes(1)
    assert list(site.state.iterdir()) == []
    assert site.rules() == ["r1"], "without the service helpers have what is in force"


def test_a_folder_that_any_account_could_have_made_is_not_taken(tmp_path: Path) -> None:
    site = Site(tmp_path)
    tmp_path.chmod(0o1777)
    assert revisions_folder(site.state) == site.state / "revisions"
    done = subprocess.run(
        site.command("--service"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    expected = f"{site.folder}: expected a folder of this account, beside {site.state}"
    assert expected in done.stderr


def test_of_two_services_the_second_ends_and_says_why(site: Site) -> None:
    with site.service():
        site.comes(0)
        done = subprocess.run(
            site.command("--service"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f"{site.folder}: another process publishes there" in done.stderr
        site.edit(1)
        site.comes(1)


def test_one_that_is_killed_leaves_what_is_in_force_and_the_next_goes_on(
    site: Site,
) -> None:
    with site.service() as killed:
        site.comes(0)
        killed.kill()
        killed.wait()
        site.edit(1)
        assert site.rules() == ["r0"]
    with site.service():
        site.comes(1)


def test_one_that_is_stopped_keeps_what_is_in_force(site: Site) -> None:
    with site.service() as stopped:
        site.comes(0)
        stopped.send_signal(signal.SIGSTOP)
        site.edit(1)
        pause(1, "an edit that nobody publishes")
        assert site.rules() == ["r0"]
        stopped.send_signal(signal.SIGCONT)
        site.comes(1)


def test_a_helper_that_starts_while_the_files_are_faulty_has_what_is_in_force(
    site: Site,
) -> None:
    with site.service():
        site.comes(0)
        site.write(BAD)
        wait_for(lambda: faulty(site), "the fault to be told")
        assert site.rules() == ["r0"]
    with site.service():  # nor does a start of the service change that
        wait_for(lambda: faulty(site), "the fault to be told")
        assert site.rules() == ["r0"]


def published(site: Site) -> list[Path]:
    return [
        path
        for path in site.folder.glob("*/publication-*")
        if not path.parent.is_symlink()
    ]


def faulty(site: Site) -> bool:
    state = read_state(site.folder)
    return state is not None and not state.ok and state.faults != ()


@contextmanager
def notified(tmp_path: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """A service manager: its address, and what it is told next."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.settimeout(60)
        yield address, lambda: channel.recv(100).decode()


@pytest.mark.parametrize("text", [RULE.format(0), BAD], ids=["good", "faulty"])
def test_it_is_ready_once_a_policy_is_in_force_or_the_files_do_not_load(
    site: Site, text: str
) -> None:
    site.write(text)
    with (
        notified(site.policy.parent) as (address, told),
        site.service(NOTIFY_SOCKET=address),
    ):
        first = wait_for(lambda: (found := told()) != "WATCHDOG=1" and found)
        assert first == "READY=1"
        assert site.rules() == ([] if text == BAD else ["r0"])


def test_a_full_disk_leaves_what_is_in_force_and_is_told(site: Site) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", site.folder], check=True
    )
    try:
        with site.service():
            site.comes(0)
            filler = site.folder / "filler"
            with suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(b"x" * 4096)
                    file.flush()
            site.edit(1)
            pause(2, "an edit that has no room")
            assert site.rules() == ["r0"]
            filler.unlink()
            site.comes(1)
    finally:
        subprocess.run(["umount", "-l", site.folder], check=True)


def test_a_thousand_edits_a_minute_settle_on_the_last(site: Site) -> None:
    with site.service():
        site.comes(0)
        for number in range(1, 200):
            site.edit(number)
            pause(0.06, "a thousand edits a minute")
            if number % 20 == 0:
                [name] = site.rules()
                assert int(name.removeprefix("r")) <= number
        site.comes(199)
    assert 1 <= len(published(site)) <= 5


def test_what_was_in_force_before_there_was_the_service_is_stored_there(
    site: Site,
) -> None:
    site.folder.rmdir()
    for number in range(3):
        site.edit(number)
        child = subprocess.Popen(site.command(), stdin=subprocess.PIPE)
        site.comes(number)
        assert child.stdin
        child.stdin.close()
        child.wait(60)
    former = stored_revisions(site.state / "revisions")
    assert len(former) == 3
    site.folder.mkdir()
    with site.service():
        site.comes(2)
        wait_for(lambda: len(stored_revisions(site.folder)) == 3, "the history")
        kept = stored_revisions(site.folder)
    assert {one.revision for one in kept} == {one.revision for one in former}
    found = revision_in_force(site.folder)
    assert found
    assert found.revision == former[0].revision


def test_another_format_is_published_also_while_the_files_do_not_load(
    site: Site,
) -> None:
    """An upgrade: the publication of the former release stays beside it."""
    with site.service():
        site.comes(0)
    [publication] = published(site)
    former = publication.with_name("publication-0")
    publication.rename(former)
    site.write(BAD)
    assert site.rules() == [], "a helper that cannot read it denies"
    with site.service():
        site.comes(0)
        assert former.exists()


def test_a_child_leaves_the_folder_of_the_service_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.service():
        site.comes(0)
        child = subprocess.run(site.command(), stdin=subprocess.DEVNULL, check=False)
        assert child.returncode == 0
    monkeypatch.setattr(places, "_MEMORY", site.state)
    assert places.published_folder(site.policy, site.state) == site.folder
