"""The transaction of an installation: every step can fail, and then everything is as
before.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.operate.setup.configuration import MARK
from squidkeeper.operate.setup.entries import (
    File,
    Folder,
    Link,
    read_entry,
    read_source,
    text_at,
    write_entry,
)
from squidkeeper.operate.setup.machine import Machine
from squidkeeper.operate.setup.plan import SetupStep, StepKind
from squidkeeper.operate.setup.processes import InstalledSquid
from squidkeeper.operate.setup.transaction import Transaction
from tests.waiting import wait_for

ACCOUNT = Account("root", 0, 0)
OURS = (os.geteuid(), os.getegid())
pytestmark = pytest.mark.system  # takes the rights of an account


@dataclass(eq=False)
class FakeProcess:
    """Squid or a service: only what a transaction asks of it.

    It comes up unless its files say `broken`.
    """

    name: str
    log: list[str]
    running: bool = True
    broken: bool = False
    port: int | None = None
    broken_while: Callable[[], bool] = field(default=lambda: False)

    def pid(self) -> int | None:
        return 1 if self.running else None

    def runs(self) -> bool:
        return self.running

    def start(self) -> None:
        self.log.append(f"start {self.name}")
        self.running = True

    def stop(self) -> None:
        self.log.append(f"stop {self.name}")
        self.running = False

    def reconfigure(self) -> None:
        self.log.append(f"reconfigure {self.name}")

    def comes_up(self, port: int = 0) -> bool:
        return not self.broken_while()

    def log_tail(self) -> str:
        return "its last line\n"


class Gateway:
    """A gateway in a folder, whose processes are noted in `log`."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout.of(root)
        self.log: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.squid = FakeProcess("squid", self.log)
        self.services = {
            name: FakeProcess(name, self.log) for name in ("maintenance", "exporter")
        }
        for path, entry in self.before().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_entry(path, entry)

    def before(self) -> dict[Path, Any]:
        layout = self.layout
        return {
            layout.conf: File(f"{MARK}\nhttp_port 3129\n".encode(), 0o640),
            layout.errors: Folder(
                {"ERR_A": File(b"a"), "inner": Folder({"ERR_B": Link("ERR_A")})}
            ),
            layout.program: Link("../venv-1/bin/squidkeeper"),
            layout.observe: Folder({"alerts.yaml": File(b"alerts")}),
            layout.ssl_db: Folder({"index.txt": File(b"leaves", 0o600)}, 0o700),
            layout.applied: File(b"3129 a b\n"),
        }

    def transaction(self) -> Transaction:
        store = self.layout.prefix / "prepared"
        if not store.exists():
            write_entry(store, Folder({"ca.crt": File(b"new")}))
        machine = Machine(ACCOUNT, Path("/none"), systemd=False, selinux=False)
        made = Transaction(
            self.layout,
            machine,
            cast(Any, self.squid),
            store,
            lambda *line: self.told.append(line),
        )
        made.services = cast(Any, self.services)
        return made

    def steps(self) -> list[SetupStep]:
        """One of each kind, in the order of a plan."""
        layout = self.layout
        return [
            SetupStep(
                StepKind.MAKE,
                layout.root / "log/deep" if layout.root else layout.run,
                Folder({}, 0o750, OURS),
            ),
            SetupStep(
                StepKind.PUT,
                layout.conf,
                File(f"{MARK}\nhttp_port 3130\n".encode(), 0o644),
            ),
            SetupStep(StepKind.PUT, layout.local, File(b"local")),
            SetupStep(StepKind.PUT, layout.errors, Folder({"ERR_A": File(b"newer")})),
            SetupStep(StepKind.PUT, layout.program, Link("../venv-2/bin/squidkeeper")),
            SetupStep(
                StepKind.PUT, layout.policy / "deep/policy.yaml", File(b"policy")
            ),
            SetupStep(StepKind.STOP_SERVICE, layout.service("exporter").unit),
            SetupStep(StepKind.REMOVE, layout.observe),
            SetupStep(StepKind.PUT_STORE, layout.ssl_db),
            SetupStep(StepKind.MAKE_AS_SQUID, layout.counts),
            SetupStep(
                StepKind.START_MAINTENANCE,
                layout.service("maintenance").applied,
                File(b"m\n"),
            ),
            SetupStep(StepKind.RESTART_SQUID, layout.applied, File(b"3130 c d\n")),
            SetupStep(
                StepKind.START_EXPORTER,
                layout.service("exporter").applied,
                File(b"e\n"),
            ),
        ]


def snapshot(top: Path) -> dict[str, tuple[object, ...]]:
    """Of each path: its inode, mode, owner, and content or target."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        about = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        target = os.readlink(path) if path.is_symlink() else ""
        found[str(path)] = (
            about.st_ino,
            about.st_mode,
            about.st_uid,
            about.st_gid,
            content,
            target,
        )
    return found


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path / "gateway")


def test_every_step_is_applied_and_leaves_nothing_beside_it(gateway: Gateway) -> None:
    transaction = gateway.transaction()
    for step in gateway.steps():
        transaction.apply(step)
    transaction.commit()
    layout = gateway.layout
    for step in gateway.steps():
        if step.action is StepKind.PUT:
            assert read_entry(step.path) == step.entry
    assert not layout.observe.exists()
    assert [path.name for path in layout.ssl_db.iterdir()] == ["ca.crt"]
    assert (text_at(layout.applied), text_at(layout.service("exporter").applied)) == (
        "3130 c d",
        "e",
    )
    assert [
        path for path in layout.prefix.rglob("*") if ".squidkeeper-" in path.name
    ] == []
    started = (
        "stop exporter",
        "stop maintenance",
        "start maintenance",
        "stop squid",
        "start squid",
        "stop exporter",
    )
    assert gateway.log == [*started, "start exporter"]


@contextmanager
def upper_layer(gateway: Gateway) -> Iterator[None]:
    """The gateway as it is on a machine that was made from an image of it."""
    root = gateway.layout.prefix
    image, upper, work = (root.with_name(name) for name in ("image", "upper", "work"))
    root.rename(image)
    for folder in (root, upper, work):
        folder.mkdir()
    options = f"lowerdir={image},upperdir={upper},workdir={work}"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "overlay", root], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", root], check=True)


@pytest.mark.parametrize("fails", [False, True])
def test_folders_of_an_image_are_replaced_and_put_back(
    gateway: Gateway, fails: bool
) -> None:
    """overlayfs renames no folder of a lower layer."""
    wanted = (
        gateway.before()
        if fails
        else {step.path: step.entry for step in gateway.steps()[1:6]}
    )
    with upper_layer(gateway):
        transaction = gateway.transaction()
        for step in gateway.steps():
            transaction.apply(step)
        if fails:
            assert transaction.roll_back() == []
        else:
            transaction.commit()
        assert {path: read_entry(path) for path in wanted} == wanted
        assert [
            path
            for path in gateway.layout.prefix.rglob("*")
            if ".squidkeeper-" in path.name
        ] == []


@pytest.mark.parametrize("last", range(14))
def test_after_a_failure_behind_any_step_everything_is_as_before(
    gateway: Gateway, last: int
) -> None:
    transaction = gateway.transaction()
    before = snapshot(gateway.layout.prefix)
    for step in gateway.steps()[:last]:
        transaction.apply(step)
    assert transaction.roll_back() == []
    assert snapshot(gateway.layout.prefix) == before
    assert gateway.squid.running
    assert all(service.running for service in gateway.services.values())


@pytest.mark.parametrize("failing", range(13))
@pytest.mark.parametrize("call", ["write_entry", "rename", "comes_up"])
def test_a_step_that_fails_half_way_is_undone(
    gateway: Gateway, failing: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction, steps = gateway.transaction(), gateway.steps()
    before = snapshot(gateway.layout.prefix)
    for step in steps[:failing]:
        transaction.apply(step)
    with monkeypatch.context() as patch:
        break_one(patch, gateway, call)
        with suppress(OSError, SetupFailed):
            transaction.apply(steps[failing])
    assert transaction.roll_back() == []
    assert snapshot(gateway.layout.prefix) == before


def break_one(patch: pytest.MonkeyPatch, gateway: Gateway, call: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    if call == "write_entry":
        patch.setattr("squidkeeper.operate.setup.transaction.write_entry", fail)
    elif call == "rename":
        patch.setattr(Path, "rename", fail)
    else:
        for process in (gateway.squid, *gateway.services.values()):
            patch.setattr(process, "broken_while", lambda: True)


def test_a_first_installation_that_fails_leaves_nothing_and_starts_nothing(
    tmp_path: Path,
) -> None:
    gateway = Gateway(tmp_path / "gateway")
    for path in (gateway.layout.conf, gateway.layout.applied):
        path.unlink()
    gateway.squid.running = False
    before = snapshot(gateway.layout.prefix)
    gateway.squid.broken_while = lambda: True
    transaction = gateway.transaction()
    transaction.apply(gateway.steps()[1])
    with pytest.raises(SetupFailed, match="Squid does not listen on 3130") as failed:
        transaction.apply(
            SetupStep(StepKind.START_SQUID, gateway.layout.applied, File(b"3130 c d\n"))
        )
    assert "cache.log" in failed.value.advice
    assert transaction.roll_back() == [], "nothing ran before"
    prepared = {
        path: about
        for path, about in snapshot(gateway.layout.prefix).items()
        if "/prepared" not in path
    }
    assert prepared == before
    assert not gateway.squid.running


def test_a_squid_that_does_not_start_with_what_was_put_back_is_told(
    gateway: Gateway,
) -> None:
    transaction = gateway.transaction()
    transaction.apply(gateway.steps()[11])
    gateway.squid.broken_while = lambda: True
    log = gateway.layout.cache_log
    assert transaction.roll_back() == [
        f"Squid does not start with its files any more: read {log}"
    ]


def test_what_cannot_be_put_back_is_named_and_the_rest_put_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction, layout = gateway.transaction(), gateway.layout
    before = read_entry(layout.conf)
    for step in gateway.steps()[1:4]:
        transaction.apply(step)
    replace = Path.replace
    patched = {
        layout.errors.with_name("errors.squidkeeper-old"): OSError(
            "No space left on device"
        )
    }

    def failing(path: Path, target: Path) -> Path:
        if path in patched:
            raise patched[path]
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    assert transaction.roll_back() == [f"{layout.errors}: No space left on device"]
    assert read_entry(layout.conf) == before


def test_a_reconfigured_squid_is_reconfigured_alone_and_its_note_dated_before(
    gateway: Gateway,
) -> None:
    transaction, note = gateway.transaction(), gateway.layout.applied
    transaction.apply(SetupStep(StepKind.PUT, gateway.layout.fragment, File(b"newer")))
    transaction.apply(SetupStep(StepKind.RECONFIGURE_SQUID, note, File(b"3129 a c\n")))
    transaction.commit()
    assert gateway.log == ["reconfigure squid"]
    assert note.stat().st_mtime >= gateway.layout.fragment.stat().st_ctime
    assert gateway.told == [("squid", "reconfigured")]


def test_what_a_run_that_was_killed_has_left_is_no_harm(gateway: Gateway) -> None:
    conf = gateway.layout.conf
    for name in ("squid.conf.squidkeeper-old", "squid.conf.squidkeeper-new"):
        write_entry(conf.with_name(name), Folder({"a": File(b"left")}))
    before = read_entry(conf)
    transaction = gateway.transaction()
    transaction.apply(SetupStep(StepKind.PUT, conf, File(b"new")))
    assert transaction.roll_back() == []
    assert read_entry(conf) == before
    assert [
        path.name for path in conf.parent.iterdir() if ".squidkeeper-" in path.name
    ] == []


def test_what_a_full_disk_cuts_off_is_removed(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction, layout = gateway.transaction(), gateway.layout
    before = snapshot(layout.prefix)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fchmod", full)  # the last call for a file
    with pytest.raises(OSError, match="No space"):
        transaction.apply(
            SetupStep(StepKind.PUT, layout.errors, Folder({"a": File(b"new")}))
        )
    assert transaction.roll_back() == []
    assert snapshot(layout.prefix) == before


def test_what_an_operator_has_moved_away_beside_it_stays(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway")
    layout = gateway.layout
    moved = [
        path.with_name(f"{path.name}.{end}")
        for path in (layout.conf, layout.policy)
        for end in ("old", "new")
    ]
    for path in moved:
        write_entry(path, Folder({"theirs": File(b"theirs")}))
    transaction = gateway.transaction()
    transaction.apply(SetupStep(StepKind.PUT, layout.conf, File(b"new")))
    transaction.apply(
        SetupStep(StepKind.PUT, layout.policy, Folder({"policy.yaml": File(b"new")}))
    )
    transaction.commit()
    assert [text_at(path / "theirs") for path in moved] == ["theirs"] * len(moved)


# --- entries --------------------------------------------------------------------------


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    entry = Folder(
        {
            "file": File(b"\0\xff", 0o640, OURS),
            "link": Link("nowhere"),
            "folder": Folder({}, 0o700, OURS),
        },
        0o750,
        OURS,
    )
    write_entry(tmp_path / "entry", entry)
    assert read_entry(tmp_path / "entry") == entry
    assert read_entry(tmp_path / "none") is None
    assert read_entry(tmp_path / "entry/file/none") is None


def test_a_source_is_read_with_the_modes_of_the_installation(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir(mode=0o700)
    for name, mode in (("plain", 0o600), ("runs", 0o700)):
        (tmp_path / "policy" / name).write_bytes(b"x")
        (tmp_path / "policy" / name).chmod(mode)
    (tmp_path / "policy/link").symlink_to("plain")
    plain = File(b"x", 0o640, (0, 13))
    assert read_source(tmp_path / "policy", 0o750, (0, 13)) == Folder(
        {"plain": plain, "runs": File(b"x", 0o750, (0, 13)), "link": plain},
        0o750,
        (0, 13),
    )


def test_of_what_is_in_a_folder_of_squids_account_only_the_text_of_files_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "pid").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    assert [text_at(tmp_path / name) for name in ("pid", "pipe")] == ["", ""]
    assert read_entry(tmp_path / "pid") == Link(str(tmp_path / "secret"))
    with pytest.raises(SetupFailed, match="neither a file nor a folder nor a link"):
        read_entry(tmp_path / "pipe")
    held = os.open(tmp_path / "pipe", os.O_RDWR)
    with open(tmp_path / "endless", "wb") as file:
        file.truncate(1 << 40)
    assert [text_at(tmp_path / name) for name in ("pipe", "endless")] == ["", ""]
    assert text_at(tmp_path / "endless", end=3) == "\0" * 3
    os.close(held)
    (tmp_path / "log").write_text("first\nlast\n")
    assert [text_at(tmp_path / "log", end=end) for end in (5, 1000)] == [
        "last",
        "first\nlast",
    ]


@pytest.mark.parametrize(
    ("kids", "runs"),
    [("squid-coord-3", False), ("squid-coord-3 squid-1", True), ("squid-1", True)],
)
def test_a_squid_whose_workers_have_all_given_up_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kids: str, runs: bool
) -> None:
    program = shutil.copy("/bin/bash", tmp_path / "squid")
    start = " ".join(
        f"(exec -a '({kid})' {program} -c 'read -r <&3') &" for kid in kids.split()
    )
    with subprocess.Popen(
        [program, "-c", f"exec 3<&0; {start} read -r"], stdin=subprocess.PIPE
    ) as master:
        monkeypatch.setattr(InstalledSquid, "pid", lambda _: master.pid)
        wait_for(
            lambda: (
                sum(
                    "".join(child.cmdline()).startswith("(squid-")
                    for child in psutil.Process(master.pid).children()
                )
                == len(kids.split())
            ),
            "the kids",
        )
        assert InstalledSquid(Layout.of(tmp_path), systemd=False).runs() is runs
        assert master.stdin
        master.stdin.close()


@pytest.mark.parametrize("whose", ["this", "another"])
def test_under_a_root_the_squid_of_another_gateway_is_not_taken_for_its_own(
    tmp_path: Path, whose: str
) -> None:
    layout = Layout.of(tmp_path / "this")
    program = shutil.copy("/bin/bash", tmp_path / "squid")
    command = [
        str(program),
        "-c",
        "read -r",
        "squid",
        "-f",
        str(tmp_path / whose / "etc/squid.conf"),
    ]
    layout.run.mkdir(parents=True)
    layout.conf.parent.mkdir()
    layout.conf.touch()
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_for(
            lambda: psutil.Process(process.pid).cmdline()[-1:] == command[-1:],
            "it to run",
        )
        layout.pid_file.write_text(f"{process.pid}\n")
        assert InstalledSquid(layout, systemd=False).pid() == (
            process.pid if whose == "this" else None
        )
        layout.pid_file.write_text(f"{1 << 70}\n")
        assert InstalledSquid(layout, systemd=False).pid() is None
        process.kill()
