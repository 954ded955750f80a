"""The process that inspects bodies: its memory, and what it loads."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from squidkeeper.base.helper_metrics import BODIES
from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.sockets import is_open
from squidkeeper.policy.published import places
from squidkeeper.record.usage_ledger import latest, ledger_files, read_entries
from squidkeeper.services.bodies.icap import format_chunk
from squidkeeper.services.bodies.process import BodiesOptions, new_judge
from squidkeeper.serving.helpers.helper_counters import HelperCounters
from squidkeeper.serving.helpers.publisher_child import follow_policy
from tests.conftest import compiled_of, write_policy
from tests.ports import free_port
from tests.waiting import wait_for

# A block above the freed ones is what keeps them with the process.
LONG_BODIES = """
from pathlib import Path
from squidkeeper.services.bodies.process import give_large_blocks_back

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024

give_large_blocks_back()
bytes(30 << 20)
before = megabytes()
bodies = [b"x" * (20 << 20) for _ in range(3)]
kept = [b"x" * 100_000 for _ in range(100)]
del bodies
print(megabytes() - before)
"""


@pytest.mark.system
def test_the_memory_of_long_bodies_goes_when_they_do() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LONG_BODIES],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert 0 < int(ended.stdout) < 30, "megabytes: what is kept has ten"


LOADED = """
import sys
import squidkeeper.services.bodies.process
print([name for name in sys.modules if "usage" in name or name in ("sqlite3", "squidkeeper.services.bodies.answers")])
"""


def test_the_process_reads_revisions_where_they_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the state folder cannot be written, they are in memory."""
    monkeypatch.setattr(places, "_MEMORY", tmp_path)
    state = tmp_path / "state"
    state.write_text("no folder")
    directory = write_policy(tmp_path / "policy", "rules: []")
    options = BodiesOptions(("127.0.0.1", 0), directory, state, Layout.of(None), 1, 1)
    watcher = follow_policy(directory, state, lambda compiled: compiled)
    assert watcher.folder.parent == tmp_path
    counting = HelperCounters(BODIES, state, lambda: watcher.state)
    with closing(asyncio.new_event_loop()) as loop:
        judge = new_judge(loop, options, watcher, counting)
    assert judge.policies.revisions == watcher.folder


@pytest.mark.system
def test_what_counts_usage_is_loaded_only_where_a_request_is_metered() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LOADED],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ended.stdout == "[]\n"


POLICY = "rules: [{name: models, action: allow, hosts: [llm.example], meter: tokens}]"
METERED = "gw.1.2.{number}%20192.0.2.1%20-%20models%20{revision}%20llm.example%20x%205%209%202"
EVENT = format_chunk(
    b'data: {"choices": [{"delta": {"content": "' + b"x" * 400 + b'"}}]}\n\n'
)


def begun(number: int, revision: str) -> bytes:
    """Write the head of an answer, as Squid sends it."""
    sent = b"POST https://llm.example/v1/chat/completions HTTP/1.1\r\nHost: llm.example\r\n\r\n"
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    head = f"RESPMOD icap://127.0.0.1/usage ICAP/1.0\r\nX-SK-Metered: {METERED}\r\nPreview: 0\r\n"
    head = head.format(number=number, revision=revision)
    head += f"Encapsulated: req-hdr=0, res-hdr={len(sent)}, res-body={len(sent) + len(http)}\r\n\r\n"
    return head.encode() + sent + http + b"0\r\n\r\n"


@pytest.mark.system
@pytest.mark.long
def test_a_thousand_streams_at_once_take_little_memory(tmp_path: Path) -> None:
    revision = compiled_of(tmp_path / "policy", POLICY).revision
    (tmp_path / "state/bodies").mkdir(parents=True)
    port = free_port()
    places: tuple[str | Path, ...] = (
        "--listen",
        f"127.0.0.1:{port}",
        "--policy",
        tmp_path / "policy",
        "--state",
        tmp_path / "state",
    )
    with ExitStack() as stack:
        command = [sys.executable, "-m", "squidkeeper", "bodies", *places]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.DEVNULL)
        )
        stack.callback(process.kill)
        wait_for(lambda: is_open(port), "the service to listen")
        streams = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(1_000)
        ]
        for number, stream in enumerate(streams):
            stream.sendall(begun(number, revision))
        for _ in range(20):
            for stream in streams:
                stream.sendall(EVENT)
        for stream in streams:
            taken = b""
            while taken.count(EVENT) < 20:
                taken += stream.recv(65_536)
        resident = (
            int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4 // 1024
        )
        assert resident < 150, "megabytes"
        for stream in streams:
            stream.close()
        wait_for(
            lambda: (
                len(latest(read_entries(ledger_files(tmp_path / "state")))) == 1_000
            ),
            "1,000 settlements",
        )
