"""What a client gets that has used up its share of a helper: the same, from the late
lane; and nothing without it.
"""

import pytest

from .curl import curl
from .gateway import Gateway, NewGateway
from .origin import Origins

WATCH = "squidkeeper.d/watch.conf"
CANARY = "AKIALATELANE0EXAMPLE"
POLICY = """
version: 1
canaries:
  bait: {file: secrets/bait}
rules:
  - {name: no-admin, action: deny, hosts: [open.example], paths: [/admin/**], reason: No admin.}
  - {name: public, action: allow, hosts: [open.example], paths: [/public/**]}
"""
USED_UP = (
    '#!/bin/sh\nwhile read -r channel rest; do echo "$channel ERR later_=yes"; done\n'
)


def always_used_up(gateway: Gateway) -> Gateway:
    """Replace the first lanes by a program that answers as they do when every share is
    used up.
    """
    program = gateway.root / "used-up"
    program.write_text(USED_UP)
    program.chmod(0o755)
    for file, lane in (
        ("squidkeeper.conf", "acl --scope request --lane first "),
        (WATCH, "watch --lane first "),
    ):
        gateway.edit(
            file, f"{gateway.root}/bin/squidkeeper {lane}", f"{program} {lane}"
        )
    return gateway


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    return always_used_up(new_gateway(POLICY, secrets={"bait": CANARY})).start()


@pytest.fixture(scope="module")
def gateway_without_late_lane(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(
        POLICY.replace("canaries:\n  bait: {file: secrets/bait}\n", "")
    )
    late = "acl --scope request --lane late "
    always_used_up(gateway).edit(
        "squidkeeper.conf",
        f"{gateway.root}/bin/squidkeeper {late}",
        f"/bin/false {late}",
    )
    return gateway.start()


@pytest.mark.parametrize(
    ("path", "status", "rule"),
    [
        ("public/a", 200, "public"),
        ("admin/a", 403, "no-admin"),
        ("other", 403, "default"),
    ],
)
def test_the_late_lane_decides(
    gateway: Gateway, origins: Origins, path: str, status: int, rule: str
) -> None:
    for scheme in ("http", "https"):
        url = f"{scheme}://open.example/{path}?{scheme}"
        reply = curl(gateway, url)
        assert reply.status == status
        assert (gateway.logged(url)["rule"], gateway.logged(url)["status"]) == (
            rule,
            status,
        )
        if rule == "no-admin":
            assert b"No admin." in reply.body


def test_the_late_lane_finds_what_must_not_leave(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    assert (
        curl(
            gateway, "http://open.example/public/b", "-H", f"User-Agent: {CANARY}"
        ).status
        == 403
    )
    assert curl(gateway, f"http://closed.example/{CANARY}").status == 403
    first, second = gateway.log()[before:]
    assert (first["rule"], first["url"], first["found"]) == (
        "secret-leaving",
        "-",
        "canary:bait",
    )
    assert (second["url"], second["found"]) == ("-", "canary:bait")
    assert gateway.helpers("acl --scope request --lane late")
    assert gateway.helpers("watch --lane late")


def test_without_the_late_lane_nothing_passes(
    gateway_without_late_lane: Gateway, origins: Origins
) -> None:
    url = "http://open.example/public/c"
    reply = curl(gateway_without_late_lane, url)
    assert (reply.status, gateway_without_late_lane.logged(url)["rule"]) == (
        403,
        "policy-unavailable",
    )
    assert b"policy" in reply.body
