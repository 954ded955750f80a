"""The attacks by CONNECT and by a proxy's URLs, by the ports 443 and 80 for clients
without proxy settings.
"""

import pytest

from . import test_attacks
from .dns import SHORT_MEMORY
from .gateway import Gateway
from .origin import Origins
from .raw import Raw
from .reply import Reply
from .test_attacks import (
    AUTHORITY,
    METHODS,
    PATHS,
    PORTS,
    Attack,
    ids,
    request,
    try_out,
)
from .transparent import Transparent

pytestmark = pytest.mark.long
POLICY = test_attacks.POLICY
LOCAL_CONF = (SHORT_MEMORY,)
SECRETS = {"token": test_attacks.TOKEN}

# There the TLS server name is the host of the CONNECT. test_transparent_hosts.py has
# other server names.
ATTACKS = [
    attack
    for attack in (*AUTHORITY, *PORTS, *METHODS)
    if attack.connect is None or (attack.sni == "" and attack.connect.endswith(":443"))
]
OTHERWISE = {"no proxy request": "http://good.example/x"}


def run(attack: Attack, transparent: Transparent) -> Reply:
    if attack.connect is None:
        with Raw(transparent.http) as client:
            return client.send(attack.send).answer()
    with Raw(transparent.https) as client:
        return (
            client.tls(attack.connect.removesuffix(":443")).send(attack.send).answer()
        )


def try_out_here(attack: Attack, transparent: Transparent, origins: Origins) -> None:
    def run_here(attack: Attack, _: Gateway) -> Reply:
        return run(attack, transparent)

    try_out(attack, transparent.gateway, origins, run_here)


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
def test_an_attack_becomes_of_it_what_becomes_of_it_at_the_proxys_port(
    transparent: Transparent, origins: Origins, attack: Attack
) -> None:
    everyone = tuple(
        f"{name}.example"
        for name in ("good", "reads", "other", "closed", "ports", "a.good")
    )
    for name in everyone:
        origins.certificates[name] = everyone
    expected = OTHERWISE.get(attack.name, attack.becomes)
    here = Attack(
        attack.name, attack.send, expected, attack.connect, attack.sni, attack.closed_by
    )
    try_out_here(here, transparent, origins)


@pytest.mark.parametrize("connect", [None, "paths.example:443"], ids=["http", "https"])
@pytest.mark.parametrize(
    ("path", "becomes"), PATHS, ids=[repr(path)[:40] for path, _ in PATHS]
)
def test_a_denied_path_is_denied_however_it_is_written(
    transparent: Transparent,
    origins: Origins,
    path: str,
    becomes: str | None,
    connect: str | None,
) -> None:
    """On port 80 the URL is made of the path and the Host header."""
    attack = Attack("", request(path, "paths.example"), becomes or "", connect)
    if becomes:
        try_out_here(attack, transparent, origins)
    else:
        reply = run(attack, transparent)
        assert (reply.status, len(origins.seen)) == (200, 1), reply


def test_squid_lived_through_it(transparent: Transparent) -> None:
    gateway = transparent.gateway
    gateway.log()
    assert "FATAL" not in gateway.cache_log()
    assert "assertion failed" not in gateway.cache_log()
