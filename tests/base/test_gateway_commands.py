"""Commands in pages, runbooks and advice are those of the gateway that they are about."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from squidkeeper.base.gateway_commands import FILES, OPTIONS, PLACES, command, with_commands
from squidkeeper.base.layout import Layout
from squidkeeper.cli import main
from squidkeeper.operate.setup.error_pages import files

REPOSITORY = Path(__file__).parents[2]
USUAL = Layout.of(None)
ROOT = Layout.of(Path("/srv/gw"))
LOG = "/srv/gw/log/access.log*"
POLICY, STATE, RUN = "--policy /srv/gw/etc/policy", "--state /srv/gw/state", "--run /srv/gw/run"
LINES = "--fragment /srv/gw/etc/squidkeeper.conf"
SQUID = f"squid -n {ROOT.squid_service} -f /srv/gw/etc/squid.conf"


def command_called(name: str) -> click.Command:
    found: click.Command = main
    for word in name.split():
        assert isinstance(found, click.Group)
        [found] = filter(None, [found.get_command(click.Context(found), word)])
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_each_command_gets_every_option_that_it_has_for_a_place(name: str) -> None:
    taken = {option for one in command_called(name).params for option in one.opts}
    names_logs = {"files", "given"} & taken  # FILEs; the archive is read with them where it is named
    unused = {"--access-log"} if name == "reload" else set()  # with --judge
    assert {*OPTIONS[name]} == (taken & PLACES.keys()) - unused | ({FILES} if names_logs else set())


def test_texts_are_for_the_gateway_of_the_system() -> None:
    for text in [(REPOSITORY / "squid/observe/alerts.yaml").read_text(), *dict(files()).values()]:
        assert with_commands(text, USUAL) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("`squidkeeper check`", f"`/srv/gw/bin/squidkeeper check {POLICY} {STATE} {LINES}`"),
        ("sudo squidkeeper explain --client", f"sudo /srv/gw/bin/squidkeeper explain {POLICY} {LINES} --client"),
        ("sudo squidkeeper why 1.2.3", f"sudo /srv/gw/bin/squidkeeper why {POLICY} {STATE} {RUN} {LOG} 1.2.3"),
        ("`squidkeeper log --since 1h`", f"`/srv/gw/bin/squidkeeper log {POLICY} {STATE} {LOG} --since 1h`"),
        ("`squidkeeper log --drift FILE`", f"`/srv/gw/bin/squidkeeper log {POLICY} {STATE} --drift FILE`"),
        ("squidkeeper quota shows", f"/srv/gw/bin/squidkeeper quota {POLICY} {STATE} shows"),
        (
            "squidkeeper ask approve x",
            f"/srv/gw/bin/squidkeeper ask approve {POLICY} {STATE} --access-log {ROOT.access_log} x",
        ),
        ("`squidkeeper drain --cancel`", "`/srv/gw/bin/squidkeeper drain --root /srv/gw --cancel`"),
        ("`squidkeeper pull --once`", f"`/srv/gw/bin/squidkeeper pull {POLICY} {STATE}"
         " --config /srv/gw/etc/pull.yaml --folder /srv/gw/pulled --once`"),
        ("`./install.sh --log-bytes SIZE`", "`./install.sh --root /srv/gw --log-bytes SIZE`"),
        ("`squid -k reconfigure`", f"`{SQUID} -k reconfigure`"),
        ("`systemctl status squid`", '`ps -fp "$(cat /srv/gw/run/squid.pid)"`'),
        ("`systemctl stop squid`", '`kill "$(cat /srv/gw/squid-supervisor.pid)"`'),
        ("`systemctl restart squid`", "`./install.sh --root /srv/gw`"),
        ("`systemctl status squidkeeper-export`", '`ps -fp "$(cat /srv/gw/state/export/export.pid)"`'),
        ("`systemctl restart squidkeeper-tls`", '`pkill -P "$(cat /srv/gw/run/tls.pid)"`'),
        ("`journalctl -u squidkeeper-maintenance -n 50`", "`tail -n 50 /srv/gw/log/maintenance.log`"),
        ("`journalctl -u squidkeeper-pull`", "`cat /srv/gw/pulled/pull.log`"),
        ("`squidkeeper probe`, squidkeeper-exporter", "`squidkeeper probe`, squidkeeper-exporter"),
        ("/opt/squidkeeper/bin/squidkeeper check", "/opt/squidkeeper/bin/squidkeeper check"),
    ],
)  # fmt: skip
def test_below_a_root_each_command_names_its_places(text: str, written: str) -> None:
    assert with_commands(text, ROOT) == written


def test_options_for_usual_places_are_left_out() -> None:
    assert command("check", USUAL, "/my gateway/bin/squidkeeper") == "'/my gateway/bin/squidkeeper' check"
    elsewhere = Layout.around(Path("/my policy"), USUAL.state, access_log=Path("/my log"))
    assert command("log", elsewhere) == "squidkeeper log --policy '/my policy' '/my log'*"
    assert with_commands("`systemctl status squid`", elsewhere) == "`systemctl status squid`"


def test_a_policy_and_a_state_below_one_root_tell_the_gateway() -> None:
    assert Layout.around(ROOT.policy, ROOT.state) == ROOT
    assert Layout.around(USUAL.policy, USUAL.state) == USUAL
    assert Layout.around(ROOT.policy, USUAL.state).root is None
