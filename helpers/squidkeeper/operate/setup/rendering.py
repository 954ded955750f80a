"""Squid's configuration as it is installed: the values of a policy, and the files
rendered with them.

Squid's account, which root does not trust, reads the policy and names the values. Root
checks each of them.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.formatting import printable
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account, call_as
from squidkeeper.configuration.rendering import (
    PEERS,
    Values,
    decode_values,
    encode_values,
    render,
    values_of,
)
from squidkeeper.operate.setup.entries import ROOT, Entry, File, Folder, text_at
from squidkeeper.operate.setup.generations import LOCAL, PARTS, VALUES, placed
from squidkeeper.policy.language.secret_sources import fetched_secrets
from squidkeeper.policy.policy_store.loading import build_sources
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.fetched_values import FOLDER


class Named(NamedTuple):
    """What Squid's account has named."""

    values: Values
    problems: tuple[str, ...]  # why the password of a parent cannot be read
    fetches: bool  # the policy has secrets that are fetched
    revision: str  # of the policy


def named_values(
    account: Account, layout: Layout, policy: Path, compiled: Path
) -> Named:
    """Have Squid's account read a policy and name its values.

    OSError where the policy does not load; ValueError where a value is not what it may
    be.
    """
    fetched = layout.run / FOLDER

    def name() -> tuple[str, tuple[str, ...], bool, str]:
        try:
            found = build_sources(read_sources(policy), compiled).policy
        except PolicyError as error:
            raise OSError(
                f"{policy} does not load: `squidkeeper check --policy {policy}` says why"
            ) from error
        values, problems = values_of(found, SecretStore(found.secrets, {}, fetched))
        fetches = any(fetched_secrets(found.secrets))
        return encode_values(values), problems, fetches, found.revision

    text, problems, fetches, revision = call_as(
        account, name, tuple[str, tuple[str, ...], bool, str]
    )
    told = tuple(map(printable, problems))
    return Named(decode_values(text), told, fetches, revision)


def rendered_files(
    layout: Layout,
    templates: Mapping[str, str],
    values: Values,
    account: Account,
    own: str,
    folder: Path,
) -> dict[str, Entry]:
    """Render templates as the files of the generation in a folder, by their names.

    `own` are lines of the operator's. Squid's account reads what holds passwords.
    """
    secret = (0, account.group)
    files: dict[str, Entry] = {
        PARTS: Folder({}),
        VALUES: File(encode_values(values).encode(), 0o640, secret),
    }
    for name, text in render(templates, values, own).items():
        holds = name == PEERS
        files[name] = File(
            placed(text, layout, folder).encode(),
            0o640 if holds else 0o644,
            secret if holds else ROOT,
        )
    return files


def rendered_anew(
    layout: Layout, values: Values, account: Account, folder: Path
) -> dict[str, Entry]:
    """Render the templates of the generation in force for other values."""
    own = text_at(layout.generation / LOCAL)
    return rendered_files(layout, read_templates(layout), values, account, own, folder)


def template_folder(templates: Mapping[str, str]) -> Folder:
    """Make the folder of the templates."""
    return Folder(
        {
            name.replace("/", ":"): File(text.encode())
            for name, text in templates.items()
        }
    )


def read_templates(layout: Layout) -> dict[str, str]:
    """Read the templates of Squid's configuration that were installed; units are beside
    them.
    """
    return {
        path.name.replace(":", "/"): path.read_text()
        for path in layout.templates.glob("*.conf")
    }


def read_values(layout: Layout) -> Values:
    """Read the values that Squid's configuration was rendered with; none, where it was
    not.
    """
    return read_values_in(layout.generation)


def read_values_in(folder: Path) -> Values:
    """Read the values that a generation was rendered with."""
    text = text_at(folder / VALUES)
    return decode_values(text) if text else Values()


def outdated_files(layout: Layout) -> Iterator[tuple[Path, str]]:
    """List the files that are not as the templates and values in place give them, each
    with what is wrong.
    """
    folder = layout.generation.resolve()
    try:
        texts = render(
            read_templates(layout), read_values(layout), text_at(folder / LOCAL)
        )
    except (OSError, ValueError) as error:
        yield (
            layout.templates,
            f"the templates of Squid's configuration are unusable: {error}",
        )
        return
    for name, text in texts.items():
        path, public = folder / name, layout.fragment.parent / name
        if os.access(path.parent, os.X_OK) and not path.exists():
            yield public, "it is missing"
        elif os.access(path, os.R_OK) and path.read_text(errors="replace") != placed(
            text, layout, folder
        ):
            yield public, "it differs from what the templates and the policy give"
