"""The lines of Squid's configuration that depend on the policy (floor 3): the headers that rules remove.

install.sh renders them. Helpers only choose between them, by annotations: Squid's account must not write what root
reads. A request whose annotation names what is not rendered is denied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from squidkeeper.policy.faults import Fault, FaultCode
from squidkeeper.policy.headers import spellings
from squidkeeper.policy.model import Policy, Strip

_HEAD = """\
# Written by squidkeeper's install.sh from the policy. Run it again after a change of what these lines are made from:
# until then a request that needs what is not here is denied as policy-unavailable.
"""
_STRIPS = re.compile(r"^acl sk_strip_rendered note strip_ - ?(.*)$", re.MULTILINE)


def policy_lines(policy: Policy) -> str:
    """Render the lines for a policy."""
    return "".join(f"{line}\n" for line in (*_HEAD.splitlines(), *_strip_lines(_strips(policy))))


def not_rendered(policy: Policy, rendered: str) -> tuple[Fault, ...]:
    """Warn about what a policy needs and the rendered lines lack."""
    found = _STRIPS.search(rendered)
    keys = found[1].split() if found else []
    return tuple(
        Fault(rule.location, FaultCode.NOT_RENDERED, f"rule {rule.name!r}: 'strip' {_NOT_RENDERED}")
        for rule in policy.rules
        if rule.strip and rule.strip.key not in keys
    )


_NOT_RENDERED = "is not in Squid's configuration yet, so its requests are denied: run install.sh"


def _strips(policy: Policy) -> tuple[Strip, ...]:
    return tuple({rule.strip.key: rule.strip for rule in policy.rules if rule.strip}.values())


def _strip_lines(strips: Iterable[Strip]) -> Iterator[str]:
    """Write one ACL for each header, with the sets that hold it; Squid evaluates it where a request has the header."""
    keys: dict[str, list[str]] = {}
    for strip in strips:
        for header in strip.headers:
            keys.setdefault(header.lower(), []).append(strip.key)
    yield " ".join(["acl sk_strip_rendered note strip_ -", *(strip.key for strip in strips)])
    for number, (header, holding) in enumerate(sorted(keys.items())):
        yield f"acl sk_strip_{number} note strip_ {' '.join(holding)}"
        yield from (f"request_header_access {name} deny sk_strip_{number}" for name in spellings(header))
