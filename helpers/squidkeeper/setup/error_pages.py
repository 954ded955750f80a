"""The pages with which Squid answers for itself (floor 7): denials, and failures after the policy.

Each page is a row of `PAGES`. A row makes three files of squid/errors/ (plain text, JSON, HTML), its lines in
squid/squidkeeper-pages.conf, and, for each of Squid's own errors that it covers, the file that replaces Squid's page.
`setup/templates.py` renders them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from http import HTTPStatus
from typing import Final

from squidkeeper.url import OWN_HOST

# The request ID: the gateway's name, which install.sh writes, the second, the number of the transaction in its process,
# the port of the client. Together they are unique.
REQUEST_ID: Final = ("gateway", "%tS", "%master_xaction", "%>p")


class Form(StrEnum):
    """How a page is written."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


CONTENT_TYPES: Final = {
    Form.TEXT: "text/plain; charset=utf-8",
    Form.JSON: "application/problem+json",
    Form.HTML: "text/html; charset=utf-8",
}


class Cause(StrEnum):
    """Who can do something about it."""

    POLICY = "the policy of the gateway"
    CLIENT = "the client"
    ORIGIN = "the origin server or the network, not the policy"
    GATEWAY = "the gateway"


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """One page. Its texts hold no quotes, backslashes or characters with a meaning in HTML.

    `proxy_error` is the type of RFC 9209. `rule` and `reason` are None where annotations have them. `squid_errors`
    are Squid's own errors that it stands for; where these do not find them, `chosen_by` is the ACL that finds Squid's
    answers of this kind when they are about to be sent. `is_explained`: `explain` shows why; `why` does so for other
    pages. `has_ticket`: a person can approve the request, by the number of its ticket. `resets`: annotations tell when.
    `shows_error`: a failure whose page shows Squid's error, because that tells more than the reason.
    """

    name: str
    status: int
    title: str
    outcome: str
    advice: str
    cause: Cause
    proxy_error: str
    rule: str | None = None
    reason: str | None = None
    retryable: bool = False
    chosen_by: str = ""
    squid_errors: tuple[str, ...] = ()
    is_explained: bool = False
    has_ticket: bool = False
    resets: bool = False
    shows_error: bool = True

    @property
    def is_denial(self) -> bool:
        """Whether a rule has denied the request, or Squid because none could."""
        return self.status == HTTPStatus.FORBIDDEN

    @property
    def kind(self) -> str:
        """Name it as its JSON and the access log do."""
        return self.name.replace("_", "-")

    @property
    def acl(self) -> str:
        """How the names of its ACLs begin."""
        return f"sk_{self.name}"

    def template(self, form: Form = Form.TEXT) -> str:
        """Name its file in a form. Plain text, which most clients get, has no suffix."""
        suffix = "" if form is Form.TEXT else f"_{form.name}"
        return f"ERR_SQUIDKEEPER_{self.name.upper()}{suffix}"


_DENIED = "DENIED by this gateway. Nothing was sent to the origin."
_FAILED = "FAILED after the policy allowed the request."
_NO_RETRY = "Retrying does not help"
_ASK = "To request a change, show this page to the contact."

DENIALS: Final = (
    ErrorPage(
        "denied",
        403,
        "Denied by policy",
        "DENIED by the policy of this gateway. Nothing was sent to the origin.",
        f"{_NO_RETRY}: the answer stays the same until the operator of this gateway changes the policy. {_ASK}",
        Cause.POLICY,
        "http_request_denied",
        chosen_by="sk_in_denied_tunnel",
        is_explained=True,
    ),
    ErrorPage(
        "asked",
        403,
        "Waiting for approval",
        "DENIED until a person approves it. Nothing was sent to the origin.",
        "The ticket waits for a person, who may answer in minutes or in days. Read its state at the address above, at"
        " most every 10 seconds. When it is approved, repeat exactly this request. When it is denied, the state has the"
        " reason.",
        Cause.POLICY,
        "http_request_denied",
        retryable=True,
        has_ticket=True,
    ),
    ErrorPage(
        "quota",
        403,
        "Quota used up",
        "DENIED by a quota of this gateway. Nothing was sent to the origin.",
        "Do not repeat the request before the time at which the quota resets: until then the answer stays the same.",
        Cause.POLICY,
        "http_request_denied",
        "quota",
        retryable=True,
        chosen_by="sk_in_quota_tunnel",
        resets=True,
    ),
    ErrorPage(
        "no_credential",
        403,
        "The credential is unavailable",
        "DENIED, because this gateway cannot read the credential for the request. Nothing was sent to the origin.",
        f"{_NO_RETRY} until the operator of this gateway fixes the secret. Show this page to the contact.",
        Cause.GATEWAY,
        "proxy_configuration_error",
        "credential-unavailable",
        chosen_by="sk_lacks_credential",
    ),
    ErrorPage(
        "invalid",
        403,
        "Invalid request",
        "DENIED by this gateway under every policy. Nothing was sent to the origin.",
        f"{_NO_RETRY}. Send the request in another form: a plain http or https URL, with credentials in a header.",
        Cause.CLIENT,
        "http_request_error",
        "invalid-request",
        "The gateway refuses TRACE, schemes other than http and https, a user name or password in the URL, CONNECT"
        " inside a tunnel, and requests for the pages of the gateway itself.",
        chosen_by="sk_in_invalid_tunnel",
        is_explained=True,
    ),
    ErrorPage(
        "private",
        403,
        "Private address",
        _DENIED,
        f"{_NO_RETRY}: the answer stays the same until the policy, or the address of the host, changes. {_ASK}",
        Cause.POLICY,
        "destination_ip_prohibited",
        "private-address",
        "The host has a private, local or reserved address, and the rule that allows it lacks private: true.",
        chosen_by="sk_was_private",
    ),
    ErrorPage(
        "mismatch",
        403,
        "Another host than the tunnel",
        _DENIED,
        f"{_NO_RETRY}. Open a tunnel (CONNECT) for each host, and name the same host in the Host header.",
        Cause.CLIENT,
        "http_request_error",
        "authority-mismatch",
        "The certificate of the server that the tunnel leads to does not cover the Host of this request.",
        chosen_by="sk_was_mismatch",
    ),
    ErrorPage(
        "no_address",
        503,
        "No address for this host",
        "NOT REACHED. The gateway found no address for the host. Nothing was sent.",
        "Check the spelling of the host. If it is correct, try again in a minute, or tell the contact."
        " The policy can still deny this request: it decides about a path when the host has an address.",
        Cause.ORIGIN,
        "dns_error",
        reason="The name does not exist, or the name server of the gateway does not reply.",
        retryable=True,
        chosen_by="sk_in_tunnel_without_address",
    ),
    ErrorPage(
        "not_rendered",
        403,
        "The gateway is not set up for this request",
        _DENIED,
        f"{_NO_RETRY} until the operator of this gateway acts. Show this page to the contact.",
        Cause.GATEWAY,
        "proxy_configuration_error",
        "not-rendered",
        "install.sh has not run since the policy got a parent proxy or headers to remove that this request needs, or"
        " the request is for a host with rewrites and would go through a parent proxy.",
        chosen_by="sk_in_not_rendered_tunnel",
    ),
    ErrorPage(
        "local",
        403,
        "Access denied",
        _DENIED,
        "Try again once, in a few seconds. If this page comes back, show it to the contact.",
        Cause.GATEWAY,
        "http_request_denied",
        "policy-unavailable, or a line of squid.conf outside the policy",
        "Squid could not decide the request (it was reloading its configuration, or a helper failed), or a line of"
        " squid.conf denies it.",
        retryable=True,
        squid_errors=("ERR_ACCESS_DENIED", "ERR_FORWARDING_DENIED", "ERR_CACHE_MGR_ACCESS_DENIED"),
    ),
    ErrorPage(
        "unavailable",
        403,
        "The gateway could not decide the request",
        "DENIED, because this gateway could not decide the request. Nothing was sent to the origin.",
        "Try again once, in a few seconds. If this page comes back, show it to the contact.",
        Cause.GATEWAY,
        "proxy_internal_error",
        "policy-unavailable",
        "A helper of the gateway failed or did not understand the request. The policy did not decide.",
        retryable=True,
        chosen_by="sk_in_undecided_tunnel",
    ),
)

FAILURES: Final = (
    ErrorPage(
        "dns_failed",
        503,
        "The name does not resolve",
        f"{_FAILED} The name of the host does not resolve. Nothing was sent.",
        "Check the spelling of the host. If it is correct, try again in a minute.",
        Cause.ORIGIN,
        "dns_error",
        reason="The name does not exist, or its name servers do not reply.",
        retryable=True,
        squid_errors=("ERR_DNS_FAIL",),
    ),
    ErrorPage(
        "parent_failed",
        502,
        "No connection through the parent proxy",
        f"{_FAILED} The parent proxy of the gateway gave no connection to the origin. Nothing was sent to the origin.",
        "Try again in a minute. If this page comes back, show it to the contact.",
        Cause.GATEWAY,
        "destination_unavailable",
        reason="The parent proxy is down or does not answer, or it has no connection to the origin.",
        retryable=True,
        chosen_by="sk_parent_failed",
    ),
    ErrorPage(
        "connect_failed",
        502,
        "No connection to the origin",
        f"{_FAILED} The gateway has no connection to the origin. Nothing was sent.",
        "Check the host and the port. Retrying helps if the origin was down for a moment.",
        Cause.ORIGIN,
        "destination_unavailable",
        reason="The origin refused the connection or did not answer in time, or no route leads to it.",
        retryable=True,
        squid_errors=("ERR_CONNECT_FAIL",),
    ),
    ErrorPage(
        "tls_ended",
        502,
        "The TLS handshake with the origin ended",
        f"{_FAILED} The TLS handshake with the origin did not come to its end. Nothing was sent.",
        "Retrying can help. If this page comes back, the origin is down or speaks no TLS on this port.",
        Cause.ORIGIN,
        "connection_terminated",
        reason="The origin ended the connection in the handshake, or did not answer in time.",
        retryable=True,
        chosen_by="sk_was_tls_ended",
    ),
    ErrorPage(
        "tls_failed",
        502,
        "No trusted TLS connection to the origin",
        f"{_FAILED} The TLS connection to the origin failed, or its certificate is not valid. Nothing was sent.",
        f"{_NO_RETRY} until the origin has a valid certificate. For an internal server, the operator of this gateway"
        " can let the gateway trust its CA.",
        Cause.ORIGIN,
        "tls_certificate_error",
        reason="The certificate of the origin has expired, is for another name or of an unknown CA, or the origin"
        " speaks no TLS that the gateway accepts. The field tls_error in the access log tells which.",
        squid_errors=("ERR_SECURE_CONNECT_FAIL",),
    ),
    ErrorPage(
        "timed_out",
        504,
        "The origin took too long",
        f"{_FAILED} The origin did not answer in time. It may have got the request.",
        "Retrying can help. Do so only if the request may be carried out twice.",
        Cause.ORIGIN,
        "http_response_timeout",
        reason="The origin sent nothing for longer than the gateway waits.",
        retryable=True,
        squid_errors=("ERR_READ_TIMEOUT", "ERR_LIFETIME_EXP"),
    ),
    ErrorPage(
        "not_forwarded",
        502,
        "The gateway cannot forward the request",
        f"{_FAILED} The gateway has no connection on which to send the request. Nothing was sent.",
        "Try again. If this page comes back, show it to the contact.",
        Cause.GATEWAY,
        "destination_unavailable",
        reason="The server of the tunnel has ended its connection, the parent proxy of the gateway is down, or"
        " squid.conf forbids the direct way.",
        retryable=True,
        chosen_by="sk_was_not_forwarded",
        squid_errors=("ERR_CANNOT_FORWARD",),
    ),
    ErrorPage(
        "broken_off",
        502,
        "The origin broke off",
        f"{_FAILED} The origin ended the connection before its answer. It may have got the request.",
        "Retrying can help. Do so only if the request may be carried out twice.",
        Cause.ORIGIN,
        "connection_terminated",
        reason="The connection to the origin ended before an answer came.",
        retryable=True,
        squid_errors=("ERR_ZERO_SIZE_OBJECT", "ERR_READ_ERROR", "ERR_WRITE_ERROR"),
    ),
    ErrorPage(
        "invalid_answer",
        502,
        "The answer is no valid HTTP",
        f"{_FAILED} The answer of the origin is no HTTP that the gateway understands.",
        f"{_NO_RETRY} until the origin is fixed.",
        Cause.ORIGIN,
        "http_protocol_error",
        reason="The head of the answer is malformed or too large, or it is a part (206) beyond a petabyte.",
        chosen_by="sk_was_invalid_answer",
        shows_error=False,
        squid_errors=("ERR_INVALID_RESP",),
    ),
    ErrorPage(
        "too_large",
        413,
        "Too large",
        "REFUSED. The request, or the answer to it, is larger than this gateway lets pass.",
        f"{_NO_RETRY}. Send or ask for less at a time.",
        Cause.CLIENT,
        "http_request_error",
        reason="A limit of squid.conf: request_header_max_size, request_body_max_size or reply_body_max_size.",
        squid_errors=("ERR_TOO_BIG",),
    ),
    ErrorPage(
        "not_cached",
        504,
        "Not in the cache",
        "NOT SENT. The request asks for a cached answer only, and this gateway has none.",
        f"{_NO_RETRY}. Send the request without Cache-Control: only-if-cached.",
        Cause.CLIENT,
        "http_request_error",
        reason="Cache-Control: only-if-cached",
        squid_errors=("ERR_ONLY_IF_CACHED_MISS",),
    ),
    ErrorPage(
        "parent_refused",
        502,
        "The parent proxy refuses the gateway",
        f"{_FAILED} The parent proxy does not accept the password of the gateway. Nothing was sent to the origin.",
        f"{_NO_RETRY}, nor does a password of yours. Show this page to the contact.",
        Cause.GATEWAY,
        "proxy_configuration_error",
        reason="The parent proxy answered 407.",
        chosen_by="sk_parent_refuses",
    ),
    ErrorPage(
        "not_http",
        400,
        "The request is not valid",
        "REFUSED. The gateway does not understand the request. Nothing was sent.",
        f"{_NO_RETRY}. Send valid HTTP/1.1, with an absolute URL to the proxy port.",
        Cause.CLIENT,
        "http_request_error",
        reason="The method, the URL, the HTTP version or a header is not valid, or the URL is too long.",
        squid_errors=(
            *("ERR_INVALID_URL", "ERR_INVALID_REQ", "ERR_UNSUP_REQ", "ERR_UNSUP_HTTPVERSION", "ERR_CONFLICT_HOST"),
            *("ERR_PROTOCOL_UNKNOWN", "ERR_PRECONDITION_FAILED", "ERR_URN_RESOLVE"),
        ),
    ),
    ErrorPage(
        "gateway_failed",
        503,
        "The gateway failed",
        "FAILED inside this gateway.",
        "Try again in a minute. If this page comes back, show it to the contact.",
        Cause.GATEWAY,
        "proxy_internal_error",
        reason="Squid could not handle the request. Its cache.log has more.",
        retryable=True,
        squid_errors=(
            *("ERR_SOCKET_FAILURE", "ERR_SHUTTING_DOWN", "ERR_GATEWAY_FAILURE", "ERR_ICAP_FAILURE", "ERR_ESI"),
            *("ERR_NO_RELAY", "ERR_FTP_DISABLED", "ERR_FTP_FAILURE", "ERR_FTP_FORBIDDEN", "ERR_FTP_NOT_FOUND"),
            *("ERR_FTP_PUT_ERROR", "ERR_FTP_UNAVAILABLE", "ERR_DIR_LISTING"),
        ),
    ),
)

PAGES: Final = (*DENIALS, *FAILURES)

# Pages of Squid that no ACL can choose in another form: they are answers to requests that cannot be parsed, or to a
# client that has not authenticated, or that no request leads to any more.
_LOGIN = ErrorPage(
    "login",
    407,
    "Proxy authentication required",
    _DENIED,
    "Log in at the proxy: HTTPS_PROXY=http://NAME:TOKEN@host:port. The operator of this gateway gives the token.",
    Cause.CLIENT,
    "http_request_denied",
    "proxy authentication",
    "This gateway asks for the name and token of a client, and got none that is valid.",
)
_UNCHOSEN: Final = {
    "ERR_CACHE_ACCESS_DENIED": _LOGIN,
    **dict.fromkeys(("ERR_FTP_PUT_CREATED", "ERR_FTP_PUT_MODIFIED"), FAILURES[-1]),
    **dict.fromkeys(("ERR_ACL_TIME_QUOTA_EXCEEDED", "ERR_AGENT_CONFIGURE", "ERR_AGENT_WPAD"), FAILURES[-1]),
}
_PLAIN_TEXT: Final = ("ERR_ACCESS_DENIED",)  # squidkeeper-pages.conf sets their Content-Type


# --- files --------------------------------------------------------------------------------------------------------


def files() -> Iterator[tuple[str, str]]:
    """Write every file of squid/errors/: its name and its text."""
    for page in PAGES:
        yield from ((page.template(form), _WRITERS[form](page)) for form in Form)
        for name in page.squid_errors:
            yield name, _text(page) if name in _PLAIN_TEXT else _html(page, annotated=False)
    yield "ERR_SQUIDKEEPER_TICKET", _note("ticket_state_")  # JSON, which a helper has written
    for name, page in _UNCHOSEN.items():
        yield name, _html(page, annotated=False)


def _code(name: str) -> str:
    return f"@Squid{{{name}}}"


def _note(name: str) -> str:
    """Write an annotation as it is: helpers and squidkeeper-pages.conf escape it."""
    return _code(f"%'{{{name}}}note")


_ID = ".".join((REQUEST_ID[0], *map(_code, REQUEST_ID[1:])))
_TIME = _code("%{%Y-%m-%dT%H:%M:%SZ}tg")
_METHOD, _URL, _CLIENT = _code("%>rm"), _code("%>ru"), _code("%>a")
_TICKET = _note("ticket_")
_TICKET_STATE = f"http://{OWN_HOST}/tickets/{_TICKET}"
_RESETS, _RESETS_IN = _note("resets_"), _note("resets_in_")
_ERROR, _DETAIL = _code("%err_code"), _code("%err_detail")


def _shows_error(page: ErrorPage) -> bool:
    return page in FAILURES and page.shows_error


def _lines(page: ErrorPage, variant: str) -> Iterator[tuple[str, str]]:
    """Give what the page states, line by line; `variant` selects how annotations are escaped."""
    if page.is_denial:  # else no rule has decided this
        yield "Rule", page.rule or _note(f"rule_{variant}")
    yield "Reason", page.reason or _note(f"reason_{variant}")
    if page.has_ticket:
        yield "Ticket", _TICKET
        yield "State of the ticket", _TICKET_STATE
    if page.resets:
        yield "Resets", f"{_RESETS} (in {_RESETS_IN} s)"
    if _shows_error(page):
        yield "Error", f"{_ERROR} {_DETAIL}"
    yield "Cause", page.cause
    yield "Retry", "can help" if page.retryable else "does not help"
    yield "Contact", _note("contact_")
    yield "Request ID", _ID
    yield "Time", _TIME


def _command(page: ErrorPage) -> str:
    """Write the command that shows why. Squid escapes quotes in method and URL, so that a shell takes them as text."""
    if page.has_ticket:
        return f"sudo squidkeeper ask approve {_TICKET} --for 2h"
    if page.is_explained:
        return f"sudo squidkeeper explain --client {_CLIENT} '{_code('%#>rm')}' '{_URL}'"
    return f"sudo squidkeeper why {_ID}"


def _text(page: ErrorPage) -> str:
    stated = "".join(f"{label}: {value}\n" for label, value in _lines(page, ""))
    return f"{page.outcome}\n\nRequest: {_METHOD} {_URL}\n{stated}\n{page.advice}\nFor the operator: {_command(page)}\n"


def _html(page: ErrorPage, *, annotated: bool = True) -> str:
    """Write HTML. Nothing within `xmp` is taken for markup or for an entity, and Squid escapes the `<` of a URL.

    Where no ACL was asked (not `annotated`), there is no contact, and often no error.
    """
    lines = dict(_lines(page, "html_"))
    if not annotated:
        lines.pop("Error", None)
        lines["Contact"] = "the operator of this gateway"
    stated = "".join(f"{label}: {value}\n" for label, value in lines.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n'
        f'<head><meta charset="utf-8"><title>{escape(page.title)}</title>'
        "<style>pre, xmp { white-space: pre-wrap; overflow-wrap: anywhere } xmp { display: inline }</style></head>\n"
        f"<body><pre>\n{page.outcome}\n\nRequest: <xmp>{_METHOD} {_URL}</xmp>\n{stated}\n{page.advice}\n"
        f"For the operator: <xmp>{_command(page)}</xmp>\n</pre></body>\n</html>\n"
    )


def _json(page: ErrorPage) -> str:
    """Write problem details (RFC 9457), one member a line."""
    members = {
        "type": f"urn:squidkeeper:{page.kind}",
        "title": page.title,
        "status": page.status,
        "detail": f"{page.outcome} {page.advice}",
        "rule": page.rule or _note("rule_json_"),
        "reason": page.reason or _note("reason_json_"),
        **({"ticket": _TICKET, "ticket_state": _TICKET_STATE} if page.has_ticket else {}),
        **({"resets": _RESETS, "resets_in_seconds": _RESETS_IN} if page.resets else {}),
        **({"error": _ERROR, "error_detail": _DETAIL} if _shows_error(page) else {}),
        "cause": page.cause.name.lower(),
        "retryable": page.retryable,
        "contact": _note("contact_"),
        "request_id": _ID,
        "time": _TIME,
        "client": _CLIENT,
        "method": _METHOD,
        "url": _URL,
    }
    return json.dumps(members, indent=1).replace(f'"{_RESETS_IN}"', _RESETS_IN) + "\n"  # a number


_WRITERS = {Form.TEXT: _text, Form.JSON: _json, Form.HTML: _html}


# --- squidkeeper-pages.conf ---------------------------------------------------------------------------------------


def denial_lines() -> Iterator[str]:
    """Write the ACLs of the denials: `sk_NAME_page` always matches, and chooses the page in the client's form."""
    for page in DENIALS:
        yield from _page_lines(page)


def failure_lines() -> Iterator[str]:
    """Write the ACLs of the failures, and those that replace what Squid has answered."""
    for page in FAILURES:
        yield from _page_lines(page)
    *denials, undecided = DENIALS  # which holds of requests that cannot be parsed, too: they come first
    replaced = [page for page in (*denials, *FAILURES, undecided) if page.chosen_by or page.squid_errors]
    for page in replaced:
        chosen_by = page.chosen_by
        if not chosen_by:
            chosen_by = f"{page.acl}_error"
            yield f"acl {chosen_by} squid_error {' '.join(page.squid_errors)}"
        yield f"acl {page.acl}_replaced all-of {chosen_by} sk_worded {page.acl}_page"
    for page in replaced:
        yield f"acl sk_replaced any-of {page.acl}_replaced"


def _page_lines(page: ErrorPage) -> Iterator[str]:
    for form in Form:
        name = f"{page.acl}_{form}"
        notes = f'content_type_="{CONTENT_TYPES[form]}" proxy_error_={page.proxy_error} sent_page_={page.kind}'
        yield f"acl {name} annotate_transaction {notes}"
        yield f"deny_info {page.status}:{page.template(form)} {name}"
    yield f"acl {page.acl}_as_html all-of sk_wants_html {page.acl}_html"
    yield f"acl {page.acl}_as_json all-of sk_wants_json {page.acl}_json"
    yield f"acl {page.acl}_page any-of {page.acl}_as_html {page.acl}_as_json {page.acl}_text"
