"""What an editor with yaml-language-server shows of a policy file: offline, by the
schema that the program prints.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main

from .language_server import LanguageServer
from .network import run

POLICY = """\
# yaml-language-server: $schema=schema.json
version: 1
rules:
  - name: example
    action: dent
    host: [a.example]
    methods: [get]
    HERE
tests:
  - {request: "GET https://a.example/", expect: allow, at: 2026-12-01T18:00:00Z}
"""


@pytest.fixture(scope="module")
def server(
    programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LanguageServer]:
    node = programs / "node"
    run("npm", "install", "--silent", "--prefix", node, "yaml-language-server@2.0.0")
    folder = tmp_path_factory.mktemp("policy")
    (folder / "schema.json").write_text(CliRunner().invoke(main, ["schema"]).output)
    (folder / "policy.yaml").write_text(POLICY.replace("HERE", ""))
    program = node / "node_modules/yaml-language-server/bin/yaml-language-server"
    server = LanguageServer(
        node / "node_modules/.bin/node", program, folder / "policy.yaml"
    )
    yield server
    server.stop()


@pytest.mark.clients
def test_an_editor_shows_what_is_wrong_what_a_key_is_and_what_there_is(
    server: LanguageServer,
) -> None:
    assert sorted(server.diagnostics()) == [
        '5: Value is not accepted. Valid values: "allow", "deny", "ask".',
        "6: Property host is not allowed.",
        '7: String does not match the pattern of "^[A-Z][A-Z0-9_-]*$".',
    ]
    hover = server.at("textDocument/hover", 5, 6)["contents"]["value"]
    assert "What happens with the requests that match." in hover
    offered = {
        item["label"] for item in server.at("textDocument/completion", 8, 5)["items"]
    }
    assert {"hosts", "paths", "reason", "observe", "expires"} <= offered
    assert offered.isdisjoint({"name", "action", "host", "to"})
