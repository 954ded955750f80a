"""What all rules have to agree on that may still allow once the body is read."""

from collections.abc import Callable, Mapping

from squidkeeper.policy.language.model import Rule

# What is decided before the body is read, so that all rules that may still allow have
# to agree.
AGREED: Mapping[str, Callable[[Rule], object]] = {
    "private": lambda rule: rule.private,
    "strip": lambda rule: rule.strip.header_keys if rule.strip else (),
    "websocket": lambda rule: rule.websocket,
    "tls": lambda rule: rule.passthrough,
    "connections": lambda rule: rule.connections == "single",
}
