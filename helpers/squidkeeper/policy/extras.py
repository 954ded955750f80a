"""The optional parts of the program: which packages each needs, and whether they are
installed.
"""

from collections.abc import Iterator, Mapping, Set
from importlib.util import find_spec
from typing import Final

from squidkeeper.base.errors import ExtraMissing
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language.forms import signs
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.secret_sources import GitHubAppSource, OAuth2Source

# By the names in pyproject.toml and of `install.sh --extras`: the modules that are
# imported.
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "aws": ("botocore",),
    "oauth2": ("authlib", "httpx", "joserfc"),
    "otlp": ("opentelemetry",),
    "s3": ("s3fs",),
    "sealed": ("nacl",),
    "valkey": ("valkey",),
}


def require(extra: str) -> None:
    """Raise `ExtraMissing` unless the packages of an extra are installed.

    Call it ahead of their import.
    """
    if problem := extra_problem(extra):
        raise ExtraMissing(problem)


def extra_problem(extra: str) -> str | None:
    """Say that an extra is not installed and which command installs it; None: it is
    installed.
    """
    return None if _is_installed(extra) else _not_installed(extra, {extra})


def missing_extras(policy: Policy) -> Iterator[Fault]:
    """Warn about each entry of a policy that needs an extra which is not installed."""
    needs = tuple(_needs(policy))
    needed = {extra for _, _, extra in needs}
    for location, what, extra in needs:
        if not _is_installed(extra):
            yield Fault(
                location,
                FaultCode.EXTRA_MISSING,
                f"{what}: {_not_installed(extra, needed)}",
            )


def _needs(policy: Policy) -> Iterator[tuple[Location, str, str]]:
    for secret in policy.secrets.values():
        if isinstance(secret.source, OAuth2Source | GitHubAppSource):
            yield secret.location, f"secret {secret.name!r}", "oauth2"
        if secret.name in policy.sealing_keys:
            yield (
                secret.location,
                f"secret {secret.name!r}, a key of sealed tokens",
                "sealed",
            )
    for credential in policy.credentials:
        if signs(credential.form):
            yield credential.location, f"credential {credential.name!r}", "aws"


def _not_installed(extra: str, needed: Set[str]) -> str:
    """Name the command that installs what is needed, with what is installed: its option
    replaces the whole list.
    """
    extras = ",".join(sorted({*needed, *filter(_is_installed, EXTRAS)}))
    return f"the extra {extra!r} is not installed: run ./install.sh --extras {extras}"


def _is_installed(extra: str) -> bool:
    return all(find_spec(module) for module in EXTRAS[extra])
