"""Canaries: secrets of every source and form that a gateway puts into requests, and
that may be nowhere else.

With the option `--canaries` every gateway of the end-to-end tests has them, and is
asked for them before it ends.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.conftest import CANARIES

from .curl import CurlFailed, curl

if TYPE_CHECKING:
    from .gateway import Gateway

VARIABLE = "SQUIDKEEPER_CANARY"
DOMAIN = "canary.example"

FILES = {
    "canary-bearer": "canary-Bearer+of/the=hunt~0001",
    "canary-password": "canary-Password+of/the=hunt~0002",
    "canary-header": r"""canary "quoted" back\slash %41 'single'+/0003""",
    "canary-second": "canary-Second+of/the=hunt~0004",
    "canary-rewritten": "canary-Rewritten+of/the=hunt~0005",
    "canary-rotated": "canary-Rotated+of/the=hunt~0006",
    "canary-removed": "canary-Removed+of/the=hunt~0007",
    "canary-unused": "canary-Unused+of/the=hunt~0008",
}
ENVIRONMENT = "canary-Environment+of/the=hunt~0009"
NEW = "canary-New+of/the=hunt~0010"  # what the rotated one becomes
SECRETS = {**FILES, "canary-environment": ENVIRONMENT, "canary-new": NEW}

_FROM_FILES = "".join(f"  {name}: {{file: secrets/{name}}}\n" for name in FILES)
POLICY = f"""version: 1
rules:
  - {{name: canaries, action: allow, hosts: [.{DOMAIN}]}}
rewrites:
  - {{name: canary-front, hosts: [front.{DOMAIN}], to: "https://rewritten.{DOMAIN}{{path}}{{query}}"}}
secrets:
  canary-environment: {{env: {VARIABLE}}}
{_FROM_FILES}
credentials:
  - {{name: canary-bearer, hosts: [bearer.{DOMAIN}], bearer: canary-bearer}}
  - {{name: canary-basic, hosts: [basic.{DOMAIN}], basic: {{username: canary, password: canary-password}}}}
  - {{name: canary-header, hosts: [header.{DOMAIN}], header: X-Auth-Token, value: "{{canary-header}}"}}
  - {{name: canary-environment, hosts: [environment.{DOMAIN}], header: Api-Key, value: "key {{canary-environment}}"}}
  - {{name: canary-both, hosts: [both.{DOMAIN}], header: X-Api-Key, value: "{{canary-second}}"}}
  - {{name: canary-both-bearer, hosts: [both.{DOMAIN}], bearer: canary-bearer}}
  - {{name: canary-rewritten, hosts: [rewritten.{DOMAIN}], header: Private-Token, value: "{{canary-rewritten}}"}}
  - {{name: canary-rotated, hosts: [rotated.{DOMAIN}], bearer: canary-rotated}}
  - {{name: canary-removed, hosts: [removed.{DOMAIN}], bearer: canary-removed}}
  - {{name: canary-wrong, hosts: [untrusted.{DOMAIN}, silent.{DOMAIN}], bearer: canary-bearer}}
"""
# each gets a canary
HOSTS = (
    "bearer",
    "basic",
    "header",
    "environment",
    "both",
    "front",
    "rotated",
    "removed",
)

# The only files that may hold a value: the sources, those that the fetching process
# writes, the password of a parent.
# not its report, and not its log
FETCHED = (
    "*/run/secrets/*.value",
    "*/run/secrets/*.refresh",
)
PARENTS = ("*/squidkeeper.d/upstreams.conf", "*/squidkeeper.d/values.json")
PLACES = (
    "*/etc/policy/secrets/*",
    "*/etc/secrets/*",
    *FETCHED,
    "*/squidkeeper.d/upstreams.conf",
    "*/squidkeeper.d/values.json",
)


def asked_for() -> bool:
    """Whether every gateway of this run is to have canaries."""
    return CANARIES in os.environ


def plant(gateway: Gateway) -> None:
    """Add the canaries to a gateway; the variable is for the Squid that starts next."""
    for name, value in FILES.items():
        gateway.secret(name, value)
    gateway.remember(ENVIRONMENT, "canary-environment")
    gateway.remember(NEW, "canary-new")
    gateway.write("zz-canaries.yaml", POLICY)
    os.environ[VARIABLE] = ENVIRONMENT


def send(gateway: Gateway) -> int:
    """Let a gateway put each canary into a request; give how many requests were
    answered with 200.
    """
    answered = 0
    for host in HOSTS:
        with suppress(CurlFailed):
            answered += curl(gateway, f"https://{host}.{DOMAIN}/?hunt=1").status == 200
    return answered
