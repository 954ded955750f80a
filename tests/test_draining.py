"""A gateway is drained by a file in its run folder; its open connections are counted in the kernel's tables."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.drained import FILE, drain, drained_since, undrain
from squidkeeper.setup import draining
from squidkeeper.setup.draining import open_connections, wait_until_idle


def test_a_gateway_is_drained_once_and_until_that_is_cancelled(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert drained_since(run) is None
    assert drain(run)
    assert drained_since(run) == (run / FILE).stat().st_mtime
    assert not drain(run)
    assert undrain(run)
    assert not undrain(run)
    assert drained_since(run) is None


def test_a_link_that_squids_account_has_planted_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / FILE).symlink_to(target)
    assert not drain(tmp_path), "it counts as drained"
    assert not target.exists()
    assert drained_since(tmp_path) is not None
    assert undrain(tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_open_connections_are_those_to_the_port_on_its_address(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as opened:
        try:
            server = opened.enter_context(socket.create_server((host, 0), family=family))
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = server.getsockname()[1]
        listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert open_connections(listen) == 0
        for _ in range(2):
            opened.enter_context(socket.create_connection((host, port)))
            opened.enter_context(server.accept()[0])
        assert [open_connections(one) for one in (listen, str(port), f"0.0.0.0:{port}")] == [2, 2, 2]
        assert open_connections(f"127.0.0.9:{port}") == 0


def test_a_client_of_ipv4_counts_where_both_protocols_are_listened_to() -> None:
    with ExitStack() as opened:
        try:
            server = opened.enter_context(
                socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=socket.has_dualstack_ipv6())
            )
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = server.getsockname()[1]
        opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        opened.enter_context(server.accept()[0])
        assert [open_connections(one) for one in (str(port), f"127.0.0.1:{port}")] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--for", "10"], "'10' is not a duration, expected one such as 30s, 10m or 2h"),
        (["--cancel", "--stop"], "--cancel and --stop exclude each other"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["drain", *options])
    assert done.exit_code == 2
    assert message in done.output


def test_a_folder_without_a_gateway_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["drain", "--root", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{tmp_path}/etc/squid.conf: No such file or directory: name the gateway by --root DIR" in done.output
    assert not (tmp_path / "run").exists()


def test_an_idle_gateway_waits_until_a_load_balancer_has_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAProxy asks each second, and believes the third bad answer."""
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(draining, "open_connections", lambda _: 0)
    assert wait_until_idle("3129", 60, lambda _: None) == 0
    assert now[0] - 100 > 3
