"""The verdict of the reload gate: what counts, who has it judged, and what `squidkeeper
reload` shows and accepts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.base.faults import FaultCode, Location
from squidkeeper.change.replay.gate import bound_of_client, verdict
from squidkeeper.change.replay.result import Example, Flip, FlipGroup, FlipKind
from squidkeeper.cli import main
from squidkeeper.policy.language.machines import Machines
from squidkeeper.policy.language.model import Client, ReloadGate
from squidkeeper.policy.policy_store.reload_gate import (
    Edit,
    GateVerdict,
    forced_file,
    parse_edit,
    read_verdict,
    write_verdict,
)
from squidkeeper.record.log.record import format_time
from squidkeeper.serving.reload_judge import ReloadJudge, judging

from ..policy.test_policy_watcher import BAD, rule_names
from ..policy.test_reload_gate import (
    CLOSED,
    LOST,
    OPEN,
    _at_rest,  # noqa: F401 - a fixture
    edit_to,
    folder,
    in_force,
    write_policy,
)
from ..records import record_line
from ..waiting import wait_for

NOW = datetime(2026, 11, 26, 19, 0, tzinfo=UTC)
EDIT = Edit("0" * 12, "1" * 12)
GATE = ReloadGate(86400, 4)


def group(
    client: str,
    host: str = "open.example",
    *,
    user: str | None = None,
    rule: str = "default",
    used: int = 1,
    was: str = "r",
) -> FlipGroup:
    flip = Flip(FlipKind.DENIED, rule, was)
    example = Example(NOW, "GET", f"https://{host}/a?token=secret", "id")
    return FlipGroup(flip, client, user, host, max(used, 1), used, 1, NOW, NOW, example)


def listing(name: str, *addresses: str) -> Client:
    return Client(name, Location(""), tuple(map(ip_network, addresses)))


MACHINES = Machines(
    (
        listing("vm", "192.0.2.11", "192.0.2.12", "fd00:137::11"),
        listing("many", "192.0.2.0/24"),
    )
)


def judged(*groups: FlipGroup, gate: ReloadGate = GATE) -> GateVerdict:
    return verdict((EDIT.old, EDIT.new), gate, groups, NOW, MACHINES)


def test_each_client_rule_and_host_that_was_used_counts_once() -> None:
    unused = (group(f"192.0.2.{number}", used=0) for number in range(9))
    found = judged(
        group("192.0.2.1"),
        group("192.0.2.1", was="other"),
        group("192.0.2.1", rule="no"),
        group("192.0.2.2"),
        *unused,
    )
    assert (found.denials, found.counted, found.accepts) == (3, 3, True)
    assert [(denial.client, denial.rule, denial.count) for denial in found.named] == [
        ("192.0.2.1", "default", 2),
        ("192.0.2.1", "no", 1),
        ("192.0.2.2", "default", 1),
    ]


def test_more_than_the_gate_allows_is_refused() -> None:
    clients = [group(f"192.0.2.{number}") for number in range(5)]
    assert judged(*clients[:4]).accepts
    assert not judged(*clients).accepts


def test_one_client_alone_is_never_enough() -> None:
    hosts = [group("192.0.2.1", f"h{number}.example") for number in range(1000)]
    found = judged(*hosts)
    assert (found.denials, found.counted, found.accepts) == (1000, 3, True)
    assert judged(*hosts, group("192.0.2.2")).accepts
    assert not judged(*hosts, group("192.0.2.2"), group("192.0.2.3")).accepts
    assert len(found.named) == 100


def test_the_addresses_of_one_ipv6_network_are_one_client() -> None:
    addresses = [
        group(f"fd00:137::{number:x}", f"h{number}.example") for number in range(1, 100)
    ]
    assert judged(*addresses).counted == 3  # whatever client lists one of them
    assert judged(*addresses, group("fd00:138::1"), group("fd00:139::1")).counted == 5


def test_the_addresses_that_a_client_of_the_policy_lists_are_one_client() -> None:
    addresses = ("192.0.2.11", "192.0.2.12", "fd00:137::11", "fd00:137::12")
    own = [
        group(address, f"h{number}.example")
        for number in range(10)
        for address in addresses
    ]
    found = judged(*own)
    assert (found.denials, found.counted, found.accepts) == (10, 3, True)
    # of a network, each address is one
    assert judged(*own, group("192.0.2.1"), group("192.0.2.2")).counted == 5


def test_neither_logins_of_one_address_nor_addresses_of_one_login_are_several_clients() -> (
    None
):
    one_address = [group("192.0.2.1", f"h{n}.example", user=f"u{n}") for n in range(10)]
    one_login = [group(f"192.0.2.{n}", f"h{n}.example", user="u") for n in range(1, 10)]
    assert (judged(*one_address).counted, judged(*one_login).counted) == (3, 3)
    assert (
        judged(*(group(f"192.0.2.{n}", user=f"u{n}") for n in range(1, 6))).counted == 5
    )


def test_an_example_shows_no_query() -> None:
    assert judged(group("192.0.2.1")).named[0].example == "GET https://open.example/a"


GROUPS = st.lists(
    st.builds(
        group,
        st.integers(1, 4).map("192.0.2.{}".format),
        st.integers(1, 6).map("h{}.example".format),
        rule=st.sampled_from(["default", "no"]),
        used=st.integers(0, 2),
    ),
    max_size=40,
)


@settings(max_examples=50)
@given(GROUPS, st.integers(1, 8))
def test_no_client_alone_makes_an_edit_refused(
    groups: list[FlipGroup], denials: int
) -> None:
    """Of what is refused without it nothing changes, and with it alone nothing is
    refused.
    """
    gate = ReloadGate(86400, denials)
    assert bound_of_client(gate) <= denials
    whole = judged(*groups, gate=gate)
    assert whole.counted <= whole.denials
    for client in {group.client for group in groups}:
        own = [group for group in groups if group.client == client]
        assert judged(*own, gate=gate).accepts
        others = judged(
            *(group for group in groups if group.client != client), gate=gate
        )
        assert whole.counted - others.counted <= bound_of_client(gate)


# --- who has it judged ----------------------------------------------------------------


def leave(tmp_path: Path, first: str = "") -> Callable[[Edit], list[str]]:
    """A judge that counts its runs."""
    return lambda _: ["sh", "-c", f"{first}echo run >> {tmp_path}/runs"]


def runs(tmp_path: Path) -> int:
    file = tmp_path / "runs"
    return len(file.read_text().splitlines()) if file.exists() else 0


def until(judge: ReloadJudge, condition: Callable[[], bool]) -> None:
    def checked() -> bool:
        judge.check()
        return condition()

    wait_for(checked)


def test_nothing_is_judged_before_an_edit_is_given(tmp_path: Path) -> None:
    ReloadJudge(leave(tmp_path)).check()
    assert runs(tmp_path) == 0


@pytest.mark.system
def test_an_edit_is_judged_once(tmp_path: Path) -> None:
    judge = ReloadJudge(leave(tmp_path))
    judge.begin(EDIT)
    assert judge._process
    judge._process.wait()
    judge._again_at = 0.0
    for _ in range(3):
        judge.check()
    assert runs(tmp_path) == 1


@pytest.mark.system
def test_a_judge_that_is_killed_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed_once = (
        f"test -e {tmp_path}/once || {{ touch {tmp_path}/once; kill -9 $$; }}; "
    )
    judge = ReloadJudge(leave(tmp_path, killed_once))
    judge.begin(EDIT)
    until(judge, lambda: runs(tmp_path) == 1)
    told = f"the judge of edit {EDIT} ended with status -9: it is started again"
    assert caplog.text.count(told) == 1
    judge.end()


@pytest.mark.system
def test_the_judge_of_an_edit_ends_when_another_edit_is_given() -> None:
    judge = ReloadJudge(lambda _: ["sleep", "60"])
    judge.begin(EDIT)
    first = judge._process
    judge.begin(Edit(EDIT.old, "2" * 12))
    assert first
    assert first.poll() == -9
    assert judge._process is not first
    judge.end()
    assert judge._process is None


@pytest.mark.parametrize(
    "text", ["x", "0" * 12, f"{EDIT}-", f"--{EDIT}", "../../etc/passwd-x"]
)
def test_what_names_no_edit_is_none(text: str) -> None:
    assert parse_edit(text) is None


# --- the command ----------------------------------------------------------------------


def reload(tmp_path: Path, *options: str) -> tuple[int, str]:
    places = ("--policy", str(tmp_path / "policy"), "--state", str(tmp_path / "state"))
    done = CliRunner().invoke(main, ["reload", *places, *options])
    return done.exit_code, done.output.replace(f"{tmp_path}/", "")


@pytest.mark.system
def test_the_policy_in_force_needs_nothing(tmp_path: Path) -> None:
    live = in_force(tmp_path)
    assert reload(tmp_path) == (
        0,
        f"policy: revision {live.state.revision} is in force\n",
    )
    assert reload(tmp_path, "--force") == (
        0,
        f"policy: revision {live.state.revision} is in force\n",
    )
    assert not forced_file(tmp_path / "policy").exists()


@pytest.mark.system
def test_an_edit_of_a_policy_without_a_gate_loads(tmp_path: Path) -> None:
    in_force(tmp_path, "rules: [{name: a, action: deny}]")
    write_policy(tmp_path / "policy", OPEN)
    status, said = reload(tmp_path)
    assert status == 0
    assert "is not in force yet" in said


@pytest.mark.system
@pytest.mark.parametrize("forced", [(), ("--force",)])
def test_a_state_of_another_policy_tells_nothing(
    tmp_path: Path, forced: tuple[str, ...]
) -> None:
    in_force(tmp_path)
    (tmp_path / "policy").rename(tmp_path / "other")
    status, said = reload(tmp_path, "--policy", str(tmp_path / "other"), *forced)
    assert (status, said) == (
        2,
        "Error: state is the state of policy, not of other: name --policy or --state\n",
    )


@pytest.mark.system
@pytest.mark.parametrize("forced", [(), ("--force",)])
def test_without_a_state_nothing_is_told_and_nothing_forced(
    tmp_path: Path, forced: tuple[str, ...]
) -> None:
    edit_to(tmp_path, CLOSED, in_force(tmp_path))
    status, said = reload(tmp_path, "--state", str(tmp_path / "nowhere"), *forced)
    unknown = "nowhere does not tell which policy is in force, as far as this account can read"
    assert (status, said) == (2, f"Error: {unknown}: run as root, or name --state\n")
    assert not forced_file(tmp_path / "policy").exists()


@pytest.mark.system
def test_an_edit_that_waits_is_told_so(tmp_path: Path) -> None:
    edit = edit_to(tmp_path, CLOSED, in_force(tmp_path))
    assert reload(tmp_path) == (
        1,
        f"policy: revision {edit.new} waits for the reload gate, for 20 s at most, and {edit.old} stays in force"
        " meanwhile: `squidkeeper reload --force` accepts it at once\n",
    )


@pytest.mark.system
def test_a_refused_edit_shows_what_it_would_deny_and_can_be_accepted(
    tmp_path: Path,
) -> None:
    live = in_force(tmp_path)
    edit = edit_to(tmp_path, CLOSED, live)
    write_verdict(
        folder(tmp_path),
        GateVerdict(edit.old, edit.new, time.time(), 5, 5, 3, (LOST,) * 5),
    )
    status, said = reload(tmp_path)
    assert status == 1
    assert (
        said.splitlines()[0]
        == f"policy: revision {edit.new} is refused, and {edit.old} stays in force"
    )
    assert (
        said.count(
            "client 192.168.137.10 would be denied open.example by closed: 312 requests"
        )
        == 5
    )
    status, said = reload(tmp_path, "--force", "--json")
    assert (status, json.loads(said)["state"]) == (0, "forced")
    assert reload(tmp_path)[0] == 0
    live.check()
    assert live.state.revision == edit.new


@pytest.mark.system
def test_a_refused_edit_as_json(tmp_path: Path) -> None:
    edit = edit_to(tmp_path, CLOSED, in_force(tmp_path))
    write_verdict(
        folder(tmp_path), GateVerdict(edit.old, edit.new, time.time(), 5, 4, 3, (LOST,))
    )
    status, said = reload(tmp_path, "--json")
    found = json.loads(said)
    assert (status, found["state"], found["in_force"], found["on_disk"]) == (
        1,
        "refused",
        edit.old,
        edit.new,
    )
    told = found["verdict"]
    assert [told[name] for name in ("accepts", "denials", "counted", "allowed")] == [
        False,
        5,
        4,
        3,
    ]
    assert told["named"][0]["host"] == "open.example"


@pytest.mark.system
def test_a_faulty_edit_cannot_be_forced(tmp_path: Path) -> None:
    live = in_force(tmp_path)
    write_policy(tmp_path / "policy", BAD)
    status, said = reload(tmp_path, "--force")
    assert status == 2
    assert said.endswith(
        f"policy: does not load, and {live.state.revision} stays in force\n"
    )
    assert not forced_file(tmp_path / "policy").exists()


@pytest.mark.system
def test_where_force_cannot_be_written_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_to(tmp_path, CLOSED, in_force(tmp_path))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("squidkeeper.policy.policy_store.reload_gate.replace", refuse)
    assert reload(tmp_path, "--force") == (
        1,
        "Error: reload-forced: Permission denied: run this as root\n",
    )


# --- the whole way: a log, an edit, a judge -------------------------------------------


def write_log(
    tmp_path: Path,
    revision: str,
    *clients: str,
    status: int = 200,
    at: datetime | None = None,
) -> Path:
    log = tmp_path / "access.log"
    when = format_time(at or datetime.now(UTC))
    lines = [
        record_line(
            client=client,
            url=URL,
            time=when,
            revision=revision,
            status=status,
            request_id=f"{number}.1",
        )
        for number, client in enumerate(clients)
    ]
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    return log


URL = "http://open.example/x"
CLIENTS = [f"192.168.137.{number}" for number in range(2, 7)]


def judge_log(tmp_path: Path, edit: Edit, log: Path) -> GateVerdict | None:
    status, said = reload(tmp_path, "--judge", str(edit), "--access-log", str(log))
    assert (status, said) == (0, "")
    return read_verdict(folder(tmp_path), edit)


@pytest.fixture(autouse=True)
def _unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge bounds its own process, which here is that of the tests."""
    monkeypatch.setattr("signal.alarm", lambda _: 0)
    monkeypatch.setattr(
        "squidkeeper.record.table.database.bound_memory", lambda *_: None
    )
    monkeypatch.setattr("squidkeeper.cli.reload.end_first", lambda: None)


@pytest.mark.system
@pytest.mark.parametrize(
    ("status", "at", "denials"),
    [(200, None, 5), (404, None, 0), (200, datetime(2020, 1, 1, tzinfo=UTC), 0)],
    ids=["used", "not found", "long ago"],
)
def test_what_was_allowed_and_used_in_the_time_of_the_gate_counts(
    tmp_path: Path, status: int, at: datetime | None, denials: int
) -> None:
    edit = edit_to(tmp_path, CLOSED, in_force(tmp_path))
    found = judge_log(
        tmp_path, edit, write_log(tmp_path, edit.old, *CLIENTS, status=status, at=at)
    )
    assert found
    assert (found.denials, found.counted, found.allowed, found.accepts) == (
        denials,
        denials,
        3,
        denials <= 3,
    )


@pytest.mark.system
def test_an_edit_that_has_changed_meanwhile_gets_no_verdict(tmp_path: Path) -> None:
    live = in_force(tmp_path)
    edit = edit_to(tmp_path, CLOSED, live)
    write_policy(tmp_path / "policy", OPEN)
    assert judge_log(tmp_path, edit, write_log(tmp_path, edit.old, *CLIENTS)) is None
    assert not (folder(tmp_path) / "verdict.json").exists()


@pytest.mark.system
def test_an_edit_is_judged_and_refused(tmp_path: Path) -> None:
    log = write_log(tmp_path, "", *CLIENTS)
    command = partial(
        judging, tmp_path / "policy", tmp_path / "state", log, tmp_path / "none"
    )
    judge = ReloadJudge(command)
    live = in_force(tmp_path, judge=judge)
    write_log(tmp_path, str(live.state.revision), *CLIENTS)
    edit_to(tmp_path, CLOSED, live)

    def refused() -> bool:
        live.check()
        return live.state.faults != ()

    wait_for(refused)
    judge.end()
    assert [fault.code for fault in live.state.faults] == [FaultCode.RELOAD_GATED] * 6
    assert (
        "client 192.168.137.2 would be denied open.example by closed: 1 request,"
        in live.state.problem
    )
    assert rule_names(live) == ["open"]
