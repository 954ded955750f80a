"""The pages with which Squid answers for itself: denials of ours, and Squid's own
failures.

All denials share one template in three forms. The annotations of a row of `DENIALS`
fill it: squid.conf has them where it says `@PAGE_name@`. Each of Squid's own errors has
a plain text, from a row of `FAILURES`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import quote

from squidkeeper.policy.url import OWN_HOST

# The request ID: the gateway's name, which install.sh writes, the second, the number of
# the transaction in its process, the port of the client. Together they are unique.
REQUEST_ID: Final = ("gateway", "%tS", "%master_xaction", "%>p")


class Form(StrEnum):
    """How a page is written."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


class Cause(StrEnum):
    """Who can do something about it."""

    POLICY = "policy"
    CLIENT = "client"
    GATEWAY = "gateway"
    ORIGIN = "origin or the network, not the policy"


@dataclass(frozen=True, slots=True)
class DenialPage:
    """A kind of denial.

    `more` are lines for people and members of the JSON, with annotations in them.

    `rule` and `reason` are None where a helper has sent them. No text holds a quote, a
    backslash or markup.
    """

    name: str
    title: str
    advice: str
    cause: Cause
    rule: str | None = None
    reason: str | None = None
    retryable: bool = False
    lines: tuple[tuple[str, str], ...] = ()
    members: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class FailurePage:
    """A kind of failure, with Squid's errors of this kind.

    `detail` are codes of Squid's that tell more.
    """

    errors: tuple[str, ...]
    title: str
    reason: str
    advice: str
    cause: Cause
    retry: str = "can help"
    detail: str = ""


_NO_RETRY = "Retrying does not help"
_ASK = "To request a change, show this page to the contact."
_SHOW = (
    "Try again once, in a few seconds. If this page comes back, show it to the contact."
)
_TICKET = "%{ticket_}note"
_TICKET_STATE = f"http://{OWN_HOST}/tickets/{_TICKET}"

DENIALS: Final = (
    DenialPage(
        "denied",
        "DENIED by the policy of this gateway",
        f"{_NO_RETRY}, unless the reason says so: the answer stays the same until the operator of this gateway changes"
        f" the policy. {_ASK}",
        Cause.POLICY,
    ),
    DenialPage(
        "passing",
        "DENIED for the moment by this gateway",
        "Repeat the request in ten seconds. If this page comes back, show it to the contact.",
        Cause.GATEWAY,
        retryable=True,
        lines=(("Retry after", "10 s"),),
        members=(("retry_after_seconds", "10"),),
    ),
    DenialPage(
        "asked",
        "DENIED until a person approves it",
        "The ticket waits for a person, who may answer in minutes or in days. Read its state at the address above, at"
        " most every 10 seconds. When it is approved, repeat exactly this request. When it is denied, the state has the"
        " reason.",
        Cause.POLICY,
        retryable=True,
        lines=(
            ("Ticket", _TICKET),
            ("State of the ticket", _TICKET_STATE),
            ("Approve", f"sudo squidkeeper ask approve {_TICKET} --for 2h"),
        ),
        members=(("ticket", f'"{_TICKET}"'), ("ticket_state", f'"{_TICKET_STATE}"')),
    ),
    DenialPage(
        "quota",
        "DENIED by a quota of this gateway",
        "Do not repeat the request before the time at which the quota resets: until then the answer stays the same.",
        Cause.POLICY,
        retryable=True,
        lines=(("Resets", "%{resets_}note (in %{resets_in_}note s)"),),
        members=(
            ("resets", '"%\'{resets_}note"'),
            ("resets_in_seconds", "%{resets_in_}note"),
        ),
    ),
    DenialPage(
        "no_credential",
        "DENIED, because this gateway cannot read the credential for the request",
        f"{_NO_RETRY} until the operator of this gateway fixes the secret. Show this page to the contact.",
        Cause.GATEWAY,
    ),
    DenialPage(
        "invalid",
        "DENIED by this gateway under every policy",
        f"{_NO_RETRY}. Send the request in another form: a plain http or https URL, with credentials in a header.",
        Cause.CLIENT,
        "invalid-request",
        "The gateway refuses TRACE, schemes other than http and https, a user name or password in the URL, CONNECT"
        " inside a tunnel, and requests for the pages of the gateway itself.",
    ),
    DenialPage(
        "private",
        "DENIED by this gateway, because the host has a private address",
        f"{_NO_RETRY}: the answer stays the same until the policy, or the address of the host, changes. {_ASK}",
        Cause.POLICY,
        "private-address",
        "The host has a private, local or reserved address, and the rule that allows it lacks private: true.",
    ),
)

_FAILED = "FAILED after the policy allowed the request"
_UNSENT = "Nothing was sent."
_PERHAPS_SENT = "The origin may have got the request."
_CHECK_HOST = "Check the spelling of the host. If it is correct, try again in a minute, or tell the contact."
_REPEAT = "Retrying can help. Do so only if the request may be carried out twice."
_INTERNAL = "Try again in a minute. If this page comes back, show it to the contact."

FAILURES: Final = (
    FailurePage(
        ("ERR_ACCESS_DENIED", "ERR_FORWARDING_DENIED", "ERR_CACHE_MGR_ACCESS_DENIED"),
        f"DENIED by this gateway. {_UNSENT}",
        "The gateway could not decide the request (rule policy-unavailable: a helper failed, or Squid was reading its"
        " configuration), or a line of squid.conf outside the policy denies it.",
        _SHOW,
        Cause.GATEWAY,
    ),
    FailurePage(
        ("ERR_CACHE_ACCESS_DENIED",),
        f"DENIED: this gateway asks for a login. {_UNSENT}",
        "This gateway asks for the name and token of a client, and got none that is valid.",
        "Log in at the proxy: HTTPS_PROXY=http://NAME:TOKEN@host:port. The operator of this gateway gives the token.",
        Cause.CLIENT,
        "does not help without a login",
    ),
    FailurePage(
        ("ERR_DNS_FAIL",),
        f"NOT REACHED: no address for this host. {_UNSENT}",
        "The name of the host does not exist, or the name server of the gateway does not reply.",
        f"{_CHECK_HOST} The policy can still deny this request: it decides about a path when the host has an address.",
        Cause.ORIGIN,
    ),
    FailurePage(
        ("ERR_CONNECT_FAIL",),
        f"{_FAILED}: no connection to the origin. {_UNSENT}",
        "The origin, or the parent proxy of the gateway, refused the connection or did not answer in time, or no route"
        " leads to it.",
        "Check the host and the port. Retrying helps if the origin was down for a moment.",
        Cause.ORIGIN,
        detail="%E",
    ),
    FailurePage(
        ("ERR_SECURE_CONNECT_FAIL",),
        f"{_FAILED}: no trusted TLS connection to the origin. {_UNSENT}",
        "The certificate of the origin has expired, is for another name than the host or of an unknown CA, or the"
        " origin ended the TLS handshake or speaks no TLS that the gateway accepts.",
        f"{_NO_RETRY} until the origin has a valid certificate for this host; it can where the handshake ended. In one"
        " tunnel, ask for one host. For an internal server, the operator can let the gateway trust its CA.",
        Cause.ORIGIN,
        "does not help, unless the handshake ended",
        detail="@Squid{%err_detail} %D",
    ),
    FailurePage(
        ("ERR_READ_TIMEOUT", "ERR_LIFETIME_EXP"),
        f"{_FAILED}: the origin took too long. {_PERHAPS_SENT}",
        "The origin sent nothing for longer than the gateway waits.",
        _REPEAT,
        Cause.ORIGIN,
    ),
    FailurePage(
        ("ERR_CANNOT_FORWARD", "ERR_RELAY_REMOTE"),
        f"{_FAILED}: the gateway cannot forward it. {_UNSENT}",
        "The server of the tunnel has ended its connection, the parent proxy of the gateway is down or refuses it, or"
        " the gateway may not connect to this address (a private one, or a line of squid.conf).",
        "Try again. If this page comes back, show it to the contact.",
        Cause.GATEWAY,
    ),
    FailurePage(
        ("ERR_ZERO_SIZE_OBJECT", "ERR_READ_ERROR", "ERR_WRITE_ERROR"),
        f"{_FAILED}: no answer came. {_PERHAPS_SENT}",
        "The origin, or the parent proxy of the gateway, ended the connection before an answer came; or the parent"
        " proxy is down, or the gateway may not connect to this address.",
        _REPEAT,
        Cause.ORIGIN,
    ),
    FailurePage(
        ("ERR_ICAP_FAILURE",),
        "FAILED inside this gateway, or by an answer that it does not take",
        "A request with a body: the gateway could not inspect the body of the request, and sent nothing to the origin."
        " Any other: it does not take the answer, of the origin or of its parent proxy.",
        _INTERNAL,
        Cause.GATEWAY,
    ),
    FailurePage(
        ("ERR_INVALID_RESP",),
        f"{_FAILED}: its answer is none that the gateway takes. {_PERHAPS_SENT}",
        "The head of the answer is malformed or too large.",
        f"{_NO_RETRY} until the origin, or the gateway, is fixed.",
        Cause.ORIGIN,
        "does not help",
    ),
    FailurePage(
        ("ERR_TOO_BIG",),
        "REFUSED: the request, or the answer to it, is larger than this gateway lets pass.",
        "A limit of squid.conf: request_header_max_size, request_body_max_size or reply_body_max_size. Or a quota of"
        " bytes_in has less left than the answer has.",
        f"{_NO_RETRY}. Send or ask for less at a time.",
        Cause.CLIENT,
        "does not help",
    ),
    FailurePage(
        ("ERR_ONLY_IF_CACHED_MISS",),
        f"NOT SENT: the request asks for a cached answer only, and this gateway has none. {_UNSENT}",
        "Cache-Control: only-if-cached",
        f"{_NO_RETRY}. Send the request without Cache-Control: only-if-cached.",
        Cause.CLIENT,
        "does not help",
    ),
    FailurePage(
        (
            *(
                "ERR_INVALID_URL",
                "ERR_INVALID_REQ",
                "ERR_UNSUP_REQ",
                "ERR_UNSUP_HTTPVERSION",
                "ERR_CONFLICT_HOST",
            ),
            *("ERR_PROTOCOL_UNKNOWN", "ERR_PRECONDITION_FAILED", "ERR_URN_RESOLVE"),
        ),
        f"REFUSED: the gateway does not understand the request. {_UNSENT}",
        "The method, the URL, the HTTP version or a header is not valid, or the URL is too long.",
        f"{_NO_RETRY}. Send valid HTTP/1.1, with an absolute URL to the proxy port.",
        Cause.CLIENT,
        "does not help",
    ),
    FailurePage(
        (
            *(
                "ERR_SOCKET_FAILURE",
                "ERR_SHUTTING_DOWN",
                "ERR_GATEWAY_FAILURE",
                "ERR_ESI",
                "ERR_NO_RELAY",
            ),
            *(
                "ERR_FTP_DISABLED",
                "ERR_FTP_FAILURE",
                "ERR_FTP_FORBIDDEN",
                "ERR_FTP_NOT_FOUND",
                "ERR_FTP_PUT_ERROR",
            ),
            *(
                "ERR_FTP_PUT_CREATED",
                "ERR_FTP_PUT_MODIFIED",
                "ERR_FTP_UNAVAILABLE",
                "ERR_DIR_LISTING",
            ),
        ),
        "FAILED inside this gateway",
        "Squid could not handle the request. Its cache.log has more.",
        _INTERNAL,
        Cause.GATEWAY,
    ),
)

NO_CONTACT: Final = "the operator of this gateway"


def placeholders() -> dict[str, str]:
    """Return what squid.conf has for `@PAGE_name@`, and for `@SQUID_ERRORS@`: the
    errors whose page is plain text.
    """
    pages = {f"PAGE_{page.name}": _annotations(page) for page in DENIALS} | {
        "REQUEST_ID": ".".join(REQUEST_ID)
    }
    return {
        **pages,
        "SQUID_ERRORS": " ".join(
            name for failure in FAILURES for name in failure.errors
        ),
    }


def files() -> Iterator[tuple[str, str]]:
    """Write every file of the folder of pages: its name and its text."""
    yield from (
        (template(form), text)
        for form, text in (
            (Form.TEXT, _text()),
            (Form.JSON, _json()),
            (Form.HTML, _html()),
        )
    )
    # JSON, which a helper has written
    yield (
        "ERR_SQUIDKEEPER_TICKET",
        _note("ticket_state_"),
    )
    for failure in FAILURES:
        yield from ((name, _failure(name, failure)) for name in failure.errors)


_ANNOTATION: Final = re.compile(r"%'?\{([a-z_]+)\}note")
_IN_A_PAGE: Final = re.compile(
    r"@Squid\{%(?P<quoting>['\"#]?)(?:\{(?P<name>[^}]*)\})?(?P<code>[a-z_>S]+)\}"
)


def fill_denial(
    text: str, page: DenialPage, values: Mapping[str, str], request_id: str
) -> str:
    """Fill the page of a denial as Squid does.

    `text` is that of `files`. `values` has the annotations that a helper sends, and
    Squid's codes: `>rm`, `>ru`, `>a` and `tg`.
    """
    noted = {
        name: _ANNOTATION.sub(lambda found: values[found[1]], note)
        for name, note in _noted(page).items()
    }

    def filled(found: re.Match[str]) -> str:
        value = {**values, **noted}[
            found["name"] if found["code"] == "note" else found["code"]
        ]
        if found["quoting"] == _ENCODED:
            return quote(value, safe="")
        return json.dumps(value)[1:-1] if found["quoting"] == _QUOTED else value

    return _IN_A_PAGE.sub(filled, text.replace(_ID, request_id))


def explained_with_body(text: str) -> str:
    """Write the page of a denial that the body decided: its command takes the body."""
    return text.replace(_EXPLAIN, f"sudo squidkeeper explain --body FILE {_OF_REQUEST}")


def explained_with_user(text: str, user: str | None) -> str:
    """Write the page of a denial of a user: its command names the user, where that is
    safe to paste.
    """
    return (
        text.replace(_OF_CLIENT, f"{_OF_CLIENT} --user={user}")
        if user and _PLAIN_USER.fullmatch(user)
        else text
    )


def template(form: Form) -> str:
    """Name the file of a form."""
    return f"ERR_SQUIDKEEPER_{form.name}"


def _annotations(page: DenialPage) -> str:
    """Write the annotations of a page, as squid.conf quotes them."""
    noted = _noted(page) | (
        {"rule_": page.rule, "reason_": page.reason or "", "contact_": NO_CONTACT}
        if page.rule
        else {}
    )
    quoted = {
        name: value.replace("\n", "\\n").replace('"', '\\"')
        for name, value in noted.items()
    }
    return " ".join(f'{name}="{value}"' for name, value in quoted.items())


def _noted(page: DenialPage) -> dict[str, str]:
    """List the annotations that a page has itself.

    Two texts end in what only this page has.
    """
    lines = "".join(f"\n{label}: {value}" for label, value in page.lines)
    members = "".join(f',\n "{name}": {value}' for name, value in page.members)
    return {
        "page_": page.name.replace("_", "-"),
        "title_": page.title,
        "cause_": page.cause,
        "retry_": f"{_can_help(retryable=page.retryable)}{lines}",
        "retryable_": f"{json.dumps(page.retryable)}{members}",
        "advice_": page.advice,
    }


def _can_help(*, retryable: bool) -> str:
    return "can help" if retryable else "does not help"


def _code(name: str) -> str:
    return f"@Squid{{{name}}}"


_RAW, _QUOTED, _ENCODED = "'", '"', "#"


def _note(name: str, quoting: str = _RAW) -> str:
    """Write an annotation: as it is, for a place between quotes, or percent-encoded."""
    return _code(f"%{quoting}{{{name}}}note")


_ID = ".".join((REQUEST_ID[0], *map(_code, REQUEST_ID[1:])))
_TIME = _code("%{%Y-%m-%dT%H:%M:%SZ}tg")
# Squid escapes quotes and markup in a URL
_METHOD, _URL, _CLIENT = (
    _code("%>rm"),
    _code("%>ru"),
    _code("%>a"),
)
_SENT = "Nothing was sent to the origin."
_TITLE, _ADVICE = _note("title_"), _note("advice_")
_WHY = f"sudo squidkeeper why {_ID}"
_OF_CLIENT = f"--client {_CLIENT}"
_PLAIN_USER = re.compile(r"[A-Za-z0-9._@+-]{1,100}")
_OF_REQUEST = f"{_OF_CLIENT} '{_code('%#>rm')}' '{_URL}'"
_EXPLAIN = f"sudo squidkeeper explain {_OF_REQUEST}"


def _page(
    title: str, stated: dict[str, str], advice: str, commands: tuple[str, ...]
) -> str:
    lines = "".join(f"{label}: {value}\n" for label, value in stated.items())
    for_operator = "".join(f"For the operator: {command}\n" for command in commands)
    return f"{title}\n\nRequest: {_METHOD} {_URL}\n{lines}\n{advice}\n{for_operator}"


def _text(rule: str = _note("rule_")) -> str:
    stated = {
        "Rule": rule,
        "Reason": _note("reason_"),
        "Cause": f"the {_note('cause_')}",
        "Retry": _note("retry_"),
        "Contact": _note("contact_"),
        "Request ID": _ID,
        "Time": _TIME,
    }
    return _page(f"{_TITLE}. {_SENT}", stated, _ADVICE, (_EXPLAIN, _WHY))


def _html() -> str:
    """Write HTML: nothing within `xmp` is markup but its end, which no annotation
    holds: a rule is percent-encoded.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n'
        f'<head><meta charset="utf-8"><title>{_TITLE}</title>'
        "<style>xmp { white-space: pre-wrap; overflow-wrap: anywhere }</style></head>\n"
        f"<body><xmp>\n{_text(_note('rule_', _ENCODED))}</xmp></body>\n</html>\n"
    )


def _json() -> str:
    """Write problem details (RFC 9457), one member a line.

    `retryable_` holds the members of one page, too.
    """
    members = {
        "type": f'"urn:squidkeeper:{_note("page_")}"',
        "title": f'"{_TITLE}"',
        "status": "403",
        "detail": f'"{_TITLE}. {_SENT} {_ADVICE}"',
        # all that the SDK of OpenAI shows
        "message": f'"{_TITLE}: {_note("reason_", _QUOTED)}"',
        "rule": f'"{_note("rule_", _QUOTED)}"',
        "reason": f'"{_note("reason_", _QUOTED)}"',
        "cause": f'"{_note("cause_")}"',
        "retryable": _note("retryable_"),
        "contact": f'"{_note("contact_", _QUOTED)}"',
        "request_id": f'"{_ID}"',
        "time": f'"{_TIME}"',
        "client": f'"{_CLIENT}"',
        "method": f'"{_METHOD}"',
        "url": f'"{_URL}"',
    }
    return (
        "{\n"
        + ",\n".join(f' "{name}": {value}' for name, value in members.items())
        + "\n}\n"
    )


def _failure(error: str, failure: FailurePage) -> str:
    stated = {
        "Error": f"{error} {failure.detail}".strip(),
        "Reason": failure.reason,
        "Cause": f"the {failure.cause}",
        "Retry": failure.retry,
        "Contact": NO_CONTACT,
        "Request ID": _ID,
        "Time": _TIME,
    }
    return _page(failure.title, stated, failure.advice, (_WHY,))
