"""The commands that people call: what they print, and their exit status."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.published.places import mark_in_force
from squidkeeper.serving.parts import needed_keys

from ..conftest import write_policy
from ..records import record_line
from ..waiting import files_at_rest

POLICY = """
rules:
  - {name: no-wikipedia, action: deny, hosts: [.wikipedia.org], reason: Closed to sandboxes.}
  - {name: posts, action: allow, hosts: [api.example], methods: [POST]}
  - {name: api, action: allow, hosts: [api.example], paths: [/v1/**]}
  - {name: mirrored, action: allow, hosts: [packages.example]}
rewrites:
  - {name: mirror, hosts: [packages.example], to: "https://registry.example/python{path}"}
secrets: {token: {file: token}}
credentials:
  - {name: api, hosts: [api.example], bearer: token}
"""
SECRET = "never-to-be-shown"
# where there is no Squid, or no right to ask
NOT_CHECKED = "not checked: what Squid's account can read"


@pytest.fixture
def policy() -> Iterator[Path]:
    """A policy that Squid's account can read: it cannot enter the folders of pytest."""
    with tempfile.TemporaryDirectory(prefix="squidkeeper-tests-") as folder:
        Path(folder).chmod(0o755)
        directory = write_policy(Path(folder) / "policy", POLICY)
        (directory / "token").write_text(SECRET)
        if os.geteuid() == 0:
            shutil.chown(directory / "token", group="proxy")
        (directory / "token").chmod(0o640)
        yield directory


def run(*arguments: object) -> tuple[int, str]:
    """Call a command in this process; give its exit status and what it printed, without
    a note that needs root.
    """
    done = CliRunner(catch_exceptions=False).invoke(
        main, [*map(str, arguments)], prog_name="squidkeeper"
    )
    assert SECRET not in done.output
    lines = [
        line
        for line in done.output.splitlines(keepends=True)
        if not line.startswith(NOT_CHECKED)
    ]
    return done.exit_code, "".join(lines)


@pytest.mark.system
def test_a_command_is_a_process_with_an_exit_status(policy: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "squidkeeper",
        "explain",
        "--policy",
        str(policy),
        "GET",
        "https://api.example/",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    status, out = run(*command[3:])
    assert (done.returncode, done.stdout, done.stderr) == (status, out, "")


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    "helper",
    [
        "acl --scope host",
        "meter",
        "certificate",
        "throttle --scope client",
        "exporter",
        "maintain",
    ],
)
def test_root_starts_no_helper_and_no_service_in_the_state_folder_of_another_account(
    tmp_path: Path, helper: str
) -> None:
    os.chown(tmp_path, 1, 1)
    done = CliRunner().invoke(main, [*helper.split(), "--state", str(tmp_path)])
    assert done.exit_code == 2
    assert (
        f"{tmp_path}: belongs to daemon, who cannot write what root makes: sudo -u daemon squidkeeper"
        in done.output
    )
    assert not [*tmp_path.iterdir()]


@pytest.mark.system
def test_check_prints_the_revision_of_a_policy_that_loads(policy: Path) -> None:
    status, out = run("check", "--policy", policy)
    assert status == 0
    assert out.startswith(f"{policy} loads: revision ")
    assert out.endswith(", 4 rules, 0 faults, 0 warnings\n")


@pytest.mark.system
def test_check_prints_every_fault_and_warning_with_its_place(policy: Path) -> None:
    (policy / "token").unlink()
    write_policy(policy, "rules: [{name: a, action: alow, hosts: [x..y]}]", "b.yaml")
    status, out = run("check", "--policy", policy)
    lines = out.splitlines()
    assert status == 1
    assert lines[0].startswith(
        f"{policy}/b.yaml:2:27: fault: 'action' is 'alow', expected"
    )
    assert lines[1].startswith(
        f"{policy}/b.yaml:2:41: fault: host pattern 'x..y' can never match"
    )
    assert lines[2].startswith(
        f"{policy}/policy.yaml:10:25: warning: secret 'token' is unavailable"
    )
    assert lines[3] == f"{policy} does not load: 2 faults, 1 warning"


@pytest.mark.system
def test_check_finds_rules_that_allow_any_client_where_it_is_asked_to(
    tmp_path: Path,
) -> None:
    directory = write_policy(
        tmp_path / "policy",
        """
clients:
  agents: {networks: [192.168.137.0/24]}
rules:
  - {name: theirs, action: allow, clients: [agents], hosts: [a.example]}
  - {name: closed, action: deny, hosts: [b.example]}
  - {name: everyones, action: allow, hosts: [c.example]}
  - {name: lapsed, action: allow, hosts: [d.example], expires: 2020-01-01T00:00:00Z}
""",
    )
    assert run("check", "--policy", directory)[0] == 0
    status, out = run("check", "--policy", directory, "--require-clients")
    assert status == 1
    assert [line for line in out.splitlines() if "any client" in line] == [
        f"{directory}/policy.yaml:8:5: fault: rule 'everyones' allows any client, as it names no clients [any-client]"
    ]
    assert out.endswith(" 4 rules, 1 fault, 1 warning\n")
    loaded = json.loads(
        run("check", "--policy", directory, "--require-clients", "--json")[1]
    )
    assert (loaded["loads"], [fault["code"] for fault in loaded["faults"]]) == (
        True,
        ["any-client"],
    )
    write_policy(directory, "defaults: {action: allow}", "b.yaml")
    (directory / "policy.yaml").unlink()
    status, out = run("check", "--policy", directory, "--require-clients")
    assert (status, "the default allows any client" in out) == (1, True)
    write_policy(directory, "defaults: {action: deny}", "b.yaml")
    assert run("check", "--policy", directory, "--require-clients")[0] == 0


UNPRINTABLE = "holds characters other than printable ASCII [secret-invalid]"


@pytest.mark.system
@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("\n", "is empty [secret-empty]"),
        *((text, UNPRINTABLE) for text in ("one\n\n", "one\ntwo\n", "\ufeffone\n")),
        (None, ""),
    ],
)
def test_check_warns_once_of_a_secret_that_makes_no_header(
    policy: Path, content: str | None, why: str
) -> None:
    (policy / "token").unlink() if content is None else (policy / "token").write_text(
        content
    )
    status, out = run("check", "--policy", policy)
    warning = (
        f"secret token: the file {policy}/token {why}\n"
        if why
        else "secret 'token' is unavailable"
    )
    assert (
        status,
        f": warning: {warning}" in out,
        out.endswith(", 0 faults, 1 warning\n"),
    ) == (0, True, True)


def close_secret(policy: Path) -> Path:
    closed = policy / "it's; $(a) token"
    (policy / "token").rename(closed)
    write_policy(policy, POLICY.replace("file: token", 'file: "it\'s; $(a) token"'))
    closed.chmod(0o600)
    return closed


def close_folder(policy: Path) -> Path:
    (policy / "private").mkdir(mode=0o700)
    (policy / "token").rename(policy / "private/token")
    write_policy(policy, POLICY.replace("file: token", "file: private/token"))
    return policy / "private"


def close_by_acl(policy: Path) -> Path:
    """Close it to the user alone, by a list (acl(5)) as setfacl writes it: owner, user,
    group, mask, others.
    """
    entries = [
        (1, 6, -1),
        (2, 0, pwd.getpwnam("proxy").pw_uid),
        (4, 4, -1),
        (16, 4, -1),
        (32, 0, -1),
    ]
    packed = b"".join(
        struct.pack("<HHI", tag, mode, who & 0xFFFFFFFF) for tag, mode, who in entries
    )
    os.setxattr(
        policy / "token", "system.posix_acl_access", struct.pack("<I", 2) + packed
    )
    return policy / "token"


@pytest.mark.system
@pytest.mark.parametrize("close", [close_secret, close_folder, close_by_acl])
def test_check_as_root_finds_a_secret_that_squids_account_cannot_read(
    policy: Path, close: Callable[[Path], Path]
) -> None:
    closed = close(policy)
    why = f"it cannot enter {closed}" if closed.is_dir() else "permission denied"
    file = shlex.quote(str(closed))
    how = f"chgrp proxy {file}; chmod g+{'x' if closed.is_dir() else 'r'} {file}"
    status, out = run("check", "--policy", policy)
    assert status == 1
    assert out.splitlines()[0] == (
        f"{policy}/policy.yaml:10:25: fault: secret 'token' cannot be read by Squid's account proxy ({why}), "
        f"so requests that need it are denied: give it access ({how}) [closed-to-squid]"
    )
    assert out.endswith(" rules, 1 fault, 0 warnings\n")
    assert out.splitlines()[-1].startswith(f"{policy} loads: revision ")


@pytest.mark.system
def test_check_as_root_finds_policy_and_list_files_that_squids_account_cannot_read(
    policy: Path,
) -> None:
    (policy / "ads.txt").write_text("ads.example\n")
    lists = (
        "lists: {ads: {file: ads.txt}}\nrules: [{name: a, action: deny, lists: [ads]}]"
    )
    write_policy(policy, lists, "b.yaml")
    grant = "grants: [{name: g, any_client: true, hosts: [a.b], expires: 2099-01-01T00:00:00Z, reason: x}]"
    write_policy(policy.parent, grant, "grants.yaml")
    for closed in (
        policy / "ads.txt",
        policy / "b.yaml",
        policy.parent / "grants.yaml",
    ):
        closed.chmod(0o600)
    status, out = run("check", "--policy", policy)
    assert status == 1
    assert [line.partition(" (")[0] for line in out.splitlines()[:3]] == [
        f"{policy.parent}/grants.yaml: fault: this file cannot be read by Squid's account proxy",
        f"{policy}/b.yaml: fault: this file cannot be read by Squid's account proxy",
        f"{policy}/b.yaml:2:21: fault: list 'ads' cannot be read by Squid's account proxy",
    ]
    assert out.splitlines()[-1] == f"{policy} does not load: 3 faults, 0 warnings"


@pytest.mark.system
@pytest.mark.parametrize("closed", ["the folder of the policy", "the folder above it"])
def test_check_of_a_draft_in_a_folder_that_squids_account_cannot_read(
    policy: Path, closed: str
) -> None:
    folder = policy if closed == "the folder of the policy" else policy.parent
    folder.chmod(0o700)
    status, out = run("check", "--policy", policy, "--json")
    why = f"proxy cannot read {folder}, and another policy is in force"
    assert (status, json.loads(out)["account"]["not_checked"]) == (0, why)
    state = policy.parent / "state"
    store_revision(
        sources := read_sources(policy), sources.revision, state / "revisions"
    )
    mark_in_force(state / "revisions", sources.revision)
    status, out = run("check", "--policy", policy, "--state", state)
    assert (status, "so its helpers do not load the policy" in out) == (1, True)


@pytest.mark.system
def test_check_asks_for_the_account_that_it_is_given(policy: Path) -> None:
    assert run("check", "--policy", policy)[1].endswith(", 0 warnings\n")
    assert (
        "cannot be read by Squid's account nobody"
        in run("check", "--policy", policy, "--account", "nobody")[1]
    )
    status, out = run("check", "--policy", policy, "--account", "no-such-account")
    assert status == 2
    assert "there is no account 'no-such-account' on this machine" in out


@pytest.mark.system
def test_check_says_what_it_did_not_check_where_there_is_no_squid_or_no_right_to_ask(
    policy: Path,
) -> None:
    command = [sys.executable, "-m", "squidkeeper", "check", "--policy", str(policy)]
    hidden = f"mount -t tmpfs tmpfs /usr/sbin && exec {shlex.join(command)}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", hidden],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == (
        "not checked: what Squid's account can read (no Squid was found here: name its account by --account)"
    )
    told = json.loads(run("check", "--policy", policy, "--json")[1])["account"]
    assert told == {"name": "proxy", "not_checked": None}
    unable = [
        "setpriv",
        "--bounding-set",
        "-setuid",
        "--inh-caps",
        "-setuid",
        *command,
        "--json",
    ]
    done = subprocess.run(unable, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["account"] == {
        "name": "proxy", "not_checked": "this process cannot take the rights of proxy",
    }  # fmt: skip
    assert "Traceback" not in done.stderr


@pytest.mark.system
def test_check_knows_which_files_of_the_policy_in_force_ended_with_end_true(
    policy: Path, tmp_path: Path
) -> None:
    write_policy(policy, POLICY + "end: true\n")
    live = PolicyWatcher(
        policy, None, lambda compiled: compiled, tmp_path / "revisions"
    )
    files_at_rest()
    live.check()
    live.store()
    write_policy(policy, POLICY)
    status, out = run("check", "--policy", policy, "--state", tmp_path)
    assert status == 1
    assert "fault: the file does not end with 'end: true', as it did before" in out
    assert run("check", "--policy", policy, "--state", tmp_path / "none")[0] == 0


@pytest.mark.system
def test_check_shows_a_failing_test_as_expected_against_got(policy: Path) -> None:
    write_policy(
        policy,
        "tests: [{request: GET https://en.wikipedia.org/, expect: allow}]",
        "b.yaml",
    )
    status, out = run("check", "--policy", policy)
    assert status == 1
    assert (
        f"{policy}/b.yaml:2:9: fault: test GET https://en.wikipedia.org/: "
        "expected allow, got deny by no-wikipedia (Closed to sandboxes.) [test-failed]\n"
    ) in out


@pytest.mark.system
def test_check_and_explain_speak_json(policy: Path) -> None:
    status, out = run("check", "--policy", policy, "--json")
    report = json.loads(out)
    assert (status, report["loads"], report["faults"], report["warnings"]) == (
        0,
        True,
        [],
        [],
    )
    write_policy(policy, "rules: [{name: a, action: alow}]", "b.yaml")
    status, out = run("check", "--policy", policy, "--json")
    [fault] = json.loads(out)["faults"]
    assert (status, fault["file"], fault["line"], fault["column"]) == (
        1,
        f"{policy}/b.yaml",
        2,
        27,
    )
    assert fault["code"] == "wrong-type"


@pytest.mark.system
@pytest.mark.parametrize(
    ("age_seconds", "age"),
    [
        (3 * 86400 + 7200, "3 days old"),
        (86400 + 60, "1 day old"),
        (7200 + 60, "2 h 1 min old"),
        (150, "2 min old"),
        (0, "less than a minute old"),
        (-3600, "from the future"),
    ],
)
def test_check_says_how_long_and_how_old_each_list_is(
    policy: Path, age_seconds: int, age: str
) -> None:
    changed = int(time.time()) - age_seconds
    (policy / "trackers.txt").write_text(
        "".join(f"||{number}.example^\n" for number in range(1234)) + "@@||a^\n"
    )
    os.utime(policy / "trackers.txt", (changed, changed))
    lists = "lists: {trackers: {file: trackers.txt}}\nrules: [{name: a, action: deny, lists: [trackers]}]"
    write_policy(policy, lists, "b.yaml")
    status, out = run("check", "--policy", policy)
    assert status == 0
    assert ", 5 rules, 0 faults, 1 warning" in out.splitlines()[-1]
    assert out.splitlines()[-2] == (
        f"{policy}/trackers.txt: list trackers: 1,234 hosts, {age}, 1 line not understood"
    )
    [row] = json.loads(run("check", "--policy", policy, "--json")[1])["lists"]
    assert 0 <= row.pop("age_seconds") - age_seconds < 60
    assert row == {
        "name": "trackers",
        "file": f"{policy}/trackers.txt",
        "hosts": 1234,
        "not_understood": 1,
        "changed": datetime.fromtimestamp(changed, UTC).isoformat(),
    }


def test_explain_says_the_verdict_and_everything_that_led_to_it(policy: Path) -> None:
    status, out = run("explain", "--policy", policy, "GET", "https://api.example/v1/x")
    assert status == 0
    assert out.splitlines() == [
        "ALLOW        GET https://api.example/v1/x",
        f"rule         api ({policy}/policy.yaml:6)",
        f"credential   api: Authorization ({policy}/policy.yaml:12)",
        f"secret       token: file {policy}/token",
        "connection   one of the tunnel's own, because for this host the rule posts does not have connections: shared",
        "resolved     later, by Squid: it denies the request as private-address if an address of api.example is "
        "private (private: true on the rule api would allow it)",
        f"websocket    no, the rule posts ({policy}/policy.yaml:5) names methods "
        "(websocket: true on the rule api would let it pass)",
        "reading      sent /v1/x: allow by api",
        f"passed over  posts ({policy}/policy.yaml:5): methods did not hold",
    ]


def test_explain_says_that_a_policy_which_does_not_load_explains_nothing(
    tmp_path: Path,
) -> None:
    status, out = run("explain", "--policy", tmp_path, "GET", "https://api.example/")
    assert status == 2
    assert out.splitlines()[-1] == (
        f"{tmp_path} does not load, so it explains nothing; helpers that have loaded a policy keep it"
    )


def test_explain_names_the_reading_for_which_a_rule_was_passed_over(
    policy: Path,
) -> None:
    write_policy(
        policy,
        "rules: [{name: hidden, action: deny, hosts: [docs.example], paths: [/in/**]}, "
        "{name: docs, action: allow, hosts: [docs.example]}]",
        "b.yaml",
    )
    lines = run("explain", "--policy", policy, "GET", "https://docs.example/a/../in/x")[
        1
    ].splitlines()
    assert any(line.endswith(" /in/x: deny by hidden") for line in lines)
    assert (
        f"passed over  hidden ({policy}/b.yaml:2): paths did not hold, for the reading sent"
        in lines
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("diff", "a", "b", "c"), "expected [OLD] NEW, or --within CEILING NEW"),
        (
            ("replay", "/etc"),
            "/etc is a folder, expected an access log. A draft is named by --policy /etc",
        ),
    ],
)
def test_a_mistaken_call_is_told_the_right_one(
    arguments: tuple[str, ...], said: str
) -> None:
    assert said in run(*arguments)[1]


def test_explain_says_whether_a_websocket_passes(policy: Path) -> None:
    write_policy(
        policy,
        "rules: [{name: part, action: allow, hosts: [part.example], paths: [/x, /y], query: {q: x}}, "
        "{name: whole, action: allow, hosts: [whole.example]}]",
        "b.yaml",
    )
    asked = {
        "https://whole.example/": "yes",
        "https://part.example/x?q=x": f"no, the rule part ({policy}/b.yaml:2) names paths, query "
        "(websocket: true on the rule part would let it pass)",
        "https://packages.example/": f"no, the rewrite mirror ({policy}/policy.yaml:9) is for this host "
        "(websocket: true on the rule mirrored would let it pass)",
    }
    for url, said in asked.items():
        assert (
            f"websocket    {said}"
            in run("explain", "--policy", policy, "GET", url)[1].splitlines()
        )
    assert (
        "websocket"
        not in run("explain", "--policy", policy, "HEAD", "https://whole.example/")[1]
    )
    said_json = json.loads(
        run("explain", "--policy", policy, "--json", "HEAD", "https://whole.example/")[
            1
        ]
    )
    assert said_json["websocket"] is None
    said_json = json.loads(
        run("explain", "--policy", policy, "--json", "GET", "https://whole.example/")[1]
    )
    assert said_json["websocket"] == {"passes": True, "reason": None}


def test_explain_says_why_a_credential_or_a_rewrite_does_not_apply(
    policy: Path,
) -> None:
    write_policy(
        policy,
        """
        rewrites: [{name: old, hosts: [api.example], paths: [/v0/**], to: "https://{host}/v1{path}"}]
        credentials: [{name: writes, hosts: [api.example], methods: [POST], header: X-Api-Key, value: "{token}"}]
        """,
        "b.yaml",
    )
    assert run("explain", "--policy", policy, "GET", "https://api.example/v1/x")[
        1
    ].splitlines()[-2:] == [
        f"not applied  old ({policy}/b.yaml:3): paths did not hold",
        f"not applied  writes ({policy}/b.yaml:4): methods did not hold",
    ]
    assert run("explain", "--policy", policy, "OPTIONS", "https://api.example/v1/x")[
        1
    ].splitlines()[-2:] == [
        f"not applied  writes ({policy}/b.yaml:4): methods did not hold",
        f"not applied  api ({policy}/policy.yaml:12): methods did not hold",
    ]


def test_explain_says_that_squid_lacks_the_parts_that_a_request_needs(
    tmp_path: Path,
) -> None:
    text = "rules: [{name: a, action: allow, hosts: [a.example, b.example]}]\n"
    text += "upstreams: [{name: corp, hosts: [a.example], url: 'http://proxy.example:3128'}]\n"
    directory, fragment = (
        write_policy(tmp_path / "policy", text),
        tmp_path / "squidkeeper.conf",
    )
    ask = ("explain", "--policy", directory, "--fragment", fragment)
    # the file is on another machine
    assert "not rendered" not in run(*ask, "GET", "https://a.example/")[1]
    fragment.write_text("acl --in-force core \\\n")
    assert (
        "what it needs yet: upstream.corp:" in run(*ask, "GET", "https://a.example/")[1]
    )
    assert "not rendered" not in run(*ask, "GET", "https://b.example/")[1]
    keys = needed_keys(load(directory, datetime.now(UTC)).compiled.source)
    fragment.write_text(f"acl --in-force {','.join(keys)} \\\n")
    assert "not rendered" not in run(*ask, "GET", "https://a.example/")[1]


def test_explain_says_of_a_draft_what_squid_gets_with_it(tmp_path: Path) -> None:
    text = "rules: [{name: a, action: allow, hosts: [a.example], strip: [X-Debug]}]\n"
    draft, fragment = (
        write_policy(tmp_path / "draft", text),
        tmp_path / "squidkeeper.conf",
    )
    installed = write_policy(tmp_path / "policy", text)
    fragment.write_text(
        f"  acl --in-force core \\\n    --policy {tmp_path}/link --state x\n"
    )
    (tmp_path / "link").symlink_to("policy")
    ask = ("--fragment", fragment, "GET", "https://a.example/")
    assert (
        "put in force: strip, strip.x-debug\n"
        in run("explain", "--policy", draft, *ask)[1]
    )
    assert "repeat the request" in run("explain", "--policy", installed, *ask)[1]


def test_explain_says_whether_connections_are_shared_on_this_gateway(
    tmp_path: Path,
) -> None:
    text = "rules: [{name: a, action: allow, hosts: [a.example], methods: [GET], connections: shared}]\n"
    draft, fragment = (
        write_policy(tmp_path / "draft", text),
        tmp_path / "squidkeeper.conf",
    )
    installed = write_policy(tmp_path / "policy", text)

    def said(policy: Path, keys: str) -> tuple[str, str]:
        fragment.write_text(f"  acl --in-force {keys} \\\n    --policy {installed}\n")
        ask = (
            "explain",
            "--policy",
            policy,
            "--fragment",
            fragment,
            "GET",
            "https://a.example/",
        )
        [line] = [
            line for line in run(*ask)[1].splitlines() if line.startswith("connection ")
        ]
        return line.partition("   ")[2], json.loads(run(*ask, "--json")[1])["tunnel"][
            "mode"
        ]

    shared, unless = (
        "shared with other clients",
        "unless install.sh was given --bump documented or --upstream",
    )
    why = "because for this host each rule has connections: shared"
    assert said(installed, "core,shared") == (f"{shared}, {why}", "shared")
    assert said(draft, "core") == (f"{shared}, {unless}, {why}", "shared")
    line, mode = said(installed, "core")
    own = "one of the tunnel's own, because for this host Squid shares none: "
    assert (line.startswith(own), mode) == (True, "own")


def test_explain_names_the_denies_that_are_not_reached_a_handful_at_most(
    policy: Path,
) -> None:
    write_policy(
        policy,
        "rules: ["
        + ", ".join(
            f"{{name: d{n}, action: deny, hosts: [packages.example]}}" for n in range(7)
        )
        + "]",
        "z.yaml",
    )
    out = run("explain", "--policy", policy, "GET", "https://packages.example/")[1]
    assert [line for line in out.splitlines() if line.startswith("not reached")] == [
        *(f"not reached  d{n} ({policy}/z.yaml:2): would deny" for n in range(5)),
        "not reached  2 more",
    ]


def test_explain_in_json_has_the_keys_that_programs_read(policy: Path) -> None:
    status, out = run(
        "explain", "--policy", policy, "--json", "GET", "https://packages.example/a%2fb"
    )
    assert status == 0
    assert json.loads(out) == {
        "verdict": "allow",
        "rule": "mirrored",
        "location": f"{policy}/policy.yaml:7",
        "reason": None,
        "session": None,
        "by_body": [],
        "asks": False,
        "grant": None,
        "observed": None,
        "default_observes": False,
        "rewrite": {
            "name": "mirror",
            "url": "https://registry.example/python/a%2Fb",
            "redirect": None,
        },
        "credentials": [],
        "secrets": {},
        "strip": [],
        "connections": None,
        "tunnel": {"mode": "first", "reason": "the rewrite mirror may apply"},
        "upstream": None,
        "meter": None,
        "quotas": [],
        "not_rendered": None,
        "resolved": {
            "host": "registry.example",
            "private_address": "deny",
            "opened_by": "the rewrite mirror",
        },
        "websocket": {
            "passes": False,
            "reason": f"the rewrite mirror ({policy}/policy.yaml:9) is for this host",
        },
        "passthrough": False,
        "readings": [
            {
                "reading": "sent",
                "path": "/a%2Fb",
                "verdict": "allow",
                "rule": "mirrored",
            },
            {
                "reading": "plain",
                "path": "/a/b",
                "verdict": "allow",
                "rule": "mirrored",
            },
        ],
        "passed_over": [],
        "not_reached": [],
        "not_applied": [],
    }


def test_explain_in_json_lists_what_did_not_decide(policy: Path) -> None:
    write_policy(
        policy, "rules: [{name: last, action: deny, hosts: [api.example]}]", "z.yaml"
    )
    said = json.loads(
        run(
            "explain",
            "--policy",
            policy,
            "--json",
            "OPTIONS",
            "https://api.example/v1/x",
        )[1]
    )
    assert [said[key] for key in ("passed_over", "not_reached", "not_applied")] == [
        [
            {
                "name": "posts",
                "location": f"{policy}/policy.yaml:5",
                "fields": ["methods"],
            }
        ],
        [{"name": "last", "location": f"{policy}/z.yaml:2"}],
        [
            {
                "name": "api",
                "location": f"{policy}/policy.yaml:12",
                "fields": ["methods"],
            }
        ],
    ]


@pytest.mark.parametrize(
    "asked",
    ["CONNECT a..b:443", "CONNECT ::1:443", "GET ftp://api.example/", "GET https://"],
)
def test_explain_denies_what_no_server_takes(policy: Path, asked: str) -> None:
    status, out = run("explain", "--policy", policy, *asked.split())
    assert (status, out.splitlines()[1]) == (1, "rule         invalid-request")


NO_TARGET = "{!r} is not an absolute URL, expected one with its scheme, such as"
NO_TUNNEL = "CONNECT takes HOST:PORT, such as github.com:443, not {!r}"


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        *(
            ("CONNECT", target, NO_TUNNEL)
            for target in ("https://api.example:443", "api.example")
        ),
        *(
            ("GET", target, NO_TARGET)
            for target in ("api.example", "api.example:443", "")
        ),
    ],
)
def test_what_no_client_could_mean_is_a_usage_error_and_no_denial(
    policy: Path, method: str, target: str, message: str
) -> None:
    status, out = run("explain", "--policy", policy, method, target)
    assert (
        status,
        "DENY" in out,
        f"Invalid value for URL: {message.format(target)}" in out,
    ) == (2, False, True)


def test_explain_says_whether_a_tunnel_passes_through(policy: Path) -> None:
    write_policy(
        policy,
        "rules: [{name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}]",
        "b.yaml",
    )
    through = "tls          passthrough: only client, host, port and TLS server name are seen, no method and no path"
    asked = {"CONNECT": "pinned.example:443", "POST": "https://pinned.example/x"}
    for method, target in asked.items():
        assert (
            through
            in run("explain", "--policy", policy, method, target)[1].splitlines()
        )
    bumped = "tls          bumped: HTTP/1.1 passes, each request is decided; HTTP/2 and gRPC need tls: passthrough"
    assert bumped in run("explain", "--policy", policy, "CONNECT", "api.example:443")[1]
    for target in ("https://api.example/v1/x", "http://pinned.example/"):
        assert "tls " not in run("explain", "--policy", policy, "GET", target)[1]
    said = json.loads(
        run("explain", "--policy", policy, "--json", "GET", "https://pinned.example/")[
            1
        ]
    )
    assert said["passthrough"] is True
    assert (
        "websocket"
        not in run("explain", "--policy", policy, "GET", "https://pinned.example/")[1]
    )


def test_explain_exits_by_the_verdict(policy: Path) -> None:
    assert (
        run("explain", "--policy", policy, "GET", "https://en.wikipedia.org/")[0] == 1
    )
    assert run("explain", "--policy", policy, "CONNECT", "api.example:443")[0] == 0
    assert (
        run(
            "explain",
            "--policy",
            policy,
            "--client",
            "nobody",
            "GET",
            "https://api.example/",
        )[0]
        == 2
    )
    assert (
        run("explain", "--policy", policy / "none", "GET", "https://api.example/")[0]
        == 2
    )


RECORD = {
    "revision": "a" * 12,
    "url": "https://api.example/v1/x",
    "status": 403,
    "verdict": "deny",
    "rule": "default",
    "sni": "api.example",
    "tunnel": "api.example:443",
}
CUT = "https://api.example/v1/" + "l" * 4073
ON_RECORD: list[tuple[dict[str, str], int, str]] = [
    ({"verdict": "allow", "rule": "api"}, 0, "rule         api "),
    (
        {"url": "https://api.example/v1/x%23y", "hidden": "fragment"},
        1,
        "has a fragment ('#')",
    ),
    (
        {"url": "https://api.example/v1/x%23y"},
        0,
        "ALLOW        GET https://api.example/v1/x%23y (logged: deny by",
    ),
    (
        {"url": "http://api.example/v1/x", "tunnel": "-", "hidden": "userinfo"},
        1,
        "userinfo",
    ),
    ({"sni": "other.example"}, 1, "rule         authority-mismatch"),
    (
        {"method": "CONNECT", "url": "api.example:443", "revision": "-"},
        1,
        "A CONNECT inside a tunnel is not allowed.",
    ),
    (
        {"method": "CONNECT", "url": "api.example:443"},
        0,
        "ALLOW        CONNECT api.example:443 (logged",
    ),
    (
        {
            "method": "CONNECT",
            "url": "api.example:443",
            "squid": "TCP_TUNNEL/HIER_DIRECT",
        },
        1,
        "A CONNECT inside a tunnel is not allowed. No rule passes this tunnel through.",
    ),
    (
        {
            "method": "CONNECT",
            "url": "api.example:443",
            "squid": "TCP_DENIED/HIER_NONE",
            "sni": "x.example",
            "tunnel": "api.example:443",
        },
        1,
        "The TLS server name is 'x.example', the tunnel is for api.example:443.",
    ),
    (
        {"url": CUT, "cut": "5000:abc"},
        2,
        "the beginning of url (length and SHA-256 of the whole URL: 5000:abc).",
    ),
    (
        {"url": CUT},
        2,
        "cannot be explained by the policy: the record holds only the beginning of url.",
    ),
    ({"rule": "private-address"}, 2, "had a private address, which only Squid knew"),
    (
        {"rule": "authority-mismatch", "revision": "-"},
        2,
        "the server's certificate did not cover the host",
    ),
    ({"rule": "policy-unavailable"}, 2, "the gateway could not decide it"),
    ({"rule": "not-rendered"}, 2, "lacked lines that the policy needs"),
    ({"rule": "credential-unavailable"}, 2, "a secret was unavailable"),
    ({"rule": "-", "verdict": "-"}, 2, "no helper was asked"),
    (
        {"found": "body:chat:%20no%20model"},
        0,
        "(logged: deny by default, by its body: chat: no model)",
    ),
    ({"time": "no time"}, 2, "--record"),
]


@pytest.mark.parametrize(
    ("fields", "status", "said"), ON_RECORD, ids=[said for *_, said in ON_RECORD]
)
def test_explain_takes_a_line_of_the_record(
    policy: Path, tmp_path: Path, fields: dict[str, str], status: int, said: str
) -> None:
    line = tmp_path / "line"
    line.write_bytes(record_line(**{**RECORD, **fields}) + b"\n")
    code, out = run("explain", "--policy", policy, "--record", line)
    assert said in out
    assert code == status


def test_explain_says_when_the_record_is_of_another_revision(
    policy: Path, tmp_path: Path
) -> None:
    line = tmp_path / "line"
    line.write_bytes(record_line(**RECORD) + b"\n")
    told = "Revision aaaaaaaaaaaa decided this request, and revision"
    assert told in run("explain", "--policy", policy, "--record", line)[1]
    revision = load(policy, datetime.now(UTC)).compiled.revision
    line.write_bytes(record_line(**{**RECORD, "revision": revision}) + b"\n")
    assert (
        "decided this request"
        not in run("explain", "--policy", policy, "--record", line)[1]
    )


def test_explain_refuses_a_url_as_the_record_cuts_it_off(policy: Path) -> None:
    status, out = run("explain", "--policy", policy, "GET", CUT)
    assert status == 2
    assert "has 4,096 characters, as a URL that the record cuts off" in out
    assert run("explain", "--policy", policy, "GET", f"{CUT}l")[0] == 0


def test_explain_takes_a_request_or_a_record(policy: Path) -> None:
    assert run("explain", "--policy", policy, "GET")[0] == 2
    assert (
        run(
            "explain",
            "--policy",
            policy,
            "--record",
            "-",
            "GET",
            "https://api.example/",
        )[0]
        == 2
    )


@pytest.mark.parametrize("content", ["", "\n"])
def test_explain_says_what_it_expects_where_there_is_no_line(
    policy: Path, tmp_path: Path, content: str
) -> None:
    empty = tmp_path / "line"
    empty.write_text(content)
    status, out = run("explain", "--policy", policy, "--record", empty)
    assert status == 2
    assert (
        f"{empty} is empty, expected a line of the record, as `squidkeeper log --json` prints it"
        in out
    )


HOSTS_ON_RECORD = {
    "http://b%C3%BCcher.example/": "books",  # Squid's escapes, of a host in Unicode
    # the client's own, which Squid writes in lower case
    "http://b%c3%bccher.example/": "invalid-request",
    "http://%5B2001:db8::1%5D/": "address",
    "http://%5b2001:db8::1%5d/": "invalid-request",
    "http://bücher.example/": "books",
    "http://[2001:db8::1]/": "address",
    "http://-/": "invalid-request",  # a helper reads `-` as no host
}


def test_explain_reads_hosts_as_the_record_writes_them(tmp_path: Path) -> None:
    rules = (
        "[{name: books, action: deny, hosts: [bücher.example]}, {name: address, "
        "action: deny, hosts: ['2001:db8::1']}]"
    )
    policy = write_policy(tmp_path / "policy", f"rules: {rules}")
    said = {
        url: run("explain", "--policy", policy, "--json", "GET", url)[1]
        for url in HOSTS_ON_RECORD
    }
    assert {
        url: json.loads(out)["rule"] for url, out in said.items()
    } == HOSTS_ON_RECORD


@pytest.mark.parametrize(
    ("written", "meant"),
    [("chekc", "check"), ("explian", "explain"), ("doctr", "doctor"), ("zzz", "")],
)
def test_a_command_that_was_meant_is_named(written: str, meant: str) -> None:
    status, out = run(written)
    assert status == 2
    assert f"No such command '{written}'." in out
    assert ("Did you mean" in out, f"Did you mean '{meant}'?" in out) == (
        bool(meant),
        bool(meant),
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("status", "squidkeeper doctor examines the gateway. "),
        ("help", "squidkeeper --help lists the commands, "),
        ("version", "squidkeeper --version prints the version."),
    ],
)
def test_a_command_of_other_programs_leads_to_ours(written: str, said: str) -> None:
    status, out = run(written, "more")
    assert status == 2
    assert f"No such command '{written}'. {said}" in out


def test_the_help_has_a_line_for_each_command_that_fits() -> None:
    folder = Path(str(resources.files("squidkeeper.cli")))
    commands = {
        path.stem
        for path in folder.glob("*.py")
        if re.search(
            rf"^@click\.(command|group).*?^def {path.stem}\(",
            path.read_text(),
            re.M | re.S,
        )
    }
    status, out = run("--help")
    lines = out.split("Policy:\n")[1].splitlines()
    assert status == 0
    assert {line.split()[0] for line in lines if line.startswith("  ")} == commands
    assert max(map(len, lines)) <= 78
    assert "..." not in out.split("Policy:\n")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--certificates mine", "--certificates mine: 'certificates' is 'mine'"),
        ("--tls-name a/b", "--tls-name a/b: "),
        ("--ca root", "--ca root: 'ca' is 'root', expected one of direct, "),
        ("--intermediate-days 0", "--intermediate-days 0: 'intermediate_days' is "),
        ("--log-bytes 63M", "--log-bytes 63M: '63M' is no size, "),
        ("--listen 99999", "--listen 99999: 'listen' is the number 99999, "),
        ("--gateway a/b", "--gateway a/b: "),
        ("--upstream ftp://parent.example", "--upstream ftp://parent.example: "),
        (
            "--upstream https://proxy.example:3128",
            "--upstream https://proxy.example:3128: ",
        ),
        ("--tls --no-tls", "--tls and --no-tls exclude each other"),
        ("--behind gw.example", "--behind gw.example: "),
        ("--status-from ops.example", "--status-from ops.example: "),
        (
            "--dry-run --uninstall",
            "--dry-run is for an installation, not for --uninstall",
        ),
    ],
)
def test_a_wrong_value_for_the_installer_is_told_by_its_name_and_leaves_nothing(
    tmp_path: Path, arguments: str, message: str
) -> None:
    work, made = tmp_path / "work", tmp_path / "made"
    for folder in (work, made, made / "venv"):
        folder.mkdir()
    places = (
        "--source",
        tmp_path,
        "--venv",
        made / "venv",
        "--work",
        work,
        "--made",
        made,
        "--made",
        made / "venv",
    )
    status, told = run("setup", *places, *arguments.split())
    assert (status, list(tmp_path.iterdir())) == (2, [])
    assert told.startswith(f"install.sh: {message}")
    assert told.endswith("\n            ./install.sh --help explains the options.\n")
    assert "Usage:" not in told


NEEDS_INSTALL = """
secrets: {a: {env: CHECK_A}, fetched: {command: {run: [give-token]}}}
rules: [{name: x, action: allow, hosts: [a.example], strip: [Cookie]}]
upstreams: [{name: u, hosts: [b.example], url: "http://192.0.2.1:3128"}]
credentials:
  - {name: own, hosts: [a.example], headers: {X-Own: "{a}"}}
  - {name: later, hosts: [c.example], bearer: a, placeholder: PLACEHOLDER-0123456789}
quotas: [{name: q, per: client, bytes_out: 5MB, every: day}]
"""


@pytest.mark.system
def test_check_names_what_squid_lacks_and_for_what_install_has_to_be_run(
    tmp_path: Path,
) -> None:
    directory, fragment = (
        write_policy(tmp_path / "etc/policy", NEEDS_INSTALL),
        tmp_path / "squidkeeper.conf",
    )
    asked = (
        "check",
        "--policy",
        directory,
        "--state",
        tmp_path / "state",
        "--fragment",
        fragment,
    )
    fragment.write_text(
        "acl --in-force core,pages,override-headers,certificates,websocket,credentials \\\n"
    )
    status, out = run(*asked)
    lacks = "inject.x-own, quotas, quotas.bytes_out-5000000, read-headers, strip, strip.cookie, upstream.u:"
    assert f"does not have {lacks}" in out
    assert (
        "run install.sh: nothing does yet what the policy says about fetched secrets\n"
        in out
    )
    told = json.loads(run(*asked, "--json")[1])
    assert (status, told["install"]) == (0, ["fetched secrets"])
    assert told["parts"] == [
        "certificates",
        "credentials",
        "override-headers",
        "pages",
        "websocket",
    ]
    keys = needed_keys(load(directory, datetime.now(UTC)).compiled.source)
    fragment.write_text(f"acl --in-force {','.join(keys)} \\\n")
    assert "does not have" not in run(*asked)[1]
    (tmp_path / "etc/squidkeeper-secrets.service").touch()
    assert "install.sh" not in run(*asked)[1]


def test_setup_removes_nothing_by_a_relative_path() -> None:
    result = CliRunner().invoke(
        main,
        [
            "setup",
            "--source",
            "/",
            "--venv",
            "/",
            "--work",
            "no-such-folder-of-squidkeeper",
            "--dry-run",
        ],
    )
    assert result.exit_code == 2
    assert (
        "no-such-folder-of-squidkeeper is no absolute path: install.sh names what it has made"
        in result.output
    )
