"""Sessions as programs make them, by the service, on a real Squid."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from tests.waiting import pause, wait_for

from .curl import CurlFailed, clean, curl
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .network import run
from .origin import Origins, Stream
from .raw import Raw, tunnel
from .reply import parse_head
from .session_service import Service

VM, OTHER = "127.0.0.13", "127.0.0.12"
SECRET, NEW_SECRET, OTHERS_SECRET = (
    f"value-that-{name}-brings-0123456789" for name in ("a-session", "a-patch", "other")
)
POLICY = """
version: 1
session_networks: [127.0.0.8/29]
clients:
  office: {networks: [127.0.0.1/32]}
roles:
  agent: {variables: {repo: {type: path, pattern: "[a-z0-9-]+/[a-z0-9._-]+"}}}
  writer: {ttl: 1h}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: read, action: allow, clients: [agent, writer, office], hosts: [docs.example]}
  - {name: write, action: allow, clients: [writer], hosts: [upload.example]}
  - {name: few, action: allow, clients: [agent], hosts: [few.example]}
secrets: {key: {session: true, hosts: [git.example]}}
credentials:
  - {name: git, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"], bearer: key}
quotas:
  - {name: few, per: session, clients: [agent], rules: [few], requests: 3, every: hour}
"""
STREAM = Stream(events=(b"data: event\n\n",) * 3000, pause=0.1)
DOCS, UPLOAD, FEW = (f"https://{name}.example/" for name in ("docs", "upload", "few"))
GONE_SECONDS = 2.1  # Squid keeps an answer about an address that long


@pytest.fixture(scope="module")
def started(new_gateway: NewGateway) -> Iterator[Service]:
    gateway = new_gateway(POLICY)
    for value in (SECRET, NEW_SECRET, OTHERS_SECRET):
        gateway.remember(value)  # it is searched for in all files of this run
    service = Service(gateway)
    gateway.start()
    try:
        service.start()
        yield service
    finally:
        service.kill()
        shutil.rmtree(gateway.layout.sessions_run)


@pytest.fixture
def service(started: Service) -> Iterator[Service]:
    yield started
    started.call("PUT", "/v1/sessions", {"sessions": []})


@pytest.fixture
def gateway(started: Service) -> Gateway:
    return started.gateway


def outcome(gateway: Gateway, url: str, client: str = VM) -> object:
    """Return the rule of a denial, or the status; that of a refused CONNECT."""
    try:
        reply = curl(gateway, url, client=client)
    except CurlFailed as error:
        return int(str(error).rpartition("response ")[2].strip())
    return reply.rule or reply.status


def test_the_first_request_after_the_answer_has_the_sessions_rights_and_secret(
    gateway: Gateway, service: Service, origins: Origins
) -> None:
    own = "https://git.example/acme/app/info"
    assert outcome(gateway, own) == "session-required"
    made = service.put("vm", address=VM, secrets={"key": SECRET})
    seen = allowed(gateway, origins, own, "clone", client=VM)
    assert seen.values("Authorization") == [f"Bearer {SECRET}"]
    before = len(origins.seen)
    assert outcome(gateway, "https://git.example/acme/other/info") == "default"
    assert origins.seen[before:] == []
    denied(gateway, origins, UPLOAD, "default", client=VM)
    seen = allowed(gateway, origins, DOCS, "read", client=VM)
    assert SECRET not in str(seen.headers)
    assert f"{made['number']}" in {line["session"] for line in gateway.log()}


def test_each_session_has_its_own_secret_and_none_has_anothers(
    gateway: Gateway, service: Service, origins: Origins
) -> None:
    own = "https://git.example/acme/app/info"
    service.put("one", address=VM, secrets={"key": SECRET})
    service.put("two", address=OTHER, secrets={"key": OTHERS_SECRET})
    for client, value in ((VM, SECRET), (OTHER, OTHERS_SECRET)) * 2:
        seen = allowed(gateway, origins, own, "clone", client=client)
        assert seen.values("Authorization") == [f"Bearer {value}"]
    denied(gateway, origins, own, "default", client="127.0.0.1")
    service.delete("two")
    service.put("three", address=OTHER)  # it brings none
    before = len(origins.seen)
    assert outcome(gateway, own, OTHER) != 200
    assert origins.seen[before:] == []


def test_a_token_that_the_service_makes_logs_in_by_the_env_of_the_answer(
    gateway: Gateway, service: Service, origins: Origins
) -> None:
    made = service.put("bot")
    gateway.remember(made["token"])

    def status() -> int:
        command = ("curl", "-q", "-sSi", "--suppress-connect-headers", "--cacert")
        done = subprocess.run(
            [*command, str(gateway.ca), DOCS],
            capture_output=True,
            check=False,
            env={**clean(), **made["env"]},
        )
        head = done.stdout.partition(b"\r\n\r\n")[0]
        return parse_head(head)[0] if head else 0

    before = len(gateway.log())
    assert status() == 200
    assert origins.urls()[-1] == DOCS
    assert gateway.logged(DOCS, before)["user"] == "bot"
    shown = service.call("GET", "/v1/sessions/bot/effective").body
    assert [rule["name"] for rule in shown["rules"]] == ["clone", "read", "few"]
    ended = service.delete("bot")
    assert ended.status == 200
    assert "tunnel-outdated" in ended.body["note"]
    wait_for(lambda: status() != 200)


def test_squids_account_counts_sessions_and_sees_whether_any_can_be_made(
    gateway: Gateway, service: Service
) -> None:
    layout = service.layout
    program = f"""
from pathlib import Path
from squidkeeper.services.exporter.sources import ServiceSource
names = ("{layout.policy}", "{layout.state}", "{layout.secrets}")
print(ServiceSource(*map(Path, names), None).read(0).sessions)
"""

    def seen(active: str, *, answers: bool) -> bool:
        told = run(
            *("setpriv", "--reuid", "proxy", "--regid", "proxy", "--clear-groups"),
            *(next(gateway.root.glob("venv-*")) / "bin/python", "-c", program),
        )
        expected = f"active={active}, is_wanted=True, answers={answers})"
        return told.strip() == f"SessionsView({expected}"

    service.put("vm", address=VM)
    service.put("other", "writer", address=OTHER)
    assert seen("{'agent': 1, 'writer': 1}", answers=True)
    service.kill()
    assert seen("{'agent': 1, 'writer': 1}", answers=False)
    service.start()


def test_a_new_value_of_a_secret_holds_at_once(
    gateway: Gateway, service: Service, origins: Origins
) -> None:
    own = "https://git.example/acme/app/info"
    service.put("vm", address=VM, secrets={"key": SECRET})
    with tunnel(gateway, "git.example:443", client=VM) as kept:
        assert kept.get("/acme/app/x", "git.example").status == 200
        changed = {"secrets": {"key": NEW_SECRET}}
        answer = service.call("PATCH", "/v1/sessions/vm", changed, match="*")
        assert answer.status == 200, answer
        seen = allowed(gateway, origins, own, "clone", client=VM)
        assert seen.values("Authorization") == [f"Bearer {NEW_SECRET}"]
        assert kept.get("/acme/app/y", "git.example").status == 200
        assert origins.seen[-1].values("Authorization") == [f"Bearer {NEW_SECRET}"]


def test_a_session_that_ends_loses_what_it_has_open_and_its_secret(
    gateway: Gateway, service: Service, origins: Origins
) -> None:
    origins.answers["docs.example/stream"] = STREAM
    made = service.put("vm", address=VM, secrets={"key": SECRET})
    service.put("other", address=OTHER)
    with ExitStack() as stack:
        open_at = partial(tunnel, gateway, "docs.example:443")
        kept, loading = (stack.enter_context(open_at(client=VM)) for _ in range(2))
        others = stack.enter_context(open_at(client=OTHER))
        assert kept.get("/", "docs.example").status == 200
        assert others.get("/", "docs.example").status == 200
        loading.send("GET /stream HTTP/1.1\r\nHost: docs.example\r\n\r\n")
        assert b"data: event" in loading.lines()
        assert service.secret_file(made["number"]).exists()
        ended = service.delete("vm")
        at = time.monotonic()
        assert (ended.status, ended.body) == (204, None)
        assert not service.secret_file(made["number"]).exists()
        wait_for(lambda: kept.is_ended() and loading.is_ended(), "the end of both")
        pause(at + GONE_SECONDS - time.monotonic(), "an answer that Squid has kept")
        assert outcome(gateway, DOCS) == "session-required"
        assert outcome(gateway, "http://docs.example/") == "session-required"
        assert others.get("/", "docs.example").status == 200
    assert service.delete("vm").status == 204, "it is gone"


def test_an_address_used_again_at_once_has_nothing_of_its_predecessor(
    gateway: Gateway, service: Service, origins: Origins
) -> None:
    service.put("first", "writer", address=VM)
    allowed(gateway, origins, UPLOAD, "write", client=VM)
    with tunnel(gateway, "upload.example:443", client=VM) as old:
        assert old.get("/", "upload.example").status == 200
        service.delete("first")
        between = Raw(gateway, VM)  # which the cut does not see
        answer = between.connect("upload.example:443")
        second = service.put("second", address=VM)
        denied(gateway, origins, UPLOAD, "default", client=VM)
        allowed(gateway, origins, DOCS, "read", client=VM)
        before = len(origins.seen)
        with between:
            if answer.status == 200:
                with suppress(OSError):  # it is cut
                    reply = between.tls("upload.example").get("/", "upload.example")
                    assert reply.status in (0, 403), reply
        assert old.is_ended()
        assert origins.seen[before:] == []
    shown = service.call("GET", "/v1/sessions/second/requests").body["denials"]
    numbers = {
        line["session"]
        for line in gateway.log()
        if line["url"].startswith(UPLOAD) and line["verdict"] == "deny"
    }
    assert str(second["number"]) in numbers
    assert {one["rule"] for one in shown} == {"default"}


def test_sessions_go_on_while_the_service_is_killed_and_are_the_same_afterwards(
    gateway: Gateway, service: Service, origins: Origins
) -> None:
    own = "https://git.example/acme/app/info"
    made = service.put("vm", address=VM, secrets={"key": SECRET})
    version = service.call("GET", "/v1/sessions/vm").etag
    service.kill()
    seen = allowed(gateway, origins, own, "clone", client=VM)
    assert seen.values("Authorization") == [f"Bearer {SECRET}"]
    service.start()
    again = service.call("GET", "/v1/sessions/vm")
    assert (again.etag, again.body["number"]) == (version, made["number"])
    assert again.body["state"] == "active"
    seen = allowed(gateway, origins, own, "clone", client=VM)
    assert seen.values("Authorization") == [f"Bearer {SECRET}"]
    service.delete("vm")
    wait_for(lambda: outcome(gateway, own) == "session-required")


def test_a_quota_of_a_session_is_not_used_by_its_successor_or_by_others(
    gateway: Gateway, service: Service, origins: Origins
) -> None:
    service.put("vm", address=VM)
    service.put("other", address=OTHER)
    for _ in range(3):
        allowed(gateway, origins, FEW, "few", client=VM)
    assert outcome(gateway, FEW) == "quota"
    [usage] = service.call("GET", "/v1/sessions/vm/usage").body["quotas"]
    assert (usage["quota"], usage["used"]) == ("few", 3)
    allowed(gateway, origins, FEW, "few", client=OTHER)
    service.delete("vm")
    service.put("vm", address=VM)
    allowed(gateway, origins, FEW, "few", client=VM)


def test_no_log_and_no_audit_has_a_value_of_a_secret(service: Service) -> None:
    texts = [
        path.read_bytes()
        for folder in (
            service.gateway.root / "log",
            service.layout.sessions_audit.parent,
        )
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert len(texts) > 3
    for value in (SECRET, NEW_SECRET, OTHERS_SECRET):
        assert not any(value.encode() in text for text in texts)
