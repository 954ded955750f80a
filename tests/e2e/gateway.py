"""A gateway in a folder, as `install.sh --root` makes it: its policy, its Squid, its
helpers, its logs.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pwd import getpwnam
from typing import Any
from urllib.parse import quote, unquote

from msgspec.structs import replace

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.helper_metrics import LOADS_POLICY
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.rendering import (
    Values,
    decode_values,
    encode_values,
    merge,
    part_file,
    values_of,
)
from squidkeeper.operate.setup.configuration import has_own_login, without_login
from squidkeeper.operate.setup.entries import File
from squidkeeper.operate.setup.rendering import (
    read_templates,
    read_values,
    template_folder,
)
from squidkeeper.policy.policy_store.loading import build_sources, load
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.serving.counters.reader import read_all_counter_files
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.parts import Part
from tests.bare_squid import remove_leftovers
from tests.conftest import DOCUMENTED, WORKERS
from tests.generations import add_local_lines, put_rendered
from tests.waiting import pause, wait_for

from .network import run

REPOSITORY = Path(__file__).parents[2]
URL_SAFE = (
    "!$%&'()*+,-./:;=?@_"  # Squid writes other characters of a URL in percent-encoding
)
NAMESERVER = "127.0.0.53"
PROTOTYPE_LISTENS = "127.0.0.1:3129"
EXTRAS = "aws,oauth2,otlp,sealed,valkey"
_WORKER = re.compile(r"\(squid-\d+\)")  # as Squid names the process


def install(root: Path, listen: str, *options: str) -> None:
    """Install a gateway with the project's own installer; the first one of a run needs
    the package registries.
    """
    common = (
        "--no-start",
        "--extras",
        EXTRAS,
        "--workers",
        os.environ.get(WORKERS, "1"),
    )
    if DOCUMENTED in os.environ:
        options = ("--bump", "documented", *options)
    run(
        REPOSITORY / "install.sh", "--root", root, "--listen", listen, *common, *options
    )


def install_prototype(root: Path) -> Path:
    """Install the gateway that others are copies of; its Squid asks NAMESERVER."""
    (root / "etc").mkdir(parents=True)
    (root / "etc/local.conf").write_text(f"dns_nameservers {NAMESERVER}\n")
    install(root, PROTOTYPE_LISTENS)
    return root


@dataclass(frozen=True, slots=True)
class Site:
    """What the gateways of one run share."""

    folder: Path  # traversable by Squid's account
    # the gateway that was installed first: the others are copies of it, or use its
    # virtual environment
    prototype: Path
    upstream_ca: Path
    # every secret value that any gateway was given, by gateway and name
    secrets: dict[str, str]


class Gateway:
    """A copy of the prototype, or `installed`.

    Its Squid asks that name server; with None, the gateway's resolver.
    """

    def __init__(
        self,
        site: Site,
        name: str,
        address: tuple[str, int],
        nameserver: str | None = NAMESERVER,
        *,
        installed: bool = False,
        throttled: bool = False,
        options: tuple[str, ...] = (),  # of install.sh
    ) -> None:
        self.root = site.folder / name
        self.address = address
        self.authority = f"{address[0]}:{address[1]}"
        self.ca = self.root / "etc/ca/ca.crt"
        self.policy_folder = self.root / "etc/policy"
        self.renders = (
            True  # as the service that renders Squid's configuration after an edit
        )
        self.reads_bodies = True  # as the service that judges bodies
        self.layout = Layout.of(self.root)
        self._secrets = site.secrets
        self._squid: subprocess.Popen[bytes] | None = None
        self.bodies: list[
            subprocess.Popen[bytes]
            # the processes that read bodies, where the policy has a rule with `body`
        ] = []
        self._own_login = False
        self.root.mkdir()
        for venv in site.prototype.glob("venv-*"):
            (self.root / venv.name).symlink_to(venv)  # what takes the installer long
        as_prototype = (nameserver, address[0]) == (
            NAMESERVER,
            PROTOTYPE_LISTENS.partition(":")[0],
        )
        if installed or options or not as_prototype:
            (self.root / "etc").mkdir()
            self.local_conf(*([f"dns_nameservers {nameserver}"] if nameserver else []))
            install(self.root, self.authority, *options)
        else:
            self._copy(site.prototype)
        self.local_conf(f"tls_outgoing_options cafile={site.upstream_ca}")
        self._throttled = throttled
        if not throttled:  # tests are denied more often than a client may be
            [burst] = re.findall(
                r"--burst \d+ ", (self.root / "etc/squidkeeper.conf").read_text()
            )
            self.edit("squidkeeper.conf", burst, "--burst 1000000 ")
        shutil.rmtree(self.policy_folder)
        self.policy_folder.mkdir()

    def _copy(self, prototype: Path) -> None:
        """Copy what the installer wrote, with this gateway's folder and address."""
        parts = [
            part for part in prototype.iterdir() if not part.name.startswith("venv-")
        ]
        run("cp", "--archive", *parts, self.root)
        texts = [
            self.root / "applied",
            *(self.root / "etc").glob("*.*"),
            self.root / "etc/observe/alerts.yaml",
        ]
        folder = self.layout.generation
        texts += [
            *folder.iterdir(),
            *self.layout.parts.iterdir(),
            *self.layout.templates.iterdir(),
        ]
        for file in {path.resolve() for path in texts if path.is_file()}:
            text = file.read_text()
            text = text.replace(Layout.of(prototype).bodies, self.layout.bodies)
            file.write_text(
                text.replace(f"{prototype}", f"{self.root}").replace(
                    PROTOTYPE_LISTENS, self.authority
                )
            )
        for page in (self.root / "etc/errors").iterdir():
            page.write_bytes(
                page.read_bytes().replace(
                    f"{prototype}".encode(), f"{self.root}".encode()
                )
            )
        # of the network that the prototype was installed in
        own = self.root / "state/own-addresses"
        own.write_text(
            "".join(
                line
                for line in own.read_text().splitlines(True)
                if line.startswith("#")
            )
        )

    def local_conf(self, *lines: str) -> None:
        """Add lines of the operator's own to Squid's configuration."""
        add_local_lines(self.layout, "".join(f"{line}\n" for line in lines))
        if has_own_login("\n".join(lines)):  # as install.sh does
            templates = read_templates(self.layout)
            templates[part_file(Part.LOGIN)] = without_login(
                templates[part_file(Part.LOGIN)]
            )
            self._write_templates(templates)
            self._own_login = True

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that one of the installed files holds, and its template:
        `squidkeeper.d/watch.conf`, …
        """
        file, templates = self.root / "etc" / name, read_templates(self.layout)
        text = templates[name] if name in templates else file.read_text()
        assert old in text, f"{file} holds no {old!r}"
        if name in templates:
            self._write_templates(templates | {name: text.replace(old, new)})
            file = self.layout.fragment
        file.write_text(file.read_text().replace(old, new))

    def _write_templates(self, templates: dict[str, str]) -> None:
        for name, entry in template_folder(templates).entries.items():
            assert isinstance(entry, File)
            (self.layout.templates / name).write_bytes(entry.content)

    def use_certgen(self) -> None:
        """Let Squid's own program make the certificates, as `install.sh --certificates
        squid` does.
        """
        conf, store = self.root / "etc/squid.conf", self.root / "state/ssl_db"
        text = re.sub(
            r"(?m)^(#?)(?=sslcrtd_program )",
            lambda found: "" if found[1] else "#",
            conf.read_text(),
        )
        conf.write_text(text)
        [program] = re.findall(r"(?m)^sslcrtd_program (\S+)", text)
        run(program, "-c", "-s", store, "-M", "4MB")
        run("chown", "-R", "proxy:proxy", store)

    # The policy

    def write(self, name: str, text: str) -> Path:
        """Put a file into the policy's folder, whole, by rename."""
        file = self.policy_folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        new.write_text(text)
        new.rename(file)
        if self.renders and self._squid:
            self._render_new_parts()
        return file

    def secret(self, name: str, value: bytes | str, mode: int = 0o640) -> None:
        """Put a secret's file into the policy and remember its value for the search at
        the end of the run.
        """
        data = value.encode() if isinstance(value, str) else value
        file = self.write(f"secrets/{name}", "")
        file.write_bytes(data)
        shutil.chown(file, group="proxy")
        file.chmod(mode)
        self.remember(data.decode("latin-1").strip(), name)

    def remember(self, value: str, name: str = "a secret") -> None:
        """Note a secret value that must not be found in any file of this run, beside
        those of the same name.
        """
        self._secrets[f"{self.root.name}: {name} {len(self._secrets)}"] = value

    def settle(self) -> None:
        """Wait until all helpers decide by the policy on disk, and Squid keeps no
        answer about a host from before.
        """
        revision = load(self.policy_folder, datetime.now(UTC)).compiled.revision
        wait_for(
            lambda: self._revisions() == {revision},
            f"revision {revision} in all helpers",
        )
        pause(2, "ttl=1 of sk_host, in whole seconds of a clock")

    def _revisions(self) -> set[str | None]:
        """The revisions by which the helpers decide; None for one that is starting, or
        has no policy.
        """
        found = [
            file.status
            for file in read_all_counter_files(self.root / "state")
            if file.running
        ]
        return {
            file.revision if file else None
            for file in found
            if not file or file.helper in LOADS_POLICY
        }

    def command(
        self, *words: str | Path, answer: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of its own program to the end."""
        command = [self.root / "bin/squidkeeper", *words]
        return subprocess.run(
            command,
            input=answer,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @property
    def places(self) -> tuple[str | Path, ...]:
        """The options and the argument of a command that reads its access log."""
        return (
            "--policy",
            self.policy_folder,
            "--state",
            self.root / "state",
            self.root / "log/access.log",
        )

    def render(self, upstream: str = "", *, documented: bool = False) -> None:
        """Render Squid's configuration for the policy, as install.sh does."""
        self._put(
            replace(
                self._values(upstream),
                documented=documented or DOCUMENTED in os.environ,
            )
        )

    def _values(self, upstream: str = "") -> Values:
        policy = build_sources(read_sources(self.policy_folder)).policy
        values, _ = values_of(policy, SecretStore(policy.secrets, {}))
        if self._own_login:
            values = replace(values, keys=values.keys | {Part.LOGIN})
        return decode_values(encode_values(values.with_default(upstream)))

    def _put(self, values: Values) -> None:
        if Part.BODIES in values.parts and self.reads_bodies and not self.bodies:
            self.start_bodies()
        entry = getpwnam("proxy")
        account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
        put_rendered(self.layout, account, values)

    def _render_new_parts(self) -> None:
        """Render what an edit needs and Squid does not have, as the service does within
        seconds.
        """
        former = read_values(self.layout)
        try:
            values = merge(former, self._values())
        except PolicyError:
            return
        if values != former:
            before = self.cache_log().count("Accepting ")
            self._put(values)
            self.reconfigure()
            wait_for(
                lambda: self.cache_log().count("Accepting ") > before,
                "Squid to listen again",
            )

    # Squid

    def start(self) -> "Gateway":
        """Start Squid as a service does; it takes connections when this returns."""
        if self.renders:
            with suppress(PolicyError):
                placed = read_values(self.layout)
                self._put(
                    replace(
                        self._values(),
                        default=placed.default,
                        documented=placed.documented,
                    )
                )
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "squid",
            "--foreground",
            "-YC",
            *self._which(),
        ]
        with (self.root / "log/start.txt").open("ab") as out:
            self._squid = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        wait_for(
            self._listens, f"Squid to listen on {self.authority}; see {self.root}/log"
        )
        return self

    def _which(self) -> list[str]:
        return ["-n", self._service, "-f", f"{self.root}/etc/squid.conf"]

    @property
    def _service(self) -> str:
        return f"e2e{os.getpid()}x{self.address[1]}"

    def _listens(self) -> bool:
        if self._squid and self._squid.poll() is not None:
            raise AssertionError(
                f"Squid ended:\n{(self.root / 'log/start.txt').read_text()}\n{self.cache_log()[-3000:]}"
            )
        return bool(run("ss", "-Hltn", f"sport = :{self.address[1]}"))

    def start_bodies(self, processes: int = 1) -> None:
        """Start processes that read bodies, as a service does: as Squid's account,
        which may use their port.
        """
        rights = ("--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service")
        account = (
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--reuid",
            "proxy",
            "--regid",
            "proxy",
            "--clear-groups",
            *rights,
        )
        options: tuple[str | Path, ...] = (
            "--listen",
            self.layout.bodies,
            "--policy",
            self.policy_folder,
            "--state",
            self.root / "state",
        )
        options += () if self._throttled else ("--burst", "1000000")
        for _ in range(processes):
            with (self.root / "log/bodies.log").open("ab") as out:
                command = [*account, self.root / "bin/squidkeeper", "bodies", *options]
                self.bodies.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                    )
                )
        address, _, port = self.layout.bodies.rpartition(":")
        listening = ("ss", "-Hltn", f"src {address} and sport = :{port}")
        wait_for(
            lambda: len(run(*listening).splitlines()) >= len(self.bodies),
            f"{self.layout.bodies}; see {self.root}/log",
        )

    def kill_bodies(self) -> None:
        """Kill the processes that read bodies."""
        for process in self.bodies:
            process.kill()
            process.wait()
        self.bodies = []

    def stop(self) -> None:
        """Stop Squid as `squid -k interrupt` does; it takes two seconds."""
        if self._squid:
            self._squid.send_signal(signal.SIGINT)
            try:
                self._squid.wait(30)
            except subprocess.TimeoutExpired:
                self._squid.kill()
                self._squid.wait()
            self._squid = None

    def kill(self) -> None:
        """Kill Squid, its helpers and what reads bodies, and remove what
        Squid leaves.
        """
        self.kill_bodies()
        if self._squid:
            kill_tree(self._squid)
            self._squid = None
            remove_leftovers(self._service)

    def restart(self) -> "Gateway":
        self.stop()
        return self.start()

    def reconfigure(self) -> None:
        """Let Squid read its configuration again, as `squid -k reconfigure` does."""
        run("squid", "-k", "reconfigure", *self._which())

    def rotate(self) -> None:
        """Let Squid open new logs after the old ones were renamed."""
        run("squid", "-k", "rotate", *self._which())

    @property
    def master(self) -> int:
        """The process that starts those that serve."""
        assert self._squid is not None
        return self._squid.pid

    @property
    def pid(self) -> int:
        """The process that serves: the master's child, the first of several workers."""
        return self.workers[0]

    @property
    def workers(self) -> list[int]:
        """The processes that serve.

        A coordinator, which several workers have, serves nobody.
        """
        assert self._squid is not None
        found = [(pid, _command(pid)) for pid in _children(self._squid.pid)]
        return [pid for pid, command in found if _WORKER.match(command)]

    @property
    def runs(self) -> bool:
        """Whether Squid's master is there."""
        return self._squid is not None and self._squid.poll() is None

    def helpers(self, kind: str) -> list[int]:
        """The processes of one helper, by how its command begins: "acl --scope host",
        "rewrite", "throttle", …
        """
        try:
            found = [pid for worker in self.workers for pid in _children(worker)]
            return [pid for pid in found if f"squidkeeper {kind}" in _command(pid)]
        except (FileNotFoundError, ProcessLookupError):
            return []  # one has just ended

    def kill_helpers(
        self, kind: str = "", by: signal.Signals = signal.SIGKILL
    ) -> list[int]:
        """Send a signal to every helper of one kind, or of all; return whom
        it found.
        """
        pids = self.helpers(kind)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, by)
        return pids

    @contextmanager
    def stopped_helpers(self, kind: str) -> Iterator[list[int]]:
        """Stop the helpers of one kind meanwhile."""
        pids = self.kill_helpers(kind, signal.SIGSTOP)
        try:
            yield pids
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def unread(self) -> int:
        """Bytes that clients have sent and Squid has not read."""
        lines = run("ss", "-Htn", f"sport = :{self.address[1]}").splitlines()
        return sum(int(line.split()[1]) for line in lines)

    # The logs

    def log(self) -> list[dict[str, Any]]:
        """The access log: each line parsed, text decoded; a line that is not JSON is a
        failure.
        """
        file = self.root / "log/access.log"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [json.loads(line, object_hook=_decoded) for line in lines]

    def logged(self, url: str, before: int = 0) -> dict[str, Any]:
        """The first line about a URL from line `before` on, waited for: Squid writes it
        after the answer.
        """
        url = quote(url, safe=URL_SAFE)
        found = wait_for(
            lambda: [line for line in self.log()[before:] if line["url"] == url],
            f"{url} in {self.root}/log/access.log",
        )
        return found[0]

    def fatal(self) -> list[str]:
        """What has ended Squid's process, by its own account."""
        return [line for line in self.cache_log().splitlines() if "FATAL" in line]

    def cache_log(self) -> str:
        file = self.root / "log/cache.log"
        return file.read_text(errors="replace") if file.exists() else ""


def _decoded(line: dict[str, Any]) -> dict[str, Any]:
    return {
        key: unquote(value) if isinstance(value, str) and key != "url" else value
        for key, value in line.items()
    }


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started, and wait for their end."""
    pids = [process.pid]
    for pid in pids:
        with suppress(FileNotFoundError):
            pids += _children(pid)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(_lives, pids)), "the end of Squid's processes")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _command(pid: int) -> str:
    return (
        Path(f"/proc/{pid}/cmdline")
        .read_bytes()
        .replace(b"\0", b" ")
        .decode(errors="replace")
    )


NewGateway = Callable[..., Gateway]
