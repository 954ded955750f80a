"""The calls that make sessions, over the socket of the real service."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import RevisionWriter
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.published.publication import write_publication
from squidkeeper.serving.parts import needed_keys
from squidkeeper.serving.sessions.counts import count_by_role
from squidkeeper.serving.sessions.store import FILE, SessionRow, SessionStore
from squidkeeper.serving.tickets.store import NoTicket, TicketStore
from squidkeeper.serving.tickets.ticket import AskedRequest, Holder

from ..conftest import write_policy
from ..waiting import wait_for

pytestmark = pytest.mark.system

OTHER_UID = 61_234  # of the orchestrator `other`
STRANGER_UID = 61_235
POLICY = """
session_networks: [10.20.0.0/16, "2001:db8:7::/48"]
secrets:
  github: {session: true, hosts: [github.com]}
  fixed: {file: /nowhere, hosts: [api.example]}
roles:
  coding-agent:
    variables:
      repo: {type: path, pattern: "[a-z0-9-]+/[a-z0-9._-]+"}
      docs: {type: hosts, within: [.example], many: 2}
    ttl: 8h
  plain: {ttl: 1h}
  third: {ttl: 1h}
clients:
  agents: {token_sha256: %s}
rules:
  - {name: clone, action: allow, clients: [coding-agent], hosts: [github.com], paths: ["/{session.repo}/**"]}
  - {name: docs, action: allow, clients: [coding-agent], hosts: ["{session.docs}"], methods: [GET]}
  - {name: other, action: allow, clients: [agents, third], hosts: [other.example]}
  - {name: asked, action: ask, clients: [coding-agent, plain], hosts: [ask.example]}
  - {name: closed, action: deny, clients: [plain], hosts: [closed.example]}
credentials:
  - {name: git, clients: [coding-agent], hosts: [github.com], basic: {username: x, password: github}}
quotas: [{name: requests, per: session, clients: [coding-agent], requests: 600, every: minute}]
""" % (64 * "a")
SETTINGS = f"""
version: 1
orchestrators:
  local: {{roles: [coding-agent, plain], sessions: 50, approves: [plain]}}
  other:
    uid: {OTHER_UID}
    roles: [plain]
    approves: [plain]
    networks: [10.20.9.0/24]
    labels: [task]
    sessions: 2
"""
CODING = {
    "role": "coding-agent",
    "variables": {"repo": "acme/app", "docs": ["a.example", "b.example"]},
}


@dataclass(frozen=True)
class Answered:
    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        return str(self.body["code"])

    @property
    def fields(self) -> dict[str, str]:
        return {error["pointer"]: error["detail"] for error in self.body["errors"]}


def connected(path: Path, uid: int = 0) -> socket.socket:
    """Connect as a user: the kernel notes who it was at that moment."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(60)
    os.seteuid(uid)
    try:
        made.connect(str(path))
    except OSError:
        made.close()
        raise
    finally:
        os.seteuid(0)
    return made


class Service:
    """The service of one gateway, below a folder that every user can reach."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.policy, self.state = root / "etc/policy", root / "state"
        self.folder, self.run = root / "state-sessions", root / "run-sessions"
        self.socket, self.audit = self.run / "api.sock", root / "audit.log"
        self.settings, self.log = root / "etc/sessions.yaml", root / "access.log"
        for folder in (self.state, self.folder, self.run):
            folder.mkdir()
        write_policy(self.policy, POLICY)
        self.settings.write_text(SETTINGS)
        self.process: subprocess.Popen[bytes] | None = None
        self.program: tuple[str, ...] = ("-m", "squidkeeper")

    def publish(self) -> str:
        loaded = load(self.policy, datetime.now(UTC)).compiled
        writer = RevisionWriter(self.state / "revisions", None)
        publication = write_publication(loaded, needed_keys(loaded.source), self.policy)
        writer.loaded(read_sources(self.policy), loaded.revision, publication)
        writer.write()
        return loaded.revision

    def start(self) -> None:
        options = {
            "--policy": self.policy,
            "--state": self.state,
            "--sessions": self.folder,
            "--run": self.run,
            "--config": self.settings,
            "--audit-log": self.audit,
            "--access-log": self.log,
            "--listen": "127.0.0.1:3129",
            "--proxy": "http://10.20.0.1:3129",
        }
        words = [str(word) for pair in options.items() for word in pair]
        with (self.root / "stderr").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "sessions", *words], stderr=log
            )
        wait_for(self.answers, "the service")

    def answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.told()
        try:
            return self.call("GET", "/v1/openapi.json").status > 0
        except OSError:
            return False

    def told(self) -> str:
        return (self.root / "stderr").read_text()

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self.process
        self.process.send_signal(how)
        self.process.wait(60)

    def connect(self, uid: int = 0) -> socket.socket:
        return connected(self.socket, uid)

    def call(
        self,
        method: str,
        where: str,
        body: object = None,
        *,
        uid: int = 0,
        **headers: str,
    ) -> Answered:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = self.connect(uid)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with suppress(BrokenPipeError):  # it is refused before it is sent
                connection.request(method, where, None if body is None else data, sent)
            answer = connection.getresponse()
            read = answer.read()
        finally:
            connection.close()
        return Answered(
            answer.status,
            json.loads(read) if read else None,
            {name.lower(): value for name, value in answer.headers.items()},
        )

    def put(self, name: str, body: object, uid: int = 0) -> Answered:
        return self.call("PUT", f"/v1/sessions/{name}", body, uid=uid)

    def get(self, name: str, uid: int = 0) -> Answered:
        return self.call("GET", f"/v1/sessions/{name}", uid=uid)

    def delete(self, name: str, uid: int = 0) -> Answered:
        return self.call("DELETE", f"/v1/sessions/{name}", uid=uid)

    def rows(self) -> list[SessionRow]:
        with closing(SessionStore(self.folder)) as store:
            return store.active()

    @contextmanager
    def changed_store(self) -> Iterator[sqlite3.Connection]:
        """Change the file behind the back of a service that has ended."""
        file = sqlite3.connect(self.folder / FILE, isolation_level=None)
        with closing(file):
            yield file

    def secrets(self, number: int) -> Path:
        return self.run / "secrets" / str(number)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    yield from serving()


@pytest.fixture
def own_service() -> Iterator[Service]:
    yield from serving()


def serving() -> Iterator[Service]:
    root = Path(tempfile.mkdtemp(dir="/tmp"))  # each user can reach it
    root.chmod(0o755)
    made = Service(root)
    made.publish()
    made.start()
    try:
        yield made
    finally:
        assert made.process
        made.process.kill()
        made.process.wait()
        shutil.rmtree(root)


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "service" in request.fixturenames:
        made: Service = request.getfixturevalue("service")
        made.call("PUT", "/v1/sessions", {"sessions": []})
        made.call("PUT", "/v1/sessions", {"sessions": []}, uid=OTHER_UID)


def test_a_session_is_made_and_shown_with_what_its_programs_need(
    service: Service,
) -> None:
    asked = {
        **CODING,
        "address": "10.20.0.7",
        "labels": {"task": "4711"},
        "secrets": {"github": "ghp_value"},
        "ttl": "1h",
    }
    made = service.put("vm-7", asked)
    assert made.status == 201
    assert made.body["state"] == "active"
    assert made.body["role"] == "coding-agent"
    assert made.body["address"] == "10.20.0.7"
    assert made.body["secrets"] == ["github"]
    assert made.body["proxy"] == "http://10.20.0.1:3129"
    assert made.body["env"]["HTTPS_PROXY"] == "http://10.20.0.1:3129"
    assert "token" not in made.body
    assert "ghp_value" not in json.dumps(made.body)
    lives = datetime.fromisoformat(made.body["expires"]) - datetime.now(UTC)
    assert 3500 < lives.total_seconds() <= 3600
    file = service.secrets(made.body["number"])
    assert json.loads(file.read_bytes()) == {"github": "ghp_value"}
    assert file.stat().st_mode & 0o777 == 0o640
    shown = service.get("vm-7")
    assert shown.status == 200
    assert shown.headers["etag"] == made.headers["etag"]
    assert "ghp_value" not in json.dumps(shown.body)
    assert count_by_role(service.folder) == {"coding-agent": 1}
    [row] = service.rows()
    assert (row.name, row.network, row.variables["repo"]) == (
        "vm-7",
        "10.20.0.7/32",
        ("acme/app",),
    )
    ended = service.delete("vm-7")
    assert (ended.status, ended.body) == (204, None)
    assert service.delete("vm-7").status == 204, "it is gone"
    assert service.get("vm-7").body["state"] == "ended"
    assert not file.exists()


def test_a_token_is_made_and_shown_once(service: Service) -> None:
    made = service.put("by-token", CODING)
    token = made.body["token"]
    assert made.body["has_token"]
    assert made.body["env"]["HTTPS_PROXY"] == (
        f"http://by-token:{token}@10.20.0.1:3129"
    )
    [row] = service.rows()
    assert row.token_sha256 == sha256(token.encode()).hexdigest()
    again = service.put("by-token", CODING)
    assert again.status == 200
    shown = json.dumps([again.body, service.get("by-token").body])
    assert token not in shown
    assert token not in service.audit.read_text()


def test_a_token_of_its_own_is_taken_by_its_hash(service: Service) -> None:
    hashed = sha256(b"mine").hexdigest()
    made = service.put("own-token", {**CODING, "token_sha256": hashed})
    assert made.status == 201
    assert "token" not in made.body
    assert "PASSWORD" in made.body["env"]["HTTPS_PROXY"]


def test_the_same_call_again_is_200_and_says_whether_it_extends(
    own_service: Service,
) -> None:
    asked = {**CODING, "address": "10.20.0.8", "ttl": 60, "secrets": {"github": "x"}}
    first = own_service.put("again", asked)
    second = own_service.put("again", asked)
    assert (second.status, second.body["number"]) == (200, first.body["number"])
    assert second.body["extended"] is False
    wait_for(lambda: own_service.put("again", asked).body["extended"], "a later end")
    assert own_service.get("again").body["expires"] > first.body["expires"]


@pytest.mark.parametrize(
    "changed",
    [
        {"role": "plain", "variables": {}},
        {"address": "10.20.0.10"},
        {"variables": {"repo": "acme/other", "docs": ["a.example", "b.example"]}},
        {"labels": {"task": "1"}},
        {"ttl": 600},
        {"secrets": {"github": "other"}},
        {"token_sha256": "0" * 64},
    ],
)
def test_other_content_under_a_name_is_409(
    service: Service, changed: dict[str, object]
) -> None:
    asked = {**CODING, "address": "10.20.0.9", "ttl": 300, "secrets": {"github": "x"}}
    first = service.put("content", asked)
    assert first.status == 201
    refused = service.put("content", {**asked, **changed})
    assert (refused.status, refused.code) == (409, "other-content")
    assert refused.fields == {
        f"/{name}": "the session has another value" for name in changed
    }
    assert service.get("content").headers["etag"] == first.headers["etag"]


def test_the_example_of_the_document_makes_and_changes_a_session(
    service: Service,
) -> None:
    page = (Path(__file__).parents[2] / "squid/SESSIONS.md").read_text()
    [text] = re.findall(r"^```python\n(.*?)^made = ", page, re.MULTILINE | re.DOTALL)
    example: dict[str, Any] = {}
    exec(text, example)
    example["SOCKET"] = str(service.socket)
    make, change, refused = example["make"], example["change"], example["Refused"]
    asked = {**CODING, "address": "10.20.0.31", "ttl": "30m"}
    first = make("example", asked)
    assert make("example", asked)["number"] == first["number"]
    assert change("example", address="10.20.0.32", ttl="1h")["address"] == "10.20.0.32"
    second = make("example", {**asked, "role": "plain", "variables": {}})
    assert second["number"] > first["number"]
    with pytest.raises(refused) as found:
        make("second", asked)
    assert found.value.problem["code"] == "address-taken"
    with pytest.raises(refused) as found:
        make("second", {**asked, "ttl": 1})
    assert [error["pointer"] for error in found.value.problem["errors"]] == ["/ttl"]
    with pytest.raises(refused) as found:
        example["call"]("PATCH", "/example", {"ttl": "1h"}, '"0-0"')
    assert found.value.problem["code"] == "changed-meanwhile"
    assert example["call"]("DELETE", "/example") == (None, None)


def test_all_faults_of_a_body_are_told_at_once_by_field(service: Service) -> None:
    refused = service.put(
        "faulty",
        {
            "role": "coding-agent",
            "address": "192.0.2.7",
            "variables": {"repo": "../etc", "host": "x"},
            "labels": {"Task": "x", "ok": "a\nb"},
            "secrets": {"fixed": "hush-hush", "github": "two\r\nlines"},
            "ttl": "9h",
            "token_sha256": "abc",
            "admin": True,
        },
    )
    assert (refused.status, refused.code) == (422, "invalid-session")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.body["type"] == "urn:squidkeeper:problem:invalid-session"
    assert refused.fields == {
        "/address": "192.0.2.7/32 is not within session_networks of the policy: 10.20.0.0/16, 2001:db8:7::/48",
        "/variables/repo": "'../etc' has a dot segment, expected none",
        "/variables/docs": "the variable has no value, expected one",
        "/variables/host": "the role coding-agent has no such variable, expected docs, repo",
        "/labels/Task": "expected a name of up to 32 lower-case letters, digits and . _ -",
        "/labels/ok": "expected 1 to 128 printable characters of ASCII",
        "/secrets/fixed": "the policy has no such secret with `session: true`, expected github",
        "/secrets/github": "expected 1 to 8,192 printable characters of ASCII",
        "/ttl": "expected a time from 60 to 28800 seconds, which is that of the role coding-agent: a number, or one"
        " such as 30m or 8h",
        "/token_sha256": "expected the SHA-256 of the token: 64 hexadecimal digits, in lower case",
        "/admin": "unknown field",
    }
    assert "hush-hush" not in json.dumps(refused.body)


@pytest.mark.parametrize(
    "value",
    [
        "acme/*", "acme/..", "acme/a%2fb", "acme/a?b", "acme/a#b", "/acme/app",
        "acme//app", "acme/app/", "acme/\u202eapp", "acme/a\x00b", "acme/{session.docs}",
        "a" * 300, "", "acme/app\n",
    ],
)  # fmt: skip
def test_a_value_cannot_leave_its_place(service: Service, value: str) -> None:
    variables = {"repo": value, "docs": ["a.example"]}
    refused = service.put("escape", {"role": "coding-agent", "variables": variables})
    assert refused.status == 422
    assert [*refused.fields] == ["/variables/repo"]


@pytest.mark.parametrize(
    "value",
    ["*.example", ".example", "a.other", "10.20.0.1", "a.example:443", "a..example"],
)  # fmt: skip
def test_a_host_stays_within_the_ceiling(service: Service, value: str) -> None:
    variables = {"repo": "acme/app", "docs": [value]}
    refused = service.put("wide", {"role": "coding-agent", "variables": variables})
    assert refused.status == 422
    assert [*refused.fields] == ["/variables/docs"]


@pytest.mark.parametrize(
    "name",
    ["-a", "a-", "a" * 65, "a%20b", "a%0ab", "a%00b", "a:b", "%C3%A9", "..", "a%40b"],
)
def test_a_name_is_one_that_a_login_can_be(service: Service, name: str) -> None:
    refused = service.put(name, CODING)
    assert refused.status in (400, 404, 422)
    assert service.rows() == []


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "line 1, column 1"),
        (b"{", "line 1, column 2"),
        (b"[]", "expected an object"),
        (b'{"role":"plain","role":"coding-agent"}', "'role' is there twice"),
        (b'{"role":"plain","labels":{"a":"1","a":"2"}}', "'a' is there twice"),
        (b'{"ttl": NaN}', "NaN is not JSON"),
        (b'{"ttl": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a":' * 20_000, "too deep"),
        (b'{"role": "\xff"}', "not UTF-8"),
    ],
)
def test_what_is_not_one_json_object_is_refused(
    service: Service, body: bytes, detail: str
) -> None:
    refused = service.put("json", body[:65_000])
    assert (refused.status, refused.code) == (400, "not-json"), refused.body
    assert detail in refused.body["detail"] or len(body) > 60_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": 7}, "/role"),
        ({"role": "plain", "address": 7}, "/address"),
        ({"role": "plain", "labels": []}, "/labels"),
        ({"role": "plain", "labels": {"a": 7}}, "/labels/a"),
        ({"role": "plain", "secrets": {"github": 7}}, "/secrets/github"),
        ({"role": "plain", "secrets": {"github": None}}, "/secrets/github"),
        ({"role": "plain", "ttl": True}, "/ttl"),
        ({"role": "plain", "ttl": 1.5}, "/ttl"),
        ({"role": "plain", "ttl": "10 years"}, "/ttl"),
        ({"role": "plain", "variables": {"a": {"b": {}}}}, "/variables/a"),
        ({"role": "plain", "address": "10.20.0.0/24"}, "/address"),
        ({"role": "plain", "address": "10.20.0.7%eth0"}, "/address"),
        ({"role": "plain", "address": "2001:db8:7::/56"}, "/address"),
        ({}, "/role"),
    ],
)
def test_a_field_of_another_type_is_named(
    service: Service, body: object, field: str
) -> None:
    refused = service.put("typed", body)
    assert refused.status == 422
    assert [*refused.fields] == [field]


def test_an_ipv6_network_is_one_session(service: Service) -> None:
    made = service.put("six", {"role": "plain", "address": "2001:db8:7:1::/64"})
    assert (made.status, made.body["address"]) == (201, "2001:db8:7:1::/64")
    inside = service.put("in-it", {"role": "plain", "address": "2001:db8:7:1::9"})
    assert (inside.status, inside.code) == (409, "address-taken")


def test_an_address_and_a_name_of_somebody_are_taken(service: Service) -> None:
    asked = {"role": "plain", "address": "10.20.9.1", "labels": {"task": "1"}}
    assert service.put("mine", asked, OTHER_UID).status == 201
    refused = service.put("yours", {"role": "plain", "address": "10.20.9.1"})
    assert (refused.status, refused.code) == (409, "address-taken")
    refused = service.put("mine", asked)
    assert (refused.status, refused.code) == (409, "name-taken")
    refused = service.put("agents", {"role": "plain"})
    assert (refused.status, refused.code) == (409, "name-taken"), "a client's"


def test_an_orchestrator_has_its_own_rights_and_sessions(service: Service) -> None:
    coding = {**CODING, "address": "10.20.0.7"}
    refused = service.put("vm", coding, OTHER_UID)
    assert refused.fields == {
        "/role": "the orchestrator other may not give 'coding-agent'",
        "/address": "10.20.0.7/32 is not within the networks of the orchestrator other",
        "/labels/task": "the orchestrator other has to set this label",
    }
    assert service.put("vm", coding).status == 201
    for method, body in (("GET", None), ("PATCH", {"ttl": 60}), ("DELETE", None)):
        refused = service.call(
            method, "/v1/sessions/vm", body, uid=OTHER_UID, If_Match="*"
        )
        assert (refused.status, refused.code) == (403, "session-of-another")
    for report in ("effective", "usage", "requests"):
        assert service.get(f"vm/{report}", OTHER_UID).status == 403
    assert service.call("GET", "/v1/sessions", uid=OTHER_UID).body["sessions"] == []
    nothing = service.call("PUT", "/v1/sessions", {"sessions": []}, uid=OTHER_UID)
    assert nothing.body["ended"] == []
    labelled = service.call("DELETE", "/v1/sessions?label=task=1", uid=OTHER_UID)
    assert labelled.status == 204
    assert service.get("vm").body["state"] == "active"


def test_an_orchestrator_has_a_bound_of_sessions(service: Service) -> None:
    asked = {"role": "plain", "labels": {"task": "1"}}
    for number in range(2):
        assert service.put(f"vm-{number}", asked, OTHER_UID).status == 201
    refused = service.put("vm-2", asked, OTHER_UID)
    assert (refused.status, refused.code) == (429, "too-many-sessions")
    assert service.put("vm-1", asked, OTHER_UID).status == 200
    ended = service.delete("vm-0", OTHER_UID)
    assert ended.status == 200
    assert "tunnel-outdated" in ended.body["note"], "it has no address"
    assert service.put("vm-2", asked, OTHER_UID).status == 201


def test_who_is_no_orchestrator_gets_nothing(service: Service) -> None:
    for method in ("GET", "PUT", "DELETE"):
        with pytest.raises((OSError, http.client.HTTPException)):
            service.call(method, "/v1/sessions", {}, uid=STRANGER_UID)
    assert service.put("known", {**CODING}).status == 201
    lines = [json.loads(line) for line in service.audit.read_text().splitlines()]
    assert STRANGER_UID not in {line["uid"] for line in lines}, "it fills the log"


def test_an_address_that_was_just_left_is_waited_for(service: Service) -> None:
    asked = {**CODING, "address": "10.20.0.30"}
    assert service.put("first", asked).status == 201
    service.delete("first")
    left = time.monotonic()
    made = service.put("second", asked)
    assert made.status == 201
    assert time.monotonic() - left >= 2.3


def test_a_change_needs_the_version_that_was_seen(service: Service) -> None:
    hashed = sha256(b"warm").hexdigest()
    made = service.put("warm", {**CODING, "token_sha256": hashed, "ttl": 60})
    place, seen = "/v1/sessions/warm", made.headers["etag"]
    refused = service.call("PATCH", place, {"ttl": 600})
    assert (refused.status, refused.code) == (428, "if-match-missing")
    changed = service.call(
        "PATCH",
        place,
        {"ttl": 600, "address": "10.20.0.40", "secrets": {"github": "new"}},
        If_Match=seen,
    )
    assert changed.status == 200
    assert changed.body["address"] == "10.20.0.40"
    assert changed.body["expires"] > made.body["expires"]
    assert changed.body["secrets"] == ["github"]
    refused = service.call("PATCH", place, {"ttl": 900}, If_Match=seen)
    assert (refused.status, refused.code) == (412, "changed-meanwhile")
    refused = service.call(
        "PATCH", place, {"role": "plain"}, If_Match=changed.headers["etag"]
    )
    assert refused.fields == {"/role": "unknown field"}
    whole = {
        **CODING,
        "token_sha256": hashed,
        "ttl": 600,
        "address": "10.20.0.40",
        "secrets": {"github": "new"},
    }
    assert service.put("warm", whole).status == 200, "it is as it was changed"


def test_sessions_are_listed_in_pages_and_by_label(service: Service) -> None:
    for number in range(5):
        labels = {"task": str(number % 2), "n": str(number)}
        assert service.put(f"vm-{number}", {**CODING, "labels": labels}).status == 201
    names, after = [], "0"
    while after:
        page = service.call("GET", f"/v1/sessions?limit=2&after={after}").body
        names += [one["name"] for one in page["sessions"]]
        assert len(page["sessions"]) <= 2
        after = page.get("next", "")
    assert names == [f"vm-{number}" for number in range(5)]
    odd = service.call("GET", "/v1/sessions?label=task=1").body["sessions"]
    assert [one["name"] for one in odd] == ["vm-1", "vm-3"]
    both = service.call("GET", "/v1/sessions?label=task=1&label=n=3").body["sessions"]
    assert [one["name"] for one in both] == ["vm-3"]
    assert service.call("DELETE", "/v1/sessions?label=task=0").status == 200
    left = service.call("GET", "/v1/sessions").body["sessions"]
    assert [one["name"] for one in left] == ["vm-1", "vm-3"]


@pytest.mark.parametrize(
    ("method", "where", "status", "code"),
    [
        ("DELETE", "/v1/sessions", 400, "invalid-query"),
        ("DELETE", "/v1/sessions?label=task", 400, "invalid-query"),
        ("DELETE", "/v1/sessions?label=task=", 400, "invalid-query"),
        ("GET", "/v1/sessions?lable=task=1", 400, "invalid-query"),
        ("GET", "/v1/sessions?limit=x", 400, "invalid-query"),
        ("GET", "/v1/sessions?limit=1&limit=2", 400, "invalid-query"),
        ("GET", "/v1/sessions?label=%FF=1", 400, "invalid-query"),
        ("POST", "/v1/sessions", 405, "wrong-method"),
        ("POST", "/v1/sessions/a", 405, "wrong-method"),
        ("PUT", "/v1/sessions/a/effective", 405, "wrong-method"),
        ("GET", "/v1/sessions/", 404, "no-such-call"),
        ("GET", "/v1/sessions/a/b", 404, "no-such-call"),
        ("GET", "/v1/sessions/never", 404, "no-session"),
        ("GET", "/v1/sessions/never/effective", 404, "no-session"),
        ("GET", "/", 404, "no-such-call"),
        ("GET", "/v2/sessions", 404, "no-such-call"),
    ],
)
def test_a_call_that_is_none_is_told(
    service: Service, method: str, where: str, status: int, code: str
) -> None:
    refused = service.call(method, where, {})
    assert (refused.status, refused.code) == (status, code)


def test_a_whole_list_puts_a_gateway_right(service: Service) -> None:
    kept = {**CODING, "address": "10.20.0.50", "ttl": 600}
    other = {"role": "plain", "address": "10.20.0.51"}
    numbers = {
        name: service.put(name, asked).body["number"]
        for name, asked in (("kept", kept), ("other", other), ("gone", CODING))
    }
    listed = {
        "sessions": [
            {"name": "kept", **kept},
            {"name": "other", **other, "address": "10.20.0.52"},
            {"name": "new", **CODING},
        ]
    }
    taken = service.call("PUT", "/v1/sessions", listed)
    assert taken.status == 200
    results = {one["name"]: one["result"] for one in taken.body["sessions"]}
    assert results == {"kept": "kept", "other": "replaced", "new": "created"}
    ended = {one["number"] for one in taken.body["ended"]}
    assert ended == {numbers["gone"], numbers["other"]}
    left = service.call("GET", "/v1/sessions").body["sessions"]
    assert sorted(one["name"] for one in left) == ["kept", "new", "other"]


def test_a_list_with_a_fault_ends_and_makes_nothing(service: Service) -> None:
    assert service.put("kept", CODING).status == 201
    listed = {
        "sessions": [
            {"name": "a b", **CODING},
            {"name": "two", "role": "plain"},
            {"name": "two", "role": "plain", "x": 1},
            7,
        ],
        "dry_run": True,
    }
    refused = service.call("PUT", "/v1/sessions", listed)
    assert refused.status == 422
    assert [*refused.fields] == [
        "/dry_run",
        "/sessions/0/name",
        "/sessions/2/x",
        "/sessions/3",
    ]
    left = service.call("GET", "/v1/sessions").body["sessions"]
    assert [one["name"] for one in left] == ["kept"]


def test_a_body_has_a_bound_and_a_whole_list_a_larger_one(service: Service) -> None:
    padding = "x" * 70_000
    refused = service.put("large", {"role": padding})
    assert (refused.status, refused.code) == (413, "too-large")
    refused = service.call("PUT", "/v1/sessions", {"sessions": [{"name": padding}]})
    assert refused.status == 422
    with service.connect() as raw:  # chunks without an end
        raw.sendall(
            b"PUT /v1/sessions/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            while sent < 300_000:
                raw.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                sent += 4096
            answer = raw.recv(100)
        except OSError:
            answer = b""
        assert not answer or b" 413 " in answer
    refused = service.call("GET", "/" + "x" * 20_000)
    assert (refused.status, refused.code) == (431, "head-too-large")
    with service.connect() as raw:
        raw.sendall(b"what is this\r\n\r\n")
        assert b" 400 " in raw.recv(1000)


def test_slow_and_idle_callers_keep_nobody_out(service: Service) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        idle = [service.connect(STRANGER_UID) for _ in range(100)]
        for number, one in enumerate(idle):
            if number % 2:
                with suppress(BrokenPipeError):  # it has made room for another
                    one.sendall(
                        b"PUT /v1/sessions/a HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"
                    )
        asked = {**CODING, "labels": {"task": "many"}}
        made = [pool.submit(service.put, f"vm-{n}", asked) for n in range(40)]
        assert {one.result().status for one in made} == {201}
        for one in idle:
            one.close()


def test_the_document_of_the_calls_is_made_of_the_models(service: Service) -> None:
    document = service.call("GET", "/v1/openapi.json").body
    assert document["openapi"] == "3.1.0"
    assert {*document["paths"]} == {
        "/v1/sessions",
        "/v1/sessions/exchange",
        "/v1/sessions/{name}",
        "/v1/sessions/{name}/effective",
        "/v1/sessions/{name}/usage",
        "/v1/sessions/{name}/requests",
        "/v1/tickets",
        "/v1/tickets/{number}",
    }
    schemas = document["components"]["schemas"]
    assert {*schemas["SessionAsked"]["properties"]} == {
        "role", "address", "variables", "labels", "secrets", "ttl", "token_sha256",
    }  # fmt: skip
    assert schemas["SessionAsked"]["additionalProperties"] is False
    text = json.dumps(document)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= {*schemas}


def test_what_a_session_may_reach_has_its_values(service: Service) -> None:
    service.put("vm", {**CODING, "address": "10.20.0.60"})
    told = service.get("vm/effective").body
    rules = {rule["name"]: rule for rule in told["rules"]}
    assert rules["clone"]["paths"] == ["/acme/app/**"]
    assert rules["docs"]["hosts"] == ["a.example", "b.example"]
    assert [*rules] == ["clone", "docs", "asked"], "and none of others"
    assert [one["name"] for one in told["credentials"]] == ["git"]
    usage = service.get("vm/usage").body["quotas"]
    assert [(one["quota"], one["limit"], one["used"]) for one in usage] == [
        ("requests", 600, 0)
    ]
    assert service.get("vm/requests").body["denials"] == []


def test_the_audit_log_has_each_change_and_no_value(service: Service) -> None:
    before = len(service.audit.read_text().splitlines())
    asked = {**CODING, "secrets": {"github": "ghp_hush"}, "address": "10.20.0.70"}
    number = service.put("audited", asked).body["number"]
    service.get("audited")
    service.put("audited", {**asked, "ttl": "99h"})
    service.delete("audited")
    text = service.audit.read_text()
    lines = [json.loads(line) for line in text.splitlines()][before:]
    shown = [(line["call"], line["status"], line["orchestrator"]) for line in lines]
    assert shown == [
        ("PUT", 201, "local"),
        ("PUT", 422, "local"),
        ("DELETE", 204, "local"),
    ]
    assert [line.get("number") for line in lines] == [number, None, number]
    assert lines[2]["result"] == "ended"
    assert "ghp_hush" not in text
    assert service.audit.stat().st_mode & 0o777 == 0o640


def test_the_command_makes_the_same_calls(service: Service, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("ghp_file\n")

    def session(*words: str) -> Result:
        place = ("--socket", str(service.socket))
        return CliRunner().invoke(main, ["session", *words, *place])

    variables = ("--variable", "repo=acme/app", "--variable", "docs=a.example")
    wanted = (*variables, "--secret", f"github={secret}", "--ttl", "10m")
    made = session("create", "cli", "--role", "coding-agent", *wanted, "--json")
    assert made.exit_code == 0, made.output
    token = json.loads(made.stdout)["token"]
    number = json.loads(made.stdout)["number"]
    kept = json.loads(service.secrets(number).read_bytes())
    assert kept == {"github": "ghp_file"}
    listed = session("list", "--json")
    assert [one["name"] for one in json.loads(listed.stdout)["sessions"]] == ["cli"]
    assert token not in listed.stdout
    assert "cli: session " in session("extend", "cli", "--for", "2h").stdout
    rules = json.loads(session("effective", "cli").stdout)["rules"]
    assert rules[0]["paths"] == ["/acme/app/**"]
    refused = session("create", "cli", "--role", "none", *wanted)
    assert refused.exit_code == 1
    assert "/role: the orchestrator local may not give 'none'" in refused.stderr
    assert session("end", "cli").exit_code == 0
    assert json.loads(session("show", "cli").stdout)["state"] == "ended"
    away = CliRunner().invoke(main, ["session", "list", "--socket", "/nowhere"])
    assert away.exit_code == 2
    assert "does not answer" in away.stderr


def test_an_edit_of_the_settings_holds_and_a_faulty_one_does_not(
    own_service: Service,
) -> None:
    service = own_service
    asked = {"role": "plain", "labels": {"task": "1"}}
    assert service.put("one", asked, OTHER_UID).status == 201
    service.settings.write_text(SETTINGS.replace("sessions: 2", "sessions: two"))
    assert service.put("two", asked, OTHER_UID).status == 201, "the last good one"
    wait_for(lambda: "is faulty, and the last good one goes on" in service.told())
    assert (
        "sessions.yaml:11:15: 'sessions' is 'two', expected a number" in service.told()
    )
    service.settings.write_text(SETTINGS.replace("sessions: 2", "sessions: 3"))
    assert service.put("three", asked, OTHER_UID).status == 201
    service.settings.write_text(SETTINGS.replace(str(OTHER_UID), str(STRANGER_UID)))
    with pytest.raises((OSError, http.client.HTTPException)):
        service.get("one", OTHER_UID)
    assert service.get("one", STRANGER_UID).status == 200


def test_faulty_settings_at_the_start_let_nobody_in(own_service: Service) -> None:
    own_service.end()
    own_service.settings.write_text("orchestrators: []\n")
    own_service.start()
    refused = own_service.put("vm", CODING)
    assert (refused.status, refused.code) == (503, "settings-faulty")
    own_service.settings.write_text(SETTINGS)
    assert own_service.put("vm", CODING).status == 201


def test_without_settings_root_may_make_sessions_of_all_roles(
    own_service: Service,
) -> None:
    own_service.settings.unlink()
    assert own_service.put("vm", {"role": "third"}).status == 201
    with pytest.raises((OSError, http.client.HTTPException)):
        own_service.put("no", {"role": "third"}, OTHER_UID)


def test_sessions_survive_a_kill_and_secrets_a_restart(own_service: Service) -> None:
    service = own_service
    asked = {**CODING, "address": "10.20.0.80", "secrets": {"github": "x"}}
    made = service.put("vm", asked)
    service.end(signal.SIGKILL)
    service.start()
    assert service.get("vm").headers["etag"] == made.headers["etag"]
    assert service.get("vm").body["state"] == "active"
    assert service.put("vm", asked).status == 200
    service.secrets(made.body["number"]).unlink()  # a reboot
    shown = service.get("vm").body
    assert shown["state"] == "secrets-missing"
    assert shown["reason"] == "give these again: github"
    assert service.put("vm", asked).body["state"] == "active"


def test_a_session_that_ended_long_ago_is_forgotten(own_service: Service) -> None:
    service = own_service
    for name in ("old", "new"):
        service.put(name, CODING)
        service.delete(name)
    service.end()
    with service.changed_store() as file:
        days = time.time() - 91 * 86_400
        file.execute("UPDATE sessions SET ended = ? WHERE name = 'old'", (days,))
    service.start()
    wait_for(lambda: service.get("old").status == 404, "the time thread")
    assert service.get("new").body["state"] == "ended"


def test_a_kill_in_the_middle_of_calls_leaves_whole_sessions_alone(
    own_service: Service,
) -> None:
    service = own_service
    answered: dict[str, int] = {}

    def make(number: int) -> None:
        asked = {**CODING, "address": f"10.20.1.{number}", "secrets": {"github": "x"}}
        try:
            made = service.put(f"vm-{number}", asked)
        except (OSError, http.client.HTTPException):
            return
        answered[f"vm-{number}"] = made.status

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number in range(200):
            pool.submit(make, number)
        wait_for(lambda: len(answered) > 20, "some sessions")
        service.end(signal.SIGKILL)
    service.start()
    rows = {row.name: row for row in service.rows()}
    assert {name for name, status in answered.items() if status == 201} <= {*rows}
    for name, row in rows.items():
        shown = service.get(name).body
        whole = service.secrets(row.number).exists()
        assert shown["state"] == ("active" if whole else "secrets-missing")
    numbers = {str(row.number) for row in rows.values()}
    assert {file.name for file in (service.run / "secrets").iterdir()} <= numbers


def test_a_role_that_is_edited_away_makes_its_sessions_invalid(
    own_service: Service,
) -> None:
    service = own_service
    assert service.put("vm", CODING).status == 201
    narrow = POLICY.replace("within: [.example]", "within: [.other]")
    write_policy(service.policy, narrow)
    revision = service.publish()
    wait_for(lambda: service.get("vm").body["revision"] == revision, "the edit")
    shown = service.get("vm").body
    assert shown["state"] == "invalid"
    assert shown["reason"] == "'a.example' is not within .other"


def test_without_a_policy_there_is_no_session(own_service: Service) -> None:
    own_service.end()
    shutil.rmtree(own_service.state / "revisions")
    own_service.start()
    refused = own_service.put("vm", CODING)
    assert (refused.status, refused.code) == (503, "no-policy")
    own_service.publish()
    wait_for(lambda: own_service.put("vm", CODING).status == 201, "the policy")


# --- tickets --------------------------------------------------------------------------


def asked(
    service: Service, number: int, address: str, url: str = "https://ask.example/x"
) -> str:
    """Ask as a helper does for a session."""
    request = AskedRequest(address, "", "GET", url, number)
    with closing(TicketStore(service.state)) as store:
        given = store.ask(request, Holder.of_session(number), "asked", time.time())
    assert not isinstance(given, NoTicket)
    return given


def answer(service: Service, ticket: str, uid: int = 0, /, **body: object) -> Answered:
    return service.call("POST", f"/v1/tickets/{ticket}", body, uid=uid)


def tickets(service: Service, name: str, uid: int = 0) -> list[str]:
    found = service.call("GET", f"/v1/tickets?session={name}", uid=uid)
    assert found.status == 200, found
    return [ticket["ticket"] for ticket in found.body["tickets"]]


def test_a_ticket_is_answered_once(service: Service) -> None:
    made = service.put("asks", {"role": "plain", "address": "10.20.4.1"})
    ticket = asked(service, made.body["number"], "10.20.4.1")
    assert tickets(service, "asks") == [ticket]
    given = {"decision": "approve", "for": "30m"}
    first = answer(service, ticket, by="ann", **given)
    assert (first.status, first.body["state"]) == (200, "approved"), first
    assert first.body["by"] == "local: ann"
    again = answer(service, ticket, by="bob", **given)
    assert (again.status, again.body) == (200, first.body)
    for other in ({"decision": "deny"}, {"decision": "approve", "for": "2h"}):
        refused = answer(service, ticket, **other)
        assert (refused.status, refused.code) == (409, "answered-otherwise")
    assert tickets(service, "asks") == []
    [row] = [row for row in service.rows() if row.name == "asks"]
    assert [(one.ticket, one.seconds) for one in row.answers] == [(ticket, 1800)]
    line = json.loads(service.audit.read_text().splitlines()[-4])
    known = ("orchestrator", "call", "session", "ticket", "state", "by", "status")
    assert [line[name] for name in known] == [
        *("local", "POST", "asks", ticket, "approved", "local: ann", 200)
    ]


def test_an_orchestrator_answers_for_its_own_sessions_and_roles_alone(
    service: Service,
) -> None:
    plain = service.put("p", {"role": "plain", "address": "10.20.4.2"}).body["number"]
    coding = service.put("c", {**CODING, "address": "10.20.4.3"}).body["number"]
    given = {"decision": "approve", "for": 60}
    own, unapproved = (
        asked(service, plain, "10.20.4.2"),
        asked(service, coding, "10.20.4.3"),
    )
    of_another = answer(service, own, OTHER_UID, **given)
    assert (of_another.status, of_another.code) == (404, "no-ticket")
    found = service.call("GET", "/v1/tickets?session=p", uid=OTHER_UID)
    assert (found.status, found.code) == (403, "session-of-another")
    refused = answer(service, unapproved, **given)
    assert (refused.status, refused.code) == (403, "may-not-approve")
    with pytest.raises(ConnectionError):  # it is closed at once
        answer(service, own, STRANGER_UID, **given)
    service.delete("p")
    assert answer(service, own, **given).code == "no-ticket"
    service.delete("c")


def test_an_answer_that_is_not_one_is_refused(service: Service) -> None:
    number = service.put("q", {"role": "plain", "address": "10.20.4.4"}).body["number"]
    ticket = asked(service, number, "10.20.4.4")
    closed = asked(service, number, "10.20.4.4", "https://closed.example/")
    for body, place in (
        ({"decision": "approve"}, "/for"),
        ({"decision": "approve", "for": "9w"}, "/for"),
        ({"decision": "maybe"}, "/decision"),
        ({"decision": "deny", "by": "a\nb"}, "/by"),
        ({"decision": "deny", "x": 1}, "/x"),
    ):
        refused = answer(service, ticket, **body)
        assert (refused.status, refused.code) == (422, "invalid-answer"), body
        assert place in refused.fields
    refused = answer(service, closed, **{"decision": "approve", "for": "1m"})
    assert (refused.status, refused.code) == (409, "nothing-to-answer")
    assert tickets(service, "q") == [ticket]
    assert answer(service, "a" * 12, decision="deny").code == "no-ticket"
    denied = answer(service, ticket, decision="deny", reason="Use the mirror")
    assert denied.body["state"] == "denied"
    service.delete("q")
