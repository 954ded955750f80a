"""Repositories, keys and servers for a pulled policy: git over https, and bundles, on
loopback.
"""

from __future__ import annotations

import os
import shlex
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from getpass import getuser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from squidkeeper.serving.certificates.authority import issue_server_certificate, make_ca
from tests.ports import free_port
from tests.waiting import pause, wait_for

GIT_ENVIRONMENT = {
    **{name: os.environ[name] for name in ("PATH",)},
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "HOME": "/nonexistent",
}


def make_key(file: Path) -> Path:
    """Make an SSH key without a passphrase."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)],
        check=True,
    )
    return file


def allowed_signer(
    key: Path, name: str = "alice@example.com", options: str = ""
) -> str:
    """Write a line of allowed_signers."""
    return f"{name} {options} {key.with_suffix('.pub').read_text()}".replace("  ", " ")


@dataclass
class Repository:
    """A git repository in which a person works, and whose bare twin a server serves."""

    folder: Path
    key: Path
    served: Path

    @classmethod
    def make(cls, folder: Path, key: Path, served: Path) -> Repository:
        made = cls(folder, key, served)
        folder.mkdir(parents=True)
        made.git("init", "-q", "-b", "main", ".")
        subprocess.run(
            ["git", "init", "-q", "--bare", "-b", "main", str(served)],
            check=True,
            env=GIT_ENVIRONMENT,
        )
        made.git("-C", str(served), "config", "uploadpack.allowAnySHA1InWant", "true")
        return made

    def git(
        self,
        *arguments: str,
        given: bytes = b"",
        environment: dict[str, str] | None = None,
    ) -> str:
        signing = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={self.key}")
        done = subprocess.run(
            ["git", *signing, *arguments],
            cwd=self.folder,
            env={**GIT_ENVIRONMENT, **(environment or {})},
            input=given,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def write(self, name: str, text: str | bytes) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def commit(
        self,
        *,
        signed: bool = True,
        push: bool = True,
        environment: dict[str, str] | None = None,
    ) -> str:
        self.git("add", "-A")
        sign = ("-S",) if signed else ("--no-gpg-sign",)
        self.git(
            "commit", "-q", "--allow-empty", *sign, "-m", "x", environment=environment
        )
        if push:
            self.push()
        return self.git("rev-parse", "HEAD")

    def push(self, *arguments: str) -> None:
        self.git(
            "push",
            "-q",
            "--force",
            *arguments,
            str(self.served),
            "HEAD:refs/heads/main",
        )


@dataclass
class WebServer:
    """Serves files of a folder over https, and bare git repositories in it by `git
    http-backend`.
    """

    root: Path
    address: str = "127.0.0.1"
    port: int = 0
    ca: Path = Path()
    down: bool = False
    redirect: str = ""
    cut_after: int | None = None  # bytes of each answer
    endless: bytes = b""  # what it sends again and again in place of an answer
    dumb: bool = (
        False  # it gives the files of a repository, as a server without git does
    )
    pack_uri: str = ""  # where to fetch one more pack, which no client has asked for
    authorization: list[str | None] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"


@contextmanager
def serving(root: Path, address: str = "127.0.0.1") -> Iterator[WebServer]:
    """Run a server for a while."""
    root.mkdir(parents=True, exist_ok=True)
    now, leaf = datetime.now(UTC), root.parent / "leaf.pem"
    authority, state = (
        make_ca(now),
        WebServer(root, address, ca=root.parent / "server.pem"),
    )
    state.ca.write_bytes(authority.certificate)
    leaf.write_bytes(issue_server_certificate(authority, [address], now))
    server = ThreadingHTTPServer(
        (address, 0), type("Handler", (_Handler,), {"state": state})
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: WebServer
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.state.authorization.append(self.headers["Authorization"])
        if self.state.endless:
            self._never_end(self.state.endless)
        elif self.state.down:
            self.send_error(503)
        elif self.state.redirect and not self._is_redirected():
            self.send_response(302)
            self.send_header("Location", self.state.redirect)
            self.end_headers()
        elif ".git/" in self.path and not self.state.dumb:
            self._git()
        else:
            self._file()

    def do_POST(self) -> None:
        self.do_GET()

    def _is_redirected(self) -> bool:
        """Whether a client has followed a redirect: everything is also below /real."""
        self.path, path = self.path.removeprefix("/real"), self.path
        return self.path != path

    def _never_end(self, part: bytes) -> None:
        with suppress(OSError):  # the client has gone
            while True:
                self.wfile.write(part)
                pause(0.02, "a server that never ends")

    def _file(self) -> None:
        file = self.state.root / self.path.partition("?")[0].lstrip("/")
        if file.is_file():
            self._answer(200, {}, file.read_bytes())
        else:
            self.send_error(404)

    def _git(self) -> None:
        path, _, query = self.path.partition("?")
        length = int(self.headers["Content-Length"] or 0)
        variables = {
            **GIT_ENVIRONMENT,
            "GIT_PROJECT_ROOT": str(self.state.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers["Content-Type"] or "",
            "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
            "GIT_PROTOCOL": self.headers["Git-Protocol"] or "",
        }
        given = self.rfile.read(length)
        done = subprocess.run(
            ["git", "http-backend"],
            input=given,
            env=variables,
            capture_output=True,
            check=False,
        )
        head, _, body = with_pack_uri(done.stdout, self.state.pack_uri).partition(
            b"\r\n\r\n"
        )
        headers = dict(
            line.split(": ", 1) for line in head.decode().split("\r\n") if line
        )
        self._answer(int(headers.pop("Status", "200").split()[0]), headers, body)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(
            body if self.state.cut_after is None else body[: self.state.cut_after]
        )

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


def with_pack_uri(answer: bytes, uri: str) -> bytes:
    """Tell a client of git's protocol 2 to fetch one more pack from a URI."""
    pack, line = b"000dpackfile\n", f"{'0' * 40} {uri}\n"
    uris = b"0012packfile-uris\n" + f"{len(line) + 4:04x}{line}".encode() + b"0001"
    return answer.replace(pack, uris + pack) if uri else answer


@contextmanager
def ssh_server(
    folder: Path, repository: Path, pack_uri: str = ""
) -> Iterator[tuple[str, Path, Path]]:
    """Serve one repository by sshd on loopback: its URL, a key that may read it, and
    the file of its host key.
    """
    folder.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own, as root
    host, key = make_key(folder / "host"), make_key(folder / "client")
    command = f"git-upload-pack {shlex.quote(str(repository))}"
    if pack_uri:  # by protocol 2, whatever the client has asked for
        (folder / "hostile.py").write_text(
            "import os, sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
            "from tests.pull_servers import with_pack_uri\n"
            "while part := os.read(0, 1 << 16):\n"
            f"    os.write(1, with_pack_uri(part, {pack_uri!r}))\n"
        )
        command = (
            f"GIT_PROTOCOL=version=2 {command} | {sys.executable} {folder}/hostile.py"
        )
    allowed = f'restrict,command="{command}" {key.with_suffix(".pub").read_text()}'
    (folder / "authorized_keys").write_text(allowed)
    port = free_port()
    (folder / "known_hosts").write_text(
        f"[127.0.0.1]:{port} {host.with_suffix('.pub').read_text()}"
    )
    options = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": host,
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "forced-commands-only",
    }
    (folder / "sshd.conf").write_text(
        "".join(f"{name} {value}\n" for name, value in options.items())
    )
    sshd = ("/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd.conf"))
    server = subprocess.Popen(sshd, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers(port), "sshd")
        yield (
            f"ssh://{getuser()}@127.0.0.1:{port}/policies.git",
            key,
            folder / "known_hosts",
        )
    finally:
        server.terminate()
        server.wait()


def answers(port: int) -> bool:
    with socket.socket() as listener:
        return listener.connect_ex(("127.0.0.1", port)) == 0
