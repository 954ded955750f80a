"""The SDKs of model APIs at a gateway that meters: what the ledger counts is what each
SDK reads itself.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest

from squidkeeper.policy.usage.tokens import Usage
from squidkeeper.record.usage_ledger import (
    UsageEntry,
    UsageState,
    latest,
    ledger_files,
    read_entries,
)
from tests.usage_samples import TABLE, Sample
from tests.waiting import wait_for

from .clients import Machine
from .gateway import Gateway, NewGateway
from .network import VirtualMachine
from .origin import Answer, Origins, Seen, Stream
from .registries import of_json

REASON = "Of the quota spent"
POLICY = """
version: 1
clients: {agents: {networks: [192.168.137.0/24]}}
quotas:
  - {name: all, rules: [models], tokens: 900000000, per: client, every: month}
  - {name: spent, rules: [spent], tokens_out: 1, per: client, every: day}
rules:
  - name: models
    action: allow
    clients: [agents]
    hosts: [api.openai.com, api.anthropic.com, generativelanguage.googleapis.com]
    meter: tokens
    ask_usage: true
  - {name: spent, action: allow, clients: [agents], hosts: [spent.example], meter: tokens}
"""
OPENAI = """
import json, openai
client = openai.OpenAI(api_key="k", **SPENT)
told = lambda usage, *names: print(json.dumps([getattr(usage, name) for name in names]))
asked = dict(model="gpt-test", messages=[dict(role="user", content="6 * 7?")])
told(client.chat.completions.create(**asked).usage, "prompt_tokens", "completion_tokens")
for chunk in client.chat.completions.create(**asked, stream=True):
    last = chunk
told(last.usage, "prompt_tokens", "completion_tokens")
told(client.responses.create(model="gpt-test", input="6 * 7?").usage, "input_tokens", "output_tokens")
for event in client.responses.create(model="gpt-test", input="6 * 7?", stream=True):
    last = event
told(last.response.usage, "input_tokens", "output_tokens")
told(client.completions.create(model="gpt-test", prompt="6 * 7?").usage, "prompt_tokens", "completion_tokens")
"""
ANTHROPIC = """
import json, anthropic
client = anthropic.Anthropic(api_key="k", **SPENT)
def told(usage):
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    print(json.dumps([usage.input_tokens + cached, usage.output_tokens]))
asked = dict(model="claude-test", max_tokens=9, messages=[dict(role="user", content="6 * 7?")])
told(client.messages.create(**asked).usage)
with client.messages.stream(**asked) as stream:
    told(stream.get_final_message().usage)
"""
GEMINI = """
import json
from google import genai
client = genai.Client(api_key="k", http_options=SPENT)
def told(usage):
    total = usage.prompt_token_count + (usage.tool_use_prompt_token_count or 0)
    print(json.dumps([total, usage.candidates_token_count + usage.thoughts_token_count]))
asked = dict(model="gemini-test", contents="6 * 7?")
told(client.models.generate_content(**asked).usage_metadata)
for chunk in client.models.generate_content_stream(**asked):
    last = chunk
told(last.usage_metadata)
"""
BACKGROUND = """
import openai
client = openai.OpenAI(api_key="k")
answer = client.responses.create(model="gpt-test", input="6 * 7?", background=True, max_output_tokens=50)
print(answer.status, *(client.responses.retrieve(answer.id).status for _ in range(3)))
"""
SDKS = {  # the script, and the samples that the stand-in plays
    "openai": (
        OPENAI,
        [
            "chat.json",
            "chat.sse",
            "responses.json",
            "responses.sse",
            "completions.json",
        ],
    ),
    "anthropic": (ANTHROPIC, ["messages.json", "messages.sse"]),
    "google-genai": (GEMINI, ["gemini.json", "gemini.sse"]),
}
PLAYED = {sample.file: sample for sample in TABLE}


POLLS = count()  # of the answer in the background, which is done with the second GET


def play(seen: Seen) -> Answer:
    """Play the recorded answer of a path, a stream in small pieces; its usage only
    where a stream asks for that.
    """
    is_stream = (
        b'"stream":true' in seen.body.replace(b" ", b"") or "alt=sse" in seen.target
    )
    path = seen.target.partition("?")[0].rpartition("/")[2].rpartition(":")[2]
    name = {"completions": "chat" if "/chat/" in seen.target else "completions"}.get(
        path, path
    )
    name = "gemini" if name.endswith("enerateContent") else name
    if seen.method == "GET" or b'"background":true' in seen.body:
        return of_json(in_background(is_done=next(POLLS) > 1))
    content = PLAYED[f"{name}.{'sse' if is_stream else 'json'}"].content
    if not is_stream:
        return Answer(body=content, headers={"Content-Type": "application/json"})
    if name == "chat" and b"include_usage" not in seen.body:
        content = content.replace(b'"usage":{', b'"unasked":{')
    return Stream(
        events=tuple(content[at : at + 100] for at in range(0, len(content), 100))
    )


def in_background(*, is_done: bool) -> dict[str, object]:
    """Return the recorded response as one that is generated in the background."""
    response = {**json.loads(PLAYED["responses.json"].content), "background": True}
    return (
        response
        if is_done
        else {**response, "status": "queued", "output": [], "usage": None}
    )


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, vm: VirtualMachine) -> Gateway:
    gateway = new_gateway(POLICY, at=vm.gateway)
    vm.trust(gateway.ca)
    return gateway.start()


@pytest.fixture(autouse=True)
def models(origins: Origins) -> None:
    origins.fallback = play


def entries(gateway: Gateway) -> list[UsageEntry]:
    return [*latest(read_entries(ledger_files(gateway.root / "state"))).values()]


def run(machine: Machine, script: str, folder: Path, spent: str = "{}") -> str:
    return machine.run(
        f"python3 - <<'END'\n{script.replace('SPENT', spent)}\nEND\n", "", folder
    )


@pytest.mark.clients
@pytest.mark.parametrize("sdk", SDKS)
def test_the_ledger_counts_what_the_sdk_reads(
    sdk: str, machine: Machine, gateway: Gateway, tmp_path: Path
) -> None:
    script, files = SDKS[sdk]
    samples = [PLAYED[file] for file in files]
    before = len(entries(gateway))
    output = run(machine, script, tmp_path)
    assert output.splitlines() == [
        json.dumps([s.usage.tokens_in, s.usage.tokens_out]) for s in samples
    ], output
    wait_for(
        lambda: (
            [entry.settled for entry in entries(gateway)[before:]]
            == [True] * len(samples)
        ),
        "the settlements",
    )
    found = entries(gateway)[before:]
    assert {entry.state for entry in found} == {UsageState.METERED}
    assert sorted(map(counted, found)) == sorted(map(expected, samples))


@pytest.mark.clients
def test_an_answer_in_the_background_counts_once(
    machine: Machine, gateway: Gateway, tmp_path: Path
) -> None:
    before, usage = len(entries(gateway)), PLAYED["responses.json"].usage
    assert run(machine, BACKGROUND, tmp_path).split() == [
        "queued",
        "queued",
        "completed",
        "completed",
    ]
    wait_for(
        lambda: [entry.settled for entry in entries(gateway)[before:]] == [True] * 4,
        "the settlements",
    )
    found = entries(gateway)[before:]
    assert [entry.state for entry in found] == [
        UsageState.UNMETERED,
        *[UsageState.METERED] * 3,
    ]
    assert sum(entry.tokens_in for entry in found) == usage.tokens_in
    assert [entry.tokens_out for entry in found] == [50, 0, usage.tokens_out - 50, 0]


def counted(entry: UsageEntry) -> tuple[str, int, int, int, int]:
    return (
        entry.model,
        entry.tokens_in,
        entry.tokens_out,
        entry.cached_in,
        entry.cache_write,
    )


def expected(sample: Sample) -> tuple[str, int, int, int, int]:
    usage: Usage = sample.usage
    return (
        usage.model,
        usage.tokens_in,
        usage.tokens_out,
        usage.cached_in,
        usage.cache_write,
    )


@pytest.mark.clients
@pytest.mark.parametrize("sdk", SDKS)
def test_an_sdk_shows_that_a_quota_is_spent_and_does_not_ask_again(
    sdk: str, machine: Machine, gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    before = len(gateway.log())
    output = run(
        machine, SDKS[sdk][0], tmp_path, '{"base_url": "https://spent.example"}'
    )
    assert "spent" in output.splitlines()[-1], output
    assert "403" in output
    wait_for(
        lambda: [line for line in gateway.log()[before:] if line["method"] == "POST"],
        "the denial",
    )
    assert (
        len([line for line in gateway.log()[before:] if line["method"] == "POST"]) == 1
    )
    assert not origins.seen
