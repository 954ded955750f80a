"""`--fleet FILE`: log, query, report and why over running gateways, which real ssh
servers stand for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from squidkeeper.record.log.record import format_time

from ..records import record_line

pytestmark = pytest.mark.system

NOW = datetime.now(UTC)
DENIED = {
    "status": 403,
    "verdict": "deny",
    "rule": "default",
    "error": "403:ERR_SQUIDKEEPER_DENIED",
}
FLEET = """\
version: 1
haproxy: {addresses: [10.0.0.5]}
gateways:
  - {name: gw-1, address: 127.77.0.1}
  - {name: gw-2, address: 127.77.0.2}
  - {name: gone, address: 127.77.0.3}
"""
# On a gateway: what was asked is noted, and `sudo -n squidkeeper` stands for the
# program with that gateway's places.
REMOTE = """\
#!/bin/sh
echo "$SSH_ORIGINAL_COMMAND" >> {folder}/{name}.asked
eval "set -- $SSH_ORIGINAL_COMMAND"
[ "$1 $2 $3" = "sudo -n squidkeeper" ] || exit 9
shift 3
exec {python} -m squidkeeper "$@" --policy {folder}/policy --state {folder}/state {folder}/{name}.log
"""
SERVER = """\
ListenAddress {address}:22
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
ForceCommand {folder}/{name}.sh
PidFile none
StrictModes no
UsePAM no
"""
# A network, processes and a home of its own, which end with the command.
INSIDE = """\
mount --bind {folder}/home /root && mount -t tmpfs tmpfs /run && mkdir /run/sshd && ip link set lo up
/usr/sbin/sshd -f {folder}/gw-1.conf && /usr/sbin/sshd -f {folder}/gw-2.conf
exec {python} -m squidkeeper "$@"
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


def request_id(name: str, number: int) -> str:
    return f"{name}.{NOW.timestamp() - 60:.0f}.880.{number}.5"


def line(name: str, number: int) -> bytes:
    at = format_time(NOW - timedelta(seconds=9 - number))
    url = f"https://{name}.example/{number}"
    return record_line(
        time=at,
        url=url,
        gateway=name,
        request_id=request_id(name, number),
        **(DENIED if number else {}),
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the program where two of three gateways can be reached."""
    (tmp_path / "home/.ssh").mkdir(parents=True)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/policy.yaml").write_text("version: 1\n")
    (tmp_path / "fleet.yaml").write_text(FLEET)
    for key in ("host", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key],
            check=True,
        )
    (tmp_path / "key").rename(tmp_path / "home/.ssh/id_ed25519")
    (tmp_path / "home/.ssh/known_hosts").write_text(
        f"127.77.0.* {(tmp_path / 'host.pub').read_text()}"
    )
    for number, name in enumerate(("gw-1", "gw-2"), 1):
        known = {
            "folder": tmp_path,
            "name": name,
            "python": sys.executable,
            "address": f"127.77.0.{number}",
        }
        (tmp_path / f"{name}.log").write_bytes(
            b"".join(line(name, number) + b"\n" for number in range(3))
        )
        (tmp_path / f"{name}.conf").write_text(SERVER.format_map(known))
        (tmp_path / f"{name}.sh").write_text(REMOTE.format_map(known))
        (tmp_path / f"{name}.sh").chmod(0o755)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        inside = INSIDE.format(folder=tmp_path, python=sys.executable)
        unshare = (
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        )
        command = (
            *unshare,
            "sh",
            "-ec",
            inside,
            "sh",
            *words,
            "--fleet",
            str(tmp_path / "fleet.yaml"),
        )
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_a_fleet_is_read_as_one_table(run: Run) -> None:
    shown = run("log", "--json", "--since", "1h")
    assert {json.loads(line)["gateway"] for line in shown.stdout.splitlines()} == {
        "gw-1",
        "gw-2",
    }, shown.stderr
    assert "Missing: gone (127.77.0.3): " in shown.stderr
    assert shown.returncode == 2, "a part is not the whole"
    sql = "SELECT gateway, count(*) AS n FROM requests GROUP BY ALL ORDER BY ALL"
    counted = run("query", sql, "--since", "1h", "--format", "csv")
    assert counted.stdout.split() == ["gateway,n", "gw-1,3", "gw-2,3"], counted.stderr
    assert counted.returncode == 2, counted.stderr
    part = run("report", "--json", "--since", "1h")
    assert (part.returncode, json.loads(part.stdout)["summary"]["requests"]) == (2, 6)
    report = run("report", "--json", "--since", "1h", "--gateway", "gw-2")
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout)["summary"]["requests"] == 3, report.stderr
    assert "gone" not in report.stderr
    drift = run("log", "--drift", "--since", "1h")
    assert drift.returncode == 2, "a missing gateway stands above a finding"
    alone = run("log", "--since", "1h", "--gateway", "gw-1")
    assert alone.returncode == 0, alone.stderr


def test_why_asks_the_gateway_that_the_request_id_begins_with(
    run: Run, tmp_path: Path
) -> None:
    told = run("why", request_id("gw-2", 1))
    assert told.returncode == 1, told.stdout + told.stderr
    assert (told.returncode, told.stdout.startswith("gw-2:\nno-rule: once, last ")) == (
        1,
        True,
    ), told.stderr
    assert f"GET https://gw-2.example/1  ({request_id('gw-2', 1)})" in told.stdout
    assert not (tmp_path / "gw-1.asked").exists()
    every = run("why", "--host", ".example", "--json", "--since", "1h")
    assert every.returncode == 2, "a gateway did not answer"
    gateways = json.loads(every.stdout)["gateways"]
    assert {name: gateway["failed"] for name, gateway in gateways.items()} == {
        "gw-1": 2,
        "gw-2": 2,
    }
    assert "Not answered: gone (127.77.0.3): " in every.stderr


def test_what_is_asked_for_is_one_word_on_the_gateway(run: Run, tmp_path: Path) -> None:
    run("why", "--user", "a'; touch pwned; '", "--gateway", "gw-1")
    assert "touch pwned" in (tmp_path / "gw-1.asked").read_text()
    assert not [*tmp_path.glob("**/pwned")]
    assert not (Path.home() / "pwned").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["log"], "--fleet needs --since"),
        (
            ["why", "--gateway", "other"],
            "the fleet has no gateway 'other': it has gw-1, gw-2, gone",
        ),
        (
            ["log", "--since", "1h", "--gateway", "gone"],
            "no gateway has answered: gone (127.77.0.3): ",
        ),
        (["query", "SELECT 1", "access.log"], "it excludes FILEs"),
        (["report", "--archive", "/srv/archive"], "it excludes --archive"),
    ],
)
def test_what_cannot_be_asked_is_said(run: Run, words: list[str], told: str) -> None:
    done = run(*words)
    assert done.returncode in (1, 2)
    assert told in done.stderr
