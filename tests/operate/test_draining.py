"""A gateway is drained by a file in its run folder; who listens where is read in the
kernel's tables.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.base.layout import Layout
from squidkeeper.cli import main
from squidkeeper.operate.setup.sockets import (
    has_ended,
    is_free,
    open_connections,
    process_listens,
    wait_until,
    wait_until_idle,
)
from squidkeeper.serving.drained import FILE, drain, drained_since, undrain


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


@pytest.mark.system
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_open_connections_are_those_to_the_port_on_its_address(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as opened:
        try:
            server = opened.enter_context(
                socket.create_server((host, 0), family=family)
            )
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = server.getsockname()[1]
        listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert open_connections(listen) == 0
        for _ in range(2):
            opened.enter_context(socket.create_connection((host, port)))
            opened.enter_context(server.accept()[0])
        assert [
            open_connections(place) for place in (listen, str(port), f"0.0.0.0:{port}")
        ] == [2, 2, 2]
        assert open_connections(f"127.0.0.9:{port}") == 0


@pytest.mark.system
def test_a_client_of_ipv4_counts_where_both_protocols_are_listened_to() -> None:
    with ExitStack() as opened:
        try:
            server = opened.enter_context(
                socket.create_server(
                    ("::", 0),
                    family=socket.AF_INET6,
                    dualstack_ipv6=socket.has_dualstack_ipv6(),
                )
            )
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = server.getsockname()[1]
        opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        opened.enter_context(server.accept()[0])
        assert [
            open_connections(place) for place in (str(port), f"127.0.0.1:{port}")
        ] == [1, 1]


@pytest.mark.system
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--for", "10"],
            "'10' is not a duration, expected one such as 30s, 10m or 2h",
        ),
        (["--for", "7d"], "'7d' is not a duration"),
        (["--cancel", "--stop"], "--cancel and --stop exclude each other"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], message: str
) -> None:
    done = CliRunner().invoke(main, ["drain", *options])
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize("options", [[], ["--stop"], ["--cancel"]])
def test_without_a_gateway_nothing_is_drained_stopped_or_made(
    tmp_path: Path, options: list[str]
) -> None:
    """A squid.conf alone is the distribution's: this Squid is not ours to stop."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/squid.conf").write_text("http_port 3128\n")
    done = CliRunner().invoke(main, ["drain", "--root", str(tmp_path), *options])
    missing = f"there is neither {tmp_path}/etc/squidkeeper.conf nor {tmp_path}/bin/squidkeeper"
    assert done.exit_code == 2
    assert (
        f"squidkeeper is not installed: {missing}: name the gateway by --root DIR\n"
        in done.output
    )
    assert os.listdir(tmp_path) == ["etc"]


def test_a_gateway_that_cannot_be_drained_is_told_from_one_that_is_not_idle(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/squidkeeper.conf").touch()
    for problem in (
        f"{tmp_path}/etc/squid.conf: No such file or directory",
        "has no http_port",
    ):
        done = CliRunner().invoke(main, ["drain", "--root", str(tmp_path)])
        assert (done.exit_code, problem in done.output) == (2, True)
        (tmp_path / "etc/squid.conf").touch()
    assert drained_since(tmp_path / "run") is None


def test_cancelling_says_that_squid_is_stopped_and_how_to_start_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/squidkeeper.conf").touch()
    assert drain(tmp_path / "run")
    layout = Layout.of(tmp_path)
    command = layout.install_command
    for before in ("the gateway is no longer drained", "the gateway was not drained"):
        done = CliRunner().invoke(main, ["drain", "--root", str(tmp_path), "--cancel"])
        assert (
            done.output
            == f"{before}, but Squid is stopped and serves nobody: start it by `{command}`\n"
        )


@pytest.mark.system
def test_an_idle_gateway_waits_until_a_load_balancer_has_noticed() -> None:
    """HAProxy asks each second, and believes the third bad answer."""
    now = [100.0]

    def advance(seconds: float) -> None:
        now[0] += seconds

    with socket.create_server(("127.0.0.1", 0)) as server:  # nobody connects to it
        port = server.getsockname()[1]
        assert (
            wait_until_idle(
                f"127.0.0.1:{port}",
                60,
                lambda _: None,
                clock=lambda: now[0],
                sleep=advance,
            )
            == 0
        )
        assert now[0] - 100 > 3
        left = wait_until_idle(
            f"127.0.0.1:{port}",
            60,
            lambda _: None,
            noticed_seconds=60,
            clock=lambda: 0.0,
            sleep=lambda _: pytest.fail("it waits"),
        )
    assert left == 0, "it was drained a minute ago"


LISTENING = "import socket, signal; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"


@pytest.mark.system
def test_a_process_listens_on_a_port_by_itself_or_by_a_descendant() -> None:
    command = [sys.executable, "-c", f"{LISTENING}; signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert process_listens(child.pid, port)
        assert process_listens(os.getpid(), port)
        assert not process_listens(child.pid, port + 1)
        assert not process_listens(None, port)
        child.kill()
        assert wait_until(10, lambda: not process_listens(child.pid, port))


@pytest.mark.system
def test_a_process_that_has_ended_is_gone_though_nobody_waits_for_it() -> None:
    """As in a container whose first process waits for no child of others: a Squid that
    has ended stays a zombie.
    """
    with subprocess.Popen(["sleep", "300"]) as process:
        assert not has_ended(process.pid)
        process.kill()
        assert wait_until(10, lambda: has_ended(process.pid))
    assert has_ended(process.pid)


@pytest.mark.system
def test_a_taken_address_is_not_free_and_an_unknown_one_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not is_free(f"127.0.0.1:{taken.getsockname()[1]}")
        assert not is_free(str(taken.getsockname()[1])), "a bare port is every address"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert not is_free(f"127.0.0.1:{port}", socket.SOCK_DGRAM)
        assert is_free(f"127.0.0.1:{port}")
    with pytest.raises(OSError, match="assign requested address"):
        is_free("192.0.2.1:3129")


@pytest.mark.system
def test_a_wait_ends_with_its_condition_or_its_time() -> None:
    began = time.monotonic()
    assert wait_until(60, lambda: True)
    assert not wait_until(0.2, lambda: False)
    assert 0.2 <= time.monotonic() - began < 10
