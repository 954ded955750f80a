"""Builds a `Policy` from the contents of its files, or reports every fault."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path

from squidkeeper.base.errors import PatternError, PolicyError
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language import (
    body_faults,
    conflicts,
    entry_faults,
    grants,
    local_setup,
    meter_faults,
    passthrough,
    role_faults,
    schema,
    secret_sources,
    sharing,
)
from squidkeeper.policy.language.bodies_written import body_of, sent_body
from squidkeeper.policy.language.document import (
    Document,
    all_entries,
    entries,
    file_entries,
)
from squidkeeper.policy.language.file_contents import PolicyContents
from squidkeeper.policy.language.forms import (
    AwsSigV4,
    Form,
    Headers,
    InjectedValue,
    QueryParameters,
    values_of,
)
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS, UNKNOWN_HEADERS
from squidkeeper.policy.language.host_lists import HostList, ListSummary
from squidkeeper.policy.language.hosts import HostPattern, parse_host_pattern
from squidkeeper.policy.language.model import (
    Action,
    Client,
    Credential,
    Match,
    Parent,
    Policy,
    PolicyTest,
    Preset,
    ReloadGate,
    Rewrite,
    Route,
    Rule,
    Strip,
    Token,
)
from squidkeeper.policy.language.prices import Metering, Price, Prices
from squidkeeper.policy.language.queries import QueryPattern
from squidkeeper.policy.language.quotas import Quota, QuotaUnit
from squidkeeper.policy.language.roles import Role, Session, Variable
from squidkeeper.policy.language.schedules import (
    EVERY_DAY,
    WHOLE_DAY,
    Schedule,
    all_days,
)


@dataclass(frozen=True, slots=True)
class BuiltPolicy:
    """A policy that loads, and the warnings that building it shows."""

    policy: Policy
    warnings: tuple[Fault, ...] = ()


def build(contents: PolicyContents, ended: frozenset[str] = frozenset()) -> BuiltPolicy:
    """Build the policy; `PolicyError` with every fault if there is one.

    The policy's own tests are not run.

    `ended` names the files that ended with `end: true` in the revision before.
    """
    documents = contents.documents
    names = _names(contents)
    checked = [_check(document, contents, names, ended) for document in documents]
    checked_presets = {
        name: schema.check_document(preset, names)
        for name, preset in contents.presets.items()
    }
    lists, list_faults, list_warnings = _lists(contents)
    secret_faults, secret_warnings = _check_secrets(contents)
    faults = {
        *contents.faults,
        *(
            fault
            for document in (*documents, *contents.presets.values())
            for fault in document.faults
        ),
        *(
            fault
            for document in (*checked, *checked_presets.values())
            for fault in document.faults
        ),
        *_merge_faults((*contents.presets.values(), *documents), contents.local),
        *list_faults,
        *_opened_list_faults(documents, lists),
        *secret_faults,
        *conflicts.entry_faults(documents),
        *entry_faults.entry_faults(documents),
        *body_faults.entry_faults(documents),
        *grants.entry_faults(documents),
        *role_faults.entry_faults(documents),
        *_upstream_faults(documents),
        *local_setup.entry_faults(documents, contents.local),
    }
    comments = (warning for document in documents for warning in document.warnings)
    warnings = tuple(sorted({*list_warnings, *secret_warnings, *comments}))
    if faults:
        raise PolicyError(sorted(faults), warnings)
    policy = _policy(contents, checked, lists, checked_presets)
    checks = (
        passthrough.conflicts,
        sharing.conflicts,
        body_faults.conflicts,
        meter_faults.conflicts,
        grants.conflicts,
        entry_faults.conflicts,
        role_faults.conflicts,
        local_setup.conflicts,
    )
    if found := sorted(chain.from_iterable(check(policy) for check in checks)):
        raise PolicyError(found, warnings)
    return BuiltPolicy(policy, (*warnings, *grants.for_nobody(policy)))


def _check(
    document: Document,
    contents: PolicyContents,
    names: schema.Names,
    ended: frozenset[str],
) -> schema.Checked:
    """Validate one file.

    What commands grant may outlive its clients: an edit of the policy must load without
    them.
    """
    if document is not contents.granted:
        return schema.check_document(document, names, ended)
    return schema.check_document(
        document, replace(names, clients=names.clients | grants.named_clients(document))
    )


def _names(contents: PolicyContents) -> schema.Names:
    """Collect the names that the files define.

    An entry with faults counts: a reference to it is no second fault.
    """
    found: dict[str, set[str]] = {section: set() for section in _NAMED_SECTIONS}
    for document in (*contents.documents, *contents.presets.values()):
        for section, name, _ in _defined(document):
            found[section].add(name)
    found["clients"] |= found["roles"]
    known = {section: frozenset(names) for section, names in found.items()}
    secrets = (
        entry
        for document in contents.documents
        for entry in all_entries(document, "secrets")
    )
    hidden = frozenset(
        str(steps[1]) for _, entry, steps in secrets if not isinstance(entry, dict)
    )
    there_are = contents.preset_names | contents.presets.keys()
    understood = all(map(schema.is_understood, contents.documents))
    complete = (
        not contents.faults
        and understood
        and entry_faults.are_known(contents.documents, there_are)
    )
    return schema.Names(**known, presets=there_are, hidden=hidden, complete=complete)


def _defined(document: Document) -> Iterator[tuple[str, str, Location]]:
    for section, entry, steps in all_entries(document, *_NAMED_SECTIONS):
        if section in schema.NAMED_BY_KEY:
            if isinstance(steps[1], str):
                yield section, steps[1], document.locate(steps, key=True)
        elif isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield section, entry["name"], document.locate((*steps, "name"))


def _merge_faults(
    documents: Iterable[Document], local: Document | None
) -> Iterator[Fault]:
    """Find names that stand twice in their section over all files, and a second
    `defaults` beside the local one.
    """
    seen: dict[tuple[str, str], Location] = {}
    for document in documents:
        for section, name, location in _defined(document):
            # Squid ignores the case of a parent's name
            unique = name.lower() if section == "upstreams" else name
            first = seen.setdefault(
                (_NAMED_TOGETHER.get(section, section), unique), location
            )
            if first is not location:
                kind = _NAMED_SECTIONS[section]
                what = (
                    f"a {kind} of this name"
                    if section in ("secrets", "canaries")
                    else f"{kind} {name!r}"
                )
                yield Fault(
                    location,
                    FaultCode.DUPLICATE_NAME,
                    f"{what} is defined twice, first at {first}",
                )
        for section in (
            _IN_ONE_FILE & document.data.keys() if document is not local else ()
        ):
            location = document.locate((section,), key=True)
            first = seen.setdefault((section, ""), location)
            if first is not location:
                message = f"{section!r} is in two files, first at {first}, expected it in one at most"
                yield Fault(location, FaultCode.DUPLICATE_KEY, message)


def _lists(
    contents: PolicyContents,
) -> tuple[dict[str, HostList], list[Fault], list[Fault]]:
    lists: dict[str, HostList] = {}
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for document, name, path in file_entries(contents.documents, "lists"):
        found = contents.lists[path]
        if isinstance(found, HostList):
            lists[name] = replace(
                found, location=document.locate(("lists", name), key=True)
            )
            warnings += _list_warnings(path, found)
        else:
            place = document.locate(("lists", name, "file"))
            faults.append(
                Fault(
                    place,
                    found.code,
                    f"list file {str(path)!r} cannot be read: {found}",
                )
            )
    return lists, faults, warnings


def _list_warnings(path: Path, hosts: HostList) -> Iterator[Fault]:
    summary = hosts.summary
    if summary.strange:
        # No text of a line: an edit can name any file that whoever checks it can read.
        shown = ", ".join(str(line.number) for line in summary.first_strange)
        count = (
            "1 line was" if summary.strange == 1 else f"{summary.strange:,} lines were"
        )
        place = Location(str(path), summary.first_strange[0].number, 1)
        more = " and so on" if summary.strange > len(summary.first_strange) else ""
        lines = "line" if summary.strange == 1 else "lines"
        message = f"{count} not understood and left out: {lines} {shown}{more}; expected {_LIST_LINES}"
        yield Fault(place, FaultCode.LIST_LINES_IGNORED, message)
    if not summary.patterns:
        found = (
            "nothing in the list was understood"
            if summary.strange
            else "the list holds no host pattern"
        )
        yield Fault(
            Location(str(path)),
            FaultCode.LIST_EMPTY,
            f"{found}, so an entry that names it matches nothing",
        )


_LIST_LINES = "host patterns, or lines of hosts(5), Adblock (||host^ alone), dnsmasq or RPZ (CNAME . alone)"


def _opened_list_faults(
    documents: Iterable[Document], lists: Mapping[str, HostList]
) -> Iterator[Fault]:
    for document in documents:
        for section, entry, steps in entries(document, "rules", "credentials"):
            names = entry.get("lists")
            if not isinstance(names, list) or not _opens(section, entry):
                continue
            for position, name in enumerate(names):
                hosts = lists.get(name) if isinstance(name, str) else None
                for code, why in _forbidden(section, hosts.summary) if hosts else ():
                    yield Fault(
                        document.locate((*steps, "lists", position)),
                        code,
                        f"list {name!r} {why}",
                    )


def _opens(section: str, entry: Mapping[str, object]) -> bool:
    return section == "credentials" or entry.get("action") == Action.ALLOW


def _forbidden(section: str, summary: ListSummary) -> Iterator[tuple[FaultCode, str]]:
    kind = "a credential" if section == "credentials" else "an allow"
    wide = summary.wide or (summary.widest if section == "credentials" else None)
    if wide:
        yield (
            FaultCode.TOO_WIDE,
            f"holds too wide a pattern for {kind}: its line {wide.number}",
        )
    if summary.exception:
        message = f"excludes hosts by its line {summary.exception.number}, which is not understood: not safe for {kind}"
        yield FaultCode.LIST_EXCEPTION, message


def _check_secrets(contents: PolicyContents) -> tuple[list[Fault], list[Fault]]:
    faults: list[Fault] = []
    warnings: list[Fault] = []
    named = (
        (section, *entry)
        for section in ("secrets", "canaries")
        for entry in file_entries(contents.documents, section)
    )
    for section, document, name, path in named:
        file = contents.secrets[path]
        place = document.locate((section, name, "file"))
        kind = _NAMED_SECTIONS[section]
        if file.open_to_others:
            message = f"secret file {str(path)!r} can be read by everyone, expected mode 0640 or less"
            faults.append(Fault(place, FaultCode.SECRET_EXPOSED, message))
        if file.problem:
            warnings.append(
                Fault(
                    place,
                    file.problem.code,
                    f"{kind} {name!r} is unavailable: its file: {file.problem}",
                )
            )
    for document in contents.documents:
        for _, entry, steps in entries(document, "secrets"):
            variable = entry.get("env")
            if isinstance(variable, str) and variable not in contents.environment:
                message = f"secret {str(steps[1])!r} is unavailable: its environment variable is unset or empty"
                warnings.append(
                    Fault(
                        document.locate((*steps, "env")),
                        FaultCode.SECRET_UNSET,
                        message,
                    )
                )
    return faults, warnings


def _upstream_faults(documents: Sequence[Document]) -> Iterator[Fault]:
    secrets = {
        str(steps[1]): entry
        for document in documents
        for _, entry, steps in entries(document, "secrets")
    }
    for document in documents:
        for _, entry, steps in entries(document, "upstreams"):
            basic = entry.get("basic")
            password = basic.get("password") if isinstance(basic, dict) else None
            if isinstance(password, str) and "env" in secrets.get(password, {}):
                place = document.locate((*steps, "basic", "password"))
                message = "the secret is a variable of Squid's environment, which install.sh does not know"
                yield Fault(
                    place,
                    FaultCode.INVALID_UPSTREAM,
                    f"{message}, expected one with 'file'",
                )


_IN_ONE_FILE = frozenset({"defaults", "sealed_tokens"})
_NAMED_SECTIONS = {
    "clients": "client",
    "roles": "role",
    "lists": "list",
    "rules": "rule",
    "grants": "grant",
    "rewrites": "rewrite",
    "secrets": "secret",
    "canaries": "canary",
    "credentials": "credential",
    "upstreams": "upstream",
    "quotas": "quota",
}

_MATCHING = frozenset(field.name for field in fields(Match))
# the record names either as the rule that decided; either may stand in `clients`
_NAMED_TOGETHER = {"grants": "rules", "roles": "clients"}

# --- the checked models as a policy ---------------------------------------------------


def _policy(
    contents: PolicyContents,
    checked: Iterable[schema.Checked],
    lists: Mapping[str, HostList],
    checked_presets: Mapping[str, schema.Checked],
) -> Policy:
    checked = tuple(checked)
    roles = {role.name: role for role in _roles(checked)}
    made = [
        _Maker(one.document, one.model, one.document is contents.local, roles)
        for one in checked
        if one.model
    ]
    shipped = {
        name: _Maker(one.document, one.model)
        for name, one in checked_presets.items()
        if one.model
    }
    named = tuple(preset for maker in made for preset in maker.presets())
    shared = (maker.model.defaults for maker in made if not maker.is_local)
    defaults = next(filter(None, shared), None) or schema.Defaults()
    return Policy(
        revision=contents.revision,
        default_action=defaults.action,
        default_reason=defaults.reason,
        ask_default=defaults.ask,
        observe_default=next(
            (place for maker in made for place in maker.observes_default()), None
        ),
        contact=defaults.contact,
        clients=tuple(client for maker in made for client in maker.clients()),
        roles=tuple(roles.values()),
        session_networks=tuple(
            network for maker in made for network in maker.model.session_networks or ()
        ),
        rules=(
            *(rule for maker in made for rule in maker.rules()),
            *_rules_of(named, shipped),
        ),
        presets=named,
        grants=tuple(grant for maker in made for grant in maker.grants()),
        rewrites=tuple(rewrite for maker in made for rewrite in maker.rewrites()),
        credentials=tuple(
            credential for maker in made for credential in maker.credentials()
        ),
        upstreams=tuple(upstream for maker in made for upstream in maker.upstreams()),
        sealing_keys=tuple(key for maker in made for key in maker.sealing_keys()),
        lists=lists,
        secrets={secret.name: secret for maker in made for secret in maker.secrets()},
        canaries={canary.name: canary for maker in made for canary in maker.canaries()},
        watch=next((place for maker in made for place in maker.watch()), None),
        quotas=tuple(quota for maker in made for quota in maker.quotas()),
        prices=Prices(tuple(price for maker in made for price in maker.prices())),
        tests=tuple(test for maker in made for test in maker.tests()),
        reload_gate=next(
            (gate for maker in made if (gate := _reload_gate(maker.model.defaults))),
            None,
        ),
    )


def _reload_gate(defaults: schema.Defaults | None) -> ReloadGate | None:
    gate = defaults.reload_gate if defaults else None
    return ReloadGate(gate.since, gate.denials) if gate else None


def _roles(checked: Iterable[schema.Checked]) -> Iterator[Role]:
    for one in checked:
        for name, entry in ((one.model and one.model.roles) or {}).items():
            yield Role(
                name,
                one.document.locate(("roles", name), key=True),
                tuple(
                    Variable(
                        variable,
                        said.type,
                        said.pattern or "",
                        said.within or (),
                        said.many,
                    )
                    for variable, said in (entry.variables or {}).items()
                ),
                entry.ttl,
            )


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the parts of a policy out of one file's model.

    `roles` are those of all files.
    """

    document: Document
    model: schema.PolicyFile
    is_local: bool = False  # the local setup
    roles: Mapping[str, Role] = field(default_factory=dict)

    def clients(self) -> Iterator[Client]:
        for name, entry in (self.model.clients or {}).items():
            place = self._key("clients", name)
            yield Client(
                name,
                place,
                entry.networks,
                entry.users,
                _tokens(entry),
                entry.connections,
            )

    def rules(self) -> Iterator[Rule]:
        for position, entry in enumerate(self.model.rules or ()):
            yield Rule(
                name=entry.name,
                location=self._place("rules", position),
                action=entry.action,
                match=_rule_match(entry, self.roles),
                reason=entry.reason,
                private=entry.private,
                expires=entry.expires,
                owner=entry.owner,
                strip=_strip(entry),
                passthrough=entry.tls is not None,
                websocket=entry.websocket,
                connections=entry.connections,
                observe=entry.observe,
                when=_schedule(entry.when),
                body=body_of(entry.body),
                meter=_metering(entry),
            )

    def presets(self) -> Iterator[Preset]:
        for position, entry in enumerate(self.model.presets or ()):
            yield Preset(entry.preset, self._place("presets", position), entry.clients)

    def grants(self) -> Iterator[Rule]:
        for position, entry in enumerate(self.model.grants or ()):
            yield Rule(
                name=entry.name,
                location=self._place("grants", position),
                action=Action.ALLOW,
                match=_granted(entry),
                reason=entry.reason,
                expires=entry.expires,
                owner=entry.by,
                uses=entry.uses,
                made=entry.made,
            )

    def rewrites(self) -> Iterator[Rewrite]:
        for position, entry in enumerate(self.model.rewrites or ()):
            place = self._place("rewrites", position)
            yield Rewrite(
                entry.name,
                place,
                _match(entry, self.roles),
                entry.to,
                entry.redirect,
                entry.private,
            )

    def secrets(self) -> Iterator[secret_sources.NamedSecret]:
        for name, entry in (self.model.secrets or {}).items():
            source, no_host = (
                _source(entry, self.document.path.parent),
                () if self.is_local else None,
            )
            yield secret_sources.NamedSecret(
                name, self._key("secrets", name), source, entry.hosts or no_host
            )

    def canaries(self) -> Iterator[secret_sources.NamedSecret]:
        for name, entry in (self.model.canaries or {}).items():
            yield secret_sources.NamedSecret(
                name,
                self._key("canaries", name),
                secret_sources.FileSource(self.document.path.parent / entry.file),
            )

    def observes_default(self) -> Iterator[Location]:
        """Yield where this file says that the default observes."""
        if self.model.defaults and self.model.defaults.observe:
            yield self._key("defaults", "observe")

    def watch(self) -> Iterator[Location]:
        """Yield where this file says that secrets are watched."""
        if self.model.defaults and self.model.defaults.watch_secrets:
            yield self._key("defaults", "watch_secrets")
        if self.model.canaries:
            yield self._key("canaries")

    def credentials(self) -> Iterator[Credential]:
        for position, entry in enumerate(self.model.credentials or ()):
            place, form = self._place("credentials", position), _form(entry)
            match = _match(entry, self.roles)
            yield Credential(entry.name, place, match, form, entry.placeholder)

    def sealing_keys(self) -> tuple[str, ...]:
        return self.model.sealed_tokens.keys if self.model.sealed_tokens else ()

    def upstreams(self) -> Iterator[Route]:
        for position, entry in enumerate(self.model.upstreams or ()):
            place, resolve = (
                self._place("upstreams", position),
                entry.resolve is not None,
            )
            yield Route.of(
                entry.name, place, _match(entry), _parent(entry), resolve=resolve
            )

    def quotas(self) -> Iterator[Quota]:
        for position, entry in enumerate(self.model.quotas or ()):
            place = self._place("quotas", position)
            limits = ((unit, getattr(entry, unit)) for unit in QuotaUnit)
            unit, limit = next(
                (unit, limit) for unit, limit in limits if limit is not None
            )
            per, label = entry.per
            of_sessions = frozenset(self.roles) if per.is_of_sessions else None
            yield Quota(
                entry.name,
                place,
                unit,
                limit,
                entry.every,
                per,
                entry.rules,
                entry.clients or of_sessions,
                label,
            )

    def prices(self) -> Iterator[Price]:
        for position, entry in enumerate(self.model.prices or ()):
            place = self._place("prices", position)
            cached = entry.tokens_in if entry.cached_in is None else entry.cached_in
            written = (
                entry.tokens_in if entry.cache_write is None else entry.cache_write
            )
            yield Price(
                entry.model,
                entry.tokens_in,
                entry.tokens_out,
                cached,
                written,
                location=place,
            )

    def tests(self) -> Iterator[PolicyTest]:
        for position, entry in enumerate(self.model.tests or ()):
            method, url = entry.request
            yield PolicyTest(
                location=self._place("tests", position),
                method=method,
                url=url,
                expect=entry.expect,
                client=entry.client,
                user=entry.user,
                at=entry.at,
                rule=entry.rule,
                rewrite=entry.rewrite,
                credentials=entry.credentials,
                observed=entry.observed,
                body=sent_body(entry),
                session=self._session(entry.session),
            )

    def _session(self, entry: schema.TestedSessionEntry | None) -> Session | None:
        if entry is None:
            return None
        values = {name: tuple(given) for name, given in (entry.variables or {}).items()}
        with suppress(PatternError):  # found by `role_faults.conflicts`
            values = self.roles[entry.role].check(values)
        return Session.assumed(entry.role, values, entry.labels)

    def _place(self, *steps: str | int) -> Location:
        return self.document.locate(steps)

    def _key(self, *steps: str) -> Location:
        return self.document.locate(steps, key=True)


def _rules_of(named: Iterable[Preset], shipped: Mapping[str, _Maker]) -> Iterator[Rule]:
    for preset in named:
        for rule in shipped[preset.name].rules():
            yield replace(
                rule,
                match=replace(rule.match, clients=preset.clients),
                preset=preset.name,
            )


def _match(
    entry: schema.MatchFields | schema.UpstreamEntry | schema.GrantEntry,
    roles: Mapping[str, Role] | None = None,
) -> Match:
    """Return the matching fields of an entry: those that it has by the names of
    `Match`.

    A variable stands for the hosts that any session of its roles may name.
    """
    given = {name: value for name, value in entry if name in _MATCHING}
    if roles and given.get("hosts"):
        named = [
            roles[name] for name in sorted(given["clients"] or ()) if name in roles
        ]
        given["hosts"] = tuple(_ceilings(given["hosts"], named))
    if given.get("query"):
        given["query"] = tuple(
            QueryPattern(key, pattern) for key, pattern in given["query"].items()
        )
    return Match(**given)


def _ceilings(
    patterns: Iterable[HostPattern], roles: Iterable[Role]
) -> Iterator[HostPattern]:
    for pattern in patterns:
        if pattern.variable is None:
            yield pattern
            continue
        variables = (role.variable(pattern.variable) for role in roles)
        within = (one for variable in variables if variable for one in variable.within)
        for ceiling in dict.fromkeys(within):
            yield replace(
                ceiling,
                text=f"{pattern.text} within {ceiling.text}",
                variable=pattern.variable,
            )


def _rule_match(entry: schema.RuleEntry, roles: Mapping[str, Role]) -> Match:
    match = _match(entry, roles)
    # plain http has no TLS
    return match if entry.tls is None else replace(match, schemes=frozenset({"https"}))


def _strip(entry: schema.RuleEntry) -> Strip | None:
    unknown = (UNKNOWN_HEADERS,) if entry.headers else ()
    headers = (*(entry.strip or ()), *unknown)
    return Strip.of(headers) if headers else None


def _metering(entry: schema.RuleEntry) -> Metering | None:
    return Metering(entry.reserve, entry.ask_usage) if entry.meter else None


def _granted(entry: schema.GrantEntry) -> Match:
    match = _match(entry)
    if entry.urls is None:
        return match
    first = entry.urls[0].url
    host, port = (
        (parse_host_pattern(first.host.text),),
        (range(first.port, first.port + 1),),
    )
    return replace(match, hosts=host, schemes=frozenset({first.scheme}), ports=port)


def _schedule(entry: schema.WhenEntry | None) -> Schedule | None:
    if entry is None:
        return None
    days = EVERY_DAY if entry.days is None else all_days(entry.days)
    return Schedule(entry.timezone, days, entry.hours or (WHOLE_DAY,))


def _tokens(entry: schema.ClientEntry) -> tuple[Token, ...] | None:
    if entry.token_sha256 is None:
        return None
    return tuple(Token(token.sha256, token.expires) for token in entry.token_sha256)


def _parent(entry: schema.UpstreamEntry) -> Parent | None:
    if entry.url is None:
        return None
    basic = entry.basic
    return (
        Parent(*entry.url, basic.username, basic.password)
        if basic
        else Parent(*entry.url)
    )


def _source(entry: schema.SecretEntry, folder: Path) -> secret_sources.SecretSource:
    if entry.file is not None:
        return secret_sources.FileSource(folder / entry.file)
    if entry.command:
        return secret_sources.CommandSource(
            entry.command.run, entry.command.timeout, entry.command.refresh
        )
    if entry.oauth2:
        fields = entry.oauth2.model_dump(exclude={"ca", "refresh"})
        return secret_sources.OAuth2Source(
            **fields,
            ca=_under(folder, entry.oauth2.ca),
            refresh_seconds=entry.oauth2.refresh,
        )
    if entry.github_app:
        fields = entry.github_app.model_dump(exclude={"ca", "permissions"})
        permissions = tuple(sorted(entry.github_app.permissions.items()))
        return secret_sources.GitHubAppSource(
            **fields, permissions=permissions, ca=_under(folder, entry.github_app.ca)
        )
    if entry.session:
        return secret_sources.SessionSource()
    return secret_sources.EnvironmentSource(entry.env or "")


def _under(folder: Path, file: str | None) -> Path | None:
    return None if file is None else folder / file


def _form(entry: schema.CredentialEntry) -> Form:
    if entry.aws_sigv4 is not None:
        aws = entry.aws_sigv4
        return AwsSigV4(
            aws.access_key_id,
            aws.secret_access_key,
            aws.session_token,
            aws.region,
            aws.service,
        )
    if entry.headers is not None:
        return Headers(values_of(entry.headers))
    if entry.parameters is not None:
        return QueryParameters(values_of(entry.parameters))
    header = entry.header or INJECTABLE_HEADERS[0]
    if entry.basic is not None:
        password = entry.basic.password
        return Headers(
            (
                InjectedValue(
                    header, f"{{{password}}}", (password,), entry.basic.username
                ),
            )
        )
    return Headers(
        values_of(
            {
                header: f"Bearer {{{entry.bearer}}}"
                if entry.value is None
                else entry.value
            }
        )
    )
