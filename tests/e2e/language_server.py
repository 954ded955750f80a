"""yaml-language-server over standard input and output, as an editor speaks to
it (LSP).
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Message = dict[str, Any]
SETTINGS = {
    "schemaStore": {"enable": False},
    "validate": True,
    "hover": True,
    "completion": True,
}
CAPABILITIES = {
    "textDocument": {"hover": {"contentFormat": ["markdown"]}, "completion": {}},
    "workspace": {"configuration": True},
}


class LanguageServer:
    """A server with one document open."""

    def __init__(self, node: Path, program: Path, document: Path) -> None:
        self._server = subprocess.Popen(
            [node, program, "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._asked = 0
        self._uri = document.as_uri()
        self.ask(
            "initialize",
            {"processId": os.getpid(), "rootUri": None, "capabilities": CAPABILITIES},
        )
        self._tell("initialized", {})
        item = {
            "uri": self._uri,
            "languageId": "yaml",
            "version": 1,
            "text": document.read_text(),
        }
        self._tell("textDocument/didOpen", {"textDocument": item})

    def diagnostics(self) -> list[str]:
        """What the editor underlines: `LINE: MESSAGE`, counted from 1."""
        published = self._until(
            lambda message: message.get("method") == "textDocument/publishDiagnostics"
        )
        found = published["params"]["diagnostics"]
        return [
            f"{problem['range']['start']['line'] + 1}: {problem['message']}"
            for problem in found
        ]

    def at(self, method: str, line: int, character: int) -> Any:
        """Ask about a place: `textDocument/hover` or `textDocument/completion`; line
        and character from 1.
        """
        place = {"line": line - 1, "character": character - 1}
        return self.ask(method, {"textDocument": {"uri": self._uri}, "position": place})

    def ask(self, method: str, params: Message) -> Any:
        self._asked += 1
        self._send({"id": self._asked, "method": method, "params": params})
        return self._until(
            lambda message: message.get("id") == self._asked and "method" not in message
        )["result"]

    def stop(self) -> None:
        self._server.kill()
        self._server.communicate()

    def _tell(self, method: str, params: Message) -> None:
        self._send({"method": method, "params": params})

    def _send(self, message: Message) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._server.stdin is not None
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._server.stdin.flush()

    def _until(self, wanted: Callable[[Message], bool]) -> Message:
        """Read messages up to one that is wanted; answer what the server asks
        meanwhile.
        """
        while not wanted(message := self._read()):
            if message.get("method") == "workspace/configuration":
                sections = [item["section"] for item in message["params"]["items"]]
                found = [
                    SETTINGS if section == "yaml" else None for section in sections
                ]
                self._send({"id": message["id"], "result": found})
            elif "method" in message and "id" in message:
                self._send({"id": message["id"], "result": None})
        return message

    def _read(self) -> Message:
        assert self._server.stdout is not None
        length = 0
        while line := self._server.stdout.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, "the server has ended"
        read: Message = json.loads(self._server.stdout.read(length))
        return read
