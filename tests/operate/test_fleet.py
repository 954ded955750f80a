"""The file of a fleet, and HAProxy's configuration that is made of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import FleetFailed
from squidkeeper.base.formatting import substitute
from squidkeeper.cli import main
from squidkeeper.operate.fleet import installation
from squidkeeper.operate.fleet.fleet_file import FleetGateway, read_fleet
from squidkeeper.operate.fleet.installation import MARK, BalancerPaths, render
from squidkeeper.operate.setup.configuration import substitute_once
from squidkeeper.operate.setup.machine import HAPROXY
from tests.ports import free_port
from tests.waiting import wait_for

FLEET = """\
version: 1
haproxy:
  addresses: [10.0.0.5, "fd00::5"]
gateways:
  - {name: gw-1, address: 10.0.0.11}
  - {name: gw-2, address: "fd00::12", port: 3130, health_port: 9131}
"""
with_haproxy = pytest.mark.skipif(not HAPROXY.exists(), reason="needs HAProxy")


def written(folder: Path, text: str) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(text)
    return file


def test_a_fleet_has_its_gateways_and_the_usual_ports(tmp_path: Path) -> None:
    fleet = read_fleet(written(tmp_path, FLEET))
    assert fleet.gateways == (
        FleetGateway("gw-1", "10.0.0.11", 3129, 9130),
        FleetGateway("gw-2", "fd00::12", 3130, 9131),
    )
    assert (fleet.addresses, fleet.listen) == (("10.0.0.5", "fd00::5"), "3129")
    assert (fleet.certificate, fleet.connections_per_client) == ("", 2048)


def test_a_machine_with_ipv4_and_ipv6_does_not_have_all_descriptors_of_a_worker(
    tmp_path: Path,
) -> None:
    """It is up to three clients, with as many connections each, wherever they are
    counted.
    """
    squid = Path(__file__).parents[2] / "squid"
    places = {
        "squid.conf": r"^client_ip_max_connections (\d+)$",
        "haproxy.cfg": r"sc0_conn_cur gt (\d+) ",
        "INSTALL.md": r" ct count over (\d+) ",
        "FLEET.md": r"^  connections_per_client: (\d+)$",
    }
    most = {
        name: re.findall(text, (squid / name).read_text(), re.MULTILINE)
        for name, text in places.items()
    }
    default = read_fleet(written(tmp_path, FLEET)).connections_per_client
    assert most == {name: [str(default)] for name in places}
    [descriptors] = re.findall(
        r"^max_filedescriptors (\d+)$", (squid / "squid.conf").read_text(), re.MULTILINE
    )
    assert 3 * default * 2 < int(descriptors) * 0.8


@pytest.mark.system
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "version: 1",
            "version: 2",
            "fleet.yaml: version: expected 1: squid/FLEET.md has an example",
        ),
        (
            "version: 1\n",
            "",
            "fleet.yaml: version: expected 1: squid/FLEET.md has an example",
        ),
        (
            FLEET,
            "",
            "fleet.yaml: expected version, haproxy and gateways: squid/FLEET.md has an example",
        ),
        (
            "addresses",
            "adresses",
            "haproxy: unknown field 'adresses', expected addresses, and if needed listen, ",
        ),
        (
            '[10.0.0.5, "fd00::5"]',
            "[]",
            "haproxy.addresses: expected at least one address of HAProxy, as gateways",
        ),
        (
            "10.0.0.5",
            "5",
            "haproxy.addresses[0]: expected at least one address of HAProxy, as gateways see it, such",
        ),
        (
            "name: gw-1, ",
            "",
            "gateways[0].name: expected letters, digits and . _ -, such as gw-1: squid/FLEET.md has",
        ),
        (
            "{name: gw-1, address: 10.0.0.11}",
            "gw-1",
            "gateways[0]: expected at least one, such as {name: gw-1",
        ),
        (
            "port: 3130",
            "prot: 3130",
            "gateways[1]: unknown field 'prot', expected at least one, such as",
        ),
        (
            "gw-1,",
            "[,",
            "fleet.yaml: expected YAML: while parsing a flow node did not find expected node content at",
        ),
        (
            "address: 10.0.0.11",
            "address: gw.example",
            "gateways[0].address: 'gw.example' is not an address, expected",
        ),
        (
            "address: 10.0.0.11",
            'address: "fe80::1%eth0"',
            "has a zone, expected an address without",
        ),
        (
            "name: gw-1",
            "name: gw 1",
            "gateways[0].name: 'gw 1': expected letters, digits and . _ -, such as gw-1",
        ),
        (
            "name: gw-1",
            'name: "gw\\n  server evil 192.0.2.1:80"',
            "gateways[0].name: 'gw\\n  server evil",
        ),
        (
            "name: gw-1",
            "name: gw-2",
            "gateways[1].name: 'gw-2' is taken by 'gw-2': choose another",
        ),
        (
            "address: 10.0.0.11",
            'address: "fd00::12", port: 3130',
            "[fd00::12]:3130 is that of 'gw-1' already",
        ),
        (
            "port: 3130",
            "workers: 0",
            "gateways[1].workers: expected a number from 1 to 16, as install.sh --workers",
        ),
        (
            "port: 3130",
            "port: 70000",
            "gateways[1].port: expected a port from 1 to 65535: squid/FLEET.md has",
        ),
        (
            "gateways:",
            "  listen: 10.0:3129x\ngateways:",
            "haproxy.listen: '10.0:3129x': expected PORT, ADDRESS:PORT",
        ),
        (
            "gateways:",
            "  listen: 999.0.0.1:3129\ngateways:",
            "haproxy.listen: '999.0.0.1' is not an address",
        ),
        (
            "gateways:",
            '  certificate: "/a b"\ngateways:',
            "haproxy.certificate: expected an absolute path",
        ),
        ("5, ", "5, 10.0.0.x, ", "haproxy.addresses[1]: '10.0.0.x' is not an address"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in FLEET
    with pytest.raises(FleetFailed, match=re.escape(message)):
        read_fleet(written(tmp_path, FLEET.replace(old, new, 1)))


@pytest.mark.system
@with_haproxy
@pytest.mark.parametrize(
    ("listen", "binds"),
    [
        ("3129", ["0.0.0.0:3129", "[::]:3129 v6only"]),
        ("10.0.0.5:3130", ["10.0.0.5:3130"]),
        ("'[fd00::5]:3130'", ["[fd00::5]:3130"]),
    ],
)
def test_haproxy_accepts_the_configuration(
    tmp_path: Path, listen: str, binds: list[str]
) -> None:
    text = FLEET.replace(
        "gateways:", f"  listen: {listen}\n  connections_per_client: 100\ngateways:"
    )
    cfg = tmp_path / "haproxy.cfg"
    cfg.write_text(render(read_fleet(written(tmp_path, text))))
    done = subprocess.run(
        [HAPROXY, "-c", "-f", cfg], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    made = cfg.read_text()
    assert re.findall("^    bind (.*)", made, re.MULTILINE) == binds
    assert re.findall("^    server (.*) id [0-9]+ (.*)", made, re.MULTILINE) == [
        ("gw-1 10.0.0.11:3129", "port 9130"),
        ("gw-2 [fd00::12]:3130", "port 9131"),
    ]
    assert "sc0_conn_cur gt 100 }" in made


@pytest.mark.parametrize(
    ("workers", "connections", "descriptors"),
    [("1", 32_000, 132_000), ("4", 80_000, 330_000), ("16", 272_000, 10**6)],
)
def test_haproxy_takes_as_many_connections_as_the_workers(
    tmp_path: Path, workers: str, connections: int, descriptors: int
) -> None:
    text = FLEET.replace("port: 3130", f"port: 3130, workers: {workers}")
    text = text.replace("gateways:", "  certificate: /etc/haproxy/gw.pem\ngateways:")
    made = render(read_fleet(written(tmp_path, text)))
    assert re.findall("^    maxconn (.*)", made, re.MULTILINE) == [str(connections)] * 2
    assert f"fd-hard-limit {descriptors}\n" in made


def test_haproxy_takes_a_proxy_header_from_its_own_socket_alone(tmp_path: Path) -> None:
    text = FLEET.replace("gateways:", "  certificate: /etc/haproxy/gw.pem\ngateways:")
    binds = re.findall(
        "^    bind (.*)", render(read_fleet(written(tmp_path, text))), re.MULTILINE
    )
    taking = [bind for bind in binds if "accept-proxy" in bind]
    socket = "unix@/var/lib/haproxy/squidkeeper-tls.sock mode 600 user haproxy"
    assert taking == [
        f"{socket} accept-proxy ssl crt /etc/haproxy/gw.pem alpn http/1.1"
    ]
    assert not re.search(
        "accept-proxy|frontend tls|>>>|<<<",
        render(read_fleet(written(tmp_path, FLEET))),
    )


def test_no_value_of_a_fleet_is_taken_for_a_part_of_the_configuration(
    tmp_path: Path,
) -> None:
    """The names and paths are texts of the templates; they stand wherever others stand,
    and as they are.
    """
    hostile = {
        "gw-1": "NAME",
        "gw-2": "maxconn",
        "/plain.pem": "/var/lib/haproxy/server.pem",
        "/plain.state": "/x/var/lib/haproxy",
    }
    text = FLEET.replace("gateways:", "  certificate: /plain.pem\ngateways:")
    made = render(
        read_fleet(written(tmp_path, substitute(text, hostile))),
        Path(hostile["/plain.state"]),
    )
    ids = {
        name: str(FleetGateway(name, "10.0.0.1", 1, 1).id)
        for name in ("gw-1", "gw-2", "NAME", "maxconn")
    }
    hostile |= {ids["gw-1"]: ids["NAME"], ids["gw-2"]: ids["maxconn"]}
    assert made == substitute(
        render(read_fleet(written(tmp_path, text)), Path("/plain.state")), hostile
    )


@pytest.mark.system
@settings(max_examples=50)
@given(
    st.lists(
        st.from_regex(r"gw-[a-z0-9]{1,8}", fullmatch=True),
        min_size=2,
        max_size=20,
        unique=True,
    )
)
def test_a_gateway_keeps_its_place_whatever_others_there_are(names: list[str]) -> None:
    ids = [FleetGateway(name, "10.0.0.1", 1, 1).id for name in names]
    assert ids == [FleetGateway(name, "10.0.0.2", 2, 2).id for name in names]
    assert all(0 < number <= 0x7FFFFFFF for number in ids)


# ── The command ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def paths(tmp_path: Path) -> BalancerPaths:
    return BalancerPaths(tmp_path / "haproxy.cfg", tmp_path, tmp_path / "haproxy.pid")


def good_text(port: int) -> str:
    """A fleet that HAProxy can take clients for on this machine."""
    return FLEET.replace("gateways:", f"  listen: 127.0.0.1:{port}\ngateways:")


def setup(paths: BalancerPaths, file: Path, *options: str) -> tuple[int, str]:
    places = (
        "--haproxy-cfg",
        paths.cfg,
        "--haproxy-state",
        paths.state,
        "--haproxy-pid",
        paths.pid_file,
    )
    done = CliRunner().invoke(
        main, ["setup", "--fleet", str(file), *map(str, places), *options]
    )
    return done.exit_code, done.output


@pytest.mark.system
@with_haproxy
def test_a_dry_run_prints_the_configuration_and_writes_nothing(
    tmp_path: Path, paths: BalancerPaths
) -> None:
    status, said = setup(paths, written(tmp_path, FLEET), "--dry-run")
    assert (status, said) == (0, render(read_fleet(tmp_path / "fleet.yaml"), tmp_path))
    assert not paths.cfg.exists()


@pytest.mark.system
@with_haproxy
def test_the_configuration_is_put_in_place_once_and_yours_is_kept(
    tmp_path: Path, paths: BalancerPaths
) -> None:
    paths.cfg.write_text("global\n")
    status, said = setup(paths, written(tmp_path, FLEET))
    assert status == 0
    assert paths.former_cfg.read_text() == "global\n"
    assert paths.cfg.read_text().startswith(MARK)
    assert paths.cfg.stat().st_mode & 0o777 == 0o644
    assert said.splitlines()[-2:] == [
        "  sudo ./install.sh --behind 10.0.0.5,fd00::5 --gateway gw-1 --listen 10.0.0.11:3129 --ca-dir DIR",
        "  sudo ./install.sh --behind 10.0.0.5,fd00::5 --gateway gw-2 --listen [fd00::12]:3130"
        " --health-listen [fd00::12]:9131 --ca-dir DIR",
    ]
    status, said = setup(paths, written(tmp_path, FLEET))
    assert (status, f"unchanged: {paths.cfg}" in said) == (0, True)
    setup(paths, written(tmp_path, FLEET.replace("10.0.0.11", "10.0.0.13")))
    assert "10.0.0.13:3129" in paths.cfg.read_text()
    assert paths.former_cfg.read_text() == "global\n"


@pytest.mark.system
@with_haproxy
@pytest.mark.parametrize("fails", [False, True])
def test_the_distributions_service_is_reloaded_and_a_failure_puts_the_former_configuration_back(
    tmp_path: Path, paths: BalancerPaths, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """With a systemctl of the test's own: no service of this machine is touched."""
    told = tmp_path / "told"
    program = tmp_path / "systemctl"
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{told}\n! grep -q {"reload" if fails else "never"} {told}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(BalancerPaths, "is_of_the_service", True)
    monkeypatch.setattr(installation, "uses_systemd", lambda _: True)
    paths.cfg.write_text("global\n")
    status, said = setup(paths, written(tmp_path, FLEET))
    reload = "reload-or-restart haproxy"
    assert told.read_text().splitlines() == [
        "enable --quiet haproxy",
        *([reload, reload] if fails else [reload]),
    ]
    assert status == (1 if fails else 0)
    assert ("this failed: systemctl reload-or-restart haproxy" in said) is fails
    assert paths.cfg.read_text().startswith("global" if fails else MARK)
    if not fails:
        told.unlink()
        status, said = setup(paths, tmp_path / "fleet.yaml")
        assert (
            status,
            f"unchanged, and HAProxy runs with it: {paths.cfg}" in said,
        ) == (0, True)
        assert told.read_text().splitlines() == ["is-active --quiet haproxy"], (
            "it is not reloaded"
        )


@pytest.mark.system
@with_haproxy
@pytest.mark.parametrize(("days", "warns"), [(29, True), (31, False)])
def test_a_certificate_that_expires_soon_is_a_warning(
    tmp_path: Path, paths: BalancerPaths, days: int, warns: bool
) -> None:
    file = str(tmp_path / "own.pem")
    request = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    )
    subprocess.run(
        [
            *request,
            "-subj",
            "/CN=x",
            "-days",
            str(days),
            "-keyout",
            file,
            "-out",
            f"{file}.crt",
        ],
        check=True,
    )
    Path(file).write_text(Path(file).read_text() + Path(f"{file}.crt").read_text())
    fleet = written(
        tmp_path, FLEET.replace("gateways:", f"  certificate: {file}\ngateways:")
    )
    status, said = setup(paths, fleet, "--dry-run")
    assert (status, f"{file} expires at 20" in said) == (0, warns), said


@pytest.mark.system
@with_haproxy
def test_a_configuration_that_haproxy_refuses_changes_nothing(
    tmp_path: Path, paths: BalancerPaths
) -> None:
    paths.cfg.write_text("global\n")
    text = FLEET.replace("gateways:", f"  certificate: {tmp_path}/none.pem\ngateways:")
    status, said = setup(paths, written(tmp_path, text))
    assert status == 1
    assert f"haproxy.certificate: {tmp_path}/none.pem: there is no such file" in said
    (tmp_path / "none.pem").write_text("no certificate\n")
    status, said = setup(paths, written(tmp_path, text))
    assert status == 1
    assert "unable to load certificate from file" in said
    assert paths.cfg.read_text() == "global\n"


@with_haproxy
@pytest.mark.system
def test_what_haproxy_cannot_listen_on_fails_and_puts_the_former_configuration_back(
    paths: BalancerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes `haproxy -c`, and HAProxy's master goes on with the worker
    that it has.
    """
    monkeypatch.setattr(installation, "_RELOAD_SECONDS", 3.0)
    folder, port = paths.cfg.parent, free_port()
    assert setup(paths, written(folder, good_text(port)))[0] == 0
    before = paths.cfg.read_text()
    with (folder / "log.txt").open("wb") as out:
        command: list[str | Path] = [
            HAPROXY,
            "-W",
            "-db",
            "-p",
            paths.pid_file,
            "-f",
            paths.cfg,
        ]
        haproxy = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        wait_for(lambda: installation._worker(paths), "HAProxy")
        status, said = setup(
            paths,
            written(
                folder,
                FLEET.replace("gateways:", "  listen: 203.0.113.99:3129\ngateways:"),
            ),
        )
        assert status == 1
        assert (
            "HAProxy was reloaded, and does not serve by the new configuration\n  to do: does this machine"
            in said
        )
        assert "reloaded: process" not in said
        assert paths.cfg.read_text() == before
        limit = "  connections_per_client: 5\ngateways:"
        status, said = setup(
            paths, written(folder, good_text(port).replace("gateways:", limit))
        )
        assert (status, f"reloaded: process {haproxy.pid}" in said) == (0, True), said
        assert paths.cfg.read_text() != before
    finally:
        haproxy.terminate()
        haproxy.wait(30)


def test_a_file_that_is_missing_is_told_and_without_one_the_command_names_install_sh(
    tmp_path: Path, paths: BalancerPaths
) -> None:
    status, said = setup(paths, tmp_path / "none.yaml")
    expected = "expected a readable file with HAProxy's addresses and the gateways: squid/FLEET.md has an example"
    assert (status, said) == (
        1,
        f"{tmp_path}/none.yaml: No such file or directory: {expected}\n",
    )
    done = CliRunner().invoke(main, ["setup"])
    assert (
        done.exit_code,
        "a gateway is installed by ./install.sh" in done.output,
    ) == (2, True)


def test_beside_a_fleet_what_it_does_not_use_is_refused(
    tmp_path: Path, paths: BalancerPaths
) -> None:
    file = written(tmp_path, FLEET)
    status, said = setup(
        paths, file, "--listen", "3129", "--root", str(tmp_path), "--no-tls"
    )
    assert status == 2
    assert (
        "--fleet does not use --listen, --no-tls, --root: only --dry-run can stand beside it"
        in said
    )
    assert not paths.cfg.exists()


def test_it_is_removed_by_hand(tmp_path: Path, paths: BalancerPaths) -> None:
    paths.cfg.write_text(MARK)
    status, said = setup(paths, written(tmp_path, FLEET), "--uninstall")
    assert status == 2
    told = " ".join(said.split())
    assert (
        "put haproxy.cfg.before-squidkeeper back as /etc/haproxy/haproxy.cfg and run `systemctl reload"
        in told
    )
    assert paths.cfg.read_text() == MARK


def test_the_fleet_of_the_documentation_is_read(tmp_path: Path) -> None:
    documented = (Path(__file__).parents[2] / "squid/FLEET.md").read_text()
    [text] = re.findall(
        r"^```yaml\n(# fleet\.yaml\n.*?)^```$", documented, re.MULTILINE | re.DOTALL
    )
    assert [
        gateway.name for gateway in read_fleet(written(tmp_path, text)).gateways
    ] == ["gw-1", "gw-2", "gw-3"]


@pytest.mark.parametrize("template", ["maxconn 5\n", "bind a\nbind a\n"])
def test_a_template_that_lacks_a_text_or_has_it_twice_is_a_fault(template: str) -> None:
    with pytest.raises(
        ValueError, match=r"a template has 'bind a' \d times, expected once"
    ):
        substitute_once(template, {"bind a": "bind b"})


def test_the_template_is_the_one_of_a_gateway_with_tls() -> None:
    """Both are made of one file: what clients meet is the same."""
    repository = Path(__file__).parents[2]
    assert (repository / "squid/haproxy.cfg").readlink() == Path(
        "../helpers/squidkeeper/operate/setup/haproxy.cfg"
    )
