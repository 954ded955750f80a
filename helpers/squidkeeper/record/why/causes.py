"""The causes of failed requests, in one table.

A cause is found in the record of a request. The first row that holds is the cause: what
Squid or the gateway decided before the policy stands above the rules, and these stand
above what failed after an allow. Causes without `holds` leave no record; cache.log has
them.

A record tells what Squid saw. Where it can mean something else too, the row is
`likely`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.decide import Stage, decide
from squidkeeper.policy.language.model import (
    BY_BODY,
    OPENS_NONE,
    POLICY_UNAVAILABLE,
    SEALED,
    SEALED_REFUSED,
    Action,
    Policy,
    Unavailable,
)
from squidkeeper.policy.language.quotas import UNCOUNTED
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.policy.url import gives_credentials, is_private
from squidkeeper.record.log.listing import printable_field
from squidkeeper.record.log.record import (
    CLIENT_ERRORS,
    NONE,
    Record,
    decode_field,
    endpoint_of,
    host_of,
    parse_time,
    redacted_url,
    truncate,
    truncated_fields,
)
from squidkeeper.record.log.requests import request_of, told_by_body, tunnel_of

BODY_CAUSE: Final = "body"
SPEAKS_TLS: Final = "speaks TLS to the proxy, which has none on this port"
SHOWN: Final = 120  # characters of a value that a client or server chose
SHOWN_OF_MESSAGE: Final = 500  # characters of a message of the gateway's own
SERVER_ERROR: Final = (
    500  # the first status of those with which a server tells that it failed
)
NO_REQUEST: Final = "error:"  # how the URL of a record without a request begins

# Texts that stand elsewhere too: in the table of conditions, and on the status page.
NO_HELPER_REMEDY: Final = "Read cache.log. Check that Squid's account can run the program that squidkeeper.conf names."
STORE_ONE_LINE: Final = (
    "In the file of a secret, store one line of printable ASCII. Squid's account must be able to read it: mode 0640,"
    " that account's group, and its folders open to it. If the secret is fetched, check its source."
)
CRASHED_REMEDY: Final = (
    "Where a disk is full (`df -h`), make room: Squid ends without room for its log. If an origin comes again and"
    " again, close it by a rule with `action: deny`: what an origin answers can end Squid. Keep cache.log, update"
    " Squid, and see `squidkeeper quota` for uploads that stay counted. It is told for a day."
)
_LOG_IN: Final = "Give the client `HTTPS_PROXY=http://NAME:TOKEN@…` with a token of `squidkeeper client add`."
_TRY_AGAIN: Final = (
    "Try again. It may have carried out the request, so read its log first."
)
_FROM_HERE: Final = (
    "Try it from the gateway: `curl -v`, or `openssl s_client -connect {authority}`."
)

OPENS_THE_MACHINE: Final = (
    "The address is one at which a cloud machine gets its credentials: a client that reaches it can act as the"
    " gateway's machine. "
)

_DEFAULTS: Final[Mapping[str, str]] = {  # what a sentence says where a fact is unknown
    "at": "",
    "reason": "",
    "denied": "it",
    "nearest": "",
    "opens": "add a rule that allows it, or change the one that denies it",
    "opener": "the rule that allows it",
    "private": "has a private address",
    "warning": "",
    "invalid": "No policy allows such a request: TRACE, TRACK or PURGE; a scheme other than http and https; a URL that"
    " cannot be parsed, or has a user name, a fragment, a control character or too many readings; CONNECT inside a"
    " tunnel; or a login that is too long",
    "cure": "Fix the origin. Where its CA is private, let the gateway trust it: `tls_outgoing_options cafile=` in"
    " local.conf",
    "credential": "A credential that the request needs is unavailable",
    "sealed": "it is expired, altered, sealed to another key, in the wrong place, or not for this request",
    "token": "If the request is meant to pass, make another token: `squidkeeper seal`",
    "distrust": CLIENT_ERRORS["ERR_SECURE_ACCEPT_FAIL"],
    "ticket": "",
    "number": "NUMBER",
    "request": "ID",
    "repair": "Run `squidkeeper check`, and fix what it lists. If it finds nothing, run `./install.sh`",
    "opened": "set `private: true` on the rule that allows it",
    "limit": "",
    "its_reset": "its reset",
    "reset": "NAME --holder HOLDER",
    "judged": "change the `body` of the rule that `found` names, or what the client sends",
}

_KEEP_IT: Final = "Install it by that command. The token need not be another"
_CLOCK: Final = "If the certificate is valid, correct the gateway's clock"
_OTHER_NAME: Final = (
    "is for another name",
    "Let the client ask for a name that the certificate has, or let the origin get one for this name",
)
_NO_ISSUER: Final = (
    "is of an unknown CA, or the origin sends no intermediate",
    "Let the origin send its intermediate certificates, because the gateway fetches none. Where its CA is private, let"
    " the gateway trust it: `tls_outgoing_options cafile=` in local.conf",
)
_TRUST_IT: Final = "Where this is meant, let the gateway trust it: `tls_outgoing_options cafile=` in local.conf"
_FAULTS: Final[
    Mapping[str, tuple[str, str]]
] = {  # of a certificate, as Squid names them: what is wrong, what to do
    "X509_V_ERR_CERT_HAS_EXPIRED": ("has expired", f"Renew it at the origin. {_CLOCK}"),
    "X509_V_ERR_CERT_NOT_YET_VALID": (
        "is not valid yet",
        f"Replace it at the origin. {_CLOCK}",
    ),
    "X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT": ("is self-signed", _TRUST_IT),
    "X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN": (
        "is of an unknown CA, which is self-signed",
        _TRUST_IT,
    ),
    "SQUID_X509_V_ERR_DOMAIN_MISMATCH": _OTHER_NAME,
    "X509_V_ERR_HOSTNAME_MISMATCH": _OTHER_NAME,
    "X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY": _NO_ISSUER,
    "X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT": _NO_ISSUER,
    "X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE": _NO_ISSUER,
    "X509_V_ERR_CERT_REVOKED": ("was revoked", "Replace it at the origin"),
    "X509_V_ERR_INVALID_PURPOSE": ("is not for a server", "Replace it at the origin"),
}


Holds = Callable[[Record], bool]


@dataclass(frozen=True, slots=True)
class KnownCause:
    """A row of the table.

    `sentence` and `remedy` name facts in braces; `facts_of` gives those of a record.
    `how` tells how it is recognised. `holds` is None for a cause that leaves no record.
    `likely`: the record can have another cause too.
    """

    code: str
    how: str
    sentence: str
    remedy: str
    holds: Holds | None = None
    likely: bool = False

    def say(self, facts: Mapping[str, str]) -> str:
        """Write the sentence."""
        return self.sentence.format_map({**_DEFAULTS, **facts})

    def advise(self, facts: Mapping[str, str]) -> str:
        """Write what to do."""
        return self.remedy.format_map({**_DEFAULTS, **facts})


def judge(record: Record) -> KnownCause | None:
    """Find the cause of a failure; None where the request did not fail, or was none."""
    if (
        record.error == NONE
        and record.verdict != "deny"
        and record.status < SERVER_ERROR
    ):
        return None
    if record.method == NONE and error_of(record) == "ERR_CLIENT_GONE":
        return None  # a connection that ended without a request
    return next(
        (cause for cause in CAUSES if cause.holds and cause.holds(record)), None
    )


def error_of(record: Record) -> str:
    """Return Squid's error, or the template of a denial, without the status."""
    return record.error.rpartition(":")[2]


def facts_of(record: Record) -> dict[str, str]:
    """Return the facts that a record holds: bounded, printable, without queries."""
    host = host_of(record.url)
    upstream = record.upstream
    facts = {
        "host": shown(host.text if host.text != NONE else record.url),
        "authority": shown(_authority(record)),
        "address": f" ({shown(upstream)})" if upstream not in (NONE, host.text) else "",
        "rule": shown(decode_field(record.rule) or NONE),
        "user": shown(decode_field(record.user) or "the client"),
        "sni": shown(decode_field(record.sni) or "none"),
        "tunnel": shown(tunnel_of(record)),
        "found": shown((_found(record) or "a secret").replace(",", ", ")),
        "status": str(record.status),
        "error": shown(error_of(record)),
    }
    if (told := told_by_body(record)) is not None:
        facts["found"] = shown(told, SHOWN_OF_MESSAGE).rstrip(".")
    facts |= _certificate_facts(_fault_of(record))
    if facts["found"].startswith(SEALED):
        why = shown(_found(record), SHOWN_OF_MESSAGE).removeprefix(SEALED)
        facts |= {"sealed": why} | (
            {"token": _KEEP_IT} if why.startswith(OPENS_NONE) else {}
        )
    if host.address is not None and is_private(host.address):
        facts["private"] = "is a private address"
    if record.rule == _INVALID:
        facts |= _invalid_facts(record)
    if record.method == CONNECT:
        facts["denied"] = f"the tunnel to {facts['authority']}"
    return facts


def shown(value: str, length: int = SHOWN) -> str:
    """Bound a value, and escape what is not printable."""
    bounded, missing = truncate(value, length)
    return f"{printable_field(bounded)}…" if missing else printable_field(bounded)


def shown_url(record: Record) -> str:
    """Return the URL of a record without its query, bounded and printable."""
    return shown(redacted_url(record.url))


def _found(record: Record) -> str:
    return decode_field(record.found) or ""


def _authority(record: Record) -> str:
    return (
        NONE
        if record.url == NONE or record.url.startswith(NO_REQUEST)
        else endpoint_of(record.url)
    )


def _certificate_facts(name: str) -> dict[str, str]:
    if name not in _FAULTS:
        return {"fault": shown(f"is not valid: {name}")}
    fault, cure = _FAULTS[name]
    return {"fault": fault, "cure": cure}


def _invalid_facts(record: Record) -> dict[str, str]:
    """Say why no policy can allow a request: what a policy that allows everything says
    to it.
    """
    if truncated_fields(record):
        return {}
    policy, request, at = (
        CompiledPolicy(Policy("", Action.ALLOW)),
        request_of(record),
        parse_time(record),
    )
    stages = (Stage.ALL,) if request.url is None else (Stage.ALL, Stage.URL)
    decisions = (decide(policy, policy.match(request), at, stage) for stage in stages)
    reason = next(
        (decision.reason for decision in decisions if decision.rule == _INVALID), None
    )
    return {"invalid": shown(reason, SHOWN_OF_MESSAGE).rstrip(".")} if reason else {}


# --- how causes are recognised --------------------------------------------------------


def _of_rule(*rules: str) -> Holds:
    return lambda record: record.rule in rules and record.verdict == "deny"


def _is_uncounted(record: Record) -> bool:
    return _of_rule("quota")(record) and _found(record).startswith(UNCOUNTED)


def _of_error(*errors: str) -> Holds:
    return lambda record: error_of(record) in errors


def _of_squid(*errors: str) -> Holds:
    """Recognise errors of Squid that it answers with a page of its own."""
    return lambda record: record.page == NONE and error_of(record) in errors


def _is_login(verdict: str) -> Holds:
    return lambda record: (
        error_of(record) == "ERR_CACHE_ACCESS_DENIED" and record.verdict == verdict
    )


def _is_of_no_client(record: Record) -> bool:
    return record.client == NONE and _of_rule(_INVALID)(record)


def _is_denied(record: Record) -> bool:
    return record.verdict == "deny"


def _is_machine_address(record: Record) -> bool:
    address = host_of(record.url).address
    return _is_denied(record) and address is not None and gives_credentials(address)


def _has_no_helper(record: Record) -> bool:
    return record.rule == POLICY_UNAVAILABLE and error_of(record) == "ERR_ACCESS_DENIED"


def is_uninspected(record: Record) -> bool:
    """Return whether a request was denied because nothing inspected its body."""
    return _of_rule(POLICY_UNAVAILABLE)(record) and error_of(record) == _REFUSED_ANSWER


def is_of_body(record: Record) -> bool:
    """Return whether a request was denied because its body could not be judged: no
    helper has failed.
    """
    return is_uninspected(record) or _found(record).startswith("unavailable:body-")


def _of_why(why: Unavailable) -> Holds:
    return lambda record: _of_rule(POLICY_UNAVAILABLE)(record) and _found(record) == why


def _left_unanswered(record: Record) -> bool:
    return (
        error_of(record) == "ERR_CLIENT_GONE"
        and _found(record) == Unavailable.BODY_UNANSWERED
    )


def _is_asked(record: Record) -> bool:
    return record.page == "asked"


def _is_refused(record: Record) -> bool:
    return error_of(record) == "ERR_CONNECT_FAIL" and not _is_timed_out(record)


def _is_silent(record: Record) -> bool:
    return error_of(record) == "ERR_CONNECT_FAIL" and _is_timed_out(record)


def _is_timed_out(record: Record) -> bool:
    return "_TIMEDOUT" in record.squid


def _has_bad_certificate(record: Record) -> bool:
    return error_of(record) == "ERR_SECURE_CONNECT_FAIL" and _fault_of(record) != NONE


def _fault_of(record: Record) -> str:
    checked, detail = (
        (decode_field(value) or NONE)
        for value in (record.tls_error, record.error_detail)
    )
    return (
        checked.partition("@")[0]
        if checked != NONE or "X509_" not in detail
        else detail.partition("+")[0]
    )


def _is_of_parent(record: Record) -> bool:
    return _PARENT in record.squid and error_of(record) in _PARENT_ERRORS


def _is_refused_by_parent(record: Record) -> bool:
    is_refused = _PARENT in record.squid and error_of(record) == _REFUSED_ANSWER
    return is_refused or _of_squid("ERR_RELAY_REMOTE")(record)


def _is_not_forwarded(record: Record) -> bool:
    is_unsent = error_of(record) == "ERR_READ_ERROR" and "HIER_NONE" in record.squid
    return is_unsent or _of_squid("ERR_CANNOT_FORWARD")(record)


def _is_no_tls(record: Record) -> bool:
    return error_of(record) == "ERR_PROTOCOL_UNKNOWN" and record.method == CONNECT


def _is_no_http(record: Record) -> bool:
    return error_of(record) == "ERR_PROTOCOL_UNKNOWN" and record.method == NONE


def _is_of_origin(record: Record) -> bool:
    return record.status >= SERVER_ERROR and record.error == NONE


_REFUSED_ANSWER = "ERR_ICAP_FAILURE"
_PARENT = "_PARENT"
_INVALID = "invalid-request"
_PARENT_ERRORS = (
    "ERR_CONNECT_FAIL",
    "ERR_CANNOT_FORWARD",
    "ERR_READ_ERROR",
    "ERR_ZERO_SIZE_OBJECT",
)

CAUSES: Final = (
    # Before the policy
    KnownCause(
        "login-refused",
        "error `ERR_CACHE_ACCESS_DENIED` (status 407), verdict `-`",
        "The login at the proxy is wrong: no client has this name with this token, the token has expired, or the"
        " address is not in the client's networks.",
        f"{_LOG_IN} The metric `squidkeeper_logins_total` counts why logins are refused.",
        _is_login(NONE),
    ),
    KnownCause(
        "login-needed",
        "error `ERR_CACHE_ACCESS_DENIED` (status 407), verdict `deny`",
        "{host} is open to clients that log in, and this one sent no login.",
        _LOG_IN,
        _is_login("deny"),
    ),
    KnownCause(
        "token-revoked",
        "rule `login-refused`",
        "The token of {user} was revoked, or has expired.",
        "Give the client another token: `squidkeeper client add`.",
        _of_rule("login-refused"),
    ),
    KnownCause(
        "session-required",
        "rule `session-required`",
        "Only sessions may use the address of this client, and none was active there.",
        "Make a session: `squidkeeper session create`. The page of the denial says when the last one ended.",
        _of_rule("session-required"),
    ),
    KnownCause(
        "session-invalid",
        "rule `session-invalid`",
        "The policy no longer has the role of the session, or no longer takes the values of its variables.",
        "End the session, and make one of a role that the policy has. `squidkeeper session show` says what is wrong.",
        _of_rule("session-invalid"),
    ),
    KnownCause(
        "sessions-unavailable",
        "rule `sessions-unavailable`",
        "The gateway could not read its sessions: the file is missing or damaged.",
        "Read Squid's `cache.log`, which has the reason, and start `squidkeeper sessions`.",
        _of_rule("sessions-unavailable"),
    ),
    KnownCause(
        "no-helper",
        "rule `policy-unavailable`, and error `ERR_ACCESS_DENIED`",
        "No helper of the gateway answered, so the request was denied.",
        f"Wait: Squid starts another helper. If it repeats: {NO_HELPER_REMEDY}",
        _has_no_helper,
    ),
    KnownCause(
        "bodies-unanswered",
        "rule `policy-unavailable`, and error `ERR_ICAP_FAILURE`",
        "Nothing inspected the body of the request, so it was denied: `squidkeeper bodies` did not answer, or ended.",
        "Wait for half a minute: its processes are started again, also those that hang. If not, run `systemctl restart"
        " 'squidkeeper-bodies-*'`, and read `journalctl -u squidkeeper-bodies-1`.",
        is_uninspected,
    ),
    KnownCause(
        "no-policy",
        f"`{Unavailable.NO_POLICY}` in `found`",
        "The helper that answered had no policy that loads.",
        "{repair}.",
        _of_why(Unavailable.NO_POLICY),
    ),
    KnownCause(
        "policy-changed",
        f"`{Unavailable.POLICY_CHANGED}` in `found`",
        "The policy has changed while the request was under way.",
        "Nothing: the client can repeat the request.",
        _of_why(Unavailable.POLICY_CHANGED),
    ),
    KnownCause(
        "not-passed-on",
        f"`{Unavailable.NOT_PASSED_ON}` in `found`",
        "Squid did not pass on what the policy needs to decide: its configuration is of another policy or release.",
        "Repeat the request. If it is denied again, run `./install.sh`.",
        _of_why(Unavailable.NOT_PASSED_ON),
    ),
    KnownCause(
        "body-over-share",
        f"`{Unavailable.BODY_OVER_SHARE}` in `found`",
        "The bodies of this client's requests, or of all, fill the memory that the gateway has for them.",
        "Let the client send fewer large bodies at once. A smaller `max` of the rule's `body` bounds each.",
        _of_why(Unavailable.BODY_OVER_SHARE),
    ),
    KnownCause(
        "body-late",
        f"`{Unavailable.BODY_LATE}` in `found`",
        "The client took longer to send the body than the gateway waits for it.",
        "Find out why the client sends so slowly.",
        _of_why(Unavailable.BODY_LATE),
    ),
    KnownCause(
        "undecided",
        "rule `policy-unavailable` otherwise",
        "The gateway could not decide the request. The access log does not tell why.",
        "Run `squidkeeper doctor`, and read cache.log at the time of the request.",
        _of_rule(POLICY_UNAVAILABLE),
    ),
    # Denied
    KnownCause(
        "credential-unavailable",
        "rule `credential-unavailable`",
        "{credential}.",
        STORE_ONE_LINE,
        _of_rule("credential-unavailable"),
    ),
    KnownCause(
        SEALED_REFUSED,
        "rule `sealed-token-refused`",
        "The sealed token is refused: {sealed}.",
        "{token}.",
        _of_rule(SEALED_REFUSED),
    ),
    KnownCause(
        "secret-leaving",
        "rule `secret-leaving`",
        "The request held what must not leave: {found}.",
        "Find out how the client got the value, and rotate it.",
        _of_rule("secret-leaving"),
    ),
    KnownCause(
        "placeholder-misdirected",
        "rule `placeholder-misdirected`",
        "The request held the placeholder of a credential that does not apply to it: {found}.",
        "`squidkeeper explain` says why it does not apply. Correct the client, or the credential.",
        _of_rule("placeholder-misdirected"),
    ),
    KnownCause(
        "header-too-long",
        "rule `header-too-long`",
        "URL and headers together have more than 128 KB in percent-encoding.",
        "Let the client send less: usually a cookie or a token has grown.",
        _of_rule("header-too-long"),
    ),
    KnownCause(
        "quota-unavailable",
        f"rule `quota`, and `{UNCOUNTED}` in `found`",
        "The count of a quota was unavailable: {found}.",
        "cache.log says why, at `quotas cannot be counted`. Where gateways share their counts, `squidkeeper doctor`"
        " asks Valkey. Requests pass when they can be counted again.",
        _is_uncounted,
    ),
    KnownCause(
        "quota",
        "rule `quota`",
        "A quota denied a request of {user}: {found}{limit}.",
        "`squidkeeper quota` shows what is used, and by whom. Let the client wait for {its_reset}, or ask for less."
        " Else raise the limit, or begin this count again: `squidkeeper quota --reset {reset}`.",
        _of_rule("quota"),
    ),
    KnownCause(
        "ticket-page",
        "rule `ticket-page`",
        "{host} is the gateway itself, and it has no such page for this client.",
        "Let the client ask for the address that its denial names, with the same login as then.",
        _of_rule("ticket-page"),
    ),
    KnownCause(
        "not-rendered",
        "rule `not-rendered`",
        "Squid's configuration lacks lines that the policy needs for {host}.",
        "They come within seconds of an edit. If they do not, `squidkeeper doctor` says why: often a secret is"
        " missing.",
        _of_rule("not-rendered"),
    ),
    KnownCause(
        "tunnel-outdated",
        "rule `tunnel-outdated`",
        "The policy has changed how tunnels to {host} are opened, and this one was opened before.",
        "Nothing: the client opens a new connection when it tries again.",
        _of_rule("tunnel-outdated"),
    ),
    KnownCause(
        "certificate-fetch",
        "rule `invalid-request`, without a client",
        "An origin sent an incomplete chain of certificates, and Squid wanted to fetch what is missing from {host}.",
        "Let the origin send its whole chain. If that is impossible, add `acl sk_is_certificate_source dstdomain"
        " -n HOST` to local.conf; the policy must allow HOST too, to every client.",
        _is_of_no_client,
    ),
    KnownCause(
        "unmetered-request",
        f"rule `invalid-request`, and `{BY_BODY}` in `found`",
        "The rule that allows the request has `meter`, and the gateway cannot tell what the request may use: {found}.",
        "Let the client send its body as plain JSON, with numbers as numbers. Where nothing is to be counted, a rule"
        " without `meter` above can allow it.",
        lambda record: _of_rule(_INVALID)(record) and told_by_body(record) is not None,
    ),
    KnownCause(
        "invalid-request",
        "rule `invalid-request`",
        "{invalid}.",
        "Let the client send another kind of request.",
        _of_rule(_INVALID),
    ),
    KnownCause(
        "ambiguous-path",
        "rule `ambiguous-path`",
        "The policy decides differently for some readings of the path.",
        "`squidkeeper explain --record -` lists them, from the output of `squidkeeper log -n 1 --request-id {request}"
        " --json`. Allow every reading, or let the client send the plain one.",
        _of_rule("ambiguous-path"),
    ),
    KnownCause(
        "authority-mismatch",
        "rule `authority-mismatch`",
        "The request is for {host}, in a tunnel to {tunnel} with the TLS server name {sni}: they differ, or the"
        " certificate of the server does not cover the host.",
        "Let the client open a tunnel for each host, with the same name in TLS and Host. If it does, this is domain"
        " fronting.",
        _of_rule("authority-mismatch"),
    ),
    KnownCause(
        "machine-address",
        "verdict `deny`, and a host that is a link-local address, or another at which a cloud gives out credentials",
        "{host} is an address at which a cloud machine gets its credentials, and the rule {rule}{at} denies it.",
        "Do not open it: a client that reaches it can act as the gateway's machine. Give the client what it needs by"
        " `credentials` of the policy.",
        _is_machine_address,
    ),
    KnownCause(
        "private-address",
        "rule `private-address`",
        "{host} {private}, which {opener} does not open.",
        "{warning}If it is meant, {opened}. If not, correct the DNS entry of the name.",
        _of_rule("private-address"),
    ),
    KnownCause(
        "asked",
        "page `asked`",
        "The rule {rule}{at} asks about {host}: the request is denied until a person approves it{reason}.{ticket}",
        "`sudo squidkeeper ask approve {number} --for 2h` opens this request. `sudo squidkeeper ask deny {number}"
        " --reason TEXT` tells its client why not.",
        _is_asked,
    ),
    KnownCause(
        BODY_CAUSE,
        f"verdict `deny`, and `{BY_BODY}` in `found`",
        "The rule {rule}{at} denies {denied}{reason}. Its body decided: {found}.",
        "If the request is meant to pass, {judged}.",
        lambda record: told_by_body(record) is not None,
    ),
    KnownCause(
        "no-rule",
        "rule `default`",
        "No rule allows {host}{reason}.{nearest}",
        "If the request is meant to pass, {opens}.",
        _of_rule("default"),
    ),
    KnownCause(
        "policy",
        "any other rule, with verdict `deny`",
        "The rule {rule}{at} denies {denied}{reason}.",
        "If the request is meant to pass, {opens}.",
        _is_denied,
    ),
    KnownCause(
        "squid-conf",
        "error `ERR_ACCESS_DENIED` or `ERR_FORWARDING_DENIED`",
        "A line of squid.conf outside the policy denies it, or Squid was reading its configuration.",
        "Try again. Then read local.conf for an `http_access deny`.",
        _of_error(
            "ERR_ACCESS_DENIED", "ERR_FORWARDING_DENIED", "ERR_CACHE_MGR_ACCESS_DENIED"
        ),
        likely=True,
    ),
    # Allowed, and failed
    KnownCause(
        "name-unresolved",
        "error `ERR_DNS_FAIL`",
        "The name {host} does not resolve: it does not exist, or the gateway's name server does not answer.",
        "Run `squidkeeper doctor`, which asks the gateway's resolver and names its process, and"
        " `dig @127.53.53.53 NAME`. Then read `journalctl -u squidkeeper-maintenance`, or maintenance.log."
        " A name that only a parent proxy can resolve needs `resolve: upstream`.",
        _of_error("ERR_DNS_FAIL"),
    ),
    KnownCause(
        "parent-failed",
        "a connection error, and a parent in `squid`",
        "The parent proxy gave no connection to {authority}.",
        "Try it from the gateway: `curl -v -x http://PARENT:PORT URL`. cache.log has `Detected DEAD Parent` while it is"
        " down.",
        _is_of_parent,
        likely=True,
    ),
    KnownCause(
        "parent-refused",
        "error `ERR_RELAY_REMOTE`, or `ERR_ICAP_FAILURE` and a parent in `squid`",
        "The parent proxy refuses the gateway: it does not accept the gateway's password.",
        "Correct the secret that `basic` of the upstream names in the policy, or name one. The new password is sent"
        " within seconds, or after `squidkeeper render` where the secret is fetched.",
        _is_refused_by_parent,
        likely=True,
    ),
    KnownCause(
        "not-forwarded",
        "error `ERR_CANNOT_FORWARD`, or `ERR_READ_ERROR` with `HIER_NONE` in `squid`",
        "The gateway had no connection on which to send the request to {authority}: its parent proxy is down, the"
        " server of the tunnel had ended it, or squid.conf forbids the direct way. Nothing was sent.",
        "Try again. If it stays so, look for `Detected DEAD Parent` in cache.log, and read local.conf for"
        " `never_direct` and `cache_peer`.",
        _is_not_forwarded,
    ),
    KnownCause(
        "origin-refused",
        "error `ERR_CONNECT_FAIL`, without `TIMEDOUT` in `squid`",
        "{authority}{address} refused the connection, or no route leads to it.",
        "Check host and port. " + _FROM_HERE,
        _is_refused,
    ),
    KnownCause(
        "origin-silent",
        "error `ERR_CONNECT_FAIL`, with `TIMEDOUT` in `squid`",
        "{authority}{address} did not answer the connection in time.",
        "Check host and port, and whether a packet filter drops the connection. "
        + _FROM_HERE,
        _is_silent,
    ),
    KnownCause(
        "origin-slow",
        "error `ERR_READ_TIMEOUT` or `ERR_LIFETIME_EXP`",
        "{authority}{address} took the request and did not send its whole answer in time.",
        _TRY_AGAIN,
        _of_error("ERR_READ_TIMEOUT", "ERR_LIFETIME_EXP"),
    ),
    KnownCause(
        "origin-certificate",
        "error `ERR_SECURE_CONNECT_FAIL`, with a `tls_error`, or one in `error_detail`",
        "The certificate of {authority} {fault}.",
        "{cure}.",
        _has_bad_certificate,
    ),
    KnownCause(
        "origin-tls",
        "error `ERR_SECURE_CONNECT_FAIL`, without one",
        "TLS with {authority}{address} failed: it speaks no TLS on this port, shares no version with the gateway,"
        " or ended or did not answer the handshake.",
        _FROM_HERE,
        _of_error("ERR_SECURE_CONNECT_FAIL"),
        likely=True,
    ),
    KnownCause(
        "origin-broke-off",
        "error `ERR_ZERO_SIZE_OBJECT`, `ERR_READ_ERROR` or `ERR_WRITE_ERROR`",
        "{authority}{address} ended the connection before its whole answer had come.",
        _TRY_AGAIN,
        _of_error("ERR_ZERO_SIZE_OBJECT", "ERR_READ_ERROR", "ERR_WRITE_ERROR"),
    ),
    KnownCause(
        "invalid-answer",
        "error `ERR_INVALID_RESP` or `ERR_ICAP_FAILURE`",
        "{authority}{address} sent an answer that the gateway does not take: its head is malformed or too large, or it"
        " is a part (206) beyond a petabyte. Or an ICAP service of local.conf failed.",
        _FROM_HERE,
        _of_squid(
            "ERR_INVALID_RESP",
            _REFUSED_ANSWER,
        ),
    ),
    # The client
    KnownCause(
        "too-large",
        "error `ERR_TOO_BIG`",
        "The request, or the answer to it, is larger than squid.conf lets pass, or than what is left of a quota of"
        " `bytes_in`.",
        "Let the client send or ask for less at a time, or raise `request_header_max_size`, `request_body_max_size` or"
        " `reply_body_max_size` in local.conf.",
        _of_squid("ERR_TOO_BIG"),
    ),
    KnownCause(
        "not-cached",
        "error `ERR_ONLY_IF_CACHED_MISS`",
        "The request asks for a cached answer only, and the gateway has none.",
        "Let the client send it without `Cache-Control: only-if-cached`.",
        _of_squid("ERR_ONLY_IF_CACHED_MISS"),
    ),
    KnownCause(
        "ca-not-trusted",
        "error `ERR_SECURE_ACCEPT_FAIL`; sure with an alert in cache.log",
        "{distrust}.",
        "Add the gateway's ca.crt to the client's trust store. Programs with a bundle of their own need SSL_CERT_FILE,"
        " REQUESTS_CA_BUNDLE or NODE_EXTRA_CA_CERTS. `squidkeeper probe` tests them in the VM.",
        _of_error("ERR_SECURE_ACCEPT_FAIL"),
        likely=True,
    ),
    KnownCause(
        "no-tls-in-tunnel",
        "error `ERR_PROTOCOL_UNKNOWN` of a CONNECT",
        "The client sent something other than TLS in a tunnel to {authority}.",
        "Only TLS passes in a tunnel: no SSH, no database protocol without TLS, no plain http.",
        _is_no_tls,
    ),
    KnownCause(
        "tls-to-plain-port",
        "error `ERR_PROTOCOL_UNKNOWN` without a method",
        f"The client {SPEAKS_TLS}; or it speaks no HTTP.",
        "Set `http://` in place of `https://` before the proxy's host in the client's HTTPS_PROXY; or, on the gateway,"
        " `sudo ./install.sh --tls`.",
        _is_no_http,
        likely=True,
    ),
    KnownCause(
        "not-http",
        "any other error of a request that Squid does not understand",
        "Squid does not understand the request ({error}): its method, URL, HTTP version or a header is not valid.",
        "Let the client send valid HTTP/1.1, with an absolute URL to the proxy port.",
        _of_squid(
            "ERR_INVALID_URL",
            "ERR_INVALID_REQ",
            "ERR_UNSUP_REQ",
            "ERR_UNSUP_HTTPVERSION",
            "ERR_CONFLICT_HOST",
            "ERR_PROTOCOL_UNKNOWN",
            "ERR_PRECONDITION_FAILED",
            "ERR_URN_RESOLVE",
        ),
    ),
    KnownCause(
        "client-left-body",
        f"error `ERR_CLIENT_GONE`, and `{Unavailable.BODY_UNANSWERED}` in `found`",
        "The client disconnected while the gateway inspected the body of the request: it broke off its upload, or"
        " `squidkeeper bodies` did not answer.",
        "If many requests end so, run `squidkeeper doctor`, and read `journalctl -u squidkeeper-bodies-1`.",
        _left_unanswered,
        likely=True,
    ),
    KnownCause(
        "client-left",
        "error `ERR_CLIENT_GONE`",
        "The client disconnected before it had the whole answer of {authority}.",
        "Read the client's log: usually its own time limit is shorter than the answer takes.",
        _of_error("ERR_CLIENT_GONE"),
    ),
    # Anything else
    KnownCause(
        "gateway-failed",
        "any other error",
        "Squid failed to handle the request: {error}, status {status}.",
        "Read cache.log at the time of the request.",
        lambda record: record.error != NONE,
    ),
    KnownCause(
        "origin-error",
        "status 5xx without an error",
        "{authority}{address} answered with status {status}: the gateway passed this on.",
        "Read the log of the origin.",
        _is_of_origin,
    ),
    # Without a record: in cache.log
    KnownCause(
        "no-descriptors",
        "cache.log: `running out of filedescriptors`, `Too many open files`",
        "Squid is out of file descriptors, and takes no connection until others end.",
        "Set `max_filedescriptors 16384`, and raise LimitNOFILE of Squid's unit. `squidkeeper doctor` shows what Squid"
        " has.",
    ),
    KnownCause(
        "squid-crashed",
        "Squid's processes and cache.log, as the maintenance process saw them",
        "Squid crashed ({told}), and what it served then has no line. Newest origins: {origins}. Clients: {clients}.",
        CRASHED_REMEDY,
    ),
    KnownCause(
        "squid-ended",
        "cache.log: `FATAL:`",
        "Squid ended: {reason}.",
        "`logfileWrite` says that its disk is full: make room. Otherwise read the end of cache.log. While Squid is"
        " down, no client can connect.",
    ),
)

BY_CODE: Final[Mapping[str, KnownCause]] = {cause.code: cause for cause in CAUSES}
