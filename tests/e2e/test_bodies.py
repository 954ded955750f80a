"""Bodies of requests through a real Squid: what passes, how, what is denied, and what
is recorded.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.services.bodies.judge import EDITED_SECONDS
from tests.waiting import pause, wait_for

from .curl import curl
from .gateway import Gateway, NewGateway
from .network import run
from .origin import Origins
from .raw import Raw, tunnel

POLICY = """
version: 1
defaults: {contact: ann@example.com}
rules:
  - {name: chat, action: allow, hosts: [llm.example], methods: [POST], paths: [/v1/chat/**],
     body: {json: {/model: [small]}, max: 4MB}}
  - {name: watched, action: allow, observe: true, hosts: [llm.example], paths: [/v1/free/**],
     body: {json: {/model: [tiny]}}}
  - {name: free, action: allow, hosts: [llm.example], paths: [/v1/free/**, /v1/models]}
  - {name: not-large, action: deny, reason: The large model is too expensive., hosts: [plain.example],
     body: {json: {/model: [large]}}}
  - {name: plain, action: allow, hosts: [plain.example]}
  - {name: room, action: allow, hosts: [chat.example], paths: [/room], websocket: true}
  - {name: said, action: allow, hosts: [chat.example], methods: [POST], body: {json: {/model: [small]}}}
  - {name: shared, action: allow, hosts: [shared.example], methods: [GET], connections: shared}
"""
CHAT = "https://llm.example/v1/chat/x"
JSON = ("-H", "Content-Type: application/json")


def body(folder: Path, size: int, model: str = "small") -> Path:
    file = folder / f"{model}-{size}"
    head = json.dumps({"model": model, "text": ""})[:-2]
    file.write_text(f'{head}{"x" * (size - len(head) - 2)}"}}')
    return file


def sent(file: Path) -> tuple[str, ...]:
    return (*JSON, "--data-binary", f"@{file}")


def recorded(gateway: Gateway, url: str, before: int = 0) -> tuple[str, ...]:
    line = gateway.logged(url, before)
    return (line["rule"], line["verdict"], line["found"], line["observed"])


@pytest.mark.parametrize(
    "size", [40, 1_000, 60_000, 65_535, 65_536, 65_537, 200_000, 3_000_000]
)
@pytest.mark.parametrize("form", ["length", "chunked"])
def test_a_body_that_the_policy_allows_arrives_as_it_was_sent(
    gateway: Gateway, origins: Origins, tmp_path: Path, size: int, form: str
) -> None:
    file, url = body(tmp_path, size), f"{CHAT}-{form}-{size}"
    framing = ("-H", "Transfer-Encoding: chunked") if form == "chunked" else ()
    assert curl(gateway, url, *sent(file), *framing).status == 200
    assert origins.seen[-1].body == file.read_bytes()
    assert recorded(gateway, url) == ("chat", "allow", "-", "-")


@pytest.mark.parametrize("size", [1_000, 100_000, 1_000_000, 100_000_000])
@pytest.mark.parametrize("form", ["length", "chunked"])
def test_a_client_sees_why_its_upload_is_denied(
    gateway: Gateway, origins: Origins, tmp_path: Path, size: int, form: str
) -> None:
    file, url = body(tmp_path, size, "large"), f"{CHAT}-denied-{form}-{size}"
    framing = ("-H", "Transfer-Encoding: chunked") if form == "chunked" else ()
    reply = curl(gateway, url, *sent(file), *framing)
    assert (reply.status, reply.rule) == (403, "default")
    assert (
        reply.header("Proxy-Status")
        == 'squidkeeper; error=http_request_denied; details="rule default"'
    )
    assert reply.line("Contact") == "ann@example.com"
    assert (reply.reason or "").startswith(
        "No rule of the policy allows this request. chat: "
    )
    assert origins.seen == []
    rule, verdict, found, _ = recorded(gateway, url)
    assert (rule, verdict) == ("default", "deny")
    assert found.startswith("body:chat: ")
    line = gateway.logged(url)
    assert reply.line("Request ID") == line["request_id"]
    assert line["status"] == 403


def test_a_page_has_the_form_that_the_client_accepts(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    file = body(tmp_path, 1_000, "large")
    problem = curl(
        gateway, f"{CHAT}-json", *sent(file), "-H", "Accept: application/json"
    )
    assert (problem.status, problem.header("Content-Type")) == (
        403,
        "application/problem+json",
    )
    assert (problem.json["rule"], problem.json["url"]) == ("default", f"{CHAT}-json")
    page = curl(gateway, f"{CHAT}-html", *sent(file), "-H", "Accept: text/html")
    assert (page.header("Content-Type"), page.rule) == (
        "text/html; charset=utf-8",
        "default",
    )


def test_without_a_body_neither_an_allow_nor_a_deny_of_bodies_holds(
    gateway: Gateway, origins: Origins
) -> None:
    assert curl(gateway, "https://plain.example/x").status == 200
    assert recorded(gateway, "https://plain.example/x") == ("plain", "allow", "-", "-")
    reply = curl(gateway, f"{CHAT}-empty", "-X", "POST")
    assert (reply.status, reply.rule) == (403, "default")
    assert recorded(gateway, f"{CHAT}-empty")[:2] == ("default", "deny")


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST", "FETCH"])
def test_a_deny_holds_whatever_the_method(
    gateway: Gateway, origins: Origins, tmp_path: Path, method: str
) -> None:
    url = f"http://plain.example/{method}"
    reply = curl(gateway, url, *sent(body(tmp_path, 500, "large")), "-X", method)
    assert (reply.status, reply.rule) == (403, "not-large")
    assert reply.reason == "The large model is too expensive."
    assert recorded(gateway, url)[:2] == ("not-large", "deny")
    assert (
        curl(gateway, url, *sent(body(tmp_path, 500, "tiny")), "-X", method).status
        == 200
    )


def test_what_is_observed_is_recorded(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    for model, observed in (("tiny", "allow:watched"), ("large", "-")):
        url = f"https://llm.example/v1/free/{model}"
        assert curl(gateway, url, *sent(body(tmp_path, 500, model))).status == 200
        assert recorded(gateway, url) == ("free", "allow", "-", observed)


def chat(
    path: str,
    body: bytes,
    *headers: str,
    version: str = "HTTP/1.1",
    host: str = "llm.example",
) -> bytes:
    lines = [
        f"POST {path} {version}",
        f"Host: {host}",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


SMALL, LARGE = b'{"model": "small"}', b'{"model": "large"}'


def test_requests_in_one_tunnel_are_judged_one_by_one_also_pipelined(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "llm.example:443") as raw:
        raw.send(
            chat("/v1/chat/1", SMALL)
            + chat("/v1/chat/2", SMALL)
            + chat("/v1/chat/3", LARGE)
        )
        replies = [raw.answer() for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 403]
    assert [seen.target for seen in origins.seen] == ["/v1/chat/1", "/v1/chat/2"]


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_a_client_that_expects_100_continue_gets_it(
    gateway: Gateway, origins: Origins, body: bytes
) -> None:
    whole = chat("/v1/chat/expects", body, "Expect: 100-continue")
    with tunnel(gateway, "llm.example:443") as raw:
        assert raw.send(whole[: -len(body)]).answer().status == 100
        assert raw.send(body).answer().status == (200 if body is SMALL else 403)


def test_a_client_that_leaves_while_it_is_told_to_go_on_is_not_denied(
    gateway: Gateway, origins: Origins
) -> None:
    """Squid has no answer of the service then, and writes its own 100 into the log."""
    for number in range(12):
        path = f"http://llm.example/v1/chat/left-{number}"
        with Raw(gateway) as raw:
            raw.send(chat(path, SMALL, "Expect: 100-continue")[: -len(SMALL)])
            pause(number / 1000, "another place to leave at")
        line = gateway.logged(path)
        assert (line["rule"], line["verdict"], line["error"]) == (
            "-",
            "-",
            "ERR_CLIENT_GONE",
        )
    assert origins.seen == []


def test_a_client_that_leaves_a_service_that_hangs_has_its_own_cause(
    edited: Gateway, origins: Origins
) -> None:
    assert curl(edited, CHAT, *JSON, "-d", SMALL.decode()).status == 200
    origins.seen.clear()
    for process in edited.bodies:
        process.send_signal(signal.SIGSTOP)
    try:
        body = json.dumps({"model": "small", "text": "x" * 1_000}).encode()
        with begun(edited, "/v1/chat/hangs", body) as raw:
            raw.send(body[-100:])
            wait_for(lambda: asked(edited), "the service to be asked")
            pause(0.2, "an answer that does not come")
        line = edited.logged("https://llm.example/v1/chat/hangs")
    finally:
        for process in edited.bodies:
            process.send_signal(signal.SIGCONT)
    assert (line["verdict"], line["error"], line["found"]) == (
        "-",
        "ERR_CLIENT_GONE",
        "unavailable:body-unanswered",
    )
    told = edited.command("why", line["request_id"], *edited.places).stdout
    assert "`squidkeeper bodies` did not answer" in told
    assert origins.seen == []


@pytest.mark.parametrize(
    "path", ["http://llm.example/v1/other", "http://none.example/x"]
)
def test_a_denied_request_is_told_to_go_on_only_where_a_body_may_decide(
    gateway: Gateway, path: str
) -> None:
    whole = chat(path, LARGE, "Expect: 100-continue", host=path.split("/")[2])
    with Raw(gateway) as raw:
        assert raw.send(whole[: -len(LARGE)]).answer().status == (
            100 if "llm" in path else 403
        )


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_a_client_of_http_1_0_is_judged_too(
    gateway: Gateway, origins: Origins, body: bytes
) -> None:
    with Raw(gateway) as raw:
        raw.send(chat("http://llm.example/v1/chat/old", body, version="HTTP/1.0"))
        assert raw.answer().status == (200 if body is SMALL else 403)
    assert len(origins.seen) == (body is SMALL)


def test_a_websocket_beside_bodies_is_not_held_up(
    gateway: Gateway, origins: Origins
) -> None:
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: x",
    )
    with tunnel(gateway, "chat.example:443") as raw:
        # of an origin that speaks none
        assert raw.get("/room", "chat.example", *upgrade).status == 200
    assert origins.seen[-1].values("Upgrade") == ["websocket"]
    with tunnel(gateway, "plain.example:443") as raw:
        assert raw.get("/x", "plain.example", *upgrade).status == 200
    assert origins.seen[-1].values("Upgrade") == []


def test_a_body_that_ends_early_reaches_nobody(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    for size in (1_000, 200_000):
        whole = chat(f"/v1/chat/broken-{size}", body(tmp_path, size).read_bytes())
        with tunnel(gateway, "llm.example:443") as raw:
            raw.send(whole[:-10])
            raw.abandon()
        gateway.logged(f"https://llm.example/v1/chat/broken-{size}")
    assert origins.seen == []


def test_squid_warns_of_no_denial_and_of_none_of_its_connections_to_the_service(
    gateway: Gateway,
) -> None:
    """A body that ends early costs a connection. So an agent could fill cache.log."""
    for model, status in ((SMALL, 200), (LARGE, 403)):
        assert curl(gateway, CHAT, *JSON, "-d", model.decode()).status == status
    with tunnel(gateway, "llm.example:443") as raw:
        raw.send(chat("/v1/chat/cut", LARGE)[:-5])
        raw.abandon()
    gateway.logged("https://llm.example/v1/chat/cut")
    assert "WARNING" not in gateway.cache_log()


@pytest.fixture(scope="module")
def edited(new_gateway: NewGateway) -> Gateway:
    return new_gateway(POLICY).start()


def begun(gateway: Gateway, path: str, body: bytes) -> Raw:
    """Send a request without the end of its body. It is judged when that comes."""
    raw = tunnel(gateway, "llm.example:443")
    return raw.send(chat(path, body)[:-100])


def test_a_body_is_judged_by_the_revision_that_let_the_request_come(
    edited: Gateway, origins: Origins
) -> None:
    body = json.dumps({"model": "small", "text": "x" * 300_000}).encode()
    # so that helpers run
    assert curl(edited, "https://llm.example/v1/models").status == 200
    edited.settle()
    before = load(edited.policy_folder, datetime.now(UTC)).compiled.revision
    with ExitStack() as stack:
        allowed, late, lost = (
            stack.enter_context(begun(edited, f"/v1/chat/{name}", body))
            for name in ("edited", "late", "lost")
        )
        wait_for(lambda: len(asked(edited)) >= 3, "the service to be asked")
        began = time.monotonic()
        edited.write("policy.yaml", POLICY.replace("small", "tiny"))
        pause(1, "the load of the edit")
        reply, took = allowed.send(body[-100:]).answer(), time.monotonic() - began
        assert reply.status == 200 or (
            took > EDITED_SECONDS - 1 and reply.rule == "policy-unavailable"
        ), took
        assert edited.logged("https://llm.example/v1/chat/edited")["revision"] == before
        edited.settle()
        pause(
            EDITED_SECONDS, "the time after which an edit reaches bodies on their way"
        )
        assert late.send(body[-100:]).answer().rule == "policy-unavailable"
        edited.kill_bodies()
        assert lost.send(body[-100:]).answer().status in (0, 500)
        edited.start_bodies()
    assert curl(edited, f"{CHAT}-after", *JSON, "-d", SMALL.decode()).status == 403
    assert {"/v1/chat/late", "/v1/chat/lost", "/v1/chat/x-after"} & {
        seen.target for seen in origins.seen
    } == set()


def asked(gateway: Gateway) -> list[str]:
    """The connections of Squid to the service."""
    address, _, port = gateway.layout.bodies.rpartition(":")
    return run(
        "ss", "-Htn", "state", "established", f"dst {address} and dport = :{port}"
    ).splitlines()


def test_a_revision_that_is_gone_denies(edited: Gateway, origins: Origins) -> None:
    body = json.dumps({"model": "tiny", "text": "x" * 30_000}).encode()
    edited.kill_bodies()
    edited.start_bodies()  # which has judged nothing by this revision
    edited.settle()
    before = load(edited.policy_folder, datetime.now(UTC)).compiled.revision
    with begun(edited, "/v1/chat/gone", body) as raw:
        wait_for(lambda: asked(edited), "the service to be asked")
        edited.write("policy.yaml", POLICY.replace("small", "medium"))
        edited.settle()
        shutil.rmtree(edited.root / "state/revisions" / before)
        reply = raw.send(body[-100:]).answer()
    assert (reply.status, reply.rule) == (403, "policy-unavailable")
    line = edited.logged("https://llm.example/v1/chat/gone")
    assert (line["rule"], line["found"]) == (
        "policy-unavailable",
        "unavailable:policy-changed",
    )
    assert origins.seen == []


@pytest.mark.parametrize(
    ("url", "document", "headers"),
    [
        (CHAT, '{"model": "small"}', ()),
        (CHAT, '{"model": "large"}', ()),
        (CHAT, '{"model": "small", "model": "small"}', ()),
        (CHAT, '{"model": "small"}', ("Content-Type: text/plain",)),
        (CHAT, '{"model": "small"}', ("Content-Encoding: gzip",)),
        (CHAT, "[", ()),
        ("https://plain.example/x", '{"model": "large"}', ()),
        ("https://plain.example/x", '{"model": "LARGE"}', ()),
        ("https://plain.example/x", "no document", ()),
        ("https://chat.example/x", '{"model": "small"}', ()),
        ("https://llm.example/v1/free/x", '{"model": "tiny"}', ()),
    ],
)
def test_explain_says_what_the_gateway_does(
    gateway: Gateway,
    origins: Origins,
    tmp_path: Path,
    url: str,
    document: str,
    headers: tuple[str, ...],
) -> None:
    file = tmp_path / "body"
    file.write_text(document)
    sends = (
        headers
        if any(header.startswith("Content-Type") for header in headers)
        else (*headers, JSON[1])
    )
    asked = f"{url}-explained-{abs(hash((document, headers)))}"
    curl(
        gateway,
        asked,
        "--data-binary",
        f"@{file}",
        *(part for header in sends for part in ("-H", header)),
    )
    options = [part for header in headers for part in ("--header", header)]
    words = [
        "explain",
        "--policy",
        str(gateway.policy_folder),
        "--json",
        "--body",
        str(file),
        *options,
        "POST",
        asked,
    ]
    found = json.loads(CliRunner().invoke(main, words).output)
    observed = (
        "{verdict}:{rule}".format(**found["observed"]) if found["observed"] else "-"
    )
    rule, verdict, _, recorded_as = recorded(gateway, asked)
    assert (found["rule"], found["verdict"], observed) == (rule, verdict, recorded_as)


# --- where nothing of a body may be ---------------------------------------------------

CANARY = "canary-of-a-body-5d8f1c"


def holding(folder: Path, text: str) -> list[str]:
    """Return the files of a gateway that hold a text."""
    files = [
        file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()
    ]
    return [
        str(file.relative_to(folder))
        for file in files
        if text.encode() in file.read_bytes()
    ]


def test_no_file_holds_anything_of_a_body(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    long = tmp_path / "long"
    long.write_text(json.dumps({"model": "small", "text": CANARY + "x" * 200_000}))
    bodies = {
        "allowed": json.dumps({"model": "small", "text": CANARY}),
        "echoed": f"@{long}",
        "denied": json.dumps({"model": CANARY}),
        "doubled": f'{{"{CANARY}": 1, "{CANARY}": 2}}',
        "cut-off": f'{{"model": "{CANARY}',
        "bare": CANARY,
    }
    for name, text in bodies.items():
        curl(gateway, f"{CHAT}/leak-{name}", *JSON, "--data-binary", text)
        gateway.logged(f"{CHAT}/leak-{name}")
    # the others are denied
    assert [CANARY.encode() in seen.body for seen in origins.seen] == [
        True,
        True,
    ]
    assert "log/access.log" in holding(gateway.root, "leak-denied")
    assert holding(gateway.root, CANARY) == []
