"""The optional parts of the program (floor 3): which packages each needs, and whether they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from squidkeeper.errors import ExtraMissing

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
    names = sorted({extra, *filter(_is_installed, EXTRAS)})  # the option replaces the list of what is installed
    return f"the extra {extra!r} is not installed: run ./install.sh --extras {','.join(names)}"


def _is_installed(extra: str) -> bool:
    return all(find_spec(module) for module in EXTRAS[extra])
