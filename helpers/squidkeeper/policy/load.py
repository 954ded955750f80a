"""From the files that were read to a `Policy` (floor 2): build all of it, or report every fault."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from squidkeeper.errors import PolicyError
from squidkeeper.policy.document import Document, all_entries, entries
from squidkeeper.policy.faults import Fault, FaultCode, Location
from squidkeeper.policy.lists import HostList, ListChangedError, ListSummary, load_list, prune_cache
from squidkeeper.policy.model import (
    Action,
    Client,
    Credential,
    Match,
    Policy,
    PolicyTest,
    Rewrite,
    Rule,
    SecretSource,
)
from squidkeeper.policy.queries import QueryPattern
from squidkeeper.policy.schema import (
    NAMED_BY_KEY,
    Checked,
    CredentialEntry,
    Defaults,
    Names,
    PolicyFile,
    RewriteEntry,
    RuleEntry,
    check_document,
    is_understood,
)
from squidkeeper.policy.sources import FileProblem, ListFile, Sources, file_entries, file_problem
from squidkeeper.policy.templates import parse_template

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BuiltPolicy:
    """A policy that loads, and what in it is surely unmeant as far as loading shows."""

    policy: Policy
    warnings: tuple[Fault, ...] = ()


def build(sources: Sources, *, list_cache: Path | None = None, ended: frozenset[str] = frozenset()) -> BuiltPolicy:
    """Build the policy; `PolicyError` with every fault where there is one. The policy's own tests are not run.

    `ended` names the files that ended with `end: true` in the revision before.
    """
    names = _names(sources)
    checked = [check_document(document, names, ended) for document in sources.documents]
    faults = [*sources.faults, *(fault for document in sources.documents for fault in document.faults)]
    faults += (fault for one in checked for fault in one.faults)
    faults += _merge_faults(sources.documents)
    lists, list_faults, warnings = _load_lists(sources, list_cache)
    faults += [*list_faults, *_opened_list_faults(sources.documents, lists)]
    secret_faults, secret_warnings = _check_secrets(sources)
    faults += secret_faults
    comments = (warning for document in sources.documents for warning in document.warnings)
    all_warnings = tuple(sorted({*warnings, *secret_warnings, *comments}))
    if faults:
        raise PolicyError(sorted(set(faults)), all_warnings)
    return BuiltPolicy(_policy(sources, checked, lists), all_warnings)


def _names(sources: Sources) -> Names:
    """Collect what the files define, faulty entries too: a reference to one is not a fault of its own."""
    found: dict[str, set[str]] = {section: set() for section in _NAMED_SECTIONS}
    for document in sources.documents:
        for section, name, _ in _defined(document):
            found[section].add(name)
    known = {section: frozenset(names) for section, names in found.items() if section in Names.__slots__}
    secrets = (one for document in sources.documents for one in all_entries(document, "secrets"))
    hidden = frozenset(str(steps[1]) for _, entry, steps in secrets if not isinstance(entry, dict))
    return Names(**known, hidden=hidden, whole=not sources.faults and all(map(is_understood, sources.documents)))


def _defined(document: Document) -> Iterator[tuple[str, str, Location]]:
    for section, entry, steps in all_entries(document, *_NAMED_SECTIONS):
        if section in NAMED_BY_KEY:
            if isinstance(steps[1], str):
                yield section, steps[1], document.locate(steps, key=True)
        elif isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield section, entry["name"], document.locate((*steps, "name"))


def _merge_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find names that stand twice in their section over all files, and a second `defaults`."""
    seen: dict[tuple[str, str], Location] = {}
    for document in documents:
        for section, name, location in _defined(document):
            first = seen.setdefault((section, name), location)
            if first is not location:
                what = "a secret of this name" if section == "secrets" else f"{_NAMED_SECTIONS[section]} {name!r}"
                yield Fault(location, FaultCode.DUPLICATE_NAME, f"{what} is defined twice, first at {first}")
        if "defaults" in document.data:
            location = document.locate(("defaults",), key=True)
            first = seen.setdefault(("defaults", ""), location)
            if first is not location:
                message = f"'defaults' stands in two files, first at {first}, expected it in one at most"
                yield Fault(location, FaultCode.DUPLICATE_KEY, message)


def _load_lists(sources: Sources, cache: Path | None) -> tuple[dict[str, HostList], list[Fault], list[Fault]]:
    """Load every list that can be: the lists by name, the faults and the warnings."""
    lists: dict[str, HostList] = {}
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for document, name, path in file_entries(sources.documents, "lists"):
        found = _load_list(path, sources.lists[path], document.locate(("lists", name), key=True), cache)
        if isinstance(found, HostList):
            lists[name] = found
            warnings += _list_warnings(path, found)
        else:
            place = document.locate(("lists", name, "file"))
            faults.append(Fault(place, found.code, f"list file {str(path)!r} cannot be read: {found}"))
    if cache:
        prune_cache(cache, [file.digest for file in sources.lists.values() if file.digest])
    return lists, faults, warnings


def _load_list(path: Path, file: ListFile, place: Location, cache: Path | None) -> HostList | FileProblem:
    """Load one list, or tell why it cannot be read."""
    if file.digest is None:
        return file.problem or FileProblem(FaultCode.UNREADABLE, "its content is not known")
    try:
        return load_list(path, file.digest, place, cache)
    except ListChangedError:
        return FileProblem(FaultCode.UNREADABLE, "it changed while it was read, and is read again in a moment")
    except OSError as error:
        return file_problem(error)


def _list_warnings(path: Path, hosts: HostList) -> Iterator[Fault]:
    summary = hosts.summary
    if summary.strange:
        shown = ", ".join(f"{line.number} {line.text!r}" for line in summary.first_strange)
        count = "1 line was" if summary.strange == 1 else f"{summary.strange:,} lines were"
        place = Location(str(path), summary.first_strange[0].number, 1)
        more = " and so on" if summary.strange > len(summary.first_strange) else ""
        message = f"{count} not understood and left out: {shown}{more}; expected {_LIST_LINES}"
        yield Fault(place, FaultCode.LIST_LINES_IGNORED, message)
    if not summary.patterns:
        found = "nothing in the list was understood" if summary.strange else "the list holds no host pattern"
        yield Fault(Location(str(path)), FaultCode.LIST_EMPTY, f"{found}, so what names it matches nothing")


_LIST_LINES = "host patterns, or lines of hosts(5), Adblock (||host^ alone), dnsmasq or RPZ (CNAME . alone)"


def _opened_list_faults(documents: Iterable[Document], lists: Mapping[str, HostList]) -> Iterator[Fault]:
    """Find the lists that hold what the hosts of an allow or of a credential may not."""
    for document in documents:
        for section, entry, steps in entries(document, "rules", "credentials"):
            names = entry.get("lists")
            if not isinstance(names, list) or not _opens(section, entry):
                continue
            for position, name in enumerate(names):
                hosts = lists.get(name) if isinstance(name, str) else None
                for code, why in _forbidden(section, hosts.summary) if hosts else ():
                    yield Fault(document.locate((*steps, "lists", position)), code, f"list {name!r} {why}")


def _opens(section: str, entry: Mapping[str, object]) -> bool:
    return section == "credentials" or entry.get("action") == Action.ALLOW


def _forbidden(section: str, summary: ListSummary) -> Iterator[tuple[FaultCode, str]]:
    kind = "a credential" if section == "credentials" else "an allow"
    wide = summary.wide or (summary.widest if section == "credentials" else None)
    if wide:
        yield FaultCode.TOO_WIDE, f"holds {wide.text!r} (its line {wide.number}), too wide a pattern for {kind}"
    if summary.exception:
        line = summary.exception
        message = (
            f"takes hosts out by {line.text!r} (its line {line.number}), which is not understood: not safe for {kind}"
        )
        yield FaultCode.LIST_EXCEPTION, message


def _check_secrets(sources: Sources) -> tuple[list[Fault], list[Fault]]:
    """Find the secrets that everyone can read (faults), and those that are unavailable (warnings)."""
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for document, name, path in file_entries(sources.documents, "secrets"):
        file = sources.secrets[path]
        place = document.locate(("secrets", name, "file"))
        if file.open_to_others:
            message = f"secret file {str(path)!r} can be read by everyone, expected mode 0640 or less"
            faults.append(Fault(place, FaultCode.SECRET_EXPOSED, message))
        if file.problem:
            warnings.append(
                Fault(place, file.problem.code, f"secret {name!r} is unavailable: its file: {file.problem}")
            )
    for document in sources.documents:
        for _, entry, steps in entries(document, "secrets"):
            variable = entry.get("env")
            if isinstance(variable, str) and variable not in sources.environment:
                message = f"secret {str(steps[1])!r} is unavailable: its environment variable is unset or empty"
                warnings.append(Fault(document.locate((*steps, "env")), FaultCode.SECRET_UNSET, message))
    return faults, warnings


_NAMED_SECTIONS = {
    "clients": "client",
    "lists": "list",
    "rules": "rule",
    "rewrites": "rewrite",
    "secrets": "secret",
    "credentials": "credential",
}

# --- the checked models as a policy -------------------------------------------------------------------------------


def _policy(sources: Sources, checked: Iterable[Checked], lists: Mapping[str, HostList]) -> Policy:
    made = [_Maker(one.document, one.model) for one in checked if one.model]
    defaults = next((maker.model.defaults for maker in made if maker.model.defaults), None) or Defaults()
    return Policy(
        revision=_revision(sources),
        default_action=defaults.action,
        default_reason=defaults.reason,
        clients=tuple(client for maker in made for client in maker.clients()),
        rules=tuple(rule for maker in made for rule in maker.rules()),
        rewrites=tuple(rewrite for maker in made for rewrite in maker.rewrites()),
        credentials=tuple(credential for maker in made for credential in maker.credentials()),
        lists=lists,
        secrets={secret.name: secret for maker in made for secret in maker.secrets()},
        tests=tuple(test for maker in made for test in maker.tests()),
    )


def _revision(sources: Sources) -> str:
    """Hash the names and contents of all files, secrets' contents left out."""
    digest = hashlib.blake2b(digest_size=_REVISION_DIGITS // 2)
    contents = [(document.path, hashlib.sha256(document.content).hexdigest()) for document in sources.documents]
    contents += [(path, file.digest or "") for path, file in sources.lists.items()]
    for path, content in contents:
        digest.update(f"{os.path.relpath(path, sources.directory)}\0{content}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


_REVISION_DIGITS = 12


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the parts of a policy out of one file's model."""

    document: Document
    model: PolicyFile

    def clients(self) -> Iterator[Client]:
        for name, entry in (self.model.clients or {}).items():
            users = None if entry.users is None else frozenset(entry.users)
            yield Client(name, self._key("clients", name), _tuple(entry.networks), users)

    def rules(self) -> Iterator[Rule]:
        for position, entry in enumerate(self.model.rules or ()):
            yield Rule(
                name=entry.name,
                location=self._place("rules", position),
                action=entry.action,
                match=_match(entry),
                reason=entry.reason,
                private=entry.private,
                expires=entry.expires,
                owner=entry.owner,
            )

    def rewrites(self) -> Iterator[Rewrite]:
        for position, entry in enumerate(self.model.rewrites or ()):
            place = self._place("rewrites", position)
            yield Rewrite(entry.name, place, _match(entry), entry.to, entry.redirect, entry.private)

    def secrets(self) -> Iterator[SecretSource]:
        for name, entry in (self.model.secrets or {}).items():
            file = None if entry.file is None else self.document.path.parent / entry.file
            yield SecretSource(name, self._key("secrets", name), file, entry.env)

    def credentials(self) -> Iterator[Credential]:
        for position, entry in enumerate(self.model.credentials or ()):
            template = _template(entry)
            yield Credential(
                name=entry.name,
                location=self._place("credentials", position),
                match=_match(entry),
                header=entry.header,
                template=template,
                secrets=parse_template(template),
                username=entry.basic.username if entry.basic else None,
            )

    def tests(self) -> Iterator[PolicyTest]:
        for position, entry in enumerate(self.model.tests or ()):
            yield PolicyTest(
                location=self._place("tests", position),
                method=entry.request[0],
                url=entry.request[1],
                expect=entry.expect,
                client=entry.client,
                user=entry.user,
                at=entry.at,
                rule=entry.rule,
                rewrite=entry.rewrite,
                credentials=_tuple(entry.credentials),
            )

    def _place(self, *steps: str | int) -> Location:
        return self.document.locate(steps)

    def _key(self, *steps: str) -> Location:
        return self.document.locate(steps, key=True)


def _match(entry: RuleEntry | RewriteEntry | CredentialEntry) -> Match:
    return Match(
        clients=_set(entry.clients),
        hosts=_tuple(entry.hosts),
        lists=_tuple(entry.lists),
        schemes=_set(entry.schemes),
        ports=_tuple(entry.ports),
        methods=_set(entry.methods),
        paths=_tuple(entry.paths),
        query=tuple(QueryPattern(key, pattern) for key, pattern in entry.query.items()) if entry.query else None,
    )


def _template(entry: CredentialEntry) -> str:
    if entry.value is not None:
        return entry.value
    return f"{{{entry.basic.password}}}" if entry.basic else f"Bearer {{{entry.bearer}}}"


def _tuple(values: list[T] | None) -> tuple[T, ...] | None:
    return None if values is None else tuple(values)


def _set(values: list[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)
