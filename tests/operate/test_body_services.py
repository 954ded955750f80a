"""The units of what inspects bodies: whom their processes can reach. The pause between
edits that add parts.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from squidkeeper.base.layout import Layout
from squidkeeper.configuration.rendering import Values
from squidkeeper.operate.setup.body_services import with_quota_store
from squidkeeper.operate.setup.part_additions import pause_after
from squidkeeper.serving.parts import TOKENS_COUNTED, Part

UNIT = (Path(__file__).parents[2] / "squid/squidkeeper-bodies.service").read_text()
STORE = """
{{address: {address}, user: a, password_file: {folder}/password, tls_ca: /etc/ca, on_unavailable: deny, gateways: 2}}
"""
OTHER, OTHER_IPV6 = (
    "IPAddressAllow=localhost 192.0.2.7\n",
    "IPAddressAllow=localhost 2001:db8::7\n",
)


@pytest.mark.parametrize(
    ("keys", "address", "lines"),
    [
        (
            {Part.METER, TOKENS_COUNTED},
            "192.0.2.7:6379",
            (OTHER, "RestrictAddressFamilies=AF_INET AF_UNIX\n"),
        ),
        (
            {TOKENS_COUNTED},
            "'[2001:db8::7]:6379'",
            (OTHER_IPV6, "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\n"),
        ),
        ({TOKENS_COUNTED}, "127.0.0.1:6379", ()),
        ({TOKENS_COUNTED}, None, ()),
        ({Part.METER, Part.QUOTAS}, "192.0.2.7:6379", ()),
    ],
)
def test_the_process_reaches_another_host_only_to_count_tokens_there(
    tmp_path: Path, keys: set[str], address: str | None, lines: tuple[str, ...]
) -> None:
    layout = Layout.of(tmp_path)
    layout.policy.mkdir(parents=True)
    if address is not None:
        (tmp_path / "password").write_text("p")
        (tmp_path / "password").chmod(0o640)
        (layout.policy.parent / "quota-store.yaml").write_text(
            STORE.format(address=address, folder=tmp_path)
        )
    unit = with_quota_store(UNIT, layout, Values(keys=frozenset(keys)))
    assert {*unit.splitlines(keepends=True)} - {*UNIT.splitlines(keepends=True)} == {
        *lines
    } - {*UNIT.splitlines(True)}
    assert "IPAddressDeny=any\n" in unit


@pytest.mark.parametrize(
    ("rendered", "installed", "seconds"),
    [(100.0, 50.0, 7.0), (100.0, 101.0, 0.0), (90.0, 50.0, 0.0), (300.0, 50.0, 0.0)],
    ids=["after an edit", "after install.sh", "long after an edit", "a clock set back"],
)
def test_an_edit_waits_after_another_edit_alone(
    tmp_path: Path, rendered: float, installed: float, seconds: float
) -> None:
    layout = Layout.of(tmp_path)
    layout.parts.mkdir(parents=True)
    for path, time in ((layout.rendered, rendered), (layout.applied, installed)):
        path.touch()
        os.utime(path, (time, time))
    assert pause_after(layout, now=103.0) == seconds
