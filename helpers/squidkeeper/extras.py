"""The optional parts of the program (floor 3): which packages each needs, and whether they are installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Final

from squidkeeper.errors import ExtraMissing
from squidkeeper.policy.faults import Fault, FaultCode, Location
from squidkeeper.policy.forms import signs
from squidkeeper.policy.model import Policy
from squidkeeper.policy.secret_sources import GitHubAppSource, OAuth2Source

# By the names in pyproject.toml and of `install.sh --extras`: the modules that are imported.
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "aws": ("botocore",),
    "oauth2": ("authlib", "httpx", "joserfc"),
    "sealed": ("nacl",),
}


def require(extra: str) -> None:
    """Raise `ExtraMissing` unless the packages of an extra are installed. Call it ahead of their import."""
    if problem := extra_problem(extra):
        raise ExtraMissing(problem)


def extra_problem(extra: str) -> str | None:
    """Say that an extra is not installed and which command installs it; None: it is installed."""
    if _is_installed(extra):
        return None
    return f"the extra {extra!r} is not installed: run ./install.sh --extras {_extras_with(extra)}"


def missing_extras(policy: Policy) -> Iterator[Fault]:
    """Warn about each entry of a policy that needs an extra which is not installed."""
    needs = tuple(_needs(policy))
    command = f"./install.sh --extras {_extras_with(*(extra for _, _, extra in needs))}"
    for location, what, extra in needs:
        if not _is_installed(extra):
            message = f"{what}: the extra {extra!r} is not installed: run {command}"
            yield Fault(location, FaultCode.EXTRA_MISSING, message)


def _needs(policy: Policy) -> Iterator[tuple[Location, str, str]]:
    """List the entries that need an extra: where, what, and which extra."""
    for secret in policy.secrets.values():
        if isinstance(secret.source, OAuth2Source | GitHubAppSource):
            yield secret.location, f"secret {secret.name!r}", "oauth2"
        if secret.name in policy.sealing_keys:
            yield secret.location, f"secret {secret.name!r}, a key of sealed tokens", "sealed"
    for credential in policy.credentials:
        if signs(credential.form):
            yield credential.location, f"credential {credential.name!r}", "aws"


def _extras_with(*extras: str) -> str:
    """List extras with those that are installed: the option replaces the list of what is installed."""
    return ",".join(sorted({*extras, *filter(_is_installed, EXTRAS)}))


def _is_installed(extra: str) -> bool:
    return all(find_spec(module) for module in EXTRAS[extra])
