"""Going back to a former generation, while Squid runs, and what keeps it in force.

A generation is gone back to by the same program and settings alone: the services beside
Squid are started with those.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.rendering import encode_values
from squidkeeper.operate.setup.configuration import is_ours
from squidkeeper.operate.setup.entries import text_at
from squidkeeper.operate.setup.generations import (
    CONF,
    SETTINGS,
    VERSION,
    check_generation,
    folder_of,
    number_in_force,
    numbers,
)
from squidkeeper.operate.setup.rendering import Named, named_values, read_values_in
from squidkeeper.operate.setup.serving_squid import put_before_squid


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation that is kept; `obstacle` says why nobody can go back to it."""

    number: int
    made: datetime
    in_force: bool
    adds: tuple[str, ...]  # the keys that the one before does not have
    lacks: tuple[str, ...]  # and those that it alone has
    obstacle: str


def generations(layout: Layout) -> Iterator[Generation]:
    """Yield the generations that are kept, the oldest first."""
    current, before = number_in_force(layout), None
    for number in numbers(layout):
        folder = folder_of(layout, number)
        keys = {*read_values_in(folder).in_force}
        known = keys if before is None else before
        yield Generation(
            number,
            datetime.fromtimestamp(folder.stat().st_mtime, UTC),
            number == current,
            tuple(sorted(keys - known)),
            tuple(sorted(known - keys)),
            _obstacle(layout, folder)[0],
        )
        before = keys


def _obstacle(layout: Layout, folder: Path) -> tuple[str, str]:
    """Say why nobody can go back to a generation, and what to do; empty: they can."""
    here = layout.generation
    if text_at(folder / VERSION) != text_at(here / VERSION):
        return (
            "it is of another version of the program",
            "check out that version, and run its ./install.sh",
        )
    if text_at(folder / SETTINGS) != text_at(here / SETTINGS):
        to_do = f"copy {folder / SETTINGS} to {layout.settings}, and run ./install.sh"
        return "it has other settings", to_do
    if not is_ours(text_at(folder / CONF)):
        return "its squid.conf was edited", "choose another one"
    return "", ""


def roll_back(layout: Layout, account: Account, wanted: int | None) -> int:
    """Have Squid read a former generation, and return its number; None: the one before
    that in force.

    `SetupFailed` or OSError where it cannot be; then nothing has changed.
    """
    number = _chosen(layout, wanted)
    folder = folder_of(layout, number)
    obstacle, to_do = _obstacle(layout, folder)
    if obstacle:
        raise SetupFailed(f"generation {number} cannot be put back: {obstacle}", to_do)
    if not is_ours(text_at(layout.generation / CONF)):
        raise SetupFailed(f"{layout.conf} is yours", "run ./install.sh first")
    check_generation(layout, folder)
    replace(layout.generation_held, needed_now(layout, account).encode(), 0o644)
    put_before_squid(layout, number, read_values_in(folder), account)
    return number


def _chosen(layout: Layout, wanted: int | None) -> int:
    current, kept = number_in_force(layout), numbers(layout)
    if current is None:
        raise SetupFailed("there is no generation yet", "run ./install.sh")
    former = [number for number in kept if number < current]
    if wanted is None and not former:
        raise SetupFailed(f"there is no generation before {current}")
    number = former[-1] if wanted is None else wanted
    if number not in kept or number == current:
        names = ", ".join(str(one) for one in kept if one != current) or "none"
        raise SetupFailed(f"{number} is not one of the others that are kept: {names}")
    return number


def needed_now(layout: Layout, account: Account) -> str:
    """Name what the policy needs now; empty where it does not load."""
    try:
        named = named_values(account, layout, layout.policy, layout.state / "lists")
    except (OSError, ValueError):
        return ""
    return digest(named)


def digest(named: Named) -> str:
    """Name a policy and what it needs: another text where either was edited."""
    text = f"{named.revision} {encode_values(named.values)}"
    return sha256(text.encode()).hexdigest()


def is_held(layout: Layout, named: Named) -> bool:
    """Whether a rollback holds: the policy is as it was then."""
    return text_at(layout.generation_held) == digest(named)
