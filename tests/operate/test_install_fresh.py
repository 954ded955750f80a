"""install.sh for real where no gateway is: under a --root, and without one in views of
this machine.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from squidkeeper.base.layout import SOCKETS_OF_WORKERS, Layout
from tests.records import record_line
from tests.valkey_server import GATEWAYS, ValkeyServer
from tests.waiting import wait_for

from .test_install import (
    Gateway,
    base,
    changed,
    command_of,
    empty,
    free_port,
    let_squid_end_at_once,
    listens,
    make_ca,
    make_policy,
    mode,
    owner,
    resolver_of,
    runs,
    snapshot,
    source,
    squid_account,
    use_another_squid_conf,
)

pytestmark = pytest.mark.system

__all__ = ["base", "changed", "empty", "source"]  # fixtures
NOBODY = 65534
STATUS_BY_CURL = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}")
OUTSIDE = (
    "/etc/squid",
    "/etc/squidkeeper",
    "/opt/squidkeeper",
    "/var/lib/squidkeeper",
    "/var/spool/squid",
    "/etc/apparmor.d",
    "/usr/local/bin",
)


@pytest.fixture(scope="module")
def gateway(base: Path, source: Path) -> Iterator[Gateway]:
    """A gateway that does not run, whose environment those of the tests are
    links to.
    """
    gateway = Gateway(source, base / "gateway", free_port())
    done = gateway.install(*gateway.listen, "--no-start")
    assert done.returncode == 0, done.stderr
    yield gateway
    gateway.clear()


def test_owners_and_modes_are_right_whoever_has_the_sources_and_whatever_the_umask(
    empty: Gateway, changed: Path
) -> None:
    for path in [changed, *changed.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
        path.chmod(mode(path) & 0o700)
    command = [str(changed / "install.sh"), "--root", str(empty.root), *empty.listen]
    subprocess.run(command, check=True, capture_output=True, umask=0o077)
    account = squid_account()
    for path in [*empty.place("etc").rglob("*"), *empty.place("bin").rglob("*")]:
        expected = account if path.stem == "signing" else "root"
        assert path.name == "archive.key" or owner(path) == expected, path
        readable = subprocess.run(
            ["runuser", "-u", account, "--", "test", "-r", path], check=False, cwd="/"
        )
        assert (readable.returncode == 0) is (
            path.name not in ("ca.key", "archive.key")
        ), path
    assert empty.answers() == "403"


# ── A first run that fails ────────────────────────────────────────────────────────────


def test_a_folder_that_squids_account_cannot_enter_is_named(empty: Gateway) -> None:
    empty.root.chmod(0o700)
    before = snapshot(empty.root)
    failed = empty.install(*empty.listen)
    assert failed.returncode == 1
    assert 'step "directories" failed' in failed.stderr
    assert (
        f"Squid's account {squid_account()} cannot enter {empty.root}\n"
        in failed.stderr
    )
    assert f"chmod o+x {empty.root}" in failed.stderr
    assert snapshot(empty.root) == before
    empty.root.chmod(0o755)


def test_a_first_run_whose_squid_does_not_start_leaves_nothing(
    empty: Gateway, changed: Path
) -> None:
    with (changed / "squid/squid.conf").open("a") as configuration:
        configuration.write("cache_dir ufs /nonexistent/cache 100 16 256\n")
    before = snapshot(empty.root)
    failed = empty.install(*empty.listen)
    assert failed.returncode == 1
    assert 'step "start" failed' in failed.stderr
    assert snapshot(empty.root) == before


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(
            pytest.param(other, marks=pytest.mark.long)
            for other in (signal.SIGTERM, signal.SIGHUP)
        ),
    ],
)
def test_a_first_run_that_is_interrupted_while_it_builds_leaves_nothing(
    base: Path, source: Path, number: signal.Signals
) -> None:
    root = base / "interrupted/gateway"
    command = [str(source / "install.sh"), "--root", str(root)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        wait_for(
            lambda: list(root.glob("venv-*/bin/pip")), "the environment that is built"
        )
        os.killpg(run.pid, number)
        _, complaint = run.communicate()
    assert run.returncode == 128 + number
    assert 'step "program" failed' in complaint
    assert "to do: it was interrupted: run it again" in complaint
    assert not root.parent.exists()


def test_a_taken_address_of_the_resolver_is_told_before_anything_is_replaced(
    empty: Gateway,
) -> None:
    assert empty.install("--no-start", *empty.listen).returncode == 0
    before = empty.snapshot()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((resolver_of(empty), 53))
        failed = empty.install()
    assert failed.returncode == 1
    assert (
        f"something else listens on port 53 of every address, or of {resolver_of(empty)}"
        in failed.stderr
    )
    assert "dns_nameservers" in failed.stderr
    assert empty.snapshot() == before


# ── The CA that is given ──────────────────────────────────────────────────────────────


def test_a_given_ca_replaces_the_one_in_place_which_is_kept(
    empty: Gateway, tmp_path: Path
) -> None:
    let_squid_end_at_once(empty)
    assert empty.install(*empty.listen).returncode == 0
    made = empty.place("etc/ca/ca.crt").read_bytes()
    assert empty.answers() == "403"
    given = make_ca(tmp_path / "slicer")
    done = empty.install("--ca-dir", str(given))
    assert done.returncode == 0, done.stderr
    assert empty.place("etc/ca/ca.crt").read_bytes() == (given / "ca.crt").read_bytes()
    assert empty.place("etc/ca/ca.crt.previous").read_bytes() == made
    kept = empty.place("etc/ca/ca.key.previous")
    assert (mode(kept), owner(kept)) == (0o600, "root")
    assert empty.answers() == "403", (
        "the leaf of the same host is minted again, by the new CA"
    )
    assert holders_of((given / "ca.key").read_text(), empty.root) == []
    before, pid = empty.snapshot(), empty.pid
    for options in (["--ca-dir", str(given)], []):
        assert empty.install(*options).returncode == 0
        assert (empty.snapshot(), empty.pid) == (before, pid)


def holders_of(key: str, *folders: Path) -> list[Path]:
    """The files below these folders that hold the body of a key."""
    body = "".join(key.splitlines()[1:-1]).encode()
    files = (
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    return [path for path in files if body in path.read_bytes().replace(b"\n", b"")]


@pytest.mark.long
def test_a_dry_run_and_a_run_that_is_killed_leave_no_copy_of_the_key_of_the_ca(
    empty: Gateway, tmp_path: Path
) -> None:
    given = make_ca(tmp_path / "slicer")
    key = (given / "ca.key").read_text()
    assert (
        empty.install(*empty.listen, "--ca-dir", str(given), "--dry-run").returncode
        == 0
    )
    assert not empty.place("etc").exists()
    empty.place("etc").mkdir()
    empty.place("etc/local.conf").write_text("shutdown_lifetime 0 seconds\n")
    assert (
        empty.install(
            *empty.listen, "--ca-dir", str(given), "--ca", "direct", "--no-start"
        ).returncode
        == 0
    )
    assert holders_of(key, empty.root) == [empty.place("etc/ca/signing.key")]
    options = (
        "--root",
        str(empty.root),
        "--ca-dir",
        str(given),
        "--ca",
        "intermediate",
    )
    with subprocess.Popen(
        [empty.source / "install.sh", *options], stdout=subprocess.DEVNULL
    ) as run:
        replaced = empty.place("etc/ca/signing.key.squidkeeper-old")
        wait_for(
            lambda: replaced.exists() or run.poll() is not None,
            "the key to be replaced",
        )
        words = command_of(run.pid).split(" ")
        run.kill()
    work = Path(words[words.index("--work") + 1])
    assert empty.install("--ca-dir", str(given), "--ca", "intermediate").returncode == 0
    assert holders_of(key, empty.root, work) == []
    shutil.rmtree(work)
    assert empty.answers() == "403"


@pytest.mark.long
def test_a_former_ca_put_back_by_hand_gets_a_new_certificate_store(
    empty: Gateway, tmp_path: Path
) -> None:
    let_squid_end_at_once(empty)
    assert empty.install(*empty.listen, "--certificates", "squid").returncode == 0
    place, former = empty.place("etc/ca"), tmp_path / "former"
    former.mkdir()
    names = ("ca.crt", "ca.key", "signing.crt", "signing.key")
    for name in names:
        (place / name).rename(former / name)
    assert empty.install().returncode == 0
    assert empty.answers() == "403"
    for name in names:
        subprocess.run(["cp", "-a", former / name, place / name], check=True)
    done = empty.install()
    assert done.returncode == 0, done.stderr
    assert "CA            in place" in done.stdout
    assert empty.answers() == "403", (
        "the leaf of the same host is minted again, by the CA that is there now"
    )


def test_squids_own_program_makes_the_certificates_where_it_is_asked_for(
    empty: Gateway,
) -> None:
    let_squid_end_at_once(empty)
    done = empty.install(*empty.listen, "--certificates", "squid")
    store, conf = empty.place("state/ssl_db"), empty.place("etc/squid.conf")
    assert (
        f"certificates  made by Squid's own program, which stores them in {store}\n"
        in done.stdout
    )
    assert empty.answers() == "403"
    assert list(store.glob("certs/*")) != []
    before, pid = (snapshot(store), conf.read_text()), empty.pid
    assert empty.install().returncode == 0
    assert (snapshot(store), conf.read_text()) == before, "as installed before"
    assert (
        "certificates  made by squidkeeper\n"
        in empty.install("--certificates", "squidkeeper").stdout
    )
    assert not store.exists(), "it held the key of the CA"
    assert (empty.answers(), empty.pid) == ("403", pid)
    assert empty.install().returncode == 0
    assert re.findall(r"^sslcrtd_program (\S+)", conf.read_text(), re.MULTILINE) == [
        f"{empty.place('bin/squidkeeper')}"
    ]


@pytest.mark.long
def test_a_certificate_store_that_does_not_tell_its_ca_is_made_anew(
    empty: Gateway,
) -> None:
    let_squid_end_at_once(empty)
    assert empty.install(*empty.listen, "--certificates", "squid").returncode == 0
    store, pid = empty.place("state/ssl_db"), empty.pid
    assert empty.answers() == "403"
    leaves = list(store.glob("certs/*"))
    assert empty.install().returncode == 0
    assert list(store.glob("certs/*")) == leaves != []
    (store / "ca.crt").unlink()
    assert empty.install().returncode == 0
    assert list(store.glob("certs/*")) == []
    assert (empty.answers(), empty.pid) == ("403", pid)


# ── The policy that is given, and what was there before ───────────────────────────────


def test_a_given_policy_is_put_in_place_and_readable_by_squids_account_only(
    empty: Gateway, tmp_path: Path
) -> None:
    given = make_policy(tmp_path / "policy", "Mine.")
    done = empty.install(*empty.listen, "--policy", str(given))
    assert (
        "\nTry it, with hosts that the policy allows and denies in place of these:\n"
        in done.stdout
    )
    assert done.returncode == 0, done.stderr
    assert (
        empty.place("etc/policy/policy.yaml").read_text()
        == (given / "policy.yaml").read_text()
    )
    secret = empty.place("etc/policy/secrets/token")
    assert (mode(secret), owner(secret), secret.group()) == (
        0o640,
        "root",
        squid_account(),
    )
    assert mode(given / "secrets/token") == 0o600, (
        "the operator's own files stay as they are"
    )
    page = curl_text(empty, "https://elsewhere.example/")
    assert "Mine." in page


def curl_text(gateway: Gateway, url: str) -> str:
    proxy = [
        "--proxy",
        f"http://127.0.0.1:{gateway.port}",
        "--cacert",
        str(gateway.place("etc/ca/ca.crt")),
    ]
    return subprocess.run(
        ["curl", "--silent", "--show-error", *proxy, url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_given_policy_that_does_not_load_is_refused(
    empty: Gateway, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\nrules: [{name: x}]\n")
    failed = empty.install(*empty.listen, "--policy", str(tmp_path))
    assert failed.returncode == 1
    assert 'step "policy" failed' in failed.stderr
    assert f"{tmp_path}/bad.yaml:2" in failed.stderr
    assert not empty.place("etc/policy").exists()


def sockets_of_workers(gateway: Gateway) -> list[Path]:
    return [*SOCKETS_OF_WORKERS.glob(f"{Layout.of(gateway.root).squid_service}-*")]


def test_what_was_there_before_is_kept_and_comes_back_with_uninstall(
    empty: Gateway,
) -> None:
    configuration, local = empty.place("etc/squid.conf"), empty.place("etc/local.conf")
    configuration.parent.mkdir(parents=True)
    configuration.write_text("http_port 3128\n")
    local.write_text("# my own lines\nshutdown_lifetime 0 seconds\n")
    assert empty.install(*empty.listen, "--workers", "2").returncode == 0
    assert sockets_of_workers(empty)
    assert (
        empty.place("etc/squid.conf.before-squidkeeper").read_text()
        == "http_port 3128\n"
    )
    assert local.read_text().startswith("# my own lines\n")
    empty.place("etc/reload-forced").write_text("0123456789ab\n")
    empty.place("etc/grants.yaml").write_text("version: 1\n")
    for name in (
        "pull.key",
        "quota-store.password",
    ):  # the operator's: no list of ours names them
        empty.place(f"etc/{name}").touch(0o600)
    processes = (
        empty.pid,
        empty.supervisor,
        empty.exporter,
        empty.maintenance_supervisor,
        empty.maintenance,
    )
    done = empty.install("--uninstall")
    assert done.returncode == 0, done.stderr
    assert [pid for pid in processes if runs(pid)] == []
    assert configuration.read_text() == "http_port 3128\n"
    for name in (
        "etc/local.conf",
        "etc/policy",
        "etc/ca/ca.crt",
        "etc/ca/ca.key",
        "log/access.log",
    ):
        assert empty.place(name).exists(), name
    left = {path.name for path in empty.root.iterdir()} | {
        path.name for path in empty.place("etc").iterdir()
    }
    kept = {
        "etc",
        "log",
        "squid.conf",
        "local.conf",
        "policy",
        "ca",
        "archive",
        "archive.key",
        "archive.pub",
        "gateway.yaml",
    }
    assert left == {*kept, "grants.yaml", "pull.key", "quota-store.password"}
    assert sockets_of_workers(empty) == []
    [yours] = re.findall(r"done\. Yours to delete: (.*)", done.stdout)
    assert {Path(name).name for name in yours.split()} == left - {
        "etc",
        "squid.conf",
    }, "what is there, and no more"
    assert "nothing to do" in empty.install("--uninstall").stdout


def test_a_squid_conf_that_includes_our_fragment_stays_in_force(empty: Gateway) -> None:
    configuration, fragment = (
        empty.place("etc/squid.conf"),
        empty.place("etc/squidkeeper.conf"),
    )
    before, pristine = (
        empty.place("etc/squid.conf.before-squidkeeper"),
        "http_port 3128\n",
    )
    logins = empty.place("etc/logins.conf")
    theirs = f"http_port 3128\ninclude {logins}\ninclude {fragment}\n"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(pristine)
    assert empty.install("--no-start", *empty.listen).returncode == 0
    again = f"sudo ./install.sh --root {empty.root}\n"
    assert again in empty.place("etc/local.conf").read_text()
    assert f" -f {configuration} -k parse" in empty.place("etc/local.conf").read_text()
    configuration.write_text(theirs)
    logins.write_text(
        "auth_param basic \\\n  program /usr/lib/squid/basic_ncsa_auth /dev/null\n"
    )
    with empty.place("etc/local.conf").open("a") as local:
        # which their squid.conf does not include
        local.write("dns_nameservers 192.0.2.53\n")
    for _ in range(2):
        done = empty.install()
        assert done.returncode == 0, done.stderr
        assert "stays in force" in done.stdout
        assert "no client can log in by a token of the policy" in done.stdout
        assert (configuration.read_text(), before.read_text()) == (theirs, pristine)
    assert (
        "--resolver" in empty.place("etc/squidkeeper-maintenance.service").read_text()
    )
    assert (
        f"certificates  made as {configuration} says, by sslcrtd_program\n"
        in done.stdout
    )
    listens = f"listening on 127.0.0.1:{empty.port}; yours was not checked\n"
    assert listens in done.stdout, "as told before, should ours come back"
    assert not empty.place("run/squid.pid").exists()
    refused = empty.install("--uninstall")
    assert refused.returncode == 1
    assert (
        f"{configuration} includes {fragment}, which --uninstall removes"
        in refused.stderr
    )
    configuration.write_text(f"http_port 3128\n# include {fragment}\n")
    fragment.unlink()
    done = empty.install("--uninstall")
    assert done.returncode == 0, done.stderr
    assert "nothing to do" not in done.stdout
    assert not empty.place("bin").exists()
    assert before.read_text() == pristine


@pytest.mark.parametrize("include", ["squidkeeper.conf", "squidkeeper-logformat.conf"])
def test_a_squid_conf_of_the_operators_knows_the_format_of_the_record(
    empty: Gateway, include: str
) -> None:
    """Whether it includes the fragment alone, or the format by itself, ahead of an
    access_log line, as ours does.
    """
    configuration, place = empty.place("etc/squid.conf"), empty.place("etc")
    configuration.parent.mkdir(parents=True)
    record = f"access_log udp://127.0.0.1:{empty.port} squidkeeper\n"
    configuration.write_text(
        f"http_port {empty.port}\ninclude {place / include}\n{record}"
    )
    if include != "squidkeeper.conf":
        configuration.write_text(
            configuration.read_text() + f"include {place}/squidkeeper.conf\n"
        )
    assert empty.install("--no-start", *empty.listen).returncode == 0
    parse = ["squid", "-k", "parse", "-f", str(configuration)]
    done = subprocess.run(parse, capture_output=True, text=True, check=False)
    assert (done.returncode, re.findall(r".*\| (?:ERROR|FATAL).*", done.stderr)) == (
        0,
        [],
    )


def test_uninstall_tells_when_the_former_squid_conf_does_not_parse(
    empty: Gateway,
) -> None:
    configuration = empty.place("etc/squid.conf")
    configuration.parent.mkdir(parents=True)
    configuration.write_text("http_port 3128\ninclude /nonexistent/*.conf\n")
    let_squid_end_at_once(empty)
    assert empty.install(*empty.listen).returncode == 0
    done = empty.install("--uninstall")
    assert done.returncode == 0
    assert (
        "squid -k parse does not accept it (see above): Squid is not started"
        in done.stdout
    )
    assert (
        "FATAL: Unable to find configuration file: /nonexistent/*.conf" in done.stderr
    )


def test_uninstall_leaves_a_squid_with_the_operators_squid_conf_running(
    empty: Gateway,
) -> None:
    assert empty.install(*empty.listen).returncode == 0
    port, pid = use_another_squid_conf(empty), empty.pid
    theirs, supervisor = (
        empty.place("etc/squid.conf").read_text(),
        psutil.Process(pid).parent(),
    )
    done, goes_on = empty.install("--uninstall"), listens(port)
    assert supervisor
    supervisor.kill()  # else it would start Squid again
    os.kill(pid, signal.SIGINT)
    assert done.returncode == 0, done.stderr
    assert goes_on
    assert "it has lost its helpers and denies all until: squid -n " in done.stdout
    assert empty.place("etc/squid.conf").read_text() == theirs
    assert not empty.place("bin").exists()


def test_without_a_start_everything_is_there_but_squid(empty: Gateway) -> None:
    done = empty.install("--no-start", *empty.listen)
    assert done.returncode == 0, done.stderr
    assert empty.place("etc/squid.conf").exists()
    assert not empty.place("run/squid.pid").exists()
    assert empty.install().returncode == 0
    assert empty.answers() == "403"


# ── Without --root ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Machine:
    """A view of this machine in which everything may be changed, and nothing outlives
    the test.
    """

    process: int

    def run(
        self, *command: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        inside = [
            "nsenter",
            "--target",
            str(self.process),
            "--mount",
            "--net",
            "--pid",
            *command,
        ]
        environment = {
            "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **environment,
        }
        return subprocess.run(
            inside,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=environment,
        )

    def path(self, path: str) -> Path:
        """What is at the path there; no link on the way is followed there."""
        return Path(f"/proc/{self.process}/root{path}")


WALKTHROUGH = """
http_port 3129 ssl-bump cert=/etc/squid/slicer-ca.crt key=/etc/squid/slicer-ca.key generate-host-certificates=on
sslcrtd_program /usr/lib/squid/security_file_certgen -s /var/spool/squid/ssl_db -M 4MB
http_access allow all
"""
VIEW = """
mount -t tmpfs tmpfs "$1"
for place in etc opt usr/local var; do
    mkdir -p "$1/$place/upper" "$1/$place/work"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=$1/$place/upper,workdir=$1/$place/work" "/$place"
done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
rm -rf /etc/squidkeeper /opt/squidkeeper /var/lib/squidkeeper* /var/spool/squid/ssl_db /usr/local/bin/squidkeeper
rm -rf /var/log/squid/*
! head -n 1 /etc/squid/squid.conf | grep -q "^# Written by squidkeeper" || rm /etc/squid/squid.conf
rm -rf /etc/squid/*squidkeeper* /etc/squid/errors/squidkeeper /etc/squid/slicer-ca.* /etc/squid/local.conf
rm -f /etc/systemd/system/squidkeeper-*.service /etc/systemd/system/squidkeeper-*.timer /etc/logrotate.d/00-squidkeeper
rm -f /etc/systemd/system/squid.service.d/squidkeeper.conf
mkdir -p /usr/local/bin /opt/squidkeeper
ln -s "$2" /opt/squidkeeper
echo ready
"""
BOOT = """
mount --make-rshared /
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /etc/systemd/system
rm -rf ./*.wants
for unit in /usr/lib/systemd/system/*.target.wants/*; do
    case $unit in *journald*) ;; *) ln -sf /dev/null "${unit##*/}" ;; esac
done
ln -sf /dev/null tmp.mount
export container=unshare
exec /usr/lib/systemd/systemd --unit=basic.target --log-target=null >/dev/null 2>&1
"""


@contextmanager
def view(
    gateway: Gateway, folder: Path, then: str, *namespaces: str
) -> Iterator[Machine]:
    """The view, with the environment that takes long to build in it, in which process 1
    goes on with `then`.
    """
    venv = gateway.place("bin/squidkeeper").resolve().parent.parent
    apart = (
        "unshare",
        "--mount",
        "--pid",
        *namespaces,
        "--fork",
        "--kill-child",
        "--mount-proc",
    )
    command = [*apart, "sh", "-ec", VIEW + then]
    with subprocess.Popen(
        [*command, "view", str(folder), str(venv)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        try:
            yield Machine(
                int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
            )
        finally:
            holder.kill()


@pytest.fixture
def machine(gateway: Gateway, tmp_path: Path) -> Iterator[Machine]:
    """A machine with a network of its own, in which the system's ports are free and no
    address is a public one.
    """
    with view(gateway, tmp_path, "while sleep 1; do :; done", "--net") as machine:
        assert machine.run("ip", "link", "set", "lo", "up").returncode == 0
        yield machine


@pytest.fixture
def systemd(gateway: Gateway, tmp_path: Path) -> Iterator[Machine]:
    """A machine that systemd has booted, with nothing in it but its journal, and with a
    network of its own.
    """
    with booted(gateway, tmp_path) as machine:
        yield machine


@contextmanager
def booted(gateway: Gateway, folder: Path) -> Iterator[Machine]:
    """A view that systemd has booted."""
    with view(gateway, folder, BOOT, "--net", "--cgroup", "--uts", "--ipc") as machine:
        ready = ["systemctl", "is-active", "--quiet", "basic.target"]
        wait_for(lambda: machine.run(*ready).returncode == 0, "systemd to boot")
        yield machine


def test_the_program_is_on_everybodys_path(machine: Machine, source: Path) -> None:
    installer, link = source / "install.sh", machine.path("/usr/local/bin/squidkeeper")
    done = machine.run(installer, "--no-start")
    assert done.returncode == 0, done.stderr
    assert os.readlink(link) == "/opt/squidkeeper/bin/squidkeeper"
    assert "\n  squidkeeper explain GET https://en.wikipedia.org/\n" in done.stdout
    assert (
        machine.run(
            "squidkeeper", "explain", "GET", "https://en.wikipedia.org/"
        ).returncode
        == 1
    )
    by_sudo = machine.run(
        installer, "--no-start", SUDO_USER="me", PATH="/usr/sbin:/usr/bin:/sbin:/bin"
    ).stdout
    assert "\n  sudo /opt/squidkeeper/bin/squidkeeper explain GET" in by_sudo
    assert machine.run(installer, "--uninstall").returncode == 0
    assert not link.is_symlink()


def test_another_program_of_that_name_stays(machine: Machine, source: Path) -> None:
    installer, other = source / "install.sh", machine.path("/usr/local/bin/squidkeeper")
    other.write_text("#!/bin/sh\n")
    done = machine.run(installer, "--no-start")
    assert "/usr/local/bin/squidkeeper is not squidkeeper's and stays" in done.stdout
    assert "\n  /opt/squidkeeper/bin/squidkeeper explain GET" in done.stdout
    assert machine.run(installer, "--uninstall").returncode == 0
    assert other.read_text() == "#!/bin/sh\n"


def test_nothing_outside_of_the_root_is_touched(
    machine: Machine, empty: Gateway
) -> None:
    """In a view of the machine to which nothing but this run writes, whatever gateway
    the machine itself has.
    """
    installer, root = str(empty.source / "install.sh"), ("--root", str(empty.root))
    before = [snapshot(machine.path(path)) for path in OUTSIDE]
    done = machine.run(installer, *root, *empty.listen)
    assert done.returncode == 0, done.stderr
    assert [snapshot(machine.path(path)) for path in OUTSIDE] == before
    assert machine.run(installer, *root, "--uninstall").returncode == 0


@pytest.mark.long
def test_the_walkthroughs_squid_comes_back_with_its_certificate_store(
    machine: Machine, source: Path
) -> None:
    """Installed over "Intercept VM egress", and removed again."""
    configuration, store = (
        machine.path("/etc/squid/squid.conf"),
        "/var/spool/squid/ssl_db",
    )
    configuration.write_text(WALKTHROUGH)
    ca = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=Slicer CA",
    ]
    place = "/etc/squid/slicer-ca"
    assert (
        machine.run(*ca, "-keyout", f"{place}.key", "-out", f"{place}.crt").returncode
        == 0
    )
    assert (
        machine.run(
            "/usr/lib/squid/security_file_certgen", "-c", "-s", store, "-M", "4MB"
        ).returncode
        == 0
    )
    done = machine.run(source / "install.sh")
    assert done.returncode == 0, done.stderr
    done = machine.run(source / "install.sh", "--uninstall")
    assert done.returncode == 0, done.stderr
    assert configuration.read_text() == WALKTHROUGH
    assert (machine.path(store) / "index.txt").exists()


@pytest.mark.long
def test_a_gateway_comes_back_from_its_backup_as_the_page_says(
    machine: Machine, source: Path
) -> None:
    page = (
        (source / "squid/OPERATING.md")
        .read_text()
        .replace("sudo ", "")
        .replace("/var/backups/", "/var/tmp/")
    )
    back_up, restore = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    policy = source.parent / "kept"
    policy.mkdir()
    (policy / "policy.yaml").write_text(
        "version: 1\nrules: [{name: kept, action: allow, hosts: [a.example]}]\n"
    )
    options = (
        "--listen",
        "127.0.0.1:3456",
        "--gateway",
        "before",
        "--archive-days",
        "7",
        "--log-bytes",
        "1G",
    )
    assert (
        machine.run(source / "install.sh", *options, "--policy", policy).returncode == 0
    )
    paths = [
        Path(path) for path in ("/etc/squidkeeper", "/etc/squid", "/etc/systemd/system")
    ]
    done = machine.run("sh", "-ec", back_up)
    assert done.returncode == 0, done.stderr
    assert mode(machine.path("/var/tmp/gateway.tar.gz")) == 0o600
    before = [contents(machine.path(str(path))) for path in paths]
    [venv] = machine.path("/opt/squidkeeper").glob("venv-*")
    built = os.readlink(venv)
    assert machine.run(source / "install.sh", "--uninstall").returncode == 0
    machine.run(
        "sh",
        "-c",
        "rm -rf /etc/squidkeeper /var/lib/squidkeeper* /opt/squidkeeper /etc/squid/*.conf",
    )
    machine.run(
        "sh",
        "-c",
        f"mkdir /opt/squidkeeper && ln -s {built} /opt/squidkeeper/{venv.name}",
    )
    done = machine.run("sh", "-ec", f"cd {source}\n{restore}")
    assert "fix: " not in done.stdout, done.stdout + done.stderr
    assert [contents(machine.path(str(path))) for path in paths] == before
    assert machine.run(source / "install.sh", "--uninstall").returncode == 0


def contents(top: Path) -> dict[str, tuple[object, ...]]:
    """Of each path: mode, owner and content."""
    return {path: (*about[1:4], *about[5:]) for path, about in snapshot(top).items()}


PUBLIC = "8.8.4.4"


def test_a_new_gateway_that_the_internet_could_use_is_refused(
    machine: Machine, source: Path
) -> None:
    installer = source / "install.sh"
    assert (
        machine.run("ip", "address", "add", f"{PUBLIC}/32", "dev", "lo").returncode == 0
    )
    for arguments in ((), ("--listen", "3130")):
        refused = machine.run(installer, "--no-start", *arguments)
        assert refused.returncode == 1
        assert 'step "listen" failed' in refused.stderr
        assert (
            f"{source}/policy/policy.yaml:55:5: rule 'example' allows any client, as it names no clients\n"
            in (refused.stderr)
        )
        assert f"which the internet reaches at {PUBLIC}" in refused.stderr
        assert "to do: --listen ADDRESS:PORT" in refused.stderr
        assert "--open" in refused.stderr
        assert not machine.path("/etc/squid/squidkeeper.conf").exists()
    closed = make_policy(
        source.parent / "closed", "Closed.", clients="clients: [agents]"
    )
    done = machine.run(installer, "--no-start", "--policy", closed)
    assert (done.returncode, "WARNING" in done.stdout) == (0, False), done.stderr


@pytest.mark.parametrize(
    "asked_for",
    [("--open",), pytest.param(("--listen", f"{PUBLIC}:3129"), marks=pytest.mark.long)],
)
def test_a_gateway_that_the_internet_can_use_is_asked_for_and_told(
    machine: Machine, source: Path, asked_for: tuple[str, ...]
) -> None:
    installer = source / "install.sh"
    assert (
        machine.run("ip", "address", "add", f"{PUBLIC}/32", "dev", "lo").returncode == 0
    )
    for arguments in (asked_for, ()):  # one that is in place goes on
        done = machine.run(installer, "--no-start", *arguments)
        assert done.returncode == 0, done.stderr
        assert "WARNING       an open proxy: the gateway listens on " in done.stdout
        assert "rule 'example' allows any client" in done.stdout
    done = machine.run(installer, "--no-start", "--listen", "127.0.0.1:3129")
    assert (done.returncode, "WARNING" in done.stdout) == (0, False)


@pytest.mark.long
def test_with_systemd_the_publisher_has_an_account_of_its_own_and_judges_edits(
    systemd: Machine, source: Path
) -> None:
    """The judge reads the log and writes its verdict with the rights of the service.

    Squid's account reads what is published, and cannot change it. systemd kills a
    publisher that is stopped.
    """
    port = free_port()
    done = systemd.run(
        source / "install.sh",
        "--listen",
        f"127.0.0.1:{port}",
        "--exporter-listen",
        str(free_port()),
    )
    assert done.returncode == 0, done.stderr
    gated = "version: 1\ndefaults: {reload_gate: {since: 1d, denials: 2}}\nrules:\n"
    opened, policy = (
        gated + "  - {name: open, action: allow, hosts: [open.example]}\n",
        "/etc/squidkeeper/policy",
    )

    # the program is in an environment of another gateway, whose places are the default
    places = ("--policy", policy, "--state", "/var/lib/squidkeeper")

    def edit(text: str) -> None:
        systemd.path(f"{policy}/.new").write_text(text)
        systemd.run("mv", f"{policy}/.new", f"{policy}/policy.yaml")

    def reload() -> str:
        return systemd.run("squidkeeper", "reload", *places).stdout

    edit(opened)
    wait_for(lambda: "is in force\n" in reload(), "the policy with a gate")
    revision = reload().split("revision ")[1].split()[0]
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    used = (
        record_line(
            client=f"192.0.2.{number}",
            url="http://open.example/x",
            time=now,
            revision=revision,
        )
        for number in range(1, 6)
    )
    with systemd.path("/var/log/squid/access.log").open("ab") as log:
        log.write(b"".join(line + b"\n" for line in used))
    edit(opened.replace("allow", "deny"))
    wait_for(lambda: "is refused" in reload(), "the verdict")
    assert (
        "it would deny 5 combinations of client, rule and host that were used"
        in reload()
    )
    assert systemd.run("squidkeeper", "reload", *places, "--force").returncode == 0
    wait_for(lambda: "is in force\n" in reload(), "the edit that was accepted")
    names = "ActiveState Type User NoNewPrivileges ProtectSystem CapabilityBoundingSet"
    state = property_of(systemd, names, "publisher")
    assert state == "active notify squidkeeper-publisher yes strict "
    folder = "/var/lib/squidkeeper-published"
    owners = systemd.run("find", folder, "-printf", "%u:%g ").stdout.split()
    group = systemd.path("/etc/squidkeeper/policy").group()
    assert {*owners} == {f"squidkeeper-publisher:{group}"}
    as_squid = ("runuser", "-u", squid_account(), "--")
    link = f"{folder}/in-force"
    assert systemd.run(*as_squid, "ls", f"{link}/").returncode == 0
    for refused in (("touch", f"{folder}/x"), ("ln", "-sfn", "x", link)):
        assert systemd.run(*as_squid, *refused).returncode == 1, refused
    assert systemd.run(*as_squid, "mv", folder, "/var/lib/moved").returncode == 1
    assert not systemd.path("/var/lib/squidkeeper/revisions").exists()
    stopped = property_of(systemd, "MainPID", "publisher")
    systemd.run("kill", "-STOP", stopped)
    wait_for(
        lambda: property_of(systemd, "MainPID", "publisher") not in ("0", stopped),
        "systemd to start another publisher",
    )
    edit(opened)
    wait_for(lambda: "is in force\n" in reload(), "an edit after that")
    assert systemd.run(source / "install.sh", "--uninstall").returncode == 0
    assert not systemd.path(folder).exists()
    assert "squidkeeper" not in systemd.path("/etc/passwd").read_text()


def test_with_systemd_the_exporter_is_a_service_confined_and_started_again(
    systemd: Machine, source: Path
) -> None:
    installer, squid, exporter = source / "install.sh", free_port(), free_port()
    arguments = (
        "--listen",
        f"127.0.0.1:{squid}",
        "--exporter-listen",
        f"127.0.0.1:{exporter}",
    )
    done = systemd.run(installer, *arguments)
    assert done.returncode == 0, done.stderr
    assert property_of(
        systemd,
        "UnitFileState ActiveState User NoNewPrivileges ProtectSystem CapabilityBoundingSet",
    ) == (f"enabled active {squid_account()} yes strict ")
    through = (
        "--proxy",
        f"http://127.0.0.1:{squid}",
        "--cacert",
        "/etc/squidkeeper/ca/ca.crt",
    )
    asked = (*STATUS_BY_CURL, *through, "https://en.wikipedia.org/")
    assert systemd.run(*asked).stdout == "403"

    def metrics() -> str:
        return systemd.run("curl", "-s", f"http://127.0.0.1:{exporter}/metrics").stdout

    wait_for(
        lambda: 'rule="no-wikipedia",verdict="deny"' in metrics(),
        "the denial to be counted",
    )
    for series in (
        "squid_up 1.0",
        "squidkeeper_exporter_state_writable 1.0",
        'squidkeeper_helper_processes{helper="host"} 1.0',
    ):
        assert series in metrics()
    archive_by_systemd(systemd)
    pid = property_of(systemd, "MainPID")
    assert systemd.run(installer).stdout.count("runs, unchanged") == 6
    assert systemd.run("kill", "-KILL", pid).returncode == 0
    wait_for(
        lambda: property_of(systemd, "MainPID") not in ("0", pid),
        "systemd to start it again",
    )
    assert systemd.run(installer, "--uninstall").returncode == 0
    assert_nothing_is_left(systemd, "exporter")
    assert_nothing_is_left(systemd, "archive")
    assert not systemd.path("/etc/logrotate.d/00-squidkeeper").exists()
    archive = systemd.path("/var/lib/squidkeeper-archive")
    assert {path.stat().st_uid for path in (archive, *archive.rglob("*"))} == {0}, (
        "it stays, and is root's"
    )


def archive_by_systemd(systemd: Machine) -> None:
    """What logrotate has rotated is archived by the service, as its own account, and
    sealed.
    """
    assert (
        property_of(systemd, "UnitFileState ActiveState", "archive.timer")
        == "enabled active"
    )
    wait_for(
        systemd.path("/var/lib/squidkeeper-archive/head.json").exists, "the first run"
    )
    assert systemd.run("logrotate", "-f", "/etc/logrotate.conf").returncode == 0
    log = systemd.path("/var/log/squid/access.log")
    [rotated] = log.parent.glob("access.log-*")
    wait_for(log.exists, "Squid to open a new one")
    lines = rotated.read_text().count("\n")
    os.utime(rotated, (time.time() - 3600, time.time() - 3600))
    assert systemd.run("systemctl", "start", "squidkeeper-archive").returncode == 0
    program = "/opt/squidkeeper/bin/squidkeeper"
    [day] = json.loads(systemd.run(program, "archive", "list", "--json").stdout)
    assert (day["lines"], day["invalid"]) == (lines, 0)
    owners = systemd.run(
        "stat",
        "--format=%U:%G %a",
        "/var/lib/squidkeeper-archive",
        "/etc/squidkeeper/archive.key",
    )
    group = grp.getgrgid(pwd.getpwnam(squid_account()).pw_gid).gr_name
    assert owners.stdout == f"squidkeeper-archive:{group} 750\nroot:root 600\n"
    assert (
        systemd.run(
            program, "archive", "verify", "--key", "/etc/squidkeeper/archive.pub"
        ).returncode
        == 0
    )


def assert_nothing_is_left(systemd: Machine, service: str) -> None:
    assert (
        property_of(systemd, "LoadState ActiveState MainPID", service)
        == "not-found inactive 0"
    )
    assert not systemd.path("/run/squidkeeper").exists()
    assert "squidkeeper" not in systemd.path("/etc/passwd").read_text()


@pytest.mark.long
def test_with_systemd_secrets_are_fetched_by_an_account_of_its_own(
    systemd: Machine, source: Path
) -> None:
    """It is neither root's nor Squid's.

    Squid's account reads the values, and cannot change them.
    """
    installer = source / "install.sh"
    done = systemd.run(installer, "--listen", f"127.0.0.1:{free_port()}")
    assert done.returncode == 0, done.stderr
    command = systemd.path("/etc/squidkeeper/commands/give-token")
    command.write_text("#!/bin/sh\nprintf value-of-the-command\n")
    command.chmod(0o755)
    policy = "version: 1\nsecrets: {token: {command: {run: [give-token]}}}\n"
    systemd.path("/etc/squidkeeper/policy/secrets.yaml").write_text(policy)
    # as before the folder was root's
    systemd.run("install", "-d", "-o", squid_account(), "/run/squidkeeper")
    done = systemd.run(installer)
    assert re.search("^secrets +started$", done.stdout, re.MULTILINE), (
        done.stdout + done.stderr
    )
    folder = systemd.path("/run/squidkeeper/secrets")
    [file] = wait_for(lambda: list(folder.glob("*.value")), "the value")
    inside = f"/run/squidkeeper/secrets/{file.name}"
    as_squid = ("runuser", "-u", squid_account(), "--")
    assert "value-of-the-command" in systemd.run(*as_squid, "cat", inside).stdout
    assert systemd.run(*as_squid, "mv", inside, f"{inside}.moved").returncode == 1
    moved = systemd.run(
        *as_squid, "mv", "/run/squidkeeper/secrets", "/run/squidkeeper/moved"
    )
    assert "Permission denied" in moved.stderr
    assert folder.exists()
    assert systemd.run("runuser", "-u", "nobody", "--", "cat", inside).returncode == 1
    assert (mode(file), mode(folder), file.group()) == (0o640, 0o2750, folder.group())
    account = property_of(
        systemd, "User NoNewPrivileges ProtectSystem CapabilityBoundingSet", "secrets"
    )
    assert account == "squidkeeper-secrets yes strict "
    assert systemd.run("stat", "--format=%U", inside).stdout == "squidkeeper-secrets\n"
    assert systemd.run(installer).stdout.count("runs, unchanged") == 7
    assert systemd.run(installer, "--uninstall").returncode == 0
    assert_nothing_is_left(systemd, "secrets")


@pytest.mark.long
def test_with_systemd_an_edit_starts_what_inspects_bodies(
    systemd: Machine, source: Path
) -> None:
    """squidkeeper-render starts both processes, as an account of their own. systemd
    kills one that is stopped.
    """
    installer = source / "install.sh"
    done = systemd.run(installer, "--listen", f"127.0.0.1:{free_port()}")
    assert done.returncode == 0, done.stderr
    units = ("bodies-1", "bodies-2")
    loaded = [property_of(systemd, "LoadState ActiveState", unit) for unit in units]
    assert loaded == ["not-found inactive"] * 2, (
        "a gateway without such a rule has them"
    )
    rule = "{name: small-models, action: allow, hosts: [models.example], body: {json: {/model: [small]}}}"
    systemd.path("/etc/squidkeeper/policy/bodies.yaml").write_text(
        f"version: 1\nrules: [{rule}]\n"
    )
    fragment = systemd.path("/etc/squid/squidkeeper.conf")
    log = ("journalctl", "--no-pager", "--lines", "30", "--unit", "squidkeeper-render")
    wait_for(
        lambda: "sk_bodies" in fragment.read_text(), lambda: systemd.run(*log).stdout
    )
    for unit in units:
        state = property_of(
            systemd,
            "UnitFileState ActiveState User CapabilityBoundingSet WatchdogUSec",
            unit,
        )
        assert state == "enabled active squidkeeper-bodies cap_net_bind_service 20s"
    assert (
        systemd.run(
            "sh", "-c", "ss -Hltn 'src 127.53.53.53 and sport = :344' | wc -l"
        ).stdout.strip()
        == "2"
    )
    assert (
        "No findings"
        in systemd.run("/opt/squidkeeper/bin/squidkeeper", "doctor").stdout
    )
    before = property_of(systemd, "MainPID", units[0])
    systemd.run("systemctl", "kill", "--signal", "STOP", f"squidkeeper-{units[0]}")
    wait_for(
        lambda: property_of(systemd, "MainPID", units[0]) not in ("0", before),
        "systemd to end it",
    )
    done = systemd.run(installer)
    assert [f"{unit:13} started" in done.stdout for unit in units] == [True, True], (
        done.stdout + done.stderr
    )
    assert systemd.run(installer).stdout.count("runs, unchanged") == 8
    assert systemd.run(installer, "--uninstall").returncode == 0
    for unit in units:
        assert_nothing_is_left(systemd, unit)


@pytest.mark.long
def test_with_systemd_the_transparent_ports_have_accounts_of_their_own(
    systemd: Machine, source: Path
) -> None:
    """systemd starts them before their address is there, and kills what takes
    connections if it is stopped.
    """
    installer, address = source / "install.sh", "10.53.53.1"
    done = systemd.run(
        installer, "--listen", f"127.0.0.1:{free_port()}", "--transparent", address
    )
    assert done.returncode == 0, done.stderr
    assert f"{address} is not on this machine" in done.stdout
    assert (
        systemd.run("ip", "address", "add", f"{address}/24", "dev", "lo").returncode
        == 0
    )
    for unit, watchdog in (("transparent", "20s"), ("dns", "0")):
        state = property_of(
            systemd,
            "UnitFileState ActiveState User CapabilityBoundingSet WatchdogUSec",
            unit,
        )
        assert (
            state
            == f"enabled active squidkeeper-{unit} cap_net_bind_service {watchdog}"
        )
    where = (
        "--resolve",
        f"en.wikipedia.org:443:{address}",
        "--cacert",
        "/etc/squidkeeper/ca/ca.crt",
    )
    asked = (*STATUS_BY_CURL, *where, "https://en.wikipedia.org/")
    assert systemd.run(*asked).stdout == "403"
    doctor = ("/opt/squidkeeper/bin/squidkeeper", "doctor")
    wait_for(
        lambda: "No findings" in systemd.run(*doctor).stdout,
        lambda: systemd.run(*doctor).stdout,
    )
    before = property_of(systemd, "MainPID", "transparent")
    systemd.run("systemctl", "kill", "--signal", "STOP", "squidkeeper-transparent")
    wait_for(
        lambda: property_of(systemd, "MainPID", "transparent") not in ("0", before),
        "systemd to end it",
    )
    wait_for(lambda: systemd.run(*asked).stdout == "403", "the ports again")
    assert systemd.run(installer).stdout.count("runs, unchanged") == 8
    assert systemd.run(installer, "--uninstall").returncode == 0
    for unit in ("transparent", "dns"):
        assert_nothing_is_left(systemd, unit)


COUNTED = """
version: 1
quotas: [{name: daily, tokens: 1000000, per: all, every: day}]
rules: [{name: model, action: allow, hosts: [127.0.0.1], ports: [8000], private: true, meter: tokens}]
"""
# of this machine, which the one in the view reaches
STORES = (
    "10.213.27.5",
    "10.213.27.9",
)


@pytest.mark.long
def test_with_systemd_what_counts_tokens_follows_the_address_of_the_store(
    base: Path, source: Path, tmp_path: Path
) -> None:
    gateway = Gateway(source, base / "counting", free_port())
    done = gateway.install(*gateway.listen, "--no-start", "--extras", "valkey")
    assert done.returncode == 0, done.stderr
    with booted(gateway, tmp_path) as machine:
        first, second = (
            ValkeyServer(base / address, address=address)
            for address in connected(machine)
        )
        use_store(machine, first.start())
        machine.path("/etc/squidkeeper/policy").mkdir()
        machine.path("/etc/squidkeeper/policy/counted.yaml").write_text(COUNTED)
        machine.run(
            "systemd-run", "--unit", "origin", "python3", "-m", "http.server", "8000"
        )
        done = machine.run(source / "install.sh", *gateway.listen, "--extras", "valkey")
        assert done.returncode == 0, done.stdout + done.stderr
        ask = (
            *STATUS_BY_CURL,
            "-x",
            gateway.listen[1],
            "http://127.0.0.1:8000/",
        )
        wait_for(lambda: machine.run(*ask).stdout == "200", "the origin")
        wait_for(lambda: first.command("keys", "*tokens:day:daily:all*"), "its count")
        assert "127.53.53.53:344 " in machine.run("ss", "-Hlun").stdout, (
            "where Squid says what it has not sent"
        )
        pid = property_of(machine, "MainPID", "bodies-1")
        use_store(machine, second.start())
        first.kill()
        wait_for(lambda: machine.run(*ask).stdout == "200", "the other server")
        wait_for(lambda: second.command("keys", "*tokens:day:daily:all*"), "its count")
        assert property_of(machine, "MainPID", "bodies-1") not in ("0", pid)
        second.kill()
        wait_for(
            lambda: machine.run(*ask).stdout == "403", "the denial without a server"
        )
        assert machine.run(source / "install.sh", "--uninstall").returncode == 0
    gateway.clear()


def connected(machine: Machine) -> tuple[str, str]:
    """Connect the network of a view to this machine's, on which servers can listen."""
    names = (
        "sk-store",
        "type",
        "veth",
        "peer",
        "name",
        "sk-view",
        "netns",
        str(machine.process),
    )
    subprocess.run(["ip", "link", "add", *names], check=True)
    for address in STORES:
        subprocess.run(
            ["ip", "address", "add", f"{address}/28", "dev", "sk-store"], check=True
        )
    subprocess.run(["ip", "link", "set", "sk-store", "up"], check=True)
    for words in (
        "link set lo up",
        "address add 10.213.27.2/28 dev sk-view",
        "link set sk-view up",
    ):
        assert machine.run("ip", *words.split()).returncode == 0
    return STORES


def use_store(machine: Machine, server: ValkeyServer) -> None:
    """Write the settings of a gateway that counts there, in one step."""
    folder = machine.path("/etc/squidkeeper")
    folder.mkdir(exist_ok=True)
    text = server.write_settings(
        folder, "deny", gateways=2, user=GATEWAYS[0]
    ).read_text()
    assert server.ca
    shutil.copy(server.ca, folder / "store.crt")
    text = text.replace(str(server.ca), "/etc/squidkeeper/store.crt").replace(
        str(folder), "/etc/squidkeeper"
    )
    (folder / "quota-store.yaml").write_text(text)
    for name in ("quota-store.yaml", "quota-store.password", "store.crt"):
        shutil.chown(
            folder / name,
            "root",
            grp.getgrgid(pwd.getpwnam(squid_account()).pw_gid).gr_name,
        )
        (folder / name).chmod(0o640)


def property_of(machine: Machine, names: str, service: str = "exporter") -> str:
    """Properties of a service, in the order that they are asked for."""
    asked = [
        machine.run(
            "systemctl", "show", "--property", name, "--value", f"squidkeeper-{service}"
        )
        for name in names.split()
    ]
    return " ".join(done.stdout.strip() for done in asked)
