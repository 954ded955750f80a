"""Loads a policy: from files, or from a stored revision, to a `CompiledPolicy`."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.selftest import run_tests
from squidkeeper.policy.language.document import parse_document
from squidkeeper.policy.language.entry_faults import named_presets
from squidkeeper.policy.language.file_contents import FileProblem, PolicyContents
from squidkeeper.policy.language.grants import FLEET_GRANTS
from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.policy_store.list_compiler import (
    ListChangedError,
    load_list,
    prune_cache,
)
from squidkeeper.policy.policy_store.revisions import compiled_lists, read_revision
from squidkeeper.policy.policy_store.sources import (
    ListFile,
    Sources,
    file_problem,
    read_sources,
    sources_of,
)
from squidkeeper.policy.presets import preset_names

if TYPE_CHECKING:
    from squidkeeper.policy.language.builder import BuiltPolicy


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy that loads, ready to decide, and its warnings."""

    compiled: CompiledPolicy
    warnings: tuple[Fault, ...]


def load(
    directory: Path, now: datetime, list_cache: Path | None = None
) -> LoadedPolicy:
    """Load a policy and run its tests; `PolicyError` with every fault if it does not
    load.
    """
    return load_sources(read_sources(directory), now, list_cache)


def load_sources(
    sources: Sources,
    now: datetime,
    list_cache: Path | None = None,
    ended: frozenset[str] = frozenset(),
) -> LoadedPolicy:
    """Load a policy from the files that were read, and run its tests; `PolicyError` if
    it does not load.

    `ended` names the files that ended with `end: true` in the revision before.
    """
    built = build_sources(sources, list_cache, ended)
    compiled = CompiledPolicy(built.policy)
    faults, warnings = run_tests(_tested(compiled, sources), now)
    all_warnings = (*built.warnings, *warnings)
    if faults:
        raise PolicyError(faults, all_warnings)
    return LoadedPolicy(compiled, all_warnings)


def _tested(compiled: CompiledPolicy, sources: Sources) -> CompiledPolicy:
    """Leave out what commands grant for a time, which a policy's tests cannot
    know of.
    """
    policy = compiled.source
    if not policy.tests or not policy.grants:
        return compiled
    commands = {
        str(sources.directory / FLEET_GRANTS),
        str(sources.granted.path) if sources.granted else "",
    }
    kept = tuple(
        grant for grant in policy.grants if grant.location.file not in commands
    )
    return CompiledPolicy(replace(policy, grants=kept))


def load_stored_revision(folder: Path, revision: str) -> CompiledPolicy:
    """Load a revision that was in force. Its tests passed then, and are not run.

    OSError if it is not stored, or not completely; `PolicyError` if this release does
    not accept it.
    """
    sources = read_revision(folder, revision)
    compiled = CompiledPolicy(
        build_sources(sources, compiled_lists(folder, revision), writes=False).policy
    )
    if compiled.revision != revision:
        raise OSError(
            errno.EIO,
            f"what is stored is revision {compiled.revision}",
            str(folder / revision),
        )
    return compiled


def load_preset(name: str) -> CompiledPolicy:
    """Load a preset as a policy of its own, which denies everything else; `PolicyError`
    if there is no such preset.
    """
    document = parse_document(Path(name), f"version: 1\npresets: ['{name}']\n".encode())
    return CompiledPolicy(build_sources(sources_of((document,))).policy)


def build_sources(
    sources: Sources,
    list_cache: Path | None = None,
    ended: frozenset[str] = frozenset(),
    *,
    writes: bool = True,
) -> BuiltPolicy:
    """Build a policy from the files that were read, its lists compiled; `PolicyError`
    if it does not load.

    The cache of compiled lists is left as it is where it is another account's: not
    `writes`.
    """
    # late: a helper imports it while an edit comes to rest
    from squidkeeper.policy.language.builder import (
        build,
    )

    lists = {
        path: _load_list(path, file, list_cache, writes)
        for path, file in sources.lists.items()
    }
    if list_cache and writes:
        prune_cache(
            list_cache, [file.digest for file in sources.lists.values() if file.digest]
        )
    contents = PolicyContents(
        revision=sources.revision,
        documents=(
            *sources.with_local,
            *([sources.granted] if sources.granted else []),
        ),
        granted=sources.granted,
        local=sources.local,
        lists=lists,
        secrets=sources.secrets,
        environment=sources.environment,
        faults=sources.faults,
        presets=sources.presets,
        preset_names=preset_names()
        if any(named_presets(sources.documents))
        else frozenset(),
    )
    return build(contents, ended)


def _load_list(
    path: Path, file: ListFile, cache: Path | None, writes: bool
) -> HostList | FileProblem:
    if file.digest is None:
        return file.problem or FileProblem(
            FaultCode.UNREADABLE, "its content is not known"
        )
    try:
        return load_list(path, file.digest, cache, writes=writes)
    except ListChangedError:
        return FileProblem(
            FaultCode.UNREADABLE,
            "it changed while it was read, and is read again in a moment",
        )
    except OSError as error:
        return file_problem(error)
