"""A gateway whose access log has requests of sessions: its policy, its store, its
record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from click.testing import CliRunner, Result

from squidkeeper.base.places import sessions_folder
from squidkeeper.cli import main
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.published.places import mark_in_force
from squidkeeper.record.log.record import NONE
from squidkeeper.serving.sessions.store import SessionRow, SessionStore

from .records import record_line
from .serving.sessions_made import new

POLICY = """
version: 1
session_networks: [10.20.0.0/16]
clients:
  office: {networks: [192.0.2.0/24]}
roles:
  agent: {variables: {repo: {type: path, pattern: "[a-z]+/[a-z]+"}}}
  bot: {ttl: 2h}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: docs, action: allow, clients: [agent, bot], hosts: [docs.example]}
"""
DENIED: dict[str, Any] = {
    "verdict": "deny",
    "rule": "default",
    "status": 403,
    "squid": "TCP_DENIED/HIER_NONE",
    "error": "ERR_ACCESS_DENIED",
}


@dataclass
class RecordedGateway:
    """A gateway below a folder."""

    folder: Path
    store: SessionStore = field(init=False)
    lines: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        directory = self.write_policy()
        revisions = self.state / "revisions"
        sources, revision = read_sources(directory), self.policy().revision
        store_revision(sources, revision, revisions)
        mark_in_force(revisions, revision)
        self.store = SessionStore(sessions_folder(self.state))
        self.store.start()

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def policy_folder(self) -> Path:
        return self.folder / "policy"

    @property
    def log(self) -> Path:
        return self.folder / "access.log"

    def write_policy(self, text: str = POLICY, folder: str = "policy") -> Path:
        directory = self.folder / folder
        directory.mkdir(exist_ok=True)
        (directory / "policy.yaml").write_text(text)
        return directory

    def policy(self, folder: str = "policy") -> CompiledPolicy:
        return load(self.folder / folder, datetime(2026, 11, 25, tzinfo=UTC)).compiled

    def session(
        self, name: str, address: str | None = None, **values: Any
    ) -> SessionRow:
        network = None
        if address is not None:
            network = address if "/" in address else f"{address}/32"
        return self.store.create(new(name, network, **values))

    def record(
        self, url: str, session: SessionRow | str | None = None, **values: Any
    ) -> None:
        """Write a request of a session, of its number, or of none."""
        number = session.number if isinstance(session, SessionRow) else session
        host = url.split("/")[2]
        tunnel = f"{host}:443" if number is None else f"{host}:443 s={number}"
        fields = {
            "url": url,
            "revision": self.policy().revision,
            "sni": host,
            "tunnel": quote(tunnel, safe=""),
            "session": NONE if number is None else str(number),
            "request_id": f"gw.1795714530.1.{len(self.lines)}.1",
            "client": "10.20.0.99",
        }
        if isinstance(session, SessionRow):
            fields["client"] = (session.network or "10.20.0.9").partition("/")[0]
            fields["user"] = session.name if session.token_sha256 else NONE
        self.lines.append(record_line(**fields | values))
        self.log.write_bytes(b"".join(b"%b\n" % line for line in self.lines))

    def run(self, command: str, *options: object) -> Result:
        """Run a command on the gateway."""
        given = [command, *map(str, options), "--state", str(self.state)]
        return CliRunner().invoke(main, given)
