"""Decisions as Squid reads them: the annotations that Squid reads, the page, and what
is counted.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from sys import getsizeof
from urllib.parse import quote

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.helper_metrics import (
    BODIES,
    CREDENTIAL,
    CREDENTIAL_FAILURES,
    CREDENTIAL_INJECTIONS,
    DECISIONS,
    HOST,
    METER,
    NONE,
    PROTOCOL_ERRORS,
    QUOTA_DENIALS,
    REQUEST,
    REWRITE,
    WATCH,
)
from squidkeeper.policy.engine import (
    CompiledPolicy,
    Decision,
    deny,
    listed_text,
    mode_in_force,
    unavailable,
)
from squidkeeper.policy.engine.decision import Outlook, Rewritten
from squidkeeper.policy.engine.own_host import TICKET_PAGE
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS, UNKNOWN_HEADERS
from squidkeeper.policy.language.model import (
    POLICY_UNAVAILABLE,
    SEALED,
    SEALED_REFUSED,
    SESSION_REQUIRED,
    Route,
    Unavailable,
)
from squidkeeper.policy.protocol.lines import LINE_LIMIT, USER_LENGTH, Reply, Result
from squidkeeper.policy.protocol.request import (
    CONNECT,
    Malformed,
    Request,
    TunnelMode,
    TunnelTag,
    parse_request,
)
from squidkeeper.policy.url import RECORDED_URL_LENGTH, recorded_url
from squidkeeper.serving.counters.layout import Key, counter_key

_NO_POLICY = unavailable(
    Unavailable.NO_POLICY,
    "The gateway has no policy that loads, so it denies everything. Its operators must fix the policy.",
)
_CREDENTIAL_UNAVAILABLE = "The credential for this request ({}) is unavailable; the gateway's cache.log has the reason."
_SECRETS_MISSING = (
    "secrets-missing: the session has no value here for the credential of this request ({})."
    " The program that made the session has to give it again."
)
_OTHER_PARAMETERS = unavailable(
    Unavailable.POLICY_CHANGED,
    "The policy has just changed what is added to the query of this request. Repeat the request.",
)
WITHOUT_HEADERS = unavailable(
    Unavailable.NOT_PASSED_ON,
    "The policy reads the headers of this request, and Squid did not pass them on. Repeat the request. If it is denied"
    " again, the gateway's operators have to run install.sh.",
)
HEADER_TOO_LONG = deny(
    "header-too-long",
    f'URL and headers together are over {LINE_LIMIT:,} bytes in "percent-encoding".',
)
_NO_SUCH_TICKET = "This client has no ticket of this number."
_BARE_IN_USER = "!$&()*+,-./:;=?@_"
_DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits of the hash
_REPLY_BYTES = 1_500  # of Python objects


# --- acl ------------------------------------------------------------------------------


def acl_reply(
    decision: Decision,
    helper: str,
    policy: CompiledPolicy | None,
    user: str | None = None,
    tunnel: str | None = None,
    session: int | None = None,
    *,
    shares: bool = False,
) -> Reply:
    """Write the reply of the acl helper; a denial has the reason for the page.

    `policy` is the one that decided, `user` the proxy user, for the access log;
    `tunnel` is the authority of a CONNECT, `session` the number of who asks. `shares`
    tells whether Squid shares connections to origins. A denied CONNECT passes: its
    tunnel leads nowhere, and each request inside is denied. A tag costs Squid less to
    test than an annotation. A request keeps its first tag: answers about the host have
    it.
    """
    counts = (_decision_key(helper, decision.rule, _outcome(decision, tunnel)),)
    mode = mode_in_force(decision, shares=shares)
    recorded = (
        *_decided(decision, policy),
        *_recorded(decision, policy, user, session),
        *((("session_", str(session)),) if helper == HOST and session else ()),
        *(_tunnel(TunnelTag(tunnel, mode, session)) if tunnel else ()),
    )
    if not decision.allowed and tunnel:
        return Reply(Result.OK, recorded, counts=counts)
    if not decision.allowed:
        denial = (*recorded, *_denied(decision, helper), _contact(policy))
        return Reply(Result.ERR, denial, decision.reason, counts)
    scope = (
        _of_host(decision, policy, mode, is_tunnel=tunnel is not None)
        if helper == HOST
        else _of_request(decision)
    )
    allow = (*recorded, *scope, *_sent_on(decision))
    return Reply(Result.OK, allow, counts=counts)


def _recorded(
    decision: Decision,
    policy: CompiledPolicy | None,
    user: str | None,
    session: int | None,
) -> Iterator[tuple[str, str]]:
    """Write what the service of bodies and the access log need of any decision."""
    if policy and (listed := listed_text(policy, decision, session)):
        yield "body_", listed
    if decision.observed:
        yield "observed_", decision.observed
    if user is not None:
        yield "user_", recorded_user(user)


def _denied(decision: Decision, helper: str) -> Iterator[tuple[str, str]]:
    """Have Squid ask about the URL too where what is observed depends on it."""
    if helper == HOST and decision.observes_url:
        yield "tag", "sk_url_decides"


def _of_host(
    decision: Decision,
    policy: CompiledPolicy | None,
    mode: TunnelMode,
    *,
    is_tunnel: bool,
) -> Iterator[tuple[str, str]]:
    """Write what an allow at host scope tells of the requests to the host."""
    yield "tag", _tag(decision, mode)
    if decision.private or is_tunnel:
        yield "private_", "yes" if decision.private else "no"
    yield from _asked_later(decision.outlook)
    is_watched = policy is not None and policy.source.watches_requests
    if _may_override(decision) and not is_tunnel and not is_watched:
        yield "override_", "yes"
    if decision.passthrough:
        yield "passthrough_", "yes"
    if decision.websocket or decision.outlook.unrestricted:
        yield "websocket_", "yes"


def _asked_later(outlook: Outlook) -> Iterator[tuple[str, str]]:
    """Name the helpers that Squid asks about a request to the host."""
    if outlook.may_rewrite or outlook.may_add_parameters:
        yield "rewrite_", "yes" if outlook.may_rewrite else "parameters"
    if outlook.may_inject:
        yield "inject_", "yes"
    if outlook.needs_headers:
        yield "headers_", "yes"
    if outlook.under_quota:
        yield "quota_", "yes"


def _of_request(decision: Decision) -> Iterator[tuple[str, str]]:
    """Write what an allow at request scope tells of one request."""
    yield "private_", "yes" if decision.private else "no"
    if decision.passthrough:
        yield "passthrough_", "yes"
    if decision.websocket:
        yield "websocket_", "yes"


def _sent_on(decision: Decision) -> Iterator[tuple[str, str]]:
    """Write how an allowed request is sent on, at either scope."""
    if decision.connections == "single":
        yield "connections_", "single"
    if decision.strip:
        for key in decision.strip.header_keys:
            yield "strip_header_", key
    yield from _forwarded(decision.upstream)


def _tag(decision: Decision, mode: TunnelMode) -> str:
    """Name what Squid asks after an allow at host scope."""
    ending = "_shared" if mode is TunnelMode.SHARED else ""
    if decision.outlook.needs_url or decision.observes_url:
        return f"sk_url_decides{ending}"
    return f"sk_final{ending}" if decision.final else f"sk_asks_more{ending}"


def _tunnel(tag: TunnelTag) -> Iterator[tuple[str, str]]:
    """Name the tunnel of a CONNECT, and have Squid bump it first where it has no server
    of its own.
    """
    yield "clt_conn_tag", str(tag)
    if tag.mode is not TunnelMode.OWN:
        yield "bump_", "first"


def _may_override(decision: Decision) -> bool:
    """Whether a server may take another method or path than was judged: where each of
    them is allowed alike.
    """
    keeps_known = (
        decision.strip is not None and UNKNOWN_HEADERS in decision.strip.headers
    )
    return decision.outlook.unrestricted and not (
        decision.outlook.credential_varies or keeps_known
    )


def _contact(policy: CompiledPolicy | None) -> tuple[str, str]:
    """Say whom to ask about a denial."""
    return "contact_", (
        policy and policy.source.contact
    ) or "the operator of this gateway"


def _forwarded(upstream: Route | None) -> tuple[tuple[str, str], ...]:
    """Write where a request is forwarded, and who resolves a name that the gateway
    cannot resolve.
    """
    if upstream is None:
        return ()
    return (
        ("upstream_", upstream.key),
        ("resolve_", "upstream" if upstream.resolve else "gateway"),
    )


def shared_reply(
    cache: BoundedCache[object, Reply],
    decision: Decision,
    helper: str,
    policy: CompiledPolicy,
    user: str | None = None,
    session: int | None = None,
    *,
    shares: bool = False,
) -> Reply:
    """Return the reply for a decision that many lines share: written once, and kept by
    the decision, the user, and the session where the record or the service of bodies
    is told.
    """
    session = session if helper == HOST or decision.reads_body else None
    key = (decision, user, session)
    reply = cache.get(key)
    if reply is None:
        reply = acl_reply(
            decision, helper, policy, user, session=session, shares=shares
        )
        cache.add(key, reply, reply_bytes(reply) + getsizeof(user))
    return reply


def tunnel_reply(
    decision: Decision,
    helper: str,
    policy: CompiledPolicy | None,
    request: Request | Malformed,
    session: int | None = None,
    *,
    shares: bool = False,
) -> Reply:
    """Write a reply of its own for one request without its URL; about the host, for a
    CONNECT, it names the tunnel.
    """
    if helper != HOST or isinstance(request, Malformed):
        return acl_reply(decision, helper, policy, request.user)
    # Nothing but an ERR keeps Squid from splicing it. Squid keeps an OK for up to two
    # seconds, in which a session may begin.
    is_closed = not decision.allowed and (
        request.spliced or decision.rule == SESSION_REQUIRED
    )
    tunnel = request.authority if request.method == CONNECT and not is_closed else None
    reply = acl_reply(
        decision, helper, policy, request.user, tunnel, session, shares=shares
    )
    if request.spliced:  # which was counted when the tunnel was opened
        return replace(reply, annotations=(*reply.annotations, ("quota_", "no")))
    return reply


def no_policy_reply(helper: str, request: Request | Malformed) -> Reply:
    """Deny because no policy has ever loaded."""
    return tunnel_reply(_NO_POLICY, helper, None, request)


def ask_login(denial: Reply) -> Reply:
    """Have Squid ask for a login, instead of the page of a denial.

    The denial names no tunnel: the next CONNECT of the connection, with the login,
    opens one.
    """
    return replace(denial, annotations=(*denial.annotations, ("ask_login_", "yes")))


def describe_url(reply: Reply, url: str) -> Reply:
    """Add what the access log cannot show of a URL: a bare `#`, written as `%23` there,
    and what it cuts off.
    """
    described = [("hidden_", "fragment")] if "#" in url else []
    recorded = recorded_url(url)
    if len(recorded) >= RECORDED_URL_LENGTH:
        digest = sha256(recorded.encode()).hexdigest()[:_DIGEST_LENGTH]
        described.append(("cut_", f"{len(recorded)}:{digest}"))
    return replace(reply, annotations=(*reply.annotations, *described))


def with_ticket(denial: Reply, number: str) -> Reply:
    """Add the number of a ticket to a denial."""
    return replace(denial, annotations=(*denial.annotations, ("ticket_", number)))


def no_ticket(denial: Reply, why: str, quotas: Iterable[str] = ()) -> Reply:
    """Add to the reason of a denial why it has no ticket; `quotas` are those that gave
    it none.
    """
    counts = (*denial.counts, *(counter_key(QUOTA_DENIALS, quota) for quota in quotas))
    return replace(
        denial,
        counts=counts,
        message=f"{denial.message or ''} It has no ticket: {why}.".strip(),
    )


def denied_ticket(denial: Reply, number: str, reason: str) -> Reply:
    """Add to the reason of a denial that a person has denied its ticket: it waits no
    longer.
    """
    return replace(
        denial,
        message=f"{denial.message or ''} A person has denied it (ticket {number}): {reason}".strip(),
    )


def ticket_page(page: Reply, state: str) -> Reply:
    """Show the state of a ticket, which is JSON: Squid answers with it, and sends
    nothing on.
    """
    return replace(
        page,
        result=Result.ERR,
        annotations=(*page.annotations, ("ticket_state_", state)),
    )


def no_ticket_page(page: Reply) -> Reply:
    """Deny a page of a ticket that is not there, or of another client's: the answer is
    the same.
    """
    denied = tuple(
        ("verdict_", "deny") if name == "verdict_" else (name, value)
        for name, value in page.annotations
    )
    counts = (_decision_key(REQUEST, TICKET_PAGE, "deny"),)
    return replace(
        page,
        result=Result.ERR,
        annotations=denied,
        message=_NO_SUCH_TICKET,
        counts=counts,
    )


def reply_bytes(reply: Reply) -> int:
    """Estimate the bytes of a reply and its line."""
    return _REPLY_BYTES + 2 * getsizeof(reply.message)


# --- rewrite --------------------------------------------------------------------------


def rewrite_reply(decision: Decision, url: str, revision: str) -> Reply:
    """Write the reply of the rewriter: always with the URL that is fetched, `-` for a
    denied request.
    """
    if decision.rewritten is not None:
        return _rewritten_reply(
            decision.rewritten, revision, _forwarded(decision.upstream)
        )
    return Reply(
        Result.ERR,
        (("final_url_", url if decision.allowed else "-"),),
        counts=_UNCHANGED,
    )


def parametrized_reply(reply: Reply, url: str, key: str) -> Reply:
    """Add parameters to what the rewriter answers; `url` has them, and holds secrets.

    `final_url_`, which is logged, stays without them. `key` proves to the credential
    helper which they are.
    """
    kept = (
        annotation for annotation in reply.annotations if annotation[0] != "rewrite-url"
    )
    return Reply(
        Result.OK,
        (("rewrite-url", url), *kept, ("parameters_", key)),
        counts=reply.counts,
    )


def parameters_key(decision: Decision, policy: CompiledPolicy) -> str:
    """Name the parameters that a decision adds to the query, and where their values
    come from; empty for none.

    A redirect has none: it would show them to the client.
    """
    forms = [form for _, form in decision.parameters]
    if decision.redirects or not forms:
        return ""
    sources = [
        policy.source.secrets[name].source for form in forms for name in form.secrets
    ]
    # no set, whose order differs between processes
    values = [form.values for form in forms]
    return sha256(repr((values, sources)).encode()).hexdigest()[:_DIGEST_LENGTH]


def _rewritten_reply(
    rewritten: Rewritten, revision: str, forwarded: tuple[tuple[str, str], ...]
) -> Reply:
    rewrite, target = rewritten.rewrite, str(rewritten.url)
    # nothing is fetched for a redirect, so the address of its host makes no difference
    private = "yes" if rewrite.private or rewrite.redirect is not None else "no"
    annotations = (
        ("final_url_", target),
        ("private_", private),
        ("revision_", revision),
        *forwarded,
    )
    if rewrite.redirect is None:
        counts = (_decision_key(REWRITE, rewrite.name, "rewrite"),)
        return Reply(Result.OK, (("rewrite-url", target), *annotations), counts=counts)
    counts = (_decision_key(REWRITE, rewrite.name, "redirect"),)
    return Reply(
        Result.OK,
        (("status", str(rewrite.redirect)), ("url", target), *annotations),
        counts=counts,
    )


# --- credential -----------------------------------------------------------------------


def credential_reply(
    decision: Decision, policy: CompiledPolicy, headers: Iterable[tuple[str, str]] = ()
) -> Reply:
    """Write the reply of the credential helper, with the headers of the decision's
    credentials.
    """
    annotations = _decided(decision, policy)
    counts = (_decision_key(CREDENTIAL, decision.rule, decision.action),)
    if not decision.allowed:
        return Reply(
            Result.ERR,
            (*annotations, _contact(policy), *_refusal(decision)),
            decision.reason,
            counts,
        )
    if not decision.credentials:
        return Reply(Result.OK, annotations, counts=counts)
    names = [credential.name for credential in decision.credentials]
    added = ((header_annotation(header), value) for header, value in headers)
    injected = (*added, ("injected_", "yes"), ("credential_", ",".join(names)))
    return Reply(
        Result.OK,
        (*annotations, *injected),
        counts=(*counts, *(counter_key(CREDENTIAL_INJECTIONS, name) for name in names)),
    )


def _refusal(decision: Decision) -> Iterator[tuple[str, str]]:
    """Tell the access log why a sealed token was refused: `why` then says it as the
    page does.
    """
    if decision.rule == SEALED_REFUSED and decision.reason:
        yield (
            "found_",
            f"{SEALED}{decision.reason.partition(': ')[2].rstrip('.')}"[:_FOUND_LENGTH],
        )


def credential_unavailable_reply(
    decision: Decision,
    policy: CompiledPolicy,
    failed: Iterable[str],
    *,
    of_session: bool = False,
) -> Reply:
    """Deny because the values of some credentials, named by `failed`, are
    unavailable: with `of_session`, as the session of the request has none here.
    """
    names = ", ".join(credential.name for credential in decision.credentials)
    reason = _SECRETS_MISSING if of_session else _CREDENTIAL_UNAVAILABLE
    reply = credential_reply(
        deny("credential-unavailable", reason.format(names)), policy
    )
    return replace(
        reply,
        counts=(
            *reply.counts,
            *(counter_key(CREDENTIAL_FAILURES, name) for name in failed),
        ),
    )


def other_parameters_reply(policy: CompiledPolicy) -> Reply:
    """Deny because the rewriter has added other parameters than this policy adds."""
    return credential_reply(_OTHER_PARAMETERS, policy)


def signing_refused_reply(
    decision: Decision, policy: CompiledPolicy, failed: str, reason: str
) -> Reply:
    """Deny because a request cannot be signed with a credential, for a reason that its
    client can change.
    """
    reply = credential_unavailable_reply(decision, policy, [failed])
    return replace(reply, message=f"The request cannot be signed ({failed}): {reason}.")


def header_annotation(header: str) -> str:
    """Name the annotation that carries a header's value; the closing `_` keeps Squid
    from logging it.

    A header that the policy names has a prefix: `Rule` must not become the annotation
    `rule_`.
    """
    prefix = "" if header in INJECTABLE_HEADERS else "inject_"
    return f"{prefix}{header.lower().replace('-', '_')}_"


# --- watch ----------------------------------------------------------------------------


def nothing_found_reply() -> Reply:
    """Let a request pass on."""
    return Reply(Result.OK, _SHOWN, counts=(_decision_key(WATCH, NONE, "allow"),))


def found_reply(
    decision: Decision,
    policy: CompiledPolicy | None,
    tokens: Sequence[str | None],
    found: Iterable[str],
    *,
    withheld: bool = False,
    hide_user: bool = False,
) -> Reply:
    """Deny a request for what it holds, by its nine tokens.

    `withheld` keeps its URL and headers out of the log.
    """
    reply = tunnel_reply(decision, WATCH, policy, parse_request(tokens))
    names = ",".join(sorted(found))
    held = (
        *([("found_", names[:_FOUND_LENGTH])] if names else []),
        *([("user_", "-")] if hide_user else []),
        *(_WITHHELD if withheld else _SHOWN),
    )
    kept = tuple(pair for pair in reply.annotations if pair[0] != "user_")
    return replace(reply, annotations=(*kept, *held))


# --- meter ----------------------------------------------------------------------------


def within_quota_reply(rule: str, *, counts_answer: bool = False) -> Reply:
    """Let a request pass on: `rule` has allowed it.

    `counts_answer`: the bytes of its answer count, so Squid asks about that too.
    """
    counts = (_decision_key(METER, rule, "allow"),)
    asks = (("answers_", "yes"),) if counts_answer else ()
    annotations = (("rule_", rule), ("verdict_", "allow"), *asks)
    return Reply(Result.OK, annotations, counts=counts)


def answer_fits_reply(share: int | None) -> Reply:
    """Let an answer pass on: all of it, or a share of so many bytes."""
    return Reply(Result.OK, (("answer_", "whole" if share is None else str(share)),))


def over_quota_reply(
    decision: Decision,
    policy: CompiledPolicy,
    request: Request,
    quota: str,
    found: str,
    resets: tuple[str, int],
) -> Reply:
    """Deny a request by a quota; `resets` is when its count begins again, and in how
    many seconds.
    """
    reply = tunnel_reply(decision, METER, policy, request)
    at, seconds = resets
    closed = (
        (("clt_conn_tag", f"{request.authority} denied"),)
        if request.method == CONNECT
        else ()
    )
    added = (
        *closed,
        ("found_", found[:_FOUND_LENGTH]),
        ("resets_", at),
        ("resets_in_", str(seconds)),
    )
    return replace(
        reply,
        annotations=(*reply.annotations, *added),
        counts=(*reply.counts, counter_key(QUOTA_DENIALS, quota)),
    )


_FOUND_LENGTH = 200  # characters
_WITHHELD = (("withheld_", "yes"),)
_SHOWN = (("withheld_", "no"),)


# --- every helper ---------------------------------------------------------------------

# by the late lane, which Squid asks because of this annotation
JUDGED_LATER = Reply(Result.ERR, (("later_", "yes"),))


def judged_late(reply: Reply) -> Reply:
    """Mark a reply of the late lane as the last one."""
    return replace(reply, annotations=(*reply.annotations, ("later_", "no")))


def body_count(decision: Decision) -> Key:
    """Name what is counted of a decision by a body."""
    return _decision_key(BODIES, decision.rule, decision.action)


def broken_reply(message: str, helper: str) -> Reply:
    """Tell Squid that a line could not be answered; it denies."""
    return Reply(
        Result.BH,
        (("rule_", POLICY_UNAVAILABLE), ("verdict_", "deny")),
        message,
        (
            _decision_key(helper, POLICY_UNAVAILABLE, "deny"),
            counter_key(PROTOCOL_ERRORS, helper),
        ),
    )


def _decided(
    decision: Decision, policy: CompiledPolicy | None
) -> tuple[tuple[str, str], ...]:
    """Write what was decided, by which revision, and why nothing could decide; no
    revision where none has loaded.
    """
    revision = (("revision_", policy.revision),) if policy else ()
    is_unavailable = decision.rule == POLICY_UNAVAILABLE and decision.found
    found = (("found_", str(decision.found)),) if is_unavailable else ()
    return (
        ("rule_", decision.rule),
        ("verdict_", str(decision.action)),
        *revision,
        *found,
    )


def recorded_user(user: str) -> str:
    """Write the proxy user for the access log: Squid's own `%un` also names who gave a
    wrong password.
    """
    return quote(user, safe=_BARE_IN_USER, errors="surrogateescape")[:USER_LENGTH]


def _outcome(decision: Decision, tunnel: str | None) -> str:
    """Name what is counted: a tunnel that is allowed is no request that a rule has
    matched.
    """
    if tunnel and decision.allowed:
        return "tunnel"
    return "url" if decision.outlook.needs_url else decision.action


def _decision_key(helper: str, rule: str, verdict: str) -> Key:
    return (DECISIONS.name, _HELPER, helper, _RULE, rule, _VERDICT, str(verdict))


_HELPER, _RULE, _VERDICT = DECISIONS.labels
_UNCHANGED = (_decision_key(REWRITE, NONE, "unchanged"),)
NO_REWRITE_POLICY = Reply(
    Result.ERR, counts=(_decision_key(REWRITE, POLICY_UNAVAILABLE, "deny"),)
)
