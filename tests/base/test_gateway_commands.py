"""Commands in pages, runbooks and advice are those of the gateway that they
are about.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from squidkeeper.base import gateway_commands, places
from squidkeeper.base.gateway_commands import (
    FILES,
    OPTIONS,
    PLACES,
    command,
    with_commands,
)
from squidkeeper.base.layout import Layout
from squidkeeper.base.places import own_root
from squidkeeper.cli import main
from squidkeeper.configuration.error_pages import files

REPOSITORY = Path(__file__).parents[2]
USUAL = Layout.of(None)
ROOT = Layout.of(Path("/srv/gw"))
SQUID = f"squid -n {ROOT.squid_service} -f /srv/gw/etc/squid.conf"


def command_called(name: str) -> click.Command:
    found: click.Command = main
    for word in name.split():
        assert isinstance(found, click.Group)
        [found] = filter(None, [found.get_command(click.Context(found), word)])
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_each_command_gets_every_option_that_it_has_for_a_place(name: str) -> None:
    taken = {
        option for parameter in command_called(name).params for option in parameter.opts
    }
    names_logs = {
        "files",
        "given",
    } & taken  # FILEs; the archive is read with them where it is named
    unused = {"--access-log"} if name == "reload" else set()  # with --judge
    assert {*OPTIONS[name]} == (taken & PLACES.keys()) - unused | (
        {FILES} if names_logs else set()
    )


def test_texts_are_for_the_gateway_of_the_system() -> None:
    for text in [
        (REPOSITORY / "squid/observe/alerts.yaml").read_text(),
        *dict(files()).values(),
    ]:
        assert with_commands(text, USUAL) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("sudo squidkeeper why 1.2.3", "sudo /srv/gw/bin/squidkeeper why 1.2.3"),
        ("squidkeeper ask approve x", "/srv/gw/bin/squidkeeper ask approve x"),
        ("`squidkeeper pull --once`", "`/srv/gw/bin/squidkeeper pull --once`"),
        ("`./install.sh --log-bytes SIZE`", "`./install.sh --root /srv/gw --log-bytes SIZE`"),
        ("`squid -k reconfigure`", f"`{SQUID} -k reconfigure`"),
        ("`systemctl status squid`", "`pgrep -af /srv/gw/etc/squid.conf`"),
        ("`systemctl start squid`", "`./install.sh --root /srv/gw`"),
        ("`dig @127.53.53.53 NAME`", f"`dig @{ROOT.resolver} NAME`"),
        ("`systemctl stop squid`", '`kill "$(cat /srv/gw/squid-supervisor.pid)"`'),
        ("`systemctl restart squid`", "`./install.sh --root /srv/gw`"),
        ("`systemctl status squidkeeper-export`", "`pgrep -af /srv/gw/etc/squidkeeper-export.service`"),
        ("systemctl restart squidkeeper-tls", 'pkill -P "$(cat /srv/gw/run/tls.pid)" || ./install.sh --root /srv/gw'),
        ("`systemctl restart 'squidkeeper-bodies-*'`", "`./install.sh --root /srv/gw`"),
        ("`journalctl -u squidkeeper-bodies-1`", "`cat /srv/gw/state/bodies/bodies-1.log`"),
        ("`journalctl -u squidkeeper-maintenance -n 50`", "`tail -n 50 /srv/gw/log/maintenance.log`"),
        ("`journalctl -u squidkeeper-tls`, or tls.log.", "`cat /srv/gw/log/tls.log`."),
        ("`journalctl -u squidkeeper-dns`, or dns.log in the run folder.", "`cat /srv/gw/run/dns.log`."),
        ("`journalctl -u squidkeeper-pull`", "`cat /srv/gw/pulled/pull.log`"),
        ("`squidkeeper probe`, squidkeeper-exporter", "`squidkeeper probe`, squidkeeper-exporter"),
        ("/opt/squidkeeper/bin/squidkeeper check", "/opt/squidkeeper/bin/squidkeeper check"),
    ],
)  # fmt: skip
def test_below_a_root_each_command_is_of_its_program(text: str, written: str) -> None:
    assert with_commands(text, ROOT) == written


def test_without_systemd_the_systems_gateway_has_commands_of_its_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_commands, "uses_systemd", lambda _: False)
    text = "`systemctl status squid`, `systemctl start squid`, `squid -k parse`"
    assert (
        with_commands(text, USUAL)
        == "`pgrep -af /etc/squid/squid.conf`, `./install.sh`, `squid -k parse`"
    )


def test_options_for_usual_places_are_left_out() -> None:
    assert (
        command("check", USUAL, "/my gateway/bin/squidkeeper")
        == "'/my gateway/bin/squidkeeper' check"
    )
    elsewhere = Layout.around(
        Path("/my policy"), USUAL.state, access_log=Path("/my log")
    )
    assert (
        command("log", elsewhere) == "squidkeeper log --policy '/my policy' '/my log'*"
    )
    assert (
        with_commands("`squidkeeper log FILE`", elsewhere)
        == "`squidkeeper log --policy '/my policy' FILE`"
    )
    assert (
        with_commands("`systemctl status squid`", elsewhere)
        == "`systemctl status squid`"
    )


def test_a_policy_and_a_state_below_one_root_tell_the_gateway() -> None:
    assert Layout.around(ROOT.policy, ROOT.state) == ROOT
    assert Layout.around(USUAL.policy, USUAL.state) == USUAL
    assert Layout.around(ROOT.policy, USUAL.state).root is None


@pytest.mark.parametrize(
    "called", ["bin/squidkeeper", "venv-1/lib/squidkeeper/__main__.py"]
)
@pytest.mark.parametrize(
    ("place", "target", "root"),
    [("gw", "../venv-1", "gw"), ("opt", "../venv-1", None), ("x", "/x", None)],
)
def test_a_program_knows_the_root_that_it_was_installed_in(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    called: str,
    place: str,
    target: str,
    root: str | None,
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / place / "venv-1"))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / place / called)])
    (tmp_path / place / "bin").mkdir(parents=True)
    (tmp_path / place / "bin/squidkeeper").symlink_to(f"{target}/bin/squidkeeper")
    if place == "opt":
        monkeypatch.setattr(places, "PREFIX", tmp_path / "opt")
    assert own_root() == (root and tmp_path / root)
