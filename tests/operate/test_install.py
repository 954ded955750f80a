"""install.sh for real: gateways under a --root of their own, each in a folder that
Squid's account can enter.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from squidkeeper.base.layout import BODIES, Layout
from squidkeeper.cli import main
from squidkeeper.configuration.error_pages import files
from squidkeeper.operate.doctor.examination import ALL_CHECKS
from squidkeeper.operate.setup.body_services import options_problem
from squidkeeper.operate.setup.sockets import is_free, process_listens
from tests.pull_servers import Repository, allowed_signer, make_key, serving
from tests.waiting import pause, wait_for

pytestmark = pytest.mark.system

REPOSITORY = Path(__file__).parents[2]
SOURCES = (
    "install.sh",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "helpers",
    "squid",
    "policy",
)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway under `root`, installed from the sources in `source`."""

    source: Path
    root: Path
    port: int

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run install.sh on this gateway; its exit status is for the caller to
        check.
        """
        return install(self.source, "--root", str(self.root), *arguments)

    @property
    def listen(self) -> tuple[str, str]:
        return "--listen", f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return int((self.root / "run/squid.pid").read_text())

    @property
    def supervisor(self) -> int:
        """The process that keeps the exporter running."""
        return int((self.root / "run/exporter.pid").read_text())

    @property
    def exporter(self) -> int:
        """The process that serves metrics; 0 between one and the next."""
        return child_of(self.supervisor, "squidkeeper exporter")

    @property
    def maintenance_supervisor(self) -> int:
        """The process that keeps the maintenance process running."""
        return int((self.root / "run/maintenance.pid").read_text())

    @property
    def maintenance(self) -> int:
        """The maintenance process; 0 between one and the next."""
        return child_of(self.maintenance_supervisor, "squidkeeper maintain")

    @property
    def metrics(self) -> str:
        """What Prometheus gets."""
        return http_get(f"http://127.0.0.1:{usual_exporter_port(self.port)}/metrics")

    def place(self, name: str) -> Path:
        return self.root / name

    def snapshot(self) -> dict[str, tuple[object, ...]]:
        """Everything under the root but logs, archive, what is published, and the
        compiled lists and metrics of running helpers.
        """
        changing = ("log", "state", "state-published", "archive")
        found = snapshot(self.root, leave_out=changing)
        return {
            path: about
            for path, about in found.items()
            if path != str(self.place("run/archive.log"))
        }

    def places(self) -> set[str]:
        """The paths of a snapshot, without those of generations."""
        generations = f"{self.place('etc/generations')}/"
        return {path for path in self.snapshot() if not path.startswith(generations)}

    def clear(self) -> None:
        """Take it away.

        A test of uninstall waits for its Squid; here it ends at once.
        """
        if self.place("run/squid.pid").exists():
            pid = self.pid
            os.kill(pid, signal.SIGINT)
            wait_until_ended(pid)
        self.install("--uninstall")

    def answers(self) -> str:
        """The status of a request that the example policy denies, over TLS verified
        against the gateway's CA.
        """
        return curl(
            self.port,
            self.place("etc/ca/ca.crt"),
            "https://en.wikipedia.org/wiki/Squid",
        )


def install(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [source / "install.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def curl(port: int, ca: Path, url: str, scheme: str = "http", *options: str) -> str:
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        "--output",
        "/dev/null",
    ]
    command += [
        "--write-out",
        "%{http_code}",
        "--proxy",
        f"{scheme}://127.0.0.1:{port}",
        "--cacert",
        str(ca),
    ]
    return subprocess.run(
        [*command, *options, url], capture_output=True, text=True, check=True
    ).stdout


def snapshot(
    top: Path, leave_out: tuple[str, ...] = ()
) -> dict[str, tuple[object, ...]]:
    """Of each path: inode, mode, owner, time of its last change, and content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        if path.relative_to(top).parts[0] in leave_out:
            continue
        about = path.lstat()
        content = content_of(path) if stat.S_ISREG(about.st_mode) else ""
        target = os.readlink(path) if path.is_symlink() else ""
        found[str(path)] = (
            about.st_ino,
            about.st_mode,
            about.st_uid,
            about.st_gid,
            about.st_mtime_ns,
            content,
            target,
        )
    return found


def content_of(file: Path) -> str:
    """Return its hash; of a file of a virtual environment, of which there are
    thousands, its size alone.
    """
    return (
        str(file.stat().st_size)
        if "/venv-" in str(file)
        else sha256(file.read_bytes()).hexdigest()
    )


def free_port() -> int:
    """A port for Squid on which nobody listens, nor on its exporter's; below those that
    connections are given.
    """
    while True:
        port = random.randrange(10_000, 26_000)
        if not listens(port) and not listens(usual_exporter_port(port)):
            return port


def usual_exporter_port(port: int) -> int:
    return port + 6000


def command_of(pid: int) -> str:
    """The command line of a process; nothing where it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")
        )
    return ""


def child_of(pid: int, command: str) -> int:
    """The child that runs the command, or 0."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(
        (int(child) for child in children if command in command_of(int(child))), 0
    )


def http_get(url: str) -> str:
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--fail", url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def squid_account() -> str:
    options = (
        subprocess.run(["squid", "-v"], capture_output=True, text=True, check=True)
        .stdout.replace("'", " ")
        .split()
    )
    return next(
        option.partition("=")[2]
        for option in options
        if option.startswith("--with-default-user=")
    )


def owner(path: Path) -> str:
    return pwd.getpwuid(path.stat().st_uid).pw_name


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def runs(pid: int) -> bool:
    """Whether it has not ended; its parent may not have noticed yet."""
    try:
        return not re.search(
            r"^State:\s*[ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_ended(pid: int) -> None:
    wait_for(lambda: not runs(pid), f"process {pid} to end")


def openssl(*arguments: str) -> str:
    return subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, check=True
    ).stdout


def make_ca(directory: Path, name: str = "Slicer CA", *extra: str) -> Path:
    """A ca.crt and ca.key as slicer writes them."""
    directory.mkdir()
    openssl(
        *(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            f"/CN={name}",
        ),
        *(
            "-keyout",
            str(directory / "ca.key"),
            "-out",
            str(directory / "ca.crt"),
            *extra,
        ),
    )
    return directory


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A folder that every account can enter, as pytest's own is not, and a confined
    service sees, as /tmp is not.
    """
    with tempfile.TemporaryDirectory(prefix="squidkeeper-install-", dir="/srv") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def source(base: Path) -> Path:
    """The sources alone, as a fresh clone has them, to be changed by a test that
    upgrades.
    """
    copy = base / "source"
    copy.mkdir()
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name,
                copy / name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            shutil.copy(REPOSITORY / name, copy / name)
    return copy


@contextmanager
def index() -> Iterator[list[str]]:
    """The package index that pip is set to: gives what it was asked, and has
    nothing.
    """
    asked: list[str] = []

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Index) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.delenv("PIP_NO_INDEX", raising=False)
        patch.delenv("PIP_FIND_LINKS", raising=False)
        patch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        threading.Thread(target=server.serve_forever).start()
        yield asked
        server.shutdown()


@pytest.fixture(scope="module")
def gateway(base: Path, source: Path, wheels: Path) -> Iterator[Gateway]:
    """A gateway that runs, installed without a package index; a test leaves it as it
    found it.
    """
    gateway = Gateway(source, base / "gateway", free_port())
    with index() as asked:
        done = gateway.install(*gateway.listen, "--wheels", str(wheels))
    assert asked == [], "the package index was asked"
    assert done.returncode == 0, done.stderr
    assert "\nTry it (200 and 403 with the example policy):\n" in done.stdout
    assert "an edit is in force within 3 seconds" in done.stdout
    let_squid_end_at_once(gateway)
    assert gateway.install().returncode == 0
    yield gateway
    gateway.clear()


def let_squid_end_at_once(gateway: Gateway) -> None:
    """So that no test waits for what squid.conf gives clients to end."""
    gateway.place("etc").mkdir(exist_ok=True)
    with gateway.place("etc/local.conf").open("a") as local:
        local.write("shutdown_lifetime 0 seconds\n")


@pytest.fixture
def empty(gateway: Gateway, tmp_path: Path) -> Iterator[Gateway]:
    """A place for one more gateway, with nothing in it but the environment that takes
    long to build.
    """
    another = Gateway(
        gateway.source, gateway.root.with_name(tmp_path.name), free_port()
    )
    another.root.mkdir()
    venv = gateway.place("bin/squidkeeper").resolve().parent.parent
    another.place(venv.name).symlink_to(venv)
    yield another
    another.clear()


@pytest.fixture
def changed(source: Path) -> Iterator[Path]:
    """The sources, to be changed; put back afterwards."""
    kept = source.with_name("kept")
    shutil.copytree(source, kept)
    yield source
    shutil.rmtree(source)
    kept.rename(source)


# ── A fresh install ───────────────────────────────────────────────────────────────────


def test_everything_has_its_fixed_place(gateway: Gateway) -> None:
    for place in (
        *(
            "etc/squid.conf",
            "etc/squidkeeper.conf",
            "etc/squidkeeper-logformat.conf",
            "etc/local.conf",
            "etc/policy",
        ),
        *(
            "bin/squidkeeper",
            "log/access.log",
            "log/cache.log",
            "run/squid.pid",
        ),
        *("etc/ca/ca.crt", "etc/ca/ca.key", "etc/ca/signing.crt", "etc/ca/signing.key"),
    ):
        assert gateway.place(place).exists(), place
    assert {*dict(files()), "error-details.txt"} == {
        path.name for path in gateway.place("etc/errors").iterdir()
    }
    assert not gateway.place("state/ssl_db").exists()
    assert mode(gateway.place("etc/policy")) == 0o2750, (
        "so that a file which is copied there gets the group"
    )


def test_the_gateway_runs_and_denies_with_a_certificate_of_its_ca(
    gateway: Gateway,
) -> None:
    assert gateway.answers() == "403"
    assert '"rule":"no-wikipedia"' in gateway.place("log/access.log").read_text()
    assert "ERROR: loading file" not in gateway.place("log/cache.log").read_text()


def test_squids_account_reads_the_key_of_the_intermediate_and_not_that_of_the_ca(
    gateway: Gateway,
) -> None:
    for name, expected in (("signing", squid_account()), ("ca", "root")):
        key, certificate = (
            gateway.place(f"etc/ca/{name}.key"),
            gateway.place(f"etc/ca/{name}.crt"),
        )
        assert (mode(key), owner(key), mode(certificate), owner(certificate)) == (
            0o600,
            expected,
            0o644,
            expected,
        )


def test_the_made_ca_is_an_ecdsa_one_for_ten_years(gateway: Gateway) -> None:
    text = openssl(
        "x509",
        "-in",
        str(gateway.place("etc/ca/ca.crt")),
        "-noout",
        "-text",
        "-subject",
    )
    assert "CA:TRUE" in text
    assert "NIST CURVE: P-256" in text
    assert "Signature Algorithm: ecdsa-with-SHA256" in text
    assert "squidkeeper egress CA" in text
    soon, late = str(3649 * 86400), str(3651 * 86400)
    certificate = str(gateway.place("etc/ca/ca.crt"))
    assert "will not expire" in openssl(
        "x509", "-in", certificate, "-noout", "-checkend", soon
    )
    expires = subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-checkend", late],
        check=False,
    )
    assert expires.returncode == 1


def test_squids_account_can_run_the_program_which_is_compiled_and_built_on_a_system_python(
    gateway: Gateway,
) -> None:
    program = gateway.place("bin/squidkeeper")
    subprocess.run(
        ["runuser", "-u", squid_account(), "--", program, "--help"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    assert (program.resolve().parent / "python").resolve().is_relative_to("/usr/bin")
    package = next(gateway.root.glob("venv-*/lib/python3*/site-packages/squidkeeper"))
    sources = list(package.rglob("*.py"))
    assert sources
    assert [
        path
        for path in sources
        if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
    ] == []


def test_no_documented_path_is_left_in_the_configuration(gateway: Gateway) -> None:
    for name in (
        "squid.conf",
        "squidkeeper.conf",
        "squidkeeper-logformat.conf",
    ):
        text = re.sub(
            re.escape(str(gateway.root)) + r"[\w./-]*",
            "",
            gateway.place(f"etc/{name}").read_text(),
        )
        for documented in ("/etc/squid", "/opt/squidkeeper", "/var/", "/run/"):
            assert documented not in text, (name, documented)


def test_two_gateways_run_side_by_side(gateway: Gateway, empty: Gateway) -> None:
    assert empty.install(*empty.listen).returncode == 0
    assert gateway.pid != empty.pid
    assert (gateway.answers(), empty.answers()) == ("403", "403")


def test_a_renamed_log_is_left_alone_and_a_new_one_opened(gateway: Gateway) -> None:
    log = gateway.place("log")
    (log / "access.log").rename(log / "access.log.1")
    subprocess.run(
        ["squid", "-k", "rotate", "-f", gateway.place("etc/squid.conf")],
        check=True,
        capture_output=True,
    )
    wait_for((log / "access.log").exists, "a new log")
    assert gateway.answers() == "403"
    wait_for(
        lambda: '"rule":"no-wikipedia"' in (log / "access.log").read_text(),
        "the line of the denial",
    )
    assert {path.name for path in log.glob("access.log*")} == {
        "access.log",
        "access.log.1",
    }


# ── A second run ──────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def second_run(gateway: Gateway) -> str:
    """What a second run says, which is not told the port.

    It changes nothing, and the port stays where it is.
    """
    before, processes = (
        gateway.snapshot(),
        (gateway.pid, gateway.exporter, gateway.maintenance),
    )
    done = gateway.install()
    assert (done.returncode, gateway.snapshot()) == (0, before)
    assert (gateway.pid, gateway.exporter, gateway.maintenance) == processes
    return done.stdout


def test_a_second_run_changes_nothing(second_run: str) -> None:
    assert second_run.count("runs, unchanged") == 6
    assert "WARNING" not in second_run


def test_a_dry_run_tells_the_steps_and_changes_nothing(gateway: Gateway) -> None:
    before, processes = (
        gateway.snapshot(),
        (gateway.pid, gateway.exporter, gateway.maintenance),
    )
    done = gateway.install(
        "--dry-run", "--listen", f"127.0.0.1:{free_port()}", "--no-exporter"
    )
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^would +(.*)$", done.stdout, re.MULTILINE)
    assert f"write {gateway.place('etc/generations/current')}" in steps
    assert f"restart Squid, and note it in {gateway.place('applied')}" in steps
    assert f"remove {gateway.place('etc/observe')}" in steps
    assert gateway.snapshot() == before
    assert (gateway.pid, gateway.exporter, gateway.maintenance) == processes
    assert (
        re.findall(r"^would .*$", gateway.install("--dry-run").stdout, re.MULTILINE)
        == []
    )


@pytest.mark.long
def test_a_dry_run_on_an_empty_root_leaves_nothing(
    base: Path, source: Path, wheels: Path
) -> None:
    root = base / "dry/gateway"
    options = ("--root", str(root), "--dry-run", "--listen", str(free_port()))
    done = install(source, *options, "--wheels", str(wheels))
    assert done.returncode == 0, done.stderr
    assert f"would         write {root}/etc/squid.conf\n" in done.stdout
    assert f"restart Squid, and note it in {root}/applied" not in done.stdout
    assert not root.parent.exists()


def test_a_dry_run_asks_no_package_index(
    gateway: Gateway, changed: Path, base: Path
) -> None:
    """Of new sources it plans with the packages that are installed, where there are
    some; without any it tells an outline.
    """
    before, root = gateway.snapshot(), base / "dry/outline"
    with (changed / "helpers/squidkeeper/base/release.py").open("a") as program:
        program.write("# a newer release\n")
    with index() as asked:
        done = gateway.install("--dry-run")
        outlined = install(changed, "--root", str(root), "--dry-run")
    assert (done.returncode, outlined.returncode, asked) == (0, 0, []), done.stderr
    steps = re.findall(r"^would +(.*)$", done.stdout, re.MULTILINE)
    assert re.fullmatch(f"build the program in {gateway.root}/venv-[0-9a-f]+", steps[0])
    assert f"write {gateway.place('bin/squidkeeper')}" in steps
    assert f"reconfigure Squid, and note it in {gateway.place('applied')}" in steps
    assert gateway.snapshot() == before
    assert f"would         write {root}/etc/squid.conf\n" in outlined.stdout
    assert outlined.stdout.endswith(
        "nothing was changed. With --wheels DIR each step is told\n"
    )
    assert not root.parent.exists()


def test_the_version_names_the_revision_of_a_clone(
    gateway: Gateway, changed: Path
) -> None:
    """The clone can belong to another account."""
    clone = ("git", "-C", str(changed), "-c", "user.name=me", "-c", "user.email=me@x")
    commands = (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "All"))
    for words in commands:
        subprocess.run([*clone, *words], check=True)
    read = [*clone, "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    shutil.chown(changed / ".git", "nobody")
    assert gateway.install().returncode == 0
    told = run_program(gateway, "--version")
    assert re.fullmatch(rf"squidkeeper, version [0-9.]+ \({commit.strip()}\)\n", told)
    version = told.removeprefix("squidkeeper, version ").strip()
    assert f"squidkeeper {version}." in run_program(gateway, "doctor")
    shutil.rmtree(changed / ".git")
    assert gateway.install().returncode == 0
    assert "(" not in run_program(gateway, "--version")


def test_the_last_lines_tell_how_to_try(gateway: Gateway, second_run: str) -> None:
    certificate = gateway.place("etc/ca/ca.crt")
    assert (
        f"curl --proxy http://127.0.0.1:{gateway.port} --cacert {certificate}"
        in second_run
    )


def test_a_reader_that_leaves_early_does_no_harm(gateway: Gateway) -> None:
    before = gateway.snapshot()
    command = [str(gateway.source / "install.sh"), "--root", str(gateway.root)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(120) == 0
    assert gateway.snapshot() == before


def test_a_line_in_local_conf_takes_effect_by_a_second_run_without_a_restart(
    gateway: Gateway,
) -> None:
    local, pid = gateway.place("etc/local.conf"), gateway.pid
    kept = local.read_text()
    local.write_text(kept + "dns_timeout 7 seconds\n")
    done = gateway.install()
    assert (done.returncode, gateway.pid, gateway.answers()) == (0, pid, "403")
    assert "reconfigured" in done.stdout
    assert local.read_text().endswith("dns_timeout 7 seconds\n")
    local.write_text(kept)
    assert gateway.install().returncode == 0


def test_parts_that_the_policy_needs_are_rendered_for_squid_to_read_and_not_to_write(
    gateway: Gateway,
) -> None:
    parts, local, pid = (
        gateway.place("etc/squidkeeper.d"),
        gateway.place("etc/local.conf"),
        gateway.pid,
    )
    extra, kept = gateway.place("etc/policy/00-strip.yaml"), local.read_text()
    extra.write_text(
        "version: 1\nrules: [{name: strip, action: allow, hosts: [strip.example], strip: [X-Debug]}]\n"
    )
    check = (
        "check",
        "--policy",
        gateway.place("etc/policy"),
        "--fragment",
        gateway.place("etc/squidkeeper.conf"),
    )
    done = gateway.install("--upstream", "http://127.0.0.1:9")
    assert (done.returncode, gateway.pid) == (0, pid), done.stderr
    assert "reconfigured" in done.stdout
    assert (
        "upstream      http://127.0.0.1:9 (by --upstream)\nWARNING       http://127.0.0.1:9: nothing ans"
        in done.stdout
    )
    assert "not-rendered" not in done.stdout + run_program(gateway, *check)
    assert (
        "\nrequest_header_access x_debug deny sk_is_stripped_"
        in gateway.place("etc/squidkeeper.conf").read_text()
    )
    for name, line in (
        ("upstreams.conf", "cache_peer 127.0.0.1 parent 9 0 name=sk_default "),
        ("values.json", '"port":9'),
    ):
        assert line in (parts / name).read_text()
        about = (parts / name).stat()
        assert (stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == (
            0o640,
            0,
            pwd.getpwnam("proxy").pw_gid,
        )
    extra.unlink()
    local.write_text(
        kept + "cache_peer 127.0.0.1 parent 7 0 no-query login=user:e2e-hidden\n"
    )
    done = gateway.install()
    local.write_text(kept)
    assert done.returncode == 0, done.stderr
    assert (
        "WARNING       cache_peer 127.0.0.1 parent 7 0 no-query login=… takes requests past"
        in done.stdout
    )
    assert "sk_is_stripped_" not in gateway.place("etc/squidkeeper.conf").read_text()
    assert "name=sk_default" in (parts / "upstreams.conf").read_text()
    assert "upstream      http://127.0.0.1:9 (by --upstream)\n" in done.stdout
    itself = gateway.install("--upstream", f"http://localhost:{gateway.port}")
    assert (
        itself.returncode,
        f"localhost:{gateway.port}, is this gateway" in itself.stderr,
    ) == (1, True)
    secret = gateway.place("etc/policy/empty")
    secret.touch(0o640)
    shutil.chown(secret, group="proxy")
    extra.write_text(
        "version: 1\nsecrets: {empty: {file: empty}}\nupstreams:\n"
        "  - {name: corp, url: 'http://127.0.0.1:9', basic: {username: u, password: empty}}\n"
    )
    failed = gateway.install()
    extra.unlink()
    secret.unlink()
    assert (failed.returncode, "store it in that file" in failed.stderr) == (1, True), (
        failed.stderr
    )
    assert gateway.install("--upstream", "none").returncode == 0
    assert not (parts / "upstreams.conf").exists()


def run_program(gateway: Gateway, *arguments: str | Path) -> str:
    command = [gateway.place("bin/squidkeeper"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_no_pipe_of_the_installer_has_a_reader_that_ends_early() -> None:
    text = re.sub(r"(?m)^\s*#.*$", "", (REPOSITORY / "install.sh").read_text())
    assert (
        re.findall(
            r".*[^|]\| *(?:head|grep -\w*q|sed \S*\bq).*|.*grep -\w*q[^|]*<\(.*", text
        )
        == []
    )


def test_what_squid_warns_of_in_local_conf_is_told(
    gateway: Gateway, second_run: str
) -> None:
    assert "(half-closed-clients)" not in second_run
    local = gateway.place("etc/local.conf")
    kept = local.read_text()
    local.write_text(
        kept + "tls_outgoing_options cafile=/nonexistent.crt\nhalf_closed_clients on\n"
    )
    done = gateway.install()
    local.write_text(kept)
    assert gateway.install().returncode == 0
    assert done.returncode == 0, done.stderr
    assert (
        "WARNING: Ignoring error setting CA certificate location /nonexistent.crt"
        in done.stdout
    )
    assert "(half-closed-clients)" in done.stdout  # doctor, which runs last


def test_a_line_of_yours_that_adds_to_no_acl_of_ours_is_refused(
    gateway: Gateway, second_run: str
) -> None:
    """It would close nothing."""
    local = gateway.place("etc/local.conf")
    kept = local.read_text()
    local.write_text(kept + "acl sk_ask_privat dst 203.0.113.7\n")
    done = gateway.install()
    local.write_text(kept + "acl sk_ask_private dst 203.0.113.7\n")
    better = gateway.install()
    local.write_text(kept)
    assert (done.returncode, better.returncode) == (1, 0), better.stderr
    assert (
        "no line names the ACL sk_ask_privat: a line of yours about it" in done.stderr
    )
    assert gateway.install().returncode == 0


def test_doctor_finds_nothing_in_a_good_gateway(gateway: Gateway) -> None:
    # it knows its root
    command: list[str | Path] = [
        gateway.place("bin/squidkeeper"),
        "doctor",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    diagnosis = json.loads(done.stdout)
    of_this_machine = {"disk-space-low", "squid-outdated"}
    assert {
        finding["code"] for finding in diagnosis["findings"]
    } - of_this_machine == set(), done.stdout
    assert diagnosis["checks"] == sum(not check.deep for check in ALL_CHECKS)
    assert diagnosis["not_checked"] == []
    assert done.stderr == ""


def test_another_port_restarts_squid(gateway: Gateway) -> None:
    pid, port = gateway.pid, free_port()
    done = gateway.install("--listen", f"127.0.0.1:{port}")
    assert done.returncode == 0, done.stderr
    assert "restarted" in done.stdout
    assert not runs(pid)
    assert (
        curl(port, gateway.place("etc/ca/ca.crt"), "https://en.wikipedia.org/") == "403"
    )
    assert gateway.install(*gateway.listen).returncode == 0


def test_another_number_of_workers_restarts_squid_and_stays(gateway: Gateway) -> None:
    pid = gateway.pid
    done = gateway.install("--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "workers       2 processes of Squid serve" in done.stdout
    assert not runs(pid)
    assert (
        len(
            [
                child
                for child in psutil.Process(gateway.pid).children()
                if child.name() == "squid"
            ]
        )
        == 3
    )
    status = http_get(f"http://127.0.0.1:{usual_exporter_port(gateway.port)}/metrics")
    assert "squidkeeper_workers 2.0" in status
    pid = gateway.pid
    assert gateway.install().returncode == 0
    assert gateway.pid == pid
    for number in ("0", "17", "two"):
        assert (
            "a number from 1 to 16; beyond it, add a gateway"
            in gateway.install("--workers", number).stderr
        )
    assert gateway.install("--workers", "1").returncode == 0
    assert not runs(pid)


def test_new_sources_replace_the_program_under_a_running_squid(
    gateway: Gateway, changed: Path, wheels: Path
) -> None:
    program, pid, exporter = (
        gateway.place("bin/squidkeeper"),
        gateway.pid,
        gateway.exporter,
    )
    old, kept = (
        program.resolve(),
        (changed / "helpers/squidkeeper/__init__.py").read_bytes(),
    )
    with (changed / "helpers/squidkeeper/__init__.py").open("a") as module:
        module.write("# newer\n")
    done = gateway.install("--wheels", str(wheels))
    assert (done.returncode, gateway.pid, gateway.answers()) == (0, pid, "403")
    assert program.resolve() != old
    assert old.exists(), "helpers of the version before may still be answering"
    assert gateway.exporter != exporter, "the exporter has nothing to finish"
    assert not runs(exporter)
    (changed / "helpers/squidkeeper/__init__.py").write_bytes(kept)
    assert "as built before" in gateway.install().stdout
    assert program.resolve() == old


def test_an_environment_stays_while_a_process_runs_from_it(gateway: Gateway) -> None:
    assert gateway.answers() == "403"
    (helper,) = helpers_of(gateway)
    assert f"{gateway.place('bin/squidkeeper').resolve().parent}/" in command_of(
        helper
    ), "how it is known"
    former = gateway.place("venv-of-long-ago")
    (former / "bin").mkdir(parents=True)
    (former / "bin/python").symlink_to("/usr/bin/python3")
    with subprocess.Popen(
        [former / "bin/python", "-c", "import signal; signal.pause()"]
    ) as process:
        assert gateway.install().returncode == 0
        stays = former.exists()
        process.kill()
    assert stays
    assert gateway.install().returncode == 0
    assert not former.exists()


def helpers_of(gateway: Gateway) -> list[int]:
    """Processes of `squidkeeper acl`, as Squid started them."""
    commands = {
        int(path.name): command_of(int(path.name))
        for path in Path("/proc").glob("[0-9]*")
    }
    policy = str(gateway.place("etc/policy"))
    return [
        pid
        for pid, command in commands.items()
        if "squidkeeper acl --scope host" in command and policy in command
    ]


def use_another_squid_conf(gateway: Gateway) -> int:
    """Let Squid run with a squid.conf of the operator's, on a port of its own, and give
    that port.
    """
    port = free_port()
    places = ("pid_filename ", "cache_log ", "pinger_enable ")
    kept = [
        line
        for line in gateway.place("etc/squid.conf").read_text().splitlines()
        if line.startswith(places)
    ]
    lines = [
        *kept,
        f"http_port 127.0.0.1:{port}",
        "http_access allow all",
        "access_log none",
    ]
    gateway.place("etc/squid.conf").write_text("\n".join(lines) + "\n")
    os.kill(gateway.pid, signal.SIGHUP)
    wait_until_listening(port)
    return port


def conf_of(gateway: Gateway) -> str:
    """The squid.conf, without the number of its generation."""
    text = gateway.place("etc/squid.conf").read_text()
    return re.sub(r"/generations/\d+/", "/generations/N/", text)


@pytest.mark.long
def test_a_squid_conf_of_the_operators_is_replaced_in_squid_too(
    gateway: Gateway,
) -> None:
    ours, port = conf_of(gateway), use_another_squid_conf(gateway)
    done = gateway.install()
    assert done.returncode == 0, done.stderr
    assert "restarted" in done.stdout
    assert gateway.answers() == "403"
    assert not listens(port)
    assert conf_of(gateway) == ours, "on the port as before"
    gateway.place("etc/squid.conf.before-squidkeeper").unlink()


def test_what_squid_was_told_in_between_is_told_anew(gateway: Gateway) -> None:
    local, port = gateway.place("etc/generations/current/local.conf"), free_port()
    kept = local.read_text()
    local.write_text(f"{kept}http_port 127.0.0.1:{port}\n")
    os.kill(gateway.pid, signal.SIGHUP)
    wait_until_listening(port)
    local.write_text(kept)
    done = gateway.install()
    assert "reconfigured" in done.stdout
    assert not listens(port)
    assert "runs, unchanged" in gateway.install().stdout


# ── A failed run ──────────────────────────────────────────────────────────────────────


def assert_fails_and_leaves(
    gateway: Gateway, step: str, message: str, *arguments: str
) -> None:
    before, pid = gateway.snapshot(), gateway.pid
    failed = gateway.install(*arguments)
    assert failed.returncode == 1
    assert f'step "{step}" failed' in failed.stderr
    assert message in failed.stderr
    assert "to do: " in failed.stderr
    assert gateway.snapshot() == before
    assert gateway.pid == pid
    assert gateway.answers() == "403"


def test_a_bad_line_in_local_conf_is_named_and_the_old_gateway_goes_on(
    gateway: Gateway,
) -> None:
    local = gateway.place("etc/local.conf")
    kept = local.read_bytes()
    local.write_bytes(kept + b"no_such_directive on\n")
    line = len(kept.splitlines()) + 1
    assert_fails_and_leaves(
        gateway, "configuration", f"{local}({line}): unrecognized: 'no_such_directive'"
    )
    local.write_bytes(kept)


def test_a_policy_with_a_fault_fails_with_its_line(gateway: Gateway) -> None:
    extra = gateway.place("etc/policy/zz-extra.yaml")
    extra.write_text("version: 1\nrules:\n  - name: x\n    action: perhaps\n")
    assert_fails_and_leaves(gateway, "policy", "zz-extra.yaml:4")
    extra.unlink()


@pytest.mark.long
def test_a_program_that_does_not_run_fails(
    gateway: Gateway, changed: Path, wheels: Path
) -> None:
    (changed / "helpers/squidkeeper/cli/__init__.py").write_text(
        "raise SystemExit('broken')\n"
    )
    assert_fails_and_leaves(gateway, "program", "broken", "--wheels", str(wheels))


def test_a_program_whose_helper_does_not_answer_is_not_put_in_place(
    gateway: Gateway, empty: Gateway
) -> None:
    venv = gateway.place("bin/squidkeeper").resolve().parent.parent
    copy = empty.place(venv.name)
    copy.unlink()
    subprocess.run(["cp", "-a", venv, copy], check=True)
    (copy / "answered").unlink(missing_ok=True)
    program = copy / "bin/squidkeeper"
    program.write_text(program.read_text().replace(str(venv), str(copy)))
    helper = next(
        copy.glob("lib/python3*/site-packages/squidkeeper/serving/helpers/acl.py")
    )
    helper.write_text("raise SystemExit('no helper')\n")
    failed = empty.install(*empty.listen)
    assert failed.returncode == 1
    assert 'step "program" failed' in failed.stderr
    assert "no helper\n" in failed.stderr
    assert "the program does not answer" in failed.stderr
    assert not empty.place("bin").exists()


def test_a_wheel_that_is_not_in_the_folder_is_named_and_no_index_asked(
    empty: Gateway, wheels: Path, tmp_path: Path
) -> None:
    empty.place(next(empty.root.glob("venv-*")).name).unlink()
    kept = shutil.copytree(
        wheels, tmp_path / "wheels", ignore=shutil.ignore_patterns("cachetools-*")
    )
    with index() as asked:
        failed = empty.install(*empty.listen, "--wheels", str(kept))
    assert failed.returncode == 1
    assert 'step "program" failed' in failed.stderr
    assert "No matching distribution found for cachetools" in failed.stderr
    assert re.search(
        r"to do: every wheel must be for Python 3\.\d+\.\d+ and this architecture",
        failed.stderr,
    )
    assert asked == []


@pytest.mark.long
def test_extras_stay_until_others_are_named_and_have_an_environment_of_their_own(
    empty: Gateway, tmp_path: Path
) -> None:
    without = next(empty.root.glob("venv-*")).name
    former = empty.place("venv-former")
    (former / "bin").mkdir(parents=True)
    (former / "bin/squidkeeper").touch()
    empty.place("bin").mkdir()
    empty.place("bin/squidkeeper").symlink_to("../venv-former/bin/squidkeeper")
    (former / "complete").write_text("aws,sealed\n")
    (
        tmp_path / "hatchling-0.whl"
    ).touch()  # pip cannot build with it, and says what it was asked for
    failed = empty.install(*empty.listen, "--wheels", str(tmp_path))
    [(venv, extras)] = re.findall(
        r"this failed: \S+/(venv-\w+)/bin/pip \S.*/sources(\S*)\n", failed.stderr
    )
    assert extras == "[aws,sealed]"
    assert venv != without
    done = empty.install(*empty.listen, "--extras", "none", "--dry-run")
    assert f"as built before in {empty.root}/{without}\n" in done.stdout


@pytest.mark.long
def test_the_packages_of_extras_are_installed_and_stay(empty: Gateway) -> None:
    done = empty.install(
        *empty.listen, "--no-start", "--extras", "sealed,aws,oauth2,aws"
    )
    assert ", extras: aws,oauth2,sealed\n" in done.stdout, done.stderr
    program = empty.place("bin/squidkeeper").resolve()
    subprocess.run(
        [program.with_name("python"), "-c", "import authlib, botocore, httpx, nacl"],
        check=True,
    )
    again = empty.install(*empty.listen, "--no-start")
    assert again.returncode == 0, again.stderr
    assert empty.place("bin/squidkeeper").resolve() == program


def test_a_program_that_cannot_be_built_fails(
    gateway: Gateway, changed: Path, wheels: Path
) -> None:
    (changed / "pyproject.toml").write_text(
        '[project]\nname = "squidkeeper"\nrequires-python = ">=3.11"\n'
    )
    assert_fails_and_leaves(gateway, "program", "pip", "--wheels", str(wheels))


@pytest.mark.parametrize("name", ["", "pyvenv.cfg"])
def test_a_program_that_squids_account_cannot_read_is_named(
    gateway: Gateway, name: str
) -> None:
    venv = gateway.place("bin/squidkeeper").resolve().parent.parent
    closed = venv / name
    kept = mode(closed)
    closed.chmod(kept & 0o700)
    failed = gateway.install()
    closed.chmod(kept)
    assert failed.returncode == 1
    assert 'step "program" failed' in failed.stderr
    assert f"Squid's account {squid_account()} cannot " in failed.stderr
    assert f" {closed}\n" in failed.stderr
    assert f"to do: chmod -R go+rX {venv}\n" in failed.stderr
    assert "pip" not in failed.stderr


def test_an_address_that_is_taken_or_another_machines_fails_before_anything_is_replaced(
    gateway: Gateway,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option in ("--listen", "--exporter-listen"):
            assert_fails_and_leaves(
                gateway,
                "listen",
                f"something else listens on {address}",
                option,
                address,
            )
    message = "192.0.2.1:3129 is not an address of this machine"
    assert_fails_and_leaves(gateway, "listen", message, "--listen", "192.0.2.1:3129")
    message = "'status_from' shows the status page to other machines, and the exporter serves this one alone"
    assert_fails_and_leaves(
        gateway, "settings", message, "--status-from", "10.0.0.0/24"
    )


def test_a_squid_that_does_not_start_gets_its_old_configuration_back(
    gateway: Gateway, changed: Path
) -> None:
    with (changed / "squid/squid.conf").open("a") as configuration:
        # parses, and ends Squid when it starts
        configuration.write("cache_dir ufs /nonexistent/cache 100 16 256\n")
    before, port = gateway.snapshot(), free_port()
    failed = gateway.install("--listen", f"127.0.0.1:{port}")
    assert failed.returncode == 1
    assert 'step "start" failed' in failed.stderr
    assert "/nonexistent/cache" in failed.stderr
    wait_until_listening(gateway.port)
    assert gateway.answers() == "403"
    assert contents(gateway.snapshot()) == contents(before)


def wait_until_listening(port: int) -> None:
    wait_for(lambda: listens(port), f"somebody to listen on port {port}")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def contents(found: dict[str, tuple[object, ...]]) -> dict[str, object]:
    """Content, mode and owner by path; a file that was put back is a new inode, and the
    process has a new pid.
    """
    return {
        path: (about[1:4], about[5:])
        for path, about in found.items()
        if not path.endswith(".pid") and "/venv-" not in path
    }


def test_a_signal_while_squidkeeper_takes_over_from_the_script_leaves_nothing(
    gateway: Gateway,
) -> None:
    command = [str(gateway.source / "install.sh"), "--root", str(gateway.root)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        wait_for(
            lambda: "setup --source" in command_of(run.pid), "squidkeeper to take over"
        )
        words = command_of(run.pid).split(" ")
        run.terminate()
    assert not Path(words[words.index("--work") + 1]).exists()
    assert gateway.answers() == "403"


def test_a_run_that_is_interrupted_after_squid_was_told_gives_everything_back(
    gateway: Gateway, changed: Path
) -> None:
    unit = changed / "squid/observe/squidkeeper-exporter.service"
    unit.write_text(
        re.sub(
            "^ExecStart=.*$",
            "ExecStart=/bin/sleep 300",
            unit.read_text(),
            flags=re.MULTILINE,
        )
    )
    with (changed / "squid/squid.conf").open("a") as configuration:
        configuration.write("# a change\n")
    before = gateway.snapshot()
    command = [str(changed / "install.sh"), "--root", str(gateway.root)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert "squid         reconfigured\n" in iter(run.stdout.readline, "")
        wait_for(
            lambda: "sleep" in commands_below_the_exporters_supervisor(gateway),
            "what is no exporter to be started",
        )
        run.terminate()  # this process alone, as a service manager does
        _, complaint = run.communicate()
    assert run.returncode == 128 + signal.SIGTERM
    assert 'step "exporter" failed' in complaint
    assert "to do: it was interrupted: run it again" in complaint
    assert contents(gateway.snapshot()) == contents(before)
    wait_until_listening(usual_exporter_port(gateway.port))
    wait_until_listening(gateway.port)
    assert gateway.answers() == "403"


def commands_below_the_exporters_supervisor(gateway: Gateway) -> str:
    """What it runs; nothing while it is being replaced."""
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        children = (
            Path(f"/proc/{gateway.supervisor}/task/{gateway.supervisor}/children")
            .read_text()
            .split()
        )
        return " ".join(map(command_of, map(int, children)))
    return ""


def test_a_squid_whose_master_is_killed_is_started_again(gateway: Gateway) -> None:
    """A worker that outlives its master would keep the port."""
    for _ in range(3):
        killed = gateway.pid
        os.kill(killed, signal.SIGKILL)
        wait_for(
            lambda killed=killed: another_squid_listens(gateway, killed),  # type: ignore[misc]
            "another Squid",
        )
    assert gateway.answers() == "403"
    assert "squid         runs, unchanged" in gateway.install().stdout


def another_squid_listens(gateway: Gateway, killed: int) -> bool:
    with suppress(ValueError, FileNotFoundError):  # the pid file is just being written
        return gateway.pid != killed and listens(gateway.port)
    return False


def test_a_squid_without_its_supervisor_gets_another_by_a_second_run(
    gateway: Gateway,
) -> None:
    supervisor, squid = (
        int(gateway.place("squid-supervisor.pid").read_text()),
        gateway.pid,
    )
    os.kill(supervisor, signal.SIGKILL)
    wait_until_ended(supervisor)
    done = gateway.install()
    assert done.returncode == 0, done.stderr
    assert "squid         started" in done.stdout
    assert not runs(squid)
    assert gateway.answers() == "403"


def test_supervise_waits_for_an_address_that_squid_listens_on(tmp_path: Path) -> None:
    """In a network of its own, whose address comes after Squid has given up several
    times.
    """
    conf, port = tmp_path / "squid.conf", free_port()
    tmp_path.chmod(0o777)
    lines = (
        f"http_port 192.0.2.7:{port}",
        f"pid_filename {tmp_path}/squid.pid",
        f"cache_log {tmp_path}/cache.log",
    )
    conf.write_text(
        "\n".join(
            [
                *lines,
                "access_log none",
                "pinger_enable off",
                "shutdown_lifetime 0 seconds",
                "",
            ]
        )
    )
    own_network = (
        "unshare",
        "--net",
        "sh",
        "-c",
        'ip link set lo up && exec "$@"',
        "sh",
    )
    words = (
        *own_network,
        REPOSITORY / "squid/supervise",
        "squid",
        tmp_path / "pid",
        tmp_path / "log",
    )
    with subprocess.Popen(
        [*words, "squid", "--foreground", "-n", f"sk{port}", "-f", conf]
    ) as supervisor:
        try:
            ended = "supervise: squid ended with status 1\n"
            wait_for(
                lambda: (
                    (tmp_path / "log").exists()
                    and (tmp_path / "log").read_text().count(ended) > 1
                ),
                "two ends",
            )
            inside = ("nsenter", "--net", "--target", str(supervisor.pid))
            subprocess.run(
                [*inside, "ip", "address", "add", "192.0.2.7/32", "dev", "lo"],
                check=True,
            )
            asked = [
                *inside,
                "curl",
                "--silent",
                "--max-time",
                "5",
                f"http://192.0.2.7:{port}/",
            ]
            wait_for(
                lambda: subprocess.run(asked, capture_output=True, check=False).stdout,
                "Squid to answer",
            )
        finally:
            supervisor.terminate()
    assert not (tmp_path / "squid.pid").exists()


def test_supervise_ends_also_when_it_is_told_to_as_its_service_ends(
    tmp_path: Path,
) -> None:
    """As when install.sh puts the old gateway back: a Squid that cannot start ends just
    then.
    """
    places = [
        (tmp_path / f"pid-{number}", tmp_path / f"service-{number}")
        for number in range(40)
    ]
    service = ("sh", "-c", 'echo $$ >"$0" && exec sleep 100')
    command = (REPOSITORY / "squid/supervise", "squid")
    supervisors = [
        subprocess.Popen([*command, pid_file, "/dev/null", *service, pid])
        for pid_file, pid in places
    ]
    try:
        for supervisor, (_, pid) in zip(supervisors, places, strict=True):
            wait_for(lambda pid=pid: pid.exists() and pid.read_text(), "the service")  # type: ignore[misc]
            os.kill(int(pid.read_text()), signal.SIGKILL)
            supervisor.terminate()
        assert [supervisor.wait(20) for supervisor in supervisors] == [0] * len(
            supervisors
        )
    finally:
        for supervisor in supervisors:
            supervisor.kill()


def test_supervise_ends_also_where_its_service_is_stopped(tmp_path: Path) -> None:
    pid = tmp_path / "service"
    service = ("sh", "-c", f"echo $$ >{pid} && exec sleep 100")
    with subprocess.Popen(
        [REPOSITORY / "squid/supervise", "x", tmp_path / "pid", "/dev/null", *service]
    ) as supervisor:
        wait_for(lambda: pid.exists() and pid.read_text(), "the service")
        os.kill(int(pid.read_text()), signal.SIGSTOP)
        supervisor.terminate()
        try:
            assert supervisor.wait(20) == 0
        finally:
            os.kill(
                int(pid.read_text()), signal.SIGKILL
            ) if supervisor.poll() is None else supervisor.kill()


def test_supervise_starts_a_service_again_that_is_stopped_for_its_watchdog_time(
    tmp_path: Path,
) -> None:
    """And leaves one alone that runs, however little."""
    service, unit, pids = (tmp_path / name for name in ("run", "x.service", "pids"))
    service.write_text(f"#!/bin/sh\necho $$ >>{pids}\nwhile :; do sleep 1; done\n")
    service.chmod(0o755)
    unit.write_text(f"ExecStart={service}\nWatchdogSec=10\n")
    log = tmp_path / "log"
    with subprocess.Popen(
        [REPOSITORY / "squid/supervise", unit, tmp_path / "pid", log]
    ) as supervisor:
        try:
            wait_for(pids.exists, "the service")
            pause(12, "more than the time, while it runs")
            [first] = pids.read_text().split()
            os.kill(int(first), signal.SIGSTOP)
            wait_for(lambda: len(pids.read_text().split()) == 2, "another")
            assert not Path(f"/proc/{first}").exists()
            assert (
                "supervise: x.service was stopped for 10 s: killed it"
                in log.read_text()
            )
        finally:
            supervisor.terminate()
    assert not (tmp_path / "pid").exists()


# ── The exporter ──────────────────────────────────────────────────────────────────────


def test_the_exporter_runs_beside_squid_as_its_account_and_reads_its_log(
    gateway: Gateway,
) -> None:
    assert (
        owner(Path(f"/proc/{gateway.exporter}"))
        == owner(Path(f"/proc/{gateway.supervisor}"))
        == squid_account()
    )
    assert gateway.answers() == "403"
    wait_for(
        lambda: 'rule="no-wikipedia",verdict="deny"' in gateway.metrics,
        "the denial to be counted",
    )
    for series in (
        "squid_up 1.0",
        "squidkeeper_policy_last_reload_successful 1.0",
        "squidkeeper_record_readable 1.0",
    ):
        assert series in gateway.metrics
    assert "squidkeeper_ca_certificate_expiry_timestamp_seconds" in gateway.metrics
    assert http_get(f"http://127.0.0.1:{usual_exporter_port(gateway.port)}/healthz")


def test_the_last_lines_tell_where_the_exporter_is_and_what_prometheus_and_grafana_need(
    gateway: Gateway, second_run: str
) -> None:
    observe, address = (
        gateway.place("etc/observe"),
        f"127.0.0.1:{usual_exporter_port(gateway.port)}",
    )
    assert f"http://{address}/" in second_run
    assert str(observe) in second_run
    there = {"alerts.yaml", "recording.yaml", "dashboard.json", "prometheus.yaml"}
    assert {path.name for path in observe.iterdir()} == there
    assert f'targets: ["{address}"]' in (observe / "prometheus.yaml").read_text()
    assert (
        f'labels: {{"gateway":"{socket.gethostname()}"}}'
        in (observe / "prometheus.yaml").read_text()
    )
    assert (
        f"tail -n 1 {gateway.place('log/access.log')}`"
        in (observe / "alerts.yaml").read_text()
    )
    account = squid_account()
    for path in observe.iterdir():
        subprocess.run(
            ["runuser", "-u", account, "--", "test", "-r", path], check=True, cwd="/"
        )


def test_the_runbooks_are_for_this_gateway(gateway: Gateway) -> None:
    text = gateway.place("etc/observe/alerts.yaml").read_text()
    root, program = re.escape(str(gateway.root)), gateway.place("bin/squidkeeper")
    assert (
        f"`curl -s http://127.0.0.1:{usual_exporter_port(gateway.port)}/healthz`"
        in text
    )
    assert f"`{program} check`" in text
    assert f"`{program} explain GET URL" in text
    assert re.search(rf"`squid -n \w+ -f {root}/etc/squid\.conf -k reconfigure`", text)
    assert f"`ls -lt {gateway.place('log')}`" in text
    elsewhere = re.sub(rf"{root}[\w./-]*", "", text)
    left = (
        "9129",
        "/var/",
        "/etc/squid",
        "`squid -k",
        " squid -k",
        "`squidkeeper ",
        " squidkeeper check",
    )
    assert [
        name
        for name in (*left, "systemctl status squid", "systemctl restart")
        if name in elsewhere
    ] == []
    logs = {
        line
        for line in re.findall(rf"`({program} (?:log|why) [^`]*)`", text)
        if "FILE" not in line
    }
    assert len(logs) > 4
    for command in logs:
        filled = re.sub(r"\{\{.*?\}\}", "some-rule", command).replace("TIME", "1h")
        done = subprocess.run(
            filled, shell=True, capture_output=True, text=True, check=False
        )
        assert done.returncode < 2, done.stderr


def test_no_exporter_is_left_without_its_supervisor_and_a_second_run_starts_both(
    gateway: Gateway,
) -> None:
    supervisor, exporter, squid = gateway.supervisor, gateway.exporter, gateway.pid
    os.kill(supervisor, signal.SIGKILL)
    wait_until_ended(exporter)
    done = gateway.install()
    assert done.returncode == 0, done.stderr
    assert "exporter      started" in done.stdout
    assert gateway.supervisor != supervisor
    assert gateway.pid == squid
    assert "squid_up 1.0" in gateway.metrics


def test_a_state_that_was_moved_away_or_closed_can_be_written_again(
    gateway: Gateway,
) -> None:
    state, exporter = gateway.place("state"), gateway.exporter
    shutil.move(state, gateway.place("log/former"))
    assert gateway.install().returncode == 0
    for place in (state, state / "exporter"):
        assert (mode(place), owner(place)) == (0o750, squid_account()), place
    for place in (state, state / "exporter"):
        os.chown(place, 0, 0)
        place.chmod(0o700)
    assert (
        curl(gateway.port, gateway.place("etc/ca/ca.crt"), "http://en.wikipedia.org/")
        == "403"
    )
    wait_for(
        lambda: "squidkeeper_exporter_state_writable 0.0" in gateway.metrics,
        "it to be missed",
    )
    done = gateway.install()
    assert f"state         given to {squid_account()}: {state}\n" in done.stdout
    for place in (state, state / "exporter"):
        assert (mode(place), owner(place)) == (0o750, squid_account()), place
    wait_for(
        lambda: "squidkeeper_exporter_state_writable 1.0" in gateway.metrics,
        "the counts to be kept",
    )
    assert (state / "exporter/counts.json").exists()
    assert gateway.exporter == exporter
    (state / "by-hand").mkdir(0o700)
    (state / "by-hand/slot-00").touch(0o600)
    assert (
        f"state         given to {squid_account()}: {state}\n"
        in gateway.install().stdout
    )
    assert {owner(place) for place in state.rglob("*")} == {squid_account()}
    shutil.rmtree(state / "by-hand")
    state.chmod(0o755)
    assert "given to" not in gateway.install().stdout
    assert mode(state) == 0o755, "an operator's own choice"
    state.chmod(0o750)
    shutil.rmtree(gateway.place("log/former"))


def test_a_hard_link_in_the_state_gives_squids_account_no_file_of_roots(
    gateway: Gateway,
) -> None:
    """Where the kernel lets any account make one (fs.protected_hardlinks=0)."""
    counts, mine = gateway.place("state/exporter"), gateway.place("root-only")
    mine.touch(0o600)
    link = gateway.place("state/link")
    os.link(mine, link)
    assert "given to" not in gateway.install().stdout
    assert (owner(mine), mode(mine)) == ("root", 0o600)
    link.unlink()
    counts.rename(gateway.place("state/aside"))
    os.link(mine, counts)
    done = gateway.install()
    assert (owner(mine), mode(mine)) == ("root", 0o600)
    assert done.returncode == 1
    assert f"{counts} is not a folder" in done.stderr
    counts.unlink()
    gateway.place("state/aside").rename(counts)
    mine.unlink()
    assert gateway.install().returncode == 0


@pytest.mark.long
def test_the_exporter_moves_goes_and_comes_back_as_it_is_told(gateway: Gateway) -> None:
    port, squid, usual = free_port(), gateway.pid, usual_exporter_port(gateway.port)
    assert gateway.install("--exporter-listen", str(port)).returncode == 0
    assert (listens(port), listens(usual)) == (True, False)
    supervisor, exporter = gateway.supervisor, gateway.exporter
    assert gateway.install("--no-exporter").returncode == 0
    assert [pid for pid in (supervisor, exporter) if runs(pid)] == []
    gone = "etc/observe", "etc/squidkeeper-exporter.service", "run/exporter.pid"
    assert [name for name in gone if gateway.place(name).exists()] == []
    assert "none (--no-exporter)" in gateway.install().stdout, "as before"
    assert gateway.install("--exporter-listen", f"127.0.0.1:{usual}").returncode == 0
    assert "squid_up 1.0" in gateway.metrics
    assert gateway.pid == squid


def test_an_exporter_that_does_not_start_gives_way_to_the_one_before(
    gateway: Gateway, changed: Path, tmp_path: Path
) -> None:
    unit = changed / "squid/observe/squidkeeper-exporter.service"
    unit.write_text(
        unit.read_text().replace("exporter --listen", "exporter --frobnicate --listen")
    )
    before = gateway.snapshot()
    failed = gateway.install("--ca-dir", str(make_ca(tmp_path / "slicer")))
    assert failed.returncode == 1
    assert 'step "exporter" failed' in failed.stderr
    assert "No such option" in failed.stderr
    wait_until_listening(usual_exporter_port(gateway.port))
    assert "squid_up 1.0" in gateway.metrics
    assert gateway.answers() == "403", "Squid has its former CA"
    assert contents(gateway.snapshot()) == contents(before), (
        "what Squid was told is noted with it"
    )
    unit.write_text(unit.read_text().replace("--frobnicate ", ""))
    assert "squid         runs, unchanged" in gateway.install().stdout


def test_what_the_exporter_says_is_kept_within_bounds(tmp_path: Path) -> None:
    unit, pid_file, log = tmp_path / "unit", tmp_path / "pid", tmp_path / "log"
    chatter = tmp_path / "chatter"
    chatter.write_text(
        "#!/bin/sh\nfor n in $(seq 40); do printf '%060000d\\n' $n; done\necho last >&2\nexec sleep 60\n"
    )
    chatter.chmod(0o755)
    unit.write_text(f"[Service]\nExecStart={chatter} --flag\n")
    with subprocess.Popen(
        [REPOSITORY / "squid/supervise", unit, pid_file, log]
    ) as supervisor:
        wait_for(
            lambda: log.exists() and log.read_text().endswith("last\n"), "the last line"
        )
        supervisor.terminate()
    assert supervisor.returncode == 0
    assert not pid_file.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "unit",
        "chatter",
        "log",
        "log.1",
    }
    assert (
        max(path.stat().st_size for path in (log, log.with_name("log.1"))) < 1_100_000
    )


@pytest.mark.parametrize(
    ("service", "exposure"),
    [
        ("exporter", 15),
        ("maintenance", 18),
        ("archive", 12),
        ("render", 31),
        ("publisher", 15),
    ],
)
def test_systemd_finds_no_fault_in_the_unit_and_little_exposure(
    gateway: Gateway, service: str, exposure: int
) -> None:
    assert_systemd_accepts(gateway, service, exposure)


def assert_systemd_accepts(gateway: Gateway, service: str, exposure: int = 15) -> None:
    """It finds no fault in the unit, and an exposure of no more than that, of 100."""
    unit = gateway.place(f"etc/squidkeeper-{service}.service")
    checked = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    rated = [
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={exposure}",
        str(unit),
    ]
    subprocess.run(rated, check=True, capture_output=True)


# ── Secrets that are fetched ──────────────────────────────────────────────────────────


@pytest.mark.long
def test_the_process_that_fetches_secrets_comes_and_goes_with_them(
    gateway: Gateway,
) -> None:
    """With systemd: test_with_systemd_secrets_are_fetched_by_an_account_of_its_own."""
    before = gateway.snapshot()
    command, policy = (
        gateway.place("etc/commands/give-token"),
        gateway.place("etc/policy/secrets.yaml"),
    )
    command.write_text("#!/bin/sh\nprintf value-of-the-command\n")
    command.chmod(0o755)
    policy.write_text("version: 1\nsecrets: {token: {command: {run: [give-token]}}}\n")
    done = gateway.install()
    assert re.search("^secrets +started$", done.stdout, re.MULTILINE), (
        done.stdout + done.stderr
    )
    folder = gateway.place("run/secrets")
    [file] = wait_for(lambda: list(folder.glob("*.value")), "the value")
    account = pwd.getpwnam(squid_account())
    for path in (file, folder):
        assert path.stat().st_uid == Layout.of(gateway.root).user_without_systemd(
            "secrets"
        )
        assert path.stat().st_gid == account.pw_gid
    assert (mode(file), mode(folder)) == (0o640, 0o2750)
    move = [
        "runuser",
        "-u",
        squid_account(),
        "--",
        "mv",
        str(folder),
        str(folder.with_name("moved")),
    ]
    assert (
        "not permitted"
        in subprocess.run(move, capture_output=True, text=True, check=False).stderr
    )
    assert folder.exists()
    assert_systemd_accepts(gateway, "secrets")
    supervisor = int((folder / "secrets.pid").read_text())
    process = child_of(supervisor, "squidkeeper secrets")
    wait_for(
        lambda: "squidkeeper_secrets_up 1.0" in gateway.metrics,
        "the exporter to see it",
    )
    assert gateway.install().stdout.count("runs, unchanged") == 7
    os.kill(process, signal.SIGKILL)
    wait_for(
        lambda: child_of(supervisor, "squidkeeper secrets") not in (0, process),
        "another process",
    )
    policy.unlink()
    command.unlink()
    done = gateway.install()
    assert done.returncode == 0, done.stderr
    assert not runs(supervisor)
    assert not folder.exists()
    assert "\nsquidkeeper_secrets_up " not in gateway.metrics
    left = {
        path for path, entry in gateway.snapshot().items() if before.get(path) != entry
    }
    assert left <= {
        str(gateway.place(name))
        for name in ("run", "etc", "etc/commands", "etc/policy")
    }


# ── Bodies ────────────────────────────────────────────────────────────────────────────

BODY_RULE = """\
version: 1
rules:
  - {name: small-models, action: allow, hosts: [models.example], body: {json: {/model: [small]}}}
"""


@pytest.mark.long
def test_what_inspects_bodies_comes_with_an_edit_and_goes_with_the_last_rule(
    gateway: Gateway,
) -> None:
    """With systemd: test_with_systemd_an_edit_starts_what_inspects_bodies."""
    before, layout = gateway.snapshot(), Layout.of(gateway.root)
    assert_nothing_inspects_bodies(layout)
    policy = gateway.place("etc/policy/bodies.yaml")
    policy.write_text(BODY_RULE)
    wait_for(
        lambda: "sk_bodies" in layout.fragment.read_text(),
        lambda: f"the part: {gateway.place('log/render.log').read_text()}",
    )
    assert options_problem(layout.bodies) == ""  # ahead of the part
    processes = [
        child_of(supervisor, "squidkeeper bodies") for supervisor in of_bodies(layout)
    ]
    account = pwd.getpwnam(squid_account())
    for process in processes:
        status = Path(f"/proc/{process}/status").read_text()
        user, group = layout.user_without_systemd("bodies-1"), account.pw_gid
        assert re.search(
            rf"^Uid:(\t{user}){{4}}\nGid:(\t{group}){{4}}\n", status, re.MULTILINE
        ), status
        # to listen below port 1024
        assert re.search(r"^CapEff:\t0{12}04", status, re.MULTILINE), status
        assert process_listens(process, 344)
    assert_systemd_accepts(gateway, "bodies-1", 16)
    metric = 'squidkeeper_helper_processes{helper="bodies"} 2.0'
    wait_for(lambda: metric in gateway.metrics, "the exporter to see them")
    done = gateway.install()
    assert [f"{name:13} started" in done.stdout for name in BODIES] == [True, True], (
        done.stdout + done.stderr
    )
    assert gateway.install().stdout.count("runs, unchanged") == 8
    processes = [
        child_of(supervisor, "squidkeeper bodies") for supervisor in of_bodies(layout)
    ]
    os.kill(processes[0], signal.SIGKILL)
    wait_until_ended(processes[0])
    assert options_problem(layout.bodies) == ""  # the other one answers
    wait_for(
        lambda: (
            child_of(of_bodies(layout)[0], "squidkeeper bodies")
            not in (0, processes[0])
        ),
        "another process",
    )
    policy.unlink()
    done = gateway.install()
    assert done.returncode == 0, done.stderr
    assert_nothing_inspects_bodies(layout)
    assert gateway.snapshot().keys() == before.keys()


def of_bodies(layout: Layout) -> list[int]:
    """What keeps the processes running that inspect bodies."""
    return [int(layout.service(name).pid_file.read_text()) for name in BODIES]


def assert_nothing_inspects_bodies(layout: Layout) -> None:
    """No unit, process, folder, file or line of Squid's: whoever has no such rule pays
    nothing.
    """
    paths = [
        path
        for name in BODIES
        for path in (layout.service(name).unit, layout.service(name).applied)
    ]
    assert not any(path.exists() for path in (*paths, layout.bodies_state))
    assert "bodies" not in layout.fragment.read_text()
    assert is_free(layout.bodies)


# ── Exports ───────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_the_process_that_exports_comes_and_goes_with_its_files(
    gateway: Gateway,
) -> None:
    before = gateway.snapshot()
    file, folder = gateway.place("etc/export/siem.yaml"), gateway.place("state/export")
    file.write_text(f"format: json\nto: file:{folder}/records.ndjson\nurls: all\n")
    done = gateway.install()
    assert done.returncode == 1
    assert f"{file}: Invalid enum value 'all'" in done.stderr + done.stdout
    file.write_text(f"format: json\nto: file:{folder}/records.ndjson\n")
    done = gateway.install()
    assert re.search(
        f"^export +siem: json to file:{folder}/records.ndjson$",
        done.stdout,
        re.MULTILINE,
    ), done.stdout
    assert re.search("^export +started$", done.stdout, re.MULTILINE), (
        done.stdout + done.stderr
    )
    wait_for(
        lambda: 'squidkeeper_export_up{export="siem"} 1.0' in gateway.metrics,
        "the exporter to see it",
    )
    account = pwd.getpwnam(squid_account())
    assert (folder.stat().st_uid, folder.stat().st_gid, mode(folder)) == (
        account.pw_uid,
        account.pw_gid,
        0o2770,
    )
    assert (folder / "siem.json").stat().st_uid == Layout.of(
        gateway.root
    ).user_without_systemd("export")
    assert_systemd_accepts(gateway, "export")
    supervisor = int((folder / "export.pid").read_text())
    process = child_of(supervisor, "squidkeeper export")
    assert re.search(
        "^export +runs, unchanged$", gateway.install().stdout, re.MULTILINE
    )
    os.kill(process, signal.SIGKILL)
    wait_for(
        lambda: child_of(supervisor, "squidkeeper export") not in (0, process),
        "another process",
    )
    file.unlink()
    done = gateway.install()
    assert done.returncode == 0, done.stderr
    assert not runs(supervisor)
    assert not folder.exists()
    left = {
        path for path, entry in gateway.snapshot().items() if before.get(path) != entry
    }
    assert left <= {
        str(gateway.place(name)) for name in ("run", "etc", "etc/export", "state")
    }


# ── Sessions that programs make ───────────────────────────────────────────────────────


def test_a_process_of_its_own_makes_sessions_where_the_operator_says_who_may(
    gateway: Gateway,
) -> None:
    before = gateway.places()
    settings, policy = gateway.place("etc/sessions.yaml"), gateway.place("etc/policy")
    settings.write_text("version: 1\norchestrators: {local: {role: [plain]}}\n")
    done = gateway.install()
    assert done.returncode == 1
    assert "unknown key 'role', did you mean 'roles'?" in done.stderr
    assert "no program can make sessions" in done.stderr
    settings.write_text("version: 1\norchestrators: {local: {roles: [plain]}}\n")
    (policy / "roles.yaml").write_text(
        "version: 1\nsession_networks: [10.20.0.0/16]\nroles: {plain: {ttl: 1h}}\n"
    )
    done = gateway.install()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("^sessions +started$", done.stdout, re.MULTILINE)
    layout = Layout.of(gateway.root)

    def session(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [layout.program, "session", *words, "--root", gateway.root],
            capture_output=True,
            text=True,
            check=False,
        )

    made = wait_for(
        lambda: (
            found
            if (
                found := session(
                    "create", "vm-7", "--role", "plain", "--address", "10.20.0.7"
                )
            ).returncode
            == 0
            else None
        ),
        lambda: layout.service("sessions").log.read_text(),
    )
    assert "vm-7: session " in made.stderr
    user = layout.user_without_systemd("sessions")
    for path in (
        layout.sessions / "sessions.sqlite",
        layout.sessions_socket,
        layout.sessions_audit,
    ):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (user, policy.stat().st_gid), path
    supervisor = int(layout.service("sessions").pid_file.read_text())
    served = child_of(supervisor, "squidkeeper sessions")
    rights = Path(f"/proc/{served}/status").read_text()
    for kind in ("CapEff", "CapBnd", "CapAmb"):
        assert f"{kind}:\t0000000000001000\n" in rights, "CAP_NET_ADMIN alone"
    done = gateway.install()
    assert re.search("^sessions +runs, unchanged$", done.stdout, re.MULTILINE)
    assert session("end", "vm-7").returncode == 0
    assert_systemd_accepts(gateway, "sessions")
    settings.unlink()
    (policy / "roles.yaml").unlink()
    assert gateway.install().returncode == 0
    assert not runs(supervisor)
    assert not layout.service("sessions").unit.exists()
    for left in (layout.sessions, layout.sessions_run, layout.sessions_audit.parent):
        shutil.rmtree(left)
    assert gateway.places() == before


# ── A policy that is pulled ───────────────────────────────────────────────────────────


@pytest.mark.long
def test_a_process_of_its_own_pulls_the_policy_and_the_gateway_follows_its_link(
    gateway: Gateway, tmp_path: Path
) -> None:
    before, etc, policy = (
        gateway.snapshot(),
        gateway.place("etc"),
        gateway.place("etc/policy"),
    )
    share, install_it, pull_it, follow = steps_to_pull(gateway)
    with serving(tmp_path / "web") as server:
        repository = Repository.make(
            tmp_path / "work", make_key(tmp_path / "key"), server.root / "policies.git"
        )
        repository.write(
            "policy.yaml",
            "version: 1\nrules: [{name: one, action: deny, hosts: [one.example]}]\n",
        )
        tip = repository.commit()
        (etc / "allowed_signers").write_text(allowed_signer(repository.key))
        shutil.copy(server.ca, etc / "server.pem")
        (etc / "draft").mkdir(0o700)
        (etc / "draft/local.yaml").write_text("version: 1\n")
        (etc / "draft/local.yaml").chmod(0o600)
        (etc / "pull.yaml").write_text("source: {}\nallowed_signers: /a\n")
        done = gateway.install()
        assert done.returncode == 1
        assert (
            "expected exactly one of git and bundle\ninstall.sh: the policy cannot be pulled\n"
            in done.stderr
        )
        source = (
            f"{{git: {server.url}/policies.git, branch: main, ca: {etc}/server.pem}}"
        )
        (etc / "pull.yaml").write_text(
            f"source: {source}\nallowed_signers: {etc}/allowed_signers\nevery: 5s\n"
        )
        for file in (etc / "pull.yaml", etc / "allowed_signers"):
            file.chmod(0o600)
        share()
        assert re.search("^pull +started$", install_it(), re.MULTILINE)
        status, current = (
            gateway.place("pulled/status.json"),
            gateway.place("pulled/current"),
        )
        wait_for(
            lambda: status.exists() and "local.yaml is missing" in status.read_text(),
            "a refusal",
        )
        assert f"{tip} is in place, signed by alice@example.com" in pull_it()
        assert current.resolve().name == tip
        assert (current / "policy.yaml").stat().st_uid == Layout.of(
            gateway.root
        ).user_without_systemd("pull")
        shown = follow()
        assert f"{tip} is in place" in shown
        assert "is no link to" not in shown
        assert re.search("^  in force +revision", shown, re.MULTILINE)
        wait_for(
            lambda: f'squidkeeper_pull_info{{version="{tip}"}} 1.0' in gateway.metrics,
            "the exporter to see it",
        )
        repository.write(
            "policy.yaml",
            "version: 1\nrules: [{name: two, action: deny, hosts: [two.example]}]\n",
        )
        repository.commit()
        wait_for(lambda: 'rule="two"' in gateway.metrics, "the next version in force")
        assert gateway.answers() == "403"
        (policy / "own.yaml").write_text(
            "version: 1\nrules: [{name: own, action: allow, hosts: ['.example']}]\n"
        )
        wait_for(
            lambda: not (policy / "own.yaml").exists(),
            "the edit by hand to be put back",
        )
        done = gateway.install()
        assert re.search("^pull +runs, unchanged$", done.stdout, re.MULTILINE)
        assert "Edit the policy where it is pulled from" in done.stdout
        assert_systemd_accepts(gateway, "pull")
        supervisor = int(gateway.place("pulled/pull.pid").read_text())
        (etc / "pull.yaml").unlink()
        assert gateway.install().returncode == 0
        assert not runs(supervisor)
    policy.unlink()
    (etc / "policy.before-pull").rename(policy)
    (etc / "draft").rmdir()
    for name in ("local.yaml", "allowed_signers", "server.pem"):
        (etc / name).unlink()
    shutil.rmtree(gateway.place("pulled"))
    # it puts the parts back that the pulled policy did not need
    assert gateway.install().returncode == 0
    former = contents(before)
    left = {
        path
        for path, entry in contents(gateway.snapshot()).items()
        if former.get(path) != entry and path in gateway.places()
    }
    assert left <= {
        str(gateway.place(name)) for name in ("run", "etc", "state", "etc/policy", ".")
    }


def steps_to_pull(gateway: Gateway) -> list[Callable[[], str]]:
    """The commands of policy/PULL.md, for a gateway under a root of its own, which its
    program knows.
    """
    replaced = {
        "sudo ": "",
        "./install.sh": f"./install.sh --root {gateway.root}",
        "squidkeeper pull": f"{gateway.place('bin/squidkeeper')} pull",
        "/etc/squidkeeper": str(gateway.place("etc")),
        "/var/lib/squidkeeper-pull": str(gateway.place("pulled")),
    }
    text = (
        (REPOSITORY / "policy/PULL.md")
        .read_text()
        .partition("\n### Set up\n")[2]
        .partition("\n### ")[0]
    )
    found = re.findall(r"^   ```sh\n(.*?)^   ```$", text, re.MULTILINE | re.DOTALL)
    return [
        partial(run_step, replace_all(commands, replaced), gateway.source)
        for commands in found
    ]


def run_step(commands: str, folder: Path) -> str:
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{commands}{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def replace_all(text: str, replaced: dict[str, str]) -> str:
    pattern = re.compile("|".join(map(re.escape, replaced)))
    return pattern.sub(lambda found: replaced[found[0]], text)


# ── TLS to the proxy ──────────────────────────────────────────────────────────────────


def haproxy_of(gateway: Gateway) -> int:
    """HAProxy's process; 0 between one and the next."""
    return child_of(int(gateway.place("run/tls.pid").read_text()), "haproxy")


def both(gateway: Gateway) -> tuple[str, str]:
    """The status of a request that the example policy denies, without TLS to the proxy
    and with it.
    """
    ca = gateway.place("etc/ca/ca.crt")
    return gateway.answers(), curl(
        gateway.port,
        ca,
        "https://en.wikipedia.org/",
        "https",
        "--proxy-cacert",
        str(ca),
    )


@pytest.mark.long
def test_tls_is_switched_on_kept_and_switched_off(gateway: Gateway) -> None:
    before = gateway.snapshot()
    subprocess.run(
        ["runuser", "-u", squid_account(), "mkdir", gateway.place("state/tls")],
        check=True,
        cwd="/",
    )
    os.mkfifo(gateway.place("state/tls/server.pem"))  # Squid's account can do that
    done = gateway.install("--tls", "--tls-name", "gateway.example,127.0.0.1")
    assert done.returncode == 0, done.stderr
    assert both(gateway) == ("403", "403")
    assert "squid_up 1.0" in gateway.metrics
    haproxy = haproxy_of(gateway)
    assert_systemd_accepts(gateway, "tls", 17)
    again = gateway.install()
    assert (
        again.returncode,
        again.stdout.count("runs, unchanged"),
        haproxy_of(gateway),
    ) == (0, 7, haproxy)
    names = openssl(
        "x509",
        "-in",
        str(gateway.place("state/tls/server.pem")),
        "-noout",
        "-ext",
        "subjectAltName",
    )
    assert names.splitlines()[1].strip() == "DNS:gateway.example, IP Address:127.0.0.1"
    os.kill(haproxy, signal.SIGKILL)
    wait_for(
        lambda: haproxy_of(gateway) not in (0, haproxy), "HAProxy to be started again"
    )
    wait_for(
        lambda: '"tls":""' in gateway.place("state/maintenance.json").read_text(),
        "it to answer",
    )
    assert gateway.install("--no-tls").returncode == 0
    assert gateway.answers() == "403"
    kept = {
        str(gateway.place("etc/squid.conf.previous")),
        str(gateway.place("run/squid.pid")),
    }
    assert sorted(gateway.places() - set(before) - kept) == []
    assert not gateway.place("state/tls").exists()


@pytest.mark.long
def test_an_haproxy_that_does_not_start_gives_way_to_squid_alone(
    gateway: Gateway, changed: Path
) -> None:
    """It accepts the configuration, and ends when it is started with it: a folder is
    where its socket should be.
    """
    before = gateway.snapshot()
    cfg = changed / "squid/haproxy.cfg"
    text = cfg.read_text()
    cfg.unlink()  # a link, to a file that the program is built from
    cfg.write_text(text.replace("tls/haproxy.sock mode 600", "helpers mode 600"))
    failed = gateway.install("--tls")
    assert failed.returncode == 1
    assert 'step "TLS" failed' in failed.stderr
    assert gateway.answers() == "403"
    assert set(gateway.snapshot()) == set(before)
    assert not gateway.place("state/tls").exists()


@pytest.mark.long
def test_a_load_balancer_is_named_kept_and_left(gateway: Gateway) -> None:
    for options, refusal in (
        (
            ("--behind", "127.0.0.1", "--tls"),
            "'behind' and 'tls' exclude each other: the load balancer takes the",
        ),
        (
            ("--behind", "127.0.0.1", "--no-exporter"),
            "'behind' needs the exporter, which tells the load balancer",
        ),
        (
            ("--health-listen", "9130"),
            "--health-listen is for load balancers, and there is none",
        ),
    ):
        failed = gateway.install(*options)
        assert (failed.returncode, refusal in failed.stderr) == (1, True), failed.stderr
    done = gateway.install("--behind", "127.0.0.1")
    assert done.returncode == 0, done.stderr
    assert f"curl --proxy http://LOAD-BALANCER:{gateway.port} " in done.stdout
    assert "(squid-down)" not in done.stdout, (
        "doctor reads Squid's counters past the header"
    )
    with socket.create_connection(("127.0.0.1", gateway.port), 20) as plain:
        plain.sendall(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert plain.recv(1) == b"", (
            "Squid was reconfigured, and requires a PROXY header"
        )
    assert "squid_up 1.0" in gateway.metrics
    health = f"http://127.0.0.1:{gateway.port + 7000}/healthz"
    assert json.loads(http_get(health)) == {"healthy": True, "conditions": []}
    again = gateway.install()
    assert (again.returncode, again.stdout.count("runs, unchanged")) == (0, 6)
    assert gateway.install("--behind", "none").returncode == 0
    assert gateway.answers() == "403"
    recorded = gateway.place("log/access.log").read_text()
    assert "ERR_PROTOCOL_UNKNOWN" not in recorded, (
        "no PROXY header was sent to a Squid that takes none"
    )
    with pytest.raises(subprocess.CalledProcessError):
        http_get(health)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--tls-name", "a b"),
            "--tls-name a b: host 'a b' is not a host name",
        ),
        (
            ("--tls-name", "gateway.example"),
            "--tls-name is for the certificate of the TLS port, which is off",
        ),
    ],
    ids=["by its form", "beside what is installed"],
)
def test_what_cannot_be_meant_is_told_before_anything_is_replaced(
    gateway: Gateway, options: tuple[str, ...], message: str
) -> None:
    before = gateway.snapshot()
    failed = gateway.install(*options)
    assert failed.returncode != 0
    assert message in failed.stderr
    assert gateway.snapshot() == before


def test_what_is_chosen_stays_until_something_else_is_chosen(gateway: Gateway) -> None:
    """The gateway's name in the access log, the bounds of logs and archive.

    A run of it has a network for a store.
    """
    formats, store = (
        gateway.place("etc/squidkeeper-logformat.conf"),
        gateway.place("etc/archive-store.yaml"),
    )
    own = f"--gateway={socket.gethostname()}"
    others = (
        "--gateway=egress-7.example",
        "--log-bytes=1G",
        "--archive-days=30",
        "--archive-bytes=1G",
    )
    usual = (own, "--log-bytes=auto", "--archive-days=auto", "--archive-bytes=auto")
    assert formats.read_text().count(f'"gateway":"{socket.gethostname()}"') == 2
    store.write_text("url: s3://bucket/gateway\n")
    for options, chosen in ((others, True), ((), True), (usual, False)):
        done = gateway.install(*options)
        assert done.returncode == 0, done.stderr
        assert ("reconfigured" in done.stdout) is bool(options)
        name, logs, archive = CHOSEN if chosen else (socket.gethostname(), "", "")
        assert gateway.answers() == "403"
        assert (
            f'"gateway":"{name}"'
            in gateway.place("log/access.log").read_text().splitlines()[-1]
        )
        assert formats.read_text().count(f'"gateway":"{name}"') == 2
        assert command_of(gateway.maintenance).endswith(
            f" --webhook {gateway.place('etc/webhook.yaml')}{logs} "
        )
        unit = gateway.place("etc/squidkeeper-archive.service").read_text()
        assert f"/etc/archive-store.yaml{archive} --every 300\n" in unit
        assert f"\nPrivateNetwork={'no' if store.exists() else 'yes'}\n" in unit
        store.unlink(missing_ok=True)


def test_the_file_of_settings_says_what_the_gateway_is(gateway: Gateway) -> None:
    file, unit = (
        gateway.place(f"etc/{name}")
        for name in ("gateway.yaml", "squidkeeper-maintenance.service")
    )
    kept = file.read_text()
    before = re.sub(r"(?m)^(workers|log):.*\n", "", kept)
    assert f"\nlisten: 127.0.0.1:{gateway.port}\n" in before
    file.write_text(f"{before}workers: 0\nlog: {{byte: 1G}}\n")
    failed = gateway.install()
    assert (failed.returncode, 'step "settings" failed' in failed.stderr) == (1, True)
    assert "'workers' is the number 0, expected a number from 1 to 16" in failed.stderr
    assert "unknown key 'byte', did you mean 'bytes'? [unknown-key]" in failed.stderr
    file.write_text(f"{before}# mine\nlog: {{bytes: 1G}}\n")
    planned = gateway.install("--dry-run").stdout
    assert "settings      log: default -> bytes 1G\n" in planned
    assert f"would         write {unit}\n" in planned
    assert gateway.install().returncode == 0
    assert " --log-bytes 1G\n" in unit.read_text()
    assert file.read_text() == f"{before}# mine\nlog: {{bytes: 1G}}\n"
    assert gateway.install("--log-bytes", "auto").returncode == 0
    assert " --log-bytes " not in unit.read_text()
    assert file.read_text() == f"{before}# mine\n", "comments stay"
    file.unlink()
    refused = gateway.install()
    assert (refused.returncode, f"there is no {file}, " in refused.stderr) == (1, True)
    file.write_text(kept)
    assert gateway.install().returncode == 0


CHOSEN = ("egress-7.example", " --log-bytes 1G", " --keep-days 30 --keep-bytes 1G")


# ── The CA that is given ──────────────────────────────────────────────────────────────


def test_a_key_of_another_certificate_is_refused(
    gateway: Gateway, tmp_path: Path
) -> None:
    given = make_ca(tmp_path / "one")
    shutil.copy(make_ca(tmp_path / "two") / "ca.key", given / "ca.key")
    assert_fails_and_leaves(
        gateway, "CA", "ca.key is not the key of ca.crt", "--ca-dir", str(given)
    )


# ── The policy that is given ──────────────────────────────────────────────────────────


def make_policy(
    directory: Path, reason: str, clients: str = "schemes: [https]"
) -> Path:
    """A policy as an operator keeps it: with a secret that only the operator
    can read.
    """
    (directory / "secrets").mkdir(parents=True)
    (directory / "secrets/token").write_text("not-a-real-token\n")
    (directory / "secrets/token").chmod(0o600)
    (directory / "policy.yaml").write_text(
        f"version: 1\ndefaults:\n  reason: {reason}\nsecrets:\n  token: {{file: secrets/token}}\n"
        "credentials:\n  - name: api\n    hosts: [api.example.com]\n    bearer: token\n"
        f"rules:\n  - name: api\n    action: allow\n    hosts: [api.example.com]\n    {clients}\n"
        "clients:\n  agents: {networks: [192.168.137.0/24]}\n"
    )
    return directory


def test_a_policy_in_place_is_never_overwritten(
    gateway: Gateway, tmp_path: Path
) -> None:
    # a test before this one may have written local.conf, the same
    assert gateway.install().returncode == 0
    before = gateway.snapshot()
    done = gateway.install("--policy", str(make_policy(tmp_path / "other", "Other.")))
    assert (done.returncode, gateway.snapshot()) == (0, before)
    assert "never overwritten" in done.stdout
    assert not gateway.place("etc/policy/README.md").exists()


# ── The maintenance process ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("exporter", "squidkeeper exporter"),
        ("maintenance", "squidkeeper maintain"),
        ("render", "render --root"),
    ],
)
def test_a_killed_process_is_started_again_as_the_same_account(
    gateway: Gateway, name: str, command: str
) -> None:
    supervisor = int(gateway.place(f"run/{name}.pid").read_text())
    killed = wait_for(lambda: child_of(supervisor, command), "the first one")
    account = owner(Path(f"/proc/{killed}"))
    os.kill(killed, signal.SIGKILL)
    another = wait_for(
        lambda: (
            child_of(supervisor, command) not in (0, killed)
            and child_of(supervisor, command)
        ),
        name,
    )
    assert (
        owner(Path(f"/proc/{another}"))
        == account
        == ("root" if name == "render" else squid_account())
    )
    assert (
        f"squidkeeper-{name}.service ended with status 137"
        in Layout.of(gateway.root).service(name).log.read_text()
    )
    wait_until_listening(usual_exporter_port(gateway.port))


def test_the_archive_is_written_by_an_account_of_its_own_and_not_by_squids(
    gateway: Gateway,
) -> None:
    archive, key, archiver = (
        gateway.place("archive"),
        gateway.place("etc/archive.key"),
        Layout.of(gateway.root).user_without_systemd("archive"),
    )
    wait_for((archive / "head.json").exists, "the first run")
    assert {path.stat().st_uid for path in (archive, *archive.iterdir(), key)} == {
        archiver
    }
    assert (mode(archive), mode(archive / "head.json"), mode(key)) == (
        0o750,
        0o640,
        0o600,
    )
    assert child_of(int(gateway.place("run/archive.pid").read_text()), "archive run"), (
        "it is supervised"
    )

    def as_squid(*command: str | Path) -> int:
        by = ["runuser", "-u", squid_account(), "--"]
        return subprocess.run(
            [*by, *command], capture_output=True, check=False
        ).returncode

    assert as_squid("cat", archive / "head.json") == 0
    for refused in (
        ("touch", archive / "x"),
        ("mv", archive, gateway.place("moved")),
        ("cat", key),
    ):
        assert as_squid(*refused) == 1, refused


def publisher_of(gateway: Gateway) -> int:
    """The process that publishes the policy; 0 between one and the next."""
    pid_file = Layout.of(gateway.root).service("publisher").pid_file
    return child_of(int(pid_file.read_text()), "squidkeeper publish")


def test_squids_account_can_change_nothing_that_is_published(
    gateway: Gateway,
) -> None:
    layout = Layout.of(gateway.root)
    folder, user = layout.published, layout.user_without_systemd("publisher")
    assert Path(f"/proc/{publisher_of(gateway)}").stat().st_uid == user
    assert {path.lstat().st_uid for path in (folder, *folder.rglob("*"))} == {user}
    in_force = folder / os.readlink(folder / "in-force")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {in_force / "publication-2", folder / "state.json"} <= {*files}
    script = """
        cd "$1" && shift
        for file; do
            (: >>"$file") 2>/dev/null && echo "wrote $file"
            rm -f "$file" 2>/dev/null && echo "removed $file"
        done
        for name in . */ lists; do touch "$name/x" 2>/dev/null && echo "made $name/x"; done
        ln -sfn elsewhere in-force 2>/dev/null && echo "moved in-force"
        mv . ../moved 2>/dev/null && echo "moved the folder"
        cat in-force/publication-* >/dev/null && echo read
    """
    by = ("runuser", "-u", squid_account(), "--", "sh", "-c", script, "sh")
    done = subprocess.run(
        [*by, folder, *files], capture_output=True, text=True, check=False
    )
    assert done.stdout == "read\n"
    moved = ["runuser", "-u", squid_account(), "--", "mv", str(folder), "x"]
    assert subprocess.run(moved, capture_output=True, check=False).returncode == 1


def test_a_publisher_that_is_killed_is_started_again_and_no_helper_takes_its_place(
    gateway: Gateway,
) -> None:
    link = Layout.of(gateway.root).published / "in-force"
    killed = wait_for(lambda: publisher_of(gateway), "the publisher")
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: publisher_of(gateway) not in (0, killed), "another one")
    before = os.readlink(link)
    edit = gateway.place("etc/policy/edit.yaml")
    edit.write_text(
        "version: 1\nrules: [{name: e, action: deny, hosts: [e.example]}]\n"
    )
    wait_for(lambda: os.readlink(link) != before, "the edit in force")
    assert not gateway.place("state/revisions").exists()
    edit.unlink()
    wait_for(lambda: os.readlink(link) == before, "what was in force")


def test_the_own_addresses_are_there_before_squid_reads_them(gateway: Gateway) -> None:
    kept = gateway.place("state/own-addresses")
    assert owner(kept) == squid_account()
    assert (
        f'acl sk_ask_private dst "{kept}"'
        in gateway.place("etc/squidkeeper.conf").read_text()
    )
    assert "own-addresses" not in gateway.place("log/cache.log").read_text()


# ── The resolver ──────────────────────────────────────────────────────────────────────


def resolver_of(gateway: Gateway) -> str:
    """The address that squid.conf names, or none."""
    found = re.search(
        r"^dns_nameservers (\S+)$",
        gateway.place("etc/squid.conf").read_text(),
        re.MULTILINE,
    )
    return found[1] if found else ""


def sockets_at(address: str) -> str:
    listed = subprocess.run(
        ["ss", "-Hlun", "src", f"{address}:53"],
        capture_output=True,
        text=True,
        check=True,
    )
    return " ".join(listed.stdout.split())


def test_squid_asks_a_resolver_of_the_gateways_own_which_runs_as_its_account(
    gateway: Gateway,
) -> None:
    address = resolver_of(gateway)
    assert address.startswith("127.")
    wait_for(
        lambda: f"UNCONN 0 0 {address}:53" in sockets_at(address),
        "it, which a test before may have ended",
    )
    pid = child_of(gateway.maintenance, "unbound")
    assert owner(Path(f"/proc/{pid}")) == squid_account()
    capabilities = re.findall(
        r"^Cap(Prm|Bnd):\t0*(\w+)$",
        Path(f"/proc/{pid}/status").read_text(),
        re.MULTILINE,
    )
    assert {value for _, value in capabilities} == {"400"}, "CAP_NET_BIND_SERVICE"


def test_dns_nameservers_of_local_conf_and_what_it_includes_replace_the_resolver(
    gateway: Gateway,
) -> None:
    local, included = gateway.place("etc/local.conf"), gateway.place("etc/names.conf")
    kept, address = local.read_text(), resolver_of(gateway)
    included.write_text("dns_nameservers 192.0.2.53\n")
    local.write_text(f"{kept}include {included}\n")
    done = gateway.install()
    assert done.returncode == 0, done.stderr
    assert resolver_of(gateway) == ""
    assert (
        "--resolver"
        not in gateway.place("etc/squidkeeper-maintenance.service").read_text()
    )
    assert child_of(gateway.maintenance, "unbound") == 0
    local.write_text(kept)
    included.unlink()
    assert gateway.install().returncode == 0
    assert resolver_of(gateway) == address
    assert child_of(gateway.maintenance, "unbound") != 0


@pytest.mark.long
def test_a_program_of_the_operators_for_logins_replaces_the_login_helper(
    gateway: Gateway,
) -> None:
    local, fragment = (
        gateway.place("etc/local.conf"),
        gateway.place("etc/squidkeeper.conf"),
    )
    kept, ours = local.read_text(), fragment.read_text()
    local.write_text(
        f"{kept}auth_param basic program /usr/lib/squid/basic_ncsa_auth /dev/null\n"
    )
    done = gateway.install()
    assert done.returncode == 0, done.stderr
    assert "no client can log in by a token" in done.stdout
    assert "squidkeeper login" not in fragment.read_text()
    local.write_text(kept)
    assert gateway.install().returncode == 0
    assert fragment.read_text() == ours


# ── Arguments ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "0"], "the port is a number from 1 to 65535"),
        (["--listen", "65536"], "the port is a number from 1 to 65535"),
        (["--listen", "127.0.0.1"], "the port is a number from 1 to 65535"),
        (
            ["--listen", "localhost:3129"],
            "ADDRESS is an IPv4 address or an IPv6 address in brackets",
        ),
        (
            ["--listen", "::1:3129"],
            "ADDRESS is an IPv4 address or an IPv6 address in brackets",
        ),
        (
            ["--listen", ":3129"],
            "ADDRESS is an IPv4 address or an IPv6 address in brackets",
        ),
        (["--listen"], "--listen needs a value"),
        (
            ["--exporter-listen", "0"],
            "--exporter-listen 0: the port is a number from 1 to 65535",
        ),
        (
            ["--exporter-listen", "localhost:9129"],
            "ADDRESS is an IPv4 address or an IPv6 address in brackets",
        ),
        (
            ["--log-bytes", "0"],
            "--log-bytes 0: SIZE is a number of bytes such as 512M or 20G, 64M at least",
        ),
        (
            ["--log-bytes", "63M"],
            "--log-bytes 63M: SIZE is a number of bytes such as 512M or 20G, 64M at least",
        ),
        (
            ["--log-bytes", "8 GB"],
            "--log-bytes 8 GB: SIZE is a number of bytes such as 512M or 20G, 64M at least",
        ),
        (["--tls-name="], "--tls-name needs a value"),
        (["--policy="], "--policy needs a value"),
        (
            ["--policy", "/nonexistent"],
            "--policy /nonexistent: there is no such directory",
        ),
        (["--policy", "/proc/self"], "no *.yaml file is in it"),
        (
            ["--ca-dir", "/nonexistent"],
            "--ca-dir /nonexistent: there is no such directory",
        ),
        (["--ca-dir", "/usr"], "--ca-dir /usr: there is no readable ca.crt in it"),
        (["--wheels", "/usr"], "--wheels /usr: no hatchling-*.whl is in it"),
        (
            ["--extras", "none,aws"],
            "--extras none,aws: NAME is aws, oauth2, otlp, s3, sealed or valkey; for no extra, none alone",
        ),
        (
            ["--extras", "botocore"],
            "--extras botocore: NAME is aws, oauth2, otlp, s3, sealed or valkey",
        ),
        (["--root", "/"], "--root /: leave it out for the system's own places"),
        (["--root", "/tmp/a b"], "--root /tmp/a b: use letters, digits and"),
        (["--root", "/etc/hostname"], "--root /etc/hostname: this is not a directory"),
        (["--no-start=yes"], "unknown argument"),
        (["--frobnicate"], "unknown argument: --frobnicate"),
        (["gateway"], "unknown argument: gateway"),
        (
            ["--dry-run", "--uninstall", "--root", "/srv/no"],
            "--dry-run is for an installation, not for --uninstall",
        ),
        (["--demo", "--dry-run"], "--dry-run is for an installation, not for --demo"),
    ],
    ids=" ".join,
)
def test_a_bad_argument_is_told_before_anything_happens(
    arguments: list[str], message: str
) -> None:
    failed = install(REPOSITORY, *arguments)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert "--help" in failed.stderr
    assert failed.stdout == ""


def test_help_names_every_option() -> None:
    done = install(REPOSITORY, "--help")
    assert done.returncode == 0
    options = (
        "--listen --exporter-listen --no-exporter --open --policy --ca-dir "
        "--ca --intermediate-days --wheels --root"
    )
    options += " --no-start --dry-run --extras"
    for option in (*options.split(), "--uninstall", "--help"):
        assert f"\n  {option}" in done.stdout


def test_it_must_be_run_as_root(source: Path) -> None:
    command = [
        "runuser",
        "-u",
        squid_account(),
        "--",
        str(source / "install.sh"),
        "--root",
        "/tmp/nowhere",
    ]
    failed = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd="/"
    )
    assert failed.returncode == 1
    assert "run it as root" in failed.stderr


def test_shellcheck_finds_nothing() -> None:
    subprocess.run(
        ["shellcheck", REPOSITORY / "install.sh", REPOSITORY / "squid/supervise"],
        check=True,
    )


# ── The example policy ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("default", ["deny", "allow"])
def test_the_example_policy_loads_whole_with_either_default(
    tmp_path: Path, default: str
) -> None:
    policy = shutil.copytree(REPOSITORY / "policy", tmp_path / "policy")
    text = (policy / "policy.yaml").read_text()
    edited = text.replace(
        "  action: deny\n  reason: This", f"  action: {default}\n  reason: This"
    )
    (policy / "policy.yaml").write_text(edited)
    done = CliRunner().invoke(
        main, ["check", "--account", "root", "--policy", str(policy)]
    )
    assert done.exit_code == 0, done.output
    assert "0 warnings" in done.output


def test_the_example_policy_keeps_the_walkthroughs_promise() -> None:
    policy = str(REPOSITORY / "policy")
    for url, status in (
        ("https://example.com/", 0),
        ("https://en.wikipedia.org/", 1),
        ("https://other.example/", 1),
    ):
        assert (
            CliRunner()
            .invoke(main, ["explain", "--policy", policy, "GET", url])
            .exit_code
            == status
        ), url
