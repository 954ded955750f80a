"""Bodies of requests through a real Squid: what passes, how, what is denied, and what is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .curl import curl
from .gateway import Gateway
from .origin import Origins

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
  - {name: down, action: allow, hosts: [down.example], body: {json: {/model: [small]}, max: 4MB}}
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


@pytest.mark.parametrize("size", [40, 1_000, 60_000, 65_535, 65_536, 65_537, 200_000, 3_000_000])
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
    assert reply.header("Proxy-Status") == 'squidkeeper; error=http_request_denied; details="rule default"'
    assert reply.line("Contact") == "ann@example.com"
    assert (reply.reason or "").startswith("No rule of the policy allows this request. chat: ")
    assert origins.seen == []
    rule, verdict, found, _ = recorded(gateway, url)
    assert (rule, verdict) == ("default", "deny")
    assert found.startswith("body:chat: ")
    line = gateway.logged(url)
    assert reply.line("Request ID") == line["request_id"]
    assert line["status"] == 403
