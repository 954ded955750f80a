"""Edits of the policy by commands: the tokens of a client, with every comment kept.

Only the section `clients` of one file is written again. The policy as a whole is
checked with it before the file is replaced, by rename, with its owner and mode.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squidkeeper.base.atomic_write import replace as write_file
from squidkeeper.base.errors import EditRefused, PolicyError
from squidkeeper.base.formatting import utc_time
from squidkeeper.policy.language.document import Document, parse_document
from squidkeeper.policy.language.entry_faults import NAME_EXPECTED, is_login_name
from squidkeeper.policy.language.model import Client, Token
from squidkeeper.policy.policy_store.loading import LoadedPolicy, load_sources
from squidkeeper.policy.policy_store.sources import Sources, read_sources

if TYPE_CHECKING:
    from ruamel.yaml import YAML

_COMMENT = re.compile(r"(?:^|\s)(#.*?)\s*$", re.MULTILINE)
_CLIENTS, _TOKENS = "clients", "token_sha256"
_Entries = MutableMapping[str, Any]  # of ruamel.yaml, which keeps comments and styles


def add_token(
    directory: Path, name: str, token: Token, networks: tuple[str, ...], now: datetime
) -> Path:
    """Add a token to a client, or the client; give the file.

    `EditRefused` leaves everything as it was.
    """
    if not is_login_name(name):
        raise EditRefused(f"no program can log in as {name!r}, {NAME_EXPECTED}")

    def change(clients: _Entries) -> None:
        if networks and name in clients:
            raise EditRefused(
                f"the client {name} is in the policy already: change its networks there"
            )
        entry = clients.setdefault(name, _new_entry())
        if networks:
            entry["networks"] = [*networks]
        listed = entry.get(_TOKENS)
        if isinstance(listed, list):
            listed.append(_written(token))
        elif listed is not None:
            entry[_TOKENS] = [listed, _written(token)]
        else:
            # a comment below the last key stays there
            entry.insert(0, _TOKENS, [_written(token)])

    return _edit(directory, name, change, now)


def remove_tokens(
    directory: Path, name: str, token_id: str | None, now: datetime
) -> tuple[str, ...]:
    """Remove one token of a client, or all; give their IDs.

    The client stays, as rules can name it, with no token.
    """
    removed: list[str] = []

    def change(clients: _Entries) -> None:
        entry: Any = clients.get(name) or {}
        listed = entry.get(_TOKENS, [])
        listed = listed if isinstance(listed, list) else [listed]
        revoked = [one for one in listed if token_id in (None, _id_of(one))]
        if not revoked:
            which = "token" if token_id is None else f"token {token_id}"
            raise EditRefused(
                f"the client {name} has no {which}: `squidkeeper client list` shows what there is"
            )
        removed.extend(map(_id_of, revoked))
        kept = [one for one in listed if one not in revoked]
        if kept:
            for token in revoked:
                listed.remove(token)
        else:
            # a comment on the last token goes with it
            entry.ca.items.pop(_TOKENS, None)
            entry[_TOKENS] = round_trip_yaml().load("[]")

    _edit(directory, name, change, now, comments_may_go=True)
    return tuple(removed)


def _id_of(listed: object) -> str:
    return Token(
        str(listed["sha256"] if isinstance(listed, Mapping) else listed).lower()
    ).id


def _written(token: Token) -> object:
    if token.expires is None:
        return token.sha256
    return round_trip_yaml().load(
        f"{{sha256: {token.sha256}, expires: {utc_time(token.expires)}}}"
    )


def _new_entry() -> _Entries:
    from ruamel.yaml.comments import CommentedMap

    return CommentedMap()


def round_trip_yaml() -> YAML:
    """Make a reader and writer of YAML that keeps comments, order and quotes."""
    from ruamel.yaml import YAML  # late: few commands need it

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 100_000  # no line is broken
    return yaml


# --- one file, changed whole or not at all --------------------------------------------


def _edit(
    directory: Path,
    name: str,
    change: Callable[[_Entries], None],
    now: datetime,
    *,
    comments_may_go: bool = False,
) -> Path:
    with locked(directory):
        sources = read_sources(directory)
        if sources.local is not None:
            raise EditRefused(
                f"others write {directory} ({sources.local.path} is there): edit it where it comes from"
            )
        loaded = load_or_refuse(
            sources,
            now,
            "does not load: fix it first (squidkeeper check). Add a client before a rule names it",
        )
        document = _document_of(sources.documents, name)
        new = parse_document(
            document.path,
            _with_clients(document, change, comments_may_go=comments_may_go),
        )
        documents = tuple(
            new if other is document else other for other in sources.documents
        )
        after = load_or_refuse(
            replace(sources, documents=documents),
            now,
            f"does not load with this change of {name}",
        )
        _check_rest(loaded, after, document, new, name)
        _write(document, new.content)
        return document.path


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep two edits by this command from overwriting each other."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise EditRefused(f"{directory} cannot be read: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def load_or_refuse(sources: Sources, now: datetime, problem: str) -> LoadedPolicy:
    """Load a policy as it is, or as it would be; `EditRefused` with every fault and the
    problem.
    """
    try:
        return load_sources(sources, now)
    except PolicyError as error:
        raise EditRefused(
            f"{error}\n{sources.directory} {problem}; nothing was changed"
        ) from error


def _document_of(documents: Iterable[Document], name: str) -> Document:
    def rank(document: Document) -> tuple[bool, bool]:
        clients = document.data.get(_CLIENTS)
        clients = clients if isinstance(clients, dict) else {}
        return name not in clients, not clients

    return min(documents, key=rank)


def _with_clients(
    document: Document, change: Callable[[_Entries], None], *, comments_may_go: bool
) -> bytes:
    lines = document.content.decode().splitlines(keepends=True)
    keys = [document.locate((key,), key=True).line - 1 for key in document.data]
    start = (
        document.locate((_CLIENTS,), key=True).line - 1
        if _CLIENTS in document.data
        else None
    )
    if start is None:
        end = (
            document.locate(("end",), key=True).line - 1
            if "end" in document.data
            else len(lines)
        )
        if lines and not lines[end - 1].endswith("\n"):
            lines[end - 1] += "\n"
        return "".join(
            [*lines[:end], "\n", _section(f"{_CLIENTS}: {{}}\n", change), *lines[end:]]
        ).encode()
    end = min((line for line in keys if line > start), default=len(lines))
    while (
        end > start
        and lines[end - 1].strip()[:1] in ("", "#")
        and not lines[end - 1].startswith(" ")
    ):
        end -= 1  # what stands above the next section
    before = "".join(lines[start:end])
    section = _section(before, change)
    if not comments_may_go and _COMMENT.findall(section) != _COMMENT.findall(before):
        raise EditRefused(
            "a comment in the section 'clients' would be lost or move: edit it by hand"
        )
    return "".join([*lines[:start], section, *lines[end:]]).encode()


def _section(text: str, change: Callable[[_Entries], None]) -> str:
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import YAMLError

    yaml = round_trip_yaml()
    try:
        root = yaml.load(text)
        clients = root[_CLIENTS]
        if not clients:
            clients = root[_CLIENTS] = CommentedMap()
        indent = clients.lc.data[next(iter(clients))][1] if clients else 2
    except (YAMLError, LookupError, TypeError, AttributeError) as error:
        raise EditRefused(
            "the section 'clients' has a form that this command cannot edit: edit it by hand"
        ) from error
    change(clients)
    yaml.indent(mapping=indent, sequence=indent + 2, offset=indent)
    written = io.StringIO()
    yaml.dump(root, written)
    return written.getvalue()


def _check_rest(
    before: LoadedPolicy, after: LoadedPolicy, old: Document, new: Document, name: str
) -> None:
    def rest(policy: LoadedPolicy) -> list[tuple[object, ...]]:
        clients = (
            client for client in policy.compiled.source.clients if client.name != name
        )
        return [
            (client.name, client.networks, client.users, client.tokens)
            for client in clients
        ]

    def networks(policy: LoadedPolicy) -> list[object]:
        return [
            client.networks
            for client in policy.compiled.source.clients
            if _is_known(client, name, before)
        ]

    same = {key: value for key, value in old.data.items() if key != _CLIENTS} == {
        key: value for key, value in new.data.items() if key != _CLIENTS
    }
    if not same or rest(before) != rest(after) or networks(before) != networks(after):
        raise EditRefused(
            f"{old.path} has a form that this command cannot edit: edit it by hand"
        )


def _is_known(client: Client, name: str, before: LoadedPolicy) -> bool:
    return client.name == name and any(
        other.name == name for other in before.compiled.source.clients
    )


def _write(document: Document, content: bytes) -> None:
    path = document.path.resolve()  # not a link to it
    try:
        if path.read_bytes() != document.content:
            raise EditRefused(f"{document.path} was changed meanwhile: try again")
        state = path.stat()
        write_file(
            path, content, stat.S_IMODE(state.st_mode), (state.st_uid, state.st_gid)
        )
    except OSError as error:
        raise EditRefused(
            f"{document.path} cannot be written: {error.strerror}; nothing was changed"
        ) from error
