"""The SDKs of model APIs, in a VM, at a gateway that allows one model of each."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import wait_for

from . import registries
from .clients import Machine
from .gateway import Gateway, NewGateway
from .network import VirtualMachine
from .origin import Origins
from .registries import Registries, Service

REASON = "Agents use one model of each: ask ml@example.com for another."
POLICY = f"""
version: 1
clients: {{agents: {{networks: [192.168.137.0/24]}}}}
rules:
  - name: claude
    action: allow
    clients: [agents]
    hosts: [api.anthropic.com]
    paths: [/v1/messages]
    body: {{json: {{/model: [claude-test], /tools/*/type: {{values: [custom], absent: true}}}}}}
  - name: gpt
    action: allow
    clients: [agents]
    hosts: [api.openai.com]
    paths: [/v1/responses, /v1/chat/completions]
    body: {{json: {{/model: [gpt-test, "gpt-test-*"], /tools/*/type: {{values: [function], absent: true}}}}}}
  - name: gemini
    action: allow
    clients: [agents]
    hosts: [generativelanguage.googleapis.com]
    paths: ["/v1/models/gemini-test:*"]
    body:
      json: {{/contents/*/parts/*/fileData: {{absent: true}}}}
      only: [/contents, /generationConfig, /systemInstruction, /tools/*/functionDeclarations]
  - {{name: others, action: deny, hosts: ["*"], reason: "{REASON}"}}
"""


@dataclass(frozen=True, slots=True)
class ModelClient:
    """An SDK: how it asks MODEL, with OPTIONS, at once and by a stream."""

    sdk: str
    asks: tuple[str, str]  # each prints the answer
    hosted_tool: str  # in OPTIONS
    preamble: str
    error: str

    def script(self, ask: str, model: str, options: str = "") -> str:
        call = ask.replace("MODEL", repr(model)).replace("OPTIONS", options)
        body = "\n".join(f"    {line}" for line in call.splitlines())
        return (
            f"python3 - <<'END'\n{self.preamble}\ntry:\n{body}\nexcept "
            f"{self.error} as error:\n    print(error)\nEND\n"
        )


_HELLO = 'messages=[dict(role="user", content="6 * 7?")]'
_OPENAI = "import openai\nclient = openai.OpenAI(api_key='k', max_retries=0)"
CLIENTS = (
    ModelClient(
        "anthropic",
        (
            f"print(client.messages.create(model=MODEL, max_tokens=9, {_HELLO}, OPTIONS).content[0].text)",
            f"with client.messages.stream(model=MODEL, max_tokens=9, {_HELLO}, OPTIONS) as stream:\n"
            "    print(stream.get_final_text())",
        ),
        'tools=[dict(type="web_search_20250305", name="web_search")]',
        "import anthropic\nclient = anthropic.Anthropic(api_key='k', max_retries=0)",
        "anthropic.PermissionDeniedError",
    ),
    ModelClient(
        "openai responses",
        (
            'print(client.responses.create(model=MODEL, input="6 * 7?", OPTIONS).output_text)',
            'for event in client.responses.create(model=MODEL, input="6 * 7?", stream=True, OPTIONS):\n'
            "    print(event.delta)",
        ),
        'tools=[dict(type="web_search")]',
        _OPENAI,
        "openai.PermissionDeniedError",
    ),
    ModelClient(
        "openai chat",
        (
            f"print(client.chat.completions.create(model=MODEL, {_HELLO}, OPTIONS).choices[0].message.content)",
            f"for chunk in client.chat.completions.create(model=MODEL, {_HELLO}, stream=True, OPTIONS):\n"
            "    print(chunk.choices[0].delta.content)",
        ),
        'tools=[dict(type="web_search")]',
        _OPENAI,
        "openai.PermissionDeniedError",
    ),
    ModelClient(
        "google-genai",
        (
            'print(client.models.generate_content(model=MODEL, contents="6 * 7?", OPTIONS).text)',
            'for part in client.models.generate_content_stream(model=MODEL, contents="6 * 7?", OPTIONS):\n'
            "    print(part.text)",
        ),
        "config=dict(tools=[dict(google_search=dict())])",
        "from google import genai\nfrom google.genai import errors\nclient = genai.Client(api_key='k')",
        "errors.ClientError",
    ),
)
ALLOWED = {"anthropic": "claude-test", "google-genai": "gemini-test"}


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, vm: VirtualMachine) -> Gateway:
    gateway = new_gateway(POLICY, at=vm.gateway)
    vm.trust(gateway.ca)
    return gateway.start()


@pytest.fixture
def apis(origins: Origins) -> Origins:
    services: Service = {
        **registries.anthropic(),
        **registries.openai(),
        **registries.gemini(),
    }
    origins.fallback = Registries(services)
    return origins


@pytest.mark.clients
@pytest.mark.parametrize("by_stream", [False, True], ids=["at once", "stream"])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.sdk)
def test_an_sdk_reaches_the_allowed_model_alone_and_shows_why(
    client: ModelClient,
    by_stream: bool,
    machine: Machine,
    gateway: Gateway,
    apis: Origins,
    tmp_path: Path,
) -> None:
    ask, model = client.asks[by_stream], ALLOWED.get(client.sdk, "gpt-test")
    assert machine.run(client.script(ask, model), "", tmp_path).strip() == "42"
    assert len(apis.seen) == 1
    before = len(gateway.log())
    for script in (
        client.script(ask, "other"),
        client.script(ask, model, client.hosted_tool),
    ):
        output = machine.run(script, "", tmp_path)
        assert REASON in output, output
    wait_for(
        lambda: [
            line["rule"] for line in gateway.log()[before:] if line["method"] == "POST"
        ],
        "the denials",
    )
    assert {
        line["rule"] for line in gateway.log()[before:] if line["method"] == "POST"
    } == {"others"}
    assert len(apis.seen) == 1
