"""What signs the leaves, on a live gateway: a CA of each kind, directly and by an
intermediate, by both generators.
"""

from pathlib import Path

import pytest

from tests.operate.test_setup_ca import KINDS, folder_of, given_ca

from .curl import curl
from .gateway import NewGateway
from .origin import Origins
from .test_certificates import handshake

POLICY = """
version: 1
defaults: {action: allow}
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
"""
BY_SLICERS_CA = ("RSA-2048", "intermediate", "squidkeeper")
COMBINATIONS = [
    (kind, ca, whose)
    for kind in KINDS
    for ca in ("direct", "intermediate")
    for whose in ("squid", "squidkeeper")
    if (kind, ca) != ("Ed25519", "direct")  # refused
]


@pytest.mark.parametrize(
    ("kind", "ca", "whose"),
    [
        pytest.param(
            *one,
            id="-".join(one),
            marks=() if one == BY_SLICERS_CA else pytest.mark.long,
        )
        for one in COMBINATIONS
    ],
)
def test_clients_that_trust_the_root_alone_accept_the_leaves(
    new_gateway: NewGateway,
    origins: Origins,
    tmp_path: Path,
    kind: str,
    ca: str,
    whose: str,
) -> None:
    given = folder_of(given_ca(KINDS[kind]()), tmp_path / "ca")
    options = ("--ca-dir", str(given), "--ca", ca, "--certificates", whose)
    gateway = new_gateway(POLICY, installed=True, options=options).start()
    assert gateway.ca.read_bytes() == (given / "ca.crt").read_bytes()
    assert handshake(gateway, "open.example") == ""
    assert (
        curl(gateway, "https://open.example/").status,
        curl(gateway, "https://closed.example/").status,
    ) == (
        200,
        403,
    )
    # Squid's own generator names no issuer in a leaf that copies no certificate: a
    # strict client refuses it.
    refused = "Missing Authority Key Identifier" if whose == "squid" else ""
    assert handshake(gateway, "closed.example") == refused
