"""The reasons of rules (floor 7), of those of the policy and of the built-in ones."""

from collections.abc import Mapping
from typing import Final

from squidkeeper.policy.model import Policy

BUILT_IN_REASONS: Final[Mapping[str, str]] = {
    "default": "No rule matches.",
    "login-refused": "The token of the login was revoked or has expired.",
    "authority-mismatch": "Tunnel, SNI and request name different hosts or ports.",
    "ambiguous-path": "Servers may read the path in different ways, with different decisions.",
    "private-address": "The host is, or resolves to, an address of a private network.",
    "invalid-request": "No rule can allow such a request.",
    "credential-unavailable": "The value of a credential was unavailable.",
    "sealed-token-refused": "A sealed token was presented elsewhere than it is for, had expired, or was altered.",
    "secret-leaving": "The request held a value that must not leave the gateway.",
    "placeholder-misdirected": "The request held the placeholder of a credential that is not for it.",
    "ticket-page": "The gateway has no such page for this client.",
    "quota": "A quota was used up, or could not be counted.",
    "header-too-long": "URL and headers were too long to be read.",
    "policy-unavailable": "No helper replied, or the helper had no policy.",
    "not-rendered": "Squid's configuration lacks lines that the policy needs.",
    "tunnel-outdated": "The policy had changed since the tunnel was opened.",
}


def rule_reasons(policy: Policy) -> dict[str, str | None]:
    """Return the reason of each rule, built-in rules included."""
    default = {"default": policy.default_reason} if policy.default_reason else {}
    return {**BUILT_IN_REASONS, **default, **{rule.name: rule.reason for rule in policy.rules_and_grants}}
