"""Makes and removes grants: the file beside the policy, replaced whole or not at all.

The whole policy is checked with the new file before that is put in place. One lock
keeps two commands apart.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from squidkeeper.base.atomic_write import replace as write_file
from squidkeeper.base.errors import EditRefused, PolicyError
from squidkeeper.base.faults import Location
from squidkeeper.change.approvals.new_grant import Effect, NewGrant, effect_of
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.document import Document, entries, parse_document
from squidkeeper.policy.language.grants import FLEET_GRANTS
from squidkeeper.policy.language.lint import lint
from squidkeeper.policy.language.model import Policy, Rule
from squidkeeper.policy.policy_edit import load_or_refuse, locked, round_trip_yaml
from squidkeeper.policy.policy_store.loading import LoadedPolicy, load_sources
from squidkeeper.policy.policy_store.sources import (
    Sources,
    grants_file,
    policy_files,
    read_sources,
)

_EMPTY = """\
# Grants, as `squidkeeper grant` and `squidkeeper ask` make and remove them. They are part of the policy beside this
# file: policy/REFERENCE.md, "Grants".
version: 1
"""
_SECTION = "grants"
_DOES_NOT_LOAD = "does not load: fix it first (squidkeeper check)"
_READABLE = 0o644
_NOWHERE = Location("")


@dataclass(frozen=True, slots=True)
class Granted:
    """A grant that was made, and the file that it is in; without a file, nothing needed
    it: see `effect`.

    `warnings` are those that `check` gives about it.
    """

    grant: Rule
    effect: Effect
    file: Path | None
    warnings: tuple[str, ...] = ()


def add_grant(
    directory: Path, new: NewGrant, now: datetime, uses: GrantUses | None = None
) -> Granted:
    """Grant for a time; `EditRefused` where a rule denies it all, or the policy does
    not load with it.

    Nothing is written where all of it is open already. By `uses`, grants that have none
    left open nothing.
    """
    with locked(directory):
        edit = _Edit.begin(directory, now)
        granted, document = _planned(edit, new, now, uses)
        if granted.file is not None:
            _write(edit.sources, document)
        return granted


def preview_grant(
    directory: Path, new: NewGrant, now: datetime, uses: GrantUses | None = None
) -> Granted:
    """Return what `add_grant` would make, under another name, and write nothing."""
    return _planned(_Edit.begin(directory, now), new, now, uses)[0]


def _planned(
    edit: _Edit, new: NewGrant, now: datetime, uses: GrantUses | None
) -> tuple[Granted, Document]:
    before = edit.loaded.compiled.source
    _check_clients(new, before)
    taken = {rule.name for rule in before.rules_and_grants}
    name = new.named(taken)
    entry = _mapping(new, name, now)
    after, document = edit.granted(entry)
    compiled = after.compiled
    grant = next(grant for grant in compiled.source.grants if grant.name == name)
    if _plain(compiled.source.grants) != [*_plain(before.grants), *_plain((grant,))]:
        raise EditRefused(
            f"{document.path} has a form that this command cannot edit: edit it by hand"
        )
    effect = effect_of(_without_spent(compiled, before.grants, uses), grant, now)
    if effect.opens:
        warnings = tuple(
            warning.text
            for warning in lint(compiled.source, now)
            if warning.location == grant.location
        )
        return Granted(grant, effect, document.path, warnings), document
    if effect.deniers:
        raise EditRefused(_denied_by(effect))
    return Granted(grant, effect, None), document


def _without_spent(
    policy: CompiledPolicy, earlier: tuple[Rule, ...], uses: GrantUses | None
) -> CompiledPolicy:
    spent = {
        grant.name
        for grant in earlier
        if uses and grant.uses is not None and uses.is_spent(grant)
    }
    if not spent:
        return policy
    kept = tuple(grant for grant in policy.source.grants if grant.name not in spent)
    return CompiledPolicy(replace(policy.source, grants=kept))


def remove_grant(directory: Path, name: str, now: datetime) -> bool:
    """Revoke a grant that a command has made; False where the policy does not load, so
    that nothing changes yet.
    """
    with locked(directory):
        sources = read_sources(directory)
        try:
            edit = _Edit(sources, load_sources(sources, now), now)
        except PolicyError as error:
            _remove_unchecked(sources, name, error)
            return False
        grants = edit.loaded.compiled.source.grants
        grant = next((grant for grant in grants if grant.name == name), None)
        file = grants_file(directory)
        if grant is None:
            raise EditRefused(
                f"there is no grant {name!r}: `squidkeeper grant --list` shows them"
            )
        if grant.location.file == str(directory / FLEET_GRANTS):
            command = f"squidkeeper grant --fleet REPOSITORY --revoke {quote(name)}"
            raise EditRefused(
                f"grant {name!r} is one for all gateways: revoke it there, by `{command}`"
            )
        if grant.location.file != str(file):
            raise EditRefused(
                f"grant {name!r} is not in {file}: remove it at {grant.location}"
            )
        edit.remove({name})
        return True


def _remove_unchecked(sources: Sources, name: str, error: PolicyError) -> None:
    """Remove a grant while another file of the policy has a fault: whatever that file
    will say, this only closes.
    """
    path, before = grants_file(sources.directory), sources.granted
    if before is None or any(
        fault.location.file == str(path) for fault in error.faults
    ):
        raise EditRefused(
            f"{error}\n{sources.directory} {_DOES_NOT_LOAD}; nothing was changed"
        ) from error
    after = parse_document(
        path, _edited(path, before.content, lambda grants: _delete(grants, {name}))
    )
    kept, listed = _listed(after), _listed(before)
    if kept == listed:
        raise EditRefused(f"there is no grant {name!r} in {path}")
    if kept != [entry for entry in listed if entry.get("name") != name]:
        raise EditRefused(
            f"{path} has a form that this command cannot edit: edit it by hand"
        )
    _write(sources, after)


def _listed(document: Document) -> list[dict[str, Any]]:
    return [entry for _, entry, _ in entries(document, _SECTION)]


def _delete(grants: list[Any], names: set[str]) -> None:
    for position in reversed(range(len(grants))):
        if grants[position].get("name") in names:
            del grants[position]


def prune_grants(directory: Path, now: datetime) -> tuple[list[Rule], list[Rule]]:
    """Remove the grants that have lapsed; give them, and those that are left."""
    with locked(directory):
        edit = _Edit.begin(directory, now)
        grants, file = edit.loaded.compiled.source.grants, str(grants_file(directory))
        lapsed = [
            grant
            for grant in grants
            if grant.lapsed(now) and grant.location.file == file
        ]
        edit.remove({grant.name for grant in lapsed})
        return lapsed, [grant for grant in grants if grant not in lapsed]


@dataclass(frozen=True, slots=True)
class _Edit:
    """A policy that loads, as it is before an edit of its grants."""

    sources: Sources
    loaded: LoadedPolicy
    now: datetime

    @classmethod
    def begin(cls, directory: Path, now: datetime) -> _Edit:
        sources = read_sources(directory)
        return cls(sources, load_or_refuse(sources, now, _DOES_NOT_LOAD), now)

    def granted(self, entry: Any) -> tuple[LoadedPolicy, Document]:
        """Load the policy as it would be with one more grant; its faults are those of
        what was asked for.
        """
        document = self._changed(lambda grants: grants.append(entry))
        try:
            return load_sources(
                replace(self.sources, granted=document), self.now
            ), document
        except PolicyError as error:
            faults = "\n".join(fault.text for fault in error.faults)
            raise EditRefused(
                f"{faults}\nThis cannot be granted; nothing was changed"
            ) from error

    def _changed(self, change: Callable[[list[Any]], None]) -> Document:
        path = grants_file(self.sources.directory)
        content = (
            self.sources.granted.content if self.sources.granted else _EMPTY.encode()
        )
        return parse_document(path, _edited(path, content, change))

    def remove(self, names: set[str]) -> None:
        """Remove the grants of these names from the file; nothing else may change."""
        if not names:
            return

        document, what = (
            self._changed(lambda grants: _delete(grants, names)),
            ", ".join(sorted(names)),
        )
        after = load_or_refuse(
            replace(self.sources, granted=document),
            self.now,
            f"does not load without {what}",
        )
        kept = [
            grant
            for grant in self.loaded.compiled.source.grants
            if grant.name not in names
        ]
        if _plain(after.compiled.source.grants) != _plain(tuple(kept)):
            raise EditRefused(
                f"{document.path} has a form that this command cannot edit: edit it by hand"
            )
        _write(self.sources, document)


def _plain(grants: tuple[Rule, ...]) -> list[Rule]:
    return [replace(grant, location=_NOWHERE) for grant in grants]


def _check_clients(new: NewGrant, policy: Policy) -> None:
    """Refuse a client that the policy does not have: a grant may outlive its clients,
    and does not begin so.
    """
    known = policy.client_names
    unknown = [name for name in new.clients if name not in known]
    if unknown:
        expected = (
            f"expected one of {', '.join(known)}"
            if known
            else "which names no clients (clients:)"
        )
        raise EditRefused(
            f"there is no client {unknown[0]!r} in the policy, {expected}; nothing was changed"
        )


def _denied_by(effect: Effect) -> str:
    denier = effect.deniers[0]
    rest = (
        f"; the rest is open already, by {effect.openers[0].rule!r}"
        if effect.openers
        else ""
    )
    if denier.location is not None:
        why = f"rule {denier.rule!r} ({denier.location}) denies it, and no grant overrides a deny"
    else:
        why = f"it stays denied as {denier.rule} ({denier.reason})"
    return f"{why}{rest}; nothing was changed"


def _mapping(new: NewGrant, name: str, now: datetime) -> Any:
    """Write a grant as ruamel.yaml has it: text in double quotes, which YAML reads as
    text whatever it holds.
    """
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    def written(value: object) -> object:
        if isinstance(value, list):
            sequence = CommentedSeq(map(written, value))
            sequence.fa.set_flow_style()
            return sequence
        return DoubleQuotedScalarString(value) if isinstance(value, str) else value

    return CommentedMap(
        (key, written(value))
        for key, value in new.entry(name, now.replace(microsecond=0))
    )


def _edited(path: Path, content: bytes, change: Callable[[list[Any]], None]) -> bytes:
    from ruamel.yaml.comments import CommentedSeq
    from ruamel.yaml.error import YAMLError

    yaml = round_trip_yaml()
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        root = yaml.load(content.decode())
        grants = root.get(_SECTION) or CommentedSeq()
    except (YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise EditRefused(
            f"{path} has a form that this command cannot edit: edit it by hand"
        ) from error
    change(grants)
    if grants:
        root[_SECTION] = grants
    else:
        root.pop(_SECTION, None)  # an empty list is a fault
    text = io.StringIO()
    yaml.dump(root, text)
    return text.getvalue().encode()


def _write(sources: Sources, document: Document) -> None:
    """Replace the file, with its owner and mode; a new one has group and mode of a file
    of the policy.

    An account that is not root can give a file to no other group than its own.
    """
    path = document.path
    try:
        before = sources.granted.content if sources.granted else None
        if (path.read_bytes() if path.exists() else None) != before:
            raise EditRefused(f"{path} was changed meanwhile: try again")
        real = path.resolve()  # not a link to it
        state = (
            real if before is not None else policy_files(sources.directory)[0]
        ).stat()
        # the policy is of another account if it is pulled
        owner = state.st_uid if before is not None else os.geteuid()
        group = (
            state.st_gid if before is not None or os.geteuid() == 0 else os.getegid()
        )
        mode = stat.S_IMODE(state.st_mode) & _READABLE | stat.S_IWUSR
        write_file(real, document.content, mode, (owner, group))
    except OSError as error:
        raise EditRefused(
            f"{path} cannot be written: {error.strerror}; nothing was changed"
        ) from error
