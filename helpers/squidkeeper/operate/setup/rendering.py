"""Squid's configuration as it is installed: the values of a policy, and the files
rendered with them.

Squid's account, which root does not trust, reads the policy and names the values. Root
checks each of them.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import PolicyError
from squidkeeper.base.formatting import printable
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account, call_as
from squidkeeper.operate.setup.entries import ROOT, File, Folder, owner_here, text_at
from squidkeeper.policy.language.secret_sources import fetched_secrets
from squidkeeper.policy.policy_store.loading import build_sources
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.fetched_values import FOLDER
from squidkeeper.serving.rendering import (
    PEERS,
    Values,
    decode_values,
    encode_values,
    render,
    values_of,
)


class Named(NamedTuple):
    """What Squid's account has named."""

    values: Values
    problems: tuple[str, ...]  # why the password of a parent cannot be read
    fetches: bool  # the policy has secrets that are fetched


def named_values(
    account: Account, layout: Layout, policy: Path, compiled: Path
) -> Named:
    """Have Squid's account read a policy and name its values.

    OSError where the policy does not load; ValueError where a value is not what it may
    be.
    """
    fetched = layout.run / FOLDER

    def name() -> tuple[str, tuple[str, ...], bool]:
        try:
            found = build_sources(read_sources(policy), compiled).policy
        except PolicyError as error:
            raise OSError(
                f"{policy} does not load: `squidkeeper check --policy {policy}` says why"
            ) from error
        values, problems = values_of(found, SecretStore(found.secrets, {}, fetched))
        return encode_values(values), problems, any(fetched_secrets(found.secrets))

    text, problems, fetches = call_as(account, name, tuple[str, tuple[str, ...], bool])
    return Named(decode_values(text), tuple(map(printable, problems)), fetches)


def rendered_files(
    layout: Layout, templates: Mapping[str, str], values: Values, account: Account
) -> dict[Path, File]:
    """Render templates as files, that of the parent proxies ahead of the one that
    includes it.

    Squid's account reads what holds passwords.
    """
    secret, folder = (0, account.group), layout.fragment.parent
    texts = render(templates, values, text_at(layout.local))
    files = {layout.rendered: File(encode_values(values).encode(), 0o640, secret)}
    for name, text in sorted(texts.items(), key=lambda item: "/" not in item[0]):
        holds = name == PEERS
        files[folder / name] = File(
            text.encode(), 0o640 if holds else 0o644, secret if holds else ROOT
        )
    return files


def put_rendered(files: Mapping[Path, File]) -> None:
    """Write the files, the one that includes another last."""
    for path, file in files.items():
        replace(path, file.content, file.mode, owner_here(file.owner))


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
    text = text_at(layout.rendered)
    return decode_values(text) if text else Values()


def outdated_files(layout: Layout) -> Iterator[tuple[Path, str]]:
    """List the files that are not as the templates and values in place give them, each
    with what is wrong.
    """
    try:
        texts = render(
            read_templates(layout), read_values(layout), text_at(layout.local)
        )
    except (OSError, ValueError) as error:
        yield (
            layout.templates,
            f"the templates of Squid's configuration are unusable: {error}",
        )
        return
    for name, text in texts.items():
        path = layout.fragment.parent / name
        if os.access(path.parent, os.X_OK) and not path.exists():
            yield path, "it is missing"
        elif os.access(path, os.R_OK) and path.read_text(errors="replace") != text:
            yield path, "it differs from what the templates and the policy give"
