"""`squidkeeper explain`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import click

from squidkeeper.base.errors import InvalidRecord, InvalidUrl, PatternError, PolicyError
from squidkeeper.base.faults import Location
from squidkeeper.base.formatting import quantity
from squidkeeper.base.places import sessions_folder
from squidkeeper.cli.helper_options import policy_option, state_option
from squidkeeper.cli.options import (
    ABSOLUTE_URL,
    HOST_AND_PORT,
    Moment,
    fragment_option,
    json_option,
)
from squidkeeper.cli.output import show_json, show_text
from squidkeeper.cli.role_options import assumed_session, role_options
from squidkeeper.cli.stored_session import StoredSession, stored_session

if TYPE_CHECKING:
    from squidkeeper.policy.bodies.sent_request import SentRequest
    from squidkeeper.policy.engine import CompiledPolicy, Decision
    from squidkeeper.policy.engine.body_scope import Judged
    from squidkeeper.policy.engine.decision import TunnelUse
    from squidkeeper.policy.engine.explain import (
        Explanation,
        JudgedRule,
        PassedOver,
        Resolved,
        WebSocket,
    )
    from squidkeeper.policy.language.model import Credential, Entry, Policy, Route, Rule
    from squidkeeper.policy.language.roles import Session
    from squidkeeper.policy.protocol.request import Malformed, Request

_CANNOT_SAY = 2
# a request has no body where none is given
_BODILESS = (
    "GET",
    "HEAD",
    "OPTIONS",
    "DELETE",
)
_UNDECIDED = "UNDECIDED"
_MISSING = "--body FILE, or --push REF: the body of the request, which is on no record, decides"
_NOT_REACHED_AT_MOST = 5
_PASSTHROUGH = "passthrough: only client, host, port and TLS server name are seen, no method and no path"
_CONNECTIONS = {
    "own": "one of the tunnel's own",
    "first": "one for each request",
    "shared": "shared with other clients",
}
_UNLESS = ", unless install.sh was given --bump documented or --upstream"
_NOT_SHARED = "Squid shares none: install.sh was given --bump documented or --upstream, or the edit is seconds old"
_BUMPED = "bumped: HTTP/1.1 passes, each request is decided; HTTP/2 and gRPC need tls: passthrough on the rule"


@click.command()
@policy_option
@click.option(
    "--client",
    metavar="ADDRESS",
    help="The client's address, for rules with `clients`.",
)
@click.option("--user", metavar="NAME", help="The proxy user.")
@role_options
@click.option(
    "--session",
    "named",
    metavar="NAME|NUMBER",
    help="As this session: the active one of a name, or else the last.",
)
@click.option(
    "--at",
    metavar="TIME",
    type=Moment(),
    help="Decide as of this ISO time (UTC by default).",
)
@json_option
@fragment_option
@click.option(
    "--record",
    "line",
    metavar="FILE",
    type=click.File("rb"),
    help="A line of `squidkeeper log --json`; - for standard input.",
)
@click.option(
    "--body",
    metavar="FILE",
    type=click.File("rb"),
    help="The body of the request, as the client sends it.",
)
@click.option(
    "--push",
    "pushed",
    metavar="REF",
    multiple=True,
    help="A push of git that updates REF; also create:REF, delete:REF, option:TEXT, as in `tests`.",
)
@click.option(
    "--header",
    "headers",
    metavar="'NAME: VALUE'",
    multiple=True,
    help="A header that belongs to the body.",
)
@state_option()
@click.argument("method", required=False)
@click.argument("url", required=False)
def explain(
    directory: Path,
    client: str | None,
    user: str | None,
    role: str | None,
    variables: tuple[str, ...],
    named: str | None,
    at: datetime | None,
    as_json: bool,
    fragment: Path,
    line: BinaryIO | None,
    body: BinaryIO | None,
    pushed: tuple[str, ...],
    headers: tuple[str, ...],
    state: Path,
    method: str | None,
    url: str | None,
) -> None:
    """Explain what the gateway does with METHOD URL, and why.

    An https URL is requested in a tunnel of its own, without a TLS server name. CONNECT
    HOST:PORT opens a tunnel.

    No name is resolved. Squid denies an allowed name as private-address if it has a
    private address, unless the rule has private: true.

    not-rendered: the policy in force allows the request, but Squid's configuration
    lacks a part for it. A draft gets its parts when it is put in force.

    --body has the body for rules with body:. Without it, a GET, HEAD, OPTIONS or DELETE
    has no body. The body of any other method is then unknown, and the rules that it
    decides among are listed. A push of git gets its Content-Type, any other body
    application/json, and the Accept of an MCP client. A --header replaces these. --push
    makes the body of a push.

    --role and --variable assume a session, which need not exist. --session takes one
    of this gateway, with its address, also after its end: the output tells which.

    --record explains the first line of FILE, as of its time and its session. A line
    that does not follow from the policy is refused with the reason.

    \b
    Examples:
      squidkeeper explain --client 192.168.137.10 GET https://pypi.org/
      squidkeeper explain --role agent --variable repo=a/b GET https://a.b/
      squidkeeper explain --session vm-7 GET https://github.com/
      squidkeeper explain --body chat.json POST https://api.example/v1/chat
      squidkeeper log -n 1 --json | squidkeeper explain --record -

    \b
    Exit status:
      0  Allowed.
      1  Denied.
      2  Unknown: the policy does not load, URL or line cannot be read,
         or the body decides and is not given.
    """
    from squidkeeper.policy.engine import explain as engine
    from squidkeeper.policy.protocol.request import Request

    stored = None
    if named is not None:
        if line or client or user or role or variables:
            raise click.UsageError(
                "--session goes without --record, --client, --user, --role and --variable: it has its own"
            )
        stored = stored_session(state, named)
        client, user = stored.address, stored.user
    asked, request, now, revision = (
        _of_record(line, state, method, client, user, role, at)
        if line
        else _of_arguments(method, url, client, user, at)
    )
    policy = _load(directory)
    session = assumed_session(policy.source, role, variables)
    session = stored.session if stored else session
    if isinstance(request, Request):
        session = request.session or session
        request = request._replace(session=session)
    _compare(revision, policy.revision, directory)
    found = engine.explain(
        policy,
        request,
        now,
        _sent(request, _body(body, pushed), headers, recorded=line is not None),
    )
    squid = _read_squid(fragment, directory)
    missing = _not_rendered(policy.source, found, squid) if squid else None
    shown = replace(
        found, tunnel=_tunnel_in_force(found.tunnel, squid) if squid else found.tunnel
    )
    if as_json:
        show_json(_as_object(shown, missing, session, stored))
    else:
        about = _session_text(session, stored)
        show_text(_text(asked, shown, missing, squid, about))
    raise SystemExit(
        _CANNOT_SAY if found.undecided else 0 if found.decision.allowed else 1
    )


def _body(body: BinaryIO | None, pushed: tuple[str, ...]) -> bytes | None:
    """Read the body, or make that of a push as tests do; None where neither
    is given.
    """
    if body is not None and pushed:
        raise click.UsageError("--push makes a body: it goes without --body")
    if not pushed:
        return body.read() if body else None
    from squidkeeper.policy.bodies.written_request import push_body
    from squidkeeper.policy.language.bodies import WrittenPush

    given: dict[str, list[str]] = {
        kind: [] for kind in ("update", "create", "delete", "option")
    }
    for text in pushed:
        kind, value = _pushed(text, given.keys())
        given[kind].append(value)
    if not any(given[kind] for kind in ("update", "create", "delete")):
        raise click.BadParameter(
            "expected a ref too: an option alone is no push", param_hint="--push"
        )
    return push_body(WrittenPush(*map(tuple, given.values())))


def _pushed(text: str, kinds: Collection[str]) -> tuple[str, str]:
    from squidkeeper.policy.language.body_values import parse_name, parse_pushed_ref

    kind, colon, value = text.partition(":")
    if not colon or kind not in kinds:
        kind, value = "update", text
    try:
        return kind, parse_name(value) if kind == "option" else parse_pushed_ref(value)
    except PatternError as error:
        raise click.BadParameter(str(error), param_hint="--push") from error


def _sent(
    request: Request | Malformed,
    body: bytes | None,
    headers: tuple[str, ...],
    *,
    recorded: bool,
) -> SentRequest | None:
    """Make the request with its body; None where that is not known."""
    from squidkeeper.policy.bodies.written_request import written_request

    if request.url is None or (
        body is None and (recorded or request.method not in _BODILESS)
    ):
        return None
    pairs = [
        (name.strip(), value.strip())
        for name, colon, value in (text.partition(":") for text in headers)
        if colon
    ]
    if len(pairs) < len(headers):
        raise click.BadParameter(
            "expected NAME: VALUE, such as 'Content-Type: application/json'",
            param_hint="--header",
        )
    return written_request(request.method, request.url, body, pairs)


class _Squid(NamedTuple):
    """What Squid's configuration has, and whether the policy is a draft: another than
    the one that is installed.
    """

    keys: frozenset[str]
    draft: bool

    @property
    def shares(self) -> bool:
        """Whether requests share connections to origins."""
        return "shared" in self.keys


def _read_squid(fragment: Path, directory: Path) -> _Squid | None:
    from squidkeeper.serving.parts import is_draft, read_in_force

    try:
        text = fragment.read_text()
    except OSError:
        return None
    return _Squid(read_in_force(text), is_draft(directory, text))


def _not_rendered(policy: Policy, found: Explanation, squid: _Squid) -> str | None:
    """Say what Squid's configuration lacks: a request to what is in force is denied;
    None where it lacks nothing.
    """
    from squidkeeper.serving.parts import PartsInForce, needed_keys

    in_force = PartsInForce(needed_keys(policy), squid.keys)
    decision = replace(found.decision, upstream=found.upstream)
    lacking = in_force.lacking(decision) if decision.allowed else frozenset()
    if squid.draft and lacking:
        return (
            f"Squid gets what it lacks within seconds of the draft's being put "
            f"in force: {', '.join(sorted(lacking))}"
        )
    return in_force.checked(decision).reason if lacking else None


def _tunnel_in_force(found: TunnelUse | None, squid: _Squid) -> TunnelUse | None:
    """Say which connection a request takes where Squid shares none; a draft may bring
    that.
    """
    from squidkeeper.policy.engine.decision import TunnelUse
    from squidkeeper.policy.protocol.request import TunnelMode

    if (
        found is None
        or found.mode is not TunnelMode.SHARED
        or squid.shares
        or squid.draft
    ):
        return found
    return TunnelUse(TunnelMode.OWN, _NOT_SHARED)


# the last: the revision that the record names
Question = tuple[str, "Request | Malformed", datetime, str | None]


def _of_arguments(
    method: str | None,
    url: str | None,
    client: str | None,
    user: str | None,
    at: datetime | None,
) -> Question:
    from squidkeeper.policy.protocol.request import request_to
    from squidkeeper.policy.url import RECORDED_URL_LENGTH

    if method is None or url is None:
        raise click.UsageError("give METHOD URL, or --record FILE")
    _check_address(client)
    _check_target(method, url)
    if len(url) == RECORDED_URL_LENGTH:
        raise click.BadParameter(
            f"it has {len(url):,} characters, as a URL that the record cuts off: what is missing may decide. "
            "Give the whole URL.",
            param_hint="URL",
        )
    return (
        f"{method} {url}",
        request_to(method, url, client, user),
        at or datetime.now(UTC),
        None,
    )


def _of_record(line: BinaryIO, state: Path, *given: object) -> Question:
    from squidkeeper.record.log.listing import printable_field
    from squidkeeper.record.log.record import NONE, parse_record, parse_time
    from squidkeeper.record.log.recorded_sessions import RecordedSessions, Unknown
    from squidkeeper.record.log.requests import request_of, told_by_body, unexplained

    if any(given):
        raise click.UsageError(
            "--record goes without METHOD, URL, --client, --user, --role and --at: the record has them"
        )
    text = line.readline().rstrip(b"\n")
    if not text:
        expected = (
            "expected a line of the record, as `squidkeeper log --json` prints it"
        )
        raise click.BadParameter(
            f"{line.name} is empty, {expected}", param_hint="--record"
        )
    try:
        record = parse_record(text)
        at = parse_time(record)
    except (InvalidRecord, ValueError) as error:
        raise click.BadParameter(
            f"{line.name}: {error}", param_hint="--record"
        ) from error
    reason = unexplained(record)
    if reason:
        click.echo(
            f"This request cannot be explained by the policy: {reason}.", err=True
        )
        raise SystemExit(_CANNOT_SAY)
    told = told_by_body(record)
    by = (
        record.rule
        if told is None
        else f"{record.rule}, by its body: {printable_field(told)}"
    )
    what = f"{record.method} {record.url} (logged: {record.verdict} by {by})"
    session = RecordedSessions.of_gateway(state).of(record)
    if session is Unknown.SESSION:
        click.echo(
            f"This request cannot be explained: it is of session {record.session}, which {sessions_folder(state)} "
            "does not have, or no longer, or which this account cannot read.",
            err=True,
        )
        raise SystemExit(_CANNOT_SAY)
    return (
        what,
        request_of(record, session),
        at,
        None if record.revision == NONE else record.revision,
    )


def _compare(on_record: str | None, explained: str, directory: Path) -> None:
    if on_record not in (None, explained):
        click.echo(
            f"Revision {on_record} decided this request, and revision {explained} of {directory} explains it here: "
            "the policy has changed in between.",
            err=True,
        )


def _load(directory: Path) -> CompiledPolicy:
    from squidkeeper.policy.policy_store.loading import load

    try:
        return load(directory, datetime.now(UTC)).compiled
    except PolicyError as error:
        said = f"{directory} does not load, so it explains nothing; helpers that have loaded a policy keep it"
        click.echo(f"{error}\n{said}")
        raise SystemExit(_CANNOT_SAY) from error


def _check_target(method: str, url: str) -> None:
    """Refuse what no client could mean; what is a URL and no valid one is for the
    decision to deny.
    """
    if method == "CONNECT":
        if not HOST_AND_PORT.fullmatch(url):
            raise click.BadParameter(
                f"CONNECT takes HOST:PORT, such as github.com:443, not {url!r}",
                param_hint="URL",
            )
    elif not ABSOLUTE_URL.match(url):
        message = f"{url!r} is not an absolute URL, expected one with its scheme, such as https://example.com/"
        raise click.BadParameter(message, param_hint="URL")


def _check_address(client: str | None) -> None:
    from squidkeeper.policy.url import parse_address

    try:
        if client is not None:
            parse_address(client)
    except InvalidUrl as error:
        raise click.BadParameter(str(error), param_hint="--client") from error


def _text(
    asked: str,
    found: Explanation,
    missing: str | None,
    squid: _Squid | None,
    session: str | None,
) -> str:
    decision = found.decision
    of = (
        f", for the reading {found.by_reading[0][0].reading}"
        if len(found.by_reading) > 1
        else ""
    )
    rows = [
        ("session", session),
        ("rule", f"{decision.rule}{_at(decision.location)}"),
        ("reason", decision.reason),
        ("missing", _MISSING if found.undecided else None),
        *(("body", text) for text in _body_texts(found)),
        ("ask", _ask_text(decision)),
        ("grant", _grant_text(found.grant)),
        ("observed", _observed_text(found)),
        ("WARNING", _warning_text(found)),
        ("not rendered", missing),
        (
            "meter",
            str(decision.meter) if decision.meter and not found.undecided else None,
        ),
        ("rewrite", _rewrite_text(decision)),
        *(
            ("credential", _credential_text(credential))
            for credential in decision.credentials
        ),
        *(("secret", f"{secret.name}: {secret.source}") for secret in found.secrets),
        ("strip", ", ".join(decision.strip.headers) if decision.strip else None),
        ("connection", _connection_text(found, squid)),
        ("upstream", _upstream_text(found.upstream)),
        *(
            ("quota", f"{quota.name}: {quota.text}{_at(quota.location)}")
            for quota in found.quotas
        ),
        ("resolved", _resolved_text(found.resolved)),
        ("tls", _tls_text(found)),
        ("websocket", _websocket_text(found)),
        *(
            ("reading", f"{path.reading} {path.path}: {_verdict_text(one)}")
            for path, one in found.by_reading
        ),
        *(("passed over", _passed(passed) + of) for passed in found.passed_over),
        *(("not reached", text) for text in _not_reached_texts(found.not_reached)),
        *(("not applied", _passed(passed)) for passed in found.not_applied),
    ]
    lines = [f"{name:<12} {text}" for name, text in rows if text]
    verdict = _UNDECIDED if found.undecided else decision.action.upper()
    return "\n".join([f"{verdict:<12} {asked}", *lines])


def _session_text(session: Session | None, stored: StoredSession | None) -> str | None:
    if session is None:
        return None
    given = (f"{name} {', '.join(held)}" for name, held in session.values.items())
    values = "; ".join([f"role {session.role}", *given])
    if session.is_assumed:
        return values
    state = f", {stored.state}" if stored else ""
    return f"{session.name} ({session.number}{state}): {values}"


def _verdict_text(decision: Decision) -> str:
    return (
        "the body decides"
        if decision.by_body
        else f"{decision.action} by {decision.rule}"
    )


def _body_texts(found: Explanation) -> Iterator[str]:
    if found.undecided:
        yield "the first of these that holds decides:"
    for one in found.by_body:
        if found.undecided or one.judged is not None:
            yield f"{one.rule.name}{_at(one.rule.location if one.rule.location.file else None)}: {_body_text(one)}"
    if found.undecided and (
        found.by_body[-1].rule.body or found.by_body[-1].rule.observe
    ):
        yield "default"


def _body_text(one: JudgedRule) -> str:
    does = f"{'observed as ' if one.rule.observe else ''}{one.rule.verdict}"
    if one.judged is None:
        return (
            f"{does}, whatever the body"
            if one.rule.body is None
            else f"{does}, where its body holds"
        )
    if one.judged.holds:
        return f"{does}{_because(one.judged)}"
    return f"did not hold{_because(one.judged)}"


def _because(judged: Judged) -> str:
    return f" ({judged.outcome.reason})" if judged.outcome.reason else ""


def _ask_text(decision: Decision) -> str | None:
    if decision.asks and not decision.allowed:
        return (
            "denied with a ticket: a person can allow it for a time (squidkeeper ask)"
        )
    return (
        "requests to it can be denied with a ticket (squidkeeper ask)"
        if decision.outlook.may_ask
        else None
    )


def _grant_text(grant: Rule | None) -> str | None:
    if grant is None or grant.expires is None:
        return None
    until = f"until {grant.expires.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if grant.uses is None:
        return until
    return f"{until}, {quantity(grant.uses, 'request')} at most (`squidkeeper grant --list` shows how many are left)"


def _observed_text(found: Explanation) -> str | None:
    one = found.observed
    return (
        None
        if one is None
        else f"{one.verdict} by {one.rule}{_at(one.location)}: recorded, and of no effect"
    )


def _warning_text(found: Explanation) -> str | None:
    if found.default_observes is None:
        return None
    why = "no rule decides this request, and the default observes instead of denying it"
    return f"{why} ({_place(found.default_observes)})"


def _passed(passed: PassedOver) -> str:
    why = (
        ", ".join(passed.fields) + " did not hold"
        if passed.fields != ("expires",)
        else "it has expired"
    )
    return f"{passed.entry.name}{_at(passed.entry.location)}: {why}"


def _not_reached_texts(rules: list[Rule]) -> Iterator[str]:
    yield from (
        f"{rule.name}{_at(rule.location)}: would deny"
        for rule in rules[:_NOT_REACHED_AT_MOST]
    )
    if len(rules) > _NOT_REACHED_AT_MOST:
        yield f"{len(rules) - _NOT_REACHED_AT_MOST} more"


def _upstream_text(found: Route | None) -> str | None:
    from squidkeeper.policy.url import format_authority

    if found is None or not found.location.file:
        return "the parent of install.sh --upstream, or none" if found else None
    parent = found.parent
    where = (
        f"through http://{format_authority(parent.host, parent.port)}"
        if parent
        else "straight to the origin"
    )
    resolves = (
        ", which resolves names that the gateway cannot resolve"
        if found.resolve
        else ""
    )
    return f"{found.name}{_at(found.location)}: {where}{resolves}"


def _resolved_text(found: Resolved | None) -> str | None:
    if found is None:
        return None
    return (
        f"later, by Squid: it denies the request as private-address if an address of {found.host} is private "
        f"(private: true on {found.opener} would allow it)"
    )


def _tls_text(found: Explanation) -> str | None:
    if found.passthrough:
        return _PASSTHROUGH
    return _BUMPED if found.passthrough is False and not found.by_reading else None


def _connection_text(found: Explanation, squid: _Squid | None) -> str | None:
    if found.tunnel is None:
        return None
    mode: str = found.tunnel.mode
    if (
        mode == "own" and found.passthrough is None
    ):  # over plain http, no connection outlives its request
        mode = "first"
    last = (
        "; a request with a body is the last on it"
        if found.decision.connections == "single"
        else ""
    )
    unless = _UNLESS if mode == "shared" and not (squid and squid.shares) else ""
    return f"{_CONNECTIONS[mode]}{unless}, because for this host {found.tunnel.reason}{last}"


def _websocket_text(found: Explanation) -> str | None:
    from squidkeeper.policy.engine.explain import rule_to_change

    if found.websocket is None or found.passthrough:
        return None
    if found.websocket.passes:
        return "yes"
    if found.by_body:
        return "no, no rule that reads bodies passes one"
    if found.grant is not None:
        return "no, a grant passes none"
    remedy = f"websocket: true on {rule_to_change(found.decision)} would let it pass"
    return f"no, {_websocket_obstacle(found.websocket)}" + (
        f" ({remedy})" if found.decision.location else ""
    )


def _websocket_obstacle(found: WebSocket) -> str | None:
    if found.passes:
        return None
    if found.entry is None:
        return "no rule opens the whole host"
    named = f"{found.entry.name}{_at(found.entry.location)}"
    if not found.fields:
        return f"the rewrite {named} is for this host"
    return f"the rule {named} names {', '.join(found.fields)}"


def _at(location: Location | None) -> str:
    return f" ({_place(location)})" if location else ""


def _place(location: Location) -> str:
    return f"{location.file}:{location.line}"


def _credential_text(credential: Credential) -> str:
    return f"{credential.name}: {', '.join(credential.form.places)}{_at(credential.location)}"


def _rewrite_text(decision: Decision) -> str | None:
    if decision.rewritten is None:
        return None
    rewrite = decision.rewritten.rewrite
    how = (
        "fetched from"
        if rewrite.redirect is None
        else f"{rewrite.redirect} redirect to"
    )
    return f"{rewrite.name}{_at(rewrite.location)}: {how} {decision.rewritten.url}"


def _as_object(
    found: Explanation,
    missing: str | None,
    session: Session | None,
    stored: StoredSession | None,
) -> dict[str, object]:
    decision = found.decision
    location = decision.location
    rewritten = decision.rewritten
    return {
        "verdict": _UNDECIDED.lower() if found.undecided else decision.action,
        "rule": decision.rule,
        "location": _place(location) if location else None,
        "reason": decision.reason,
        "session": session and _session_fields(session, stored),
        "by_body": [_body_fields(one) for one in found.by_body],
        "asks": decision.asks or decision.outlook.may_ask,
        "grant": found.grant
        and {
            "expires": found.grant.expires and found.grant.expires.isoformat(),
            "uses": found.grant.uses,
        },
        "observed": found.observed
        and {
            "verdict": found.observed.verdict,
            "rule": found.observed.rule,
            "location": _place(found.observed.location),
        },
        "default_observes": found.default_observes is not None,
        "rewrite": rewritten
        and {
            "name": rewritten.rewrite.name,
            "url": str(rewritten.url),
            "redirect": rewritten.rewrite.redirect,
        },
        "credentials": [credential.name for credential in decision.credentials],
        "secrets": {secret.name: str(secret.source) for secret in found.secrets},
        "strip": decision.strip.headers if decision.strip else [],
        "connections": decision.connections,
        "tunnel": found.tunnel
        and {"mode": found.tunnel.mode, "reason": found.tunnel.reason},
        "upstream": found.upstream.name if found.upstream else None,
        "meter": str(decision.meter)
        if decision.meter and not found.undecided
        else None,
        "quotas": [quota.name for quota in found.quotas],
        "not_rendered": missing,
        "resolved": found.resolved
        and {
            "host": found.resolved.host,
            "private_address": "deny",
            "opened_by": found.resolved.opener,
        },
        "websocket": found.websocket
        and {
            "passes": found.websocket.passes,
            "reason": _websocket_obstacle(found.websocket),
        },
        "passthrough": found.passthrough,
        "readings": [
            {
                "reading": path.reading,
                "path": path.path,
                "verdict": _UNDECIDED.lower() if read_as.by_body else read_as.action,
                "rule": read_as.rule,
            }
            for path, read_as in found.by_reading
        ],
        "passed_over": [_passed_fields(passed) for passed in found.passed_over],
        "not_reached": [_named(rule) for rule in found.not_reached],
        "not_applied": [_passed_fields(passed) for passed in found.not_applied],
    }


def _session_fields(
    session: Session, stored: StoredSession | None
) -> dict[str, object]:
    made = {"name": session.name, "number": session.number}
    return {
        **({} if session.is_assumed else made),
        **({"state": stored.state} if stored else {}),
        "role": session.role,
        "variables": dict(session.values),
    }


def _body_fields(one: JudgedRule) -> dict[str, object]:
    judged = one.judged
    told = judged and {
        "holds": judged.holds,
        "fit": judged.outcome.fit.name.lower(),
        "reason": judged.outcome.reason,
    }
    return {
        **_named(one.rule),
        "verdict": one.rule.verdict,
        "observes": one.rule.observe,
        "judged": told,
    }


def _passed_fields(passed: PassedOver) -> dict[str, object]:
    return {**_named(passed.entry), "fields": passed.fields}


def _named(entry: Entry) -> dict[str, object]:
    return {"name": entry.name, "location": _place(entry.location)}
