"""The lines of Squid's configuration that depend on the policy (floor 5): headers to remove or to inject, parents.

install.sh renders them. Helpers only choose between them, by annotations: Squid's account must not write what root
reads. A request whose annotation names what is not rendered is denied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple
from urllib.parse import quote

from squidkeeper.credentials import SecretStore
from squidkeeper.errors import SecretUnavailable
from squidkeeper.policy.faults import Fault, FaultCode, Location
from squidkeeper.policy.forms import signs
from squidkeeper.policy.headers import INJECTABLE_HEADERS, UNKNOWN_HEADERS, spellings
from squidkeeper.policy.model import DIRECT, Credential, Parent, Policy, Route, Strip
from squidkeeper.policy.quotas import QuotaUnit
from squidkeeper.policy.upstreams import DEFAULT, parse_upstream_url
from squidkeeper.protocol.request_headers import FIRST_COPY_HEADERS, READ_HEADERS
from squidkeeper.replies import header_annotation

_HEAD = """\
# Written by squidkeeper's install.sh from the policy, which replaces it: run it again after a change of `upstreams`,
# `strip`, a parent's password, the headers of credentials or the largest `bytes_out`, and once the policy has its
# first `watch_secrets`, `canaries`, `placeholder`, `sealed_tokens` or `aws_sigv4`. Until then a request that needs what
# is not here is denied as not-rendered, and headers that no helper reads still pass.
"""
_KEYS = re.compile(
    r"^acl sk_(?:strip_rendered note strip_|inject_rendered note inject_lines_|upstream_rendered note upstream_) (.*)$",
    re.MULTILINE,
)
_DEFAULT = re.compile(r"^# --upstream (\S+)$", re.MULTILINE)
_LOGIN = re.compile(r"^cache_peer .* name=sk_(\S+) .* login=(\S+)$", re.MULTILINE)
_BODY_BOUND = "request_body_max_size"
_BODY_LINE = re.compile(rf"^\s*{_BODY_BOUND}\s.*$", re.MULTILINE)
_OWN_BODY_BOUND = f"# {_BODY_BOUND}: as your own configuration has it"
_PEER = re.compile(r"^cache_peer (\S+) parent (\d+) 0 name=sk_(\S+) ", re.MULTILINE)
# No query of any kind: a peer is used where it is chosen. Squid gives up a connection to one after three seconds.
# What a client has sent with its CONNECT would go to the parent with ours. It could take that for the gateway's.
_PASSED_IN_CONNECT = ("Host", "Proxy-Authorization", "Via")
_CONNECT_LINES = (
    "request_header_access All deny CONNECT",
    *(f"request_header_access {name} allow all" for name in _PASSED_IN_CONNECT),
)
# Squid's own, or of no use to whoever wants to send a text. Beside these, only what helpers read passes.
_UNREAD = ("Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "Max-Forwards")
_SEARCHES = "acl sk_never_searched all-of !sk_judged"
_READS = "acl sk_reads_headers any-of sk_watching sk_needs_headers"
_PEER_OPTIONS = "no-query no-digest no-netdb-exchange connect-timeout=3"


def policy_lines(policy: Policy, secrets: SecretStore, default: str = "") -> str:
    """Render the lines for a policy; `default`, a URL, is the parent for requests that no upstream of it holds for.

    `SecretUnavailable` where the password of a parent is.
    """
    lines = (
        *_HEAD.splitlines(),
        *_strip_lines(tuple({rule.strip.key: rule.strip for rule in policy.rules if rule.strip}.values())),
        *_inject_lines(policy.credentials),
        *_signature_lines(policy),
        *_upstream_lines(policy.upstreams, secrets),
        *_watch_lines(policy),
        *(_only_read_headers(policy, "sk_keeps_known") if _keeps_known(policy) else ()),
        *_first_copy_lines(policy),
        *_body_lines(policy),
        *(_default_lines(default) if default else ()),
        *(_CONNECT_LINES if default or any(one.parent for one in policy.upstreams) else ()),
    )
    return "".join(f"{line}\n" for line in lines)


def default_upstream(rendered: str) -> str:
    """Give the URL of the default parent that the lines were rendered with; empty where there is none."""
    found = _DEFAULT.search(rendered)
    return found[1] if found else ""


def parents(rendered: str) -> tuple[tuple[str, str, int], ...]:
    """List the parents that the lines name: the name, the host as in a URL, and the port."""
    return tuple((name, host, int(port)) for host, port, name in _PEER.findall(rendered))


class Unrendered(NamedTuple):
    """What of a policy the rendered lines lack: in a word, and as a warning."""

    what: str
    warning: Fault


def not_rendered(policy: Policy, rendered: str, secrets: SecretStore) -> tuple[Fault, ...]:
    """Warn about what a policy needs and the rendered lines lack, and about a parent's password that has changed."""
    return tuple(one.warning for one in unrendered(policy, rendered, secrets))


def unrendered(policy: Policy, rendered: str, secrets: SecretStore) -> tuple[Unrendered, ...]:
    """List the same, each with a word for what it is."""
    found = chain(_lacking_keys(policy, rendered, secrets), _lacking_others(policy, rendered))
    return tuple(Unrendered(what, Fault(place, FaultCode.NOT_RENDERED, message)) for what, place, message in found)


def _lacking_keys(policy: Policy, rendered: str, secrets: SecretStore) -> Iterator[tuple[str, Location, str]]:
    keys, logins = _rendered_keys(rendered), dict(_LOGIN.findall(rendered))
    for rule in policy.rules:
        if rule.strip and rule.strip.key not in keys:
            yield "strip", rule.location, f"rule {rule.name!r}: its 'strip' {_NOT_RENDERED}"
    for one in policy.credentials:
        if one.form.lines_key and one.form.lines_key not in keys:
            yield "headers", one.location, f"credential {one.name!r}: its headers {_ARE_NOT_RENDERED}"
    for upstream in policy.upstreams:
        if upstream.key not in keys:
            yield "upstreams", upstream.location, f"upstream {upstream.name!r} {_NOT_RENDERED}"
        elif _password_differs(upstream, logins.get(upstream.name), secrets):
            yield "passwords of upstreams", upstream.location, f"upstream {upstream.name!r}: {_OTHER_PASSWORD}"


def _lacking_others(policy: Policy, rendered: str) -> Iterator[tuple[str, Location, str]]:
    if not {_READS, *([_SEARCHES] if policy.watch else [])} <= {*rendered.splitlines()}:
        yield from ((what, place, _NOT_SEARCHED) for what, place in islice(_reading(policy), 1))
    for quota in policy.quotas:
        if quota.unit is QuotaUnit.BYTES_OUT and not _bounds_bodies(policy, rendered):
            yield "bytes_out", quota.location, f"quota {quota.name!r}: {_BODY_NOT_BOUND}"


def lacks_lines(strip: Strip | None, upstream: Route | None, credentials: Iterable[Credential], rendered: str) -> bool:
    """Tell whether a request with these needs what is not rendered, so that Squid denies it as not-rendered."""
    needed = {one.key for one in (strip, upstream) if one} | {one.form.lines_key for one in credentials}
    return not needed - {""} <= _rendered_keys(rendered) | {DEFAULT, DIRECT}


def _rendered_keys(rendered: str) -> set[str]:
    return {key for line in _KEYS.findall(rendered) for key in line.split()}


_ARE_NOT_RENDERED = "are not in Squid's configuration yet, so its requests are denied: run install.sh"
_NOT_RENDERED = "is not in Squid's configuration yet, so its requests are denied: run install.sh"
_NOT_SEARCHED = "Squid still forwards headers that are not searched: run install.sh"
_BODY_NOT_BOUND = "the body of one request is not bounded by its limit yet: run install.sh"
_OTHER_PASSWORD = "its secret has changed, and Squid still sends the former password: run install.sh"  # noqa: S105 - a text


def _password_differs(upstream: Route, rendered: str | None, secrets: SecretStore) -> bool:
    try:
        return upstream.parent is not None and _login(upstream.parent, secrets) != (rendered or "")
    except SecretUnavailable:
        return False  # which is reported as such


def _login(parent: Parent, secrets: SecretStore) -> str:
    """Write a parent's credential as `login=` takes it; only the line of its peer may hold it."""
    if parent.username is None or parent.password is None:
        return ""
    return f"{quote(parent.username, safe='')}:{quote(secrets.get(parent.password).reveal(), safe='')}"


def _strip_lines(strips: Iterable[Strip]) -> Iterator[str]:
    """Write one ACL for each header; Squid evaluates it where a request has the header.

    It goes by the header's own key, so that a request that is under way when a set changes loses what it has to.
    """
    yield " ".join(["acl sk_strip_rendered note strip_ -", *(strip.key for strip in strips)])
    keys = {
        header.lower(): key for strip in strips for header, key in zip(strip.headers, strip.header_keys, strict=True)
    }
    for number, (header, key) in enumerate(sorted(keys.items())):
        yield f"acl sk_strip_{number} note strip_header_ {key}"
        yield f"acl sk_stripped_{number} any-of CONNECT sk_strip_{number}"
        yield from (f"request_header_access {name} deny sk_stripped_{number}" for name in spellings(header))


def _inject_lines(credentials: Iterable[Credential]) -> Iterator[str]:
    """Write the lines of the headers that squid.conf does not have; as its own, they go where there is a credential."""
    forms = [one.form for one in credentials if one.form.rendered]
    yield " ".join(["acl sk_inject_rendered note inject_lines_ -", *dict.fromkeys(form.lines_key for form in forms)])
    names = {name.lower(): name for form in forms for name in form.rendered}
    for number, (_, header) in enumerate(sorted(names.items())):
        annotation = header_annotation(header)
        yield f"acl sk_injects_{number} note {annotation}"
        yield from (f"request_header_access {name} deny sk_takes_injectable" for name in spellings(header))
        yield f"""request_header_add {header} "%'{{{annotation}}}note" sk_https !sk_final sk_injects_{number}"""


def _signature_lines(policy: Policy) -> Iterator[str]:
    """Write what a policy needs that signs requests: beside a signature no header passes that no helper reads.

    Servers take more names than X-Amz-Copy-Source for it, such as X_Amz_Copy_Source. `Other` are the headers that
    Squid does not know and that have no line of their own.
    """
    if not any(signs(credential.form) for credential in policy.credentials):
        return
    yield f"acl sk_signs note {header_annotation('X-Amz-Date')}"
    yield "request_header_access Other deny sk_signs"
    yield "request_header_access Other deny CONNECT"
    read = {name.lower() for name in READ_HEADERS}
    yield from (
        f"request_header_access {name} deny CONNECT" for name in sorted({*READ_HEADERS} - {*_PASSED_IN_CONNECT})
    )
    removed = {name for rule in policy.rules if rule.strip for one in rule.strip.headers for name in spellings(one)}
    yield from (f"request_header_access {one} deny sk_signs" for one in sorted(removed) if one.lower() not in read)


def _watch_lines(policy: Policy) -> Iterator[str]:
    """Write what a policy needs that watches for secrets: no header passes that no helper reads.

    What Squid refuses before any line of http_access has an effect was not searched, and is withheld from the log.
    """
    if policy.watch is None:
        yield "acl sk_never_searched all-of !all"
        return
    yield _SEARCHES
    yield from _only_read_headers(policy, "sk_watching")


def _keeps_known(policy: Policy) -> bool:
    return any(rule.strip and UNKNOWN_HEADERS in rule.strip.headers for rule in policy.rules)


def _only_read_headers(policy: Policy, acl: str) -> Iterator[str]:
    """Remove each header that no helper reads from the requests of an ACL.

    `All` are the headers without lines of their own, `Other` those of them that Squid does not know.
    """
    yield f"request_header_access All deny {acl}"
    yield f"request_header_access Other deny {acl}"
    for name in _PASSED_IN_CONNECT:
        yield f"request_header_access {name} allow all"
    passing = {*READ_HEADERS, *_UNREAD} - {*_PASSED_IN_CONNECT}
    yield from (f"request_header_access {name} deny CONNECT" for name in sorted(passing))
    removed = {header for rule in policy.rules if rule.strip for header in rule.strip.headers}
    rendered = {header for credential in policy.credentials for header in credential.form.rendered}
    others = {name for header in {*INJECTABLE_HEADERS, *removed, *rendered} for name in spellings(header)}
    known = {name.lower() for name in passing}
    yield from (f"request_header_access {one} deny {acl}" for one in sorted(others) if one.lower() not in known)


def _reading(policy: Policy) -> Iterator[tuple[str, Location]]:
    """Yield what in a policy has helpers read the headers of requests (`watch_`, `headers_`), with its place."""
    if policy.watch:
        yield "watch_secrets and canaries", policy.watch
    for one in policy.credentials:
        if one.placeholder or signs(one.form):
            yield "placeholders" if one.placeholder else "aws_sigv4", one.location
    for name in policy.sealing_keys:
        yield "sealed_tokens", policy.secrets[name].location


def _first_copy_lines(policy: Policy) -> Iterator[str]:
    """Write what forwards no copy of a header but the one that helpers have read.

    A header that a rule removes, or that a credential replaces, is not added again.
    """
    if not any(_reading(policy)):
        return
    yield _READS
    injectable = {name.lower() for one in policy.credentials for name in one.form.rendered}
    injectable |= {name.lower() for name in INJECTABLE_HEADERS}
    stripped = {
        header.lower(): key
        for rule in policy.rules
        if rule.strip
        for header, key in zip(rule.strip.headers, rule.strip.header_keys, strict=True)
    }
    for number, name in enumerate(FIRST_COPY_HEADERS):
        acls = [f"sk_sends_{number}"]  # without it, Squid would add `-` where the header is absent
        yield f"acl sk_sends_{number} req_header {name} ."
        if name.lower() in injectable:
            acls.append("!sk_injected")
        if name.lower() in stripped:
            acls.append(f"!sk_removes_{number}")
            yield f"acl sk_removes_{number} note strip_header_ {stripped[name.lower()]}"
        yield f"request_header_access {name} deny sk_reads_headers"
        yield f"""request_header_add {name} "%'{{{name}}}>h" sk_reads_headers !CONNECT {" ".join(acls)}"""


def _body_lines(policy: Policy) -> Iterator[str]:
    """Bound the body of one request where a quota counts the bytes that leave: they are counted when it ends.

    Squid has one bound for all requests, so it is the largest of the quotas.
    """
    limits = [quota.limit for quota in policy.quotas if quota.unit is QuotaUnit.BYTES_OUT]
    if limits:
        yield f"{_BODY_BOUND} {max(limits)} bytes"


def with_own_body_bound(rendered: str, own: str) -> str:
    """Leave the bound of a body to the operator's own configuration, where that has one: the last line would count."""
    return _BODY_LINE.sub(_OWN_BODY_BOUND, rendered) if _BODY_LINE.search(own) else rendered


def _bounds_bodies(policy: Policy, rendered: str) -> bool:
    lines = {*rendered.splitlines()}
    return _OWN_BODY_BOUND in lines or lines.issuperset(_body_lines(policy))


def _upstream_lines(upstreams: Iterable[Route], secrets: SecretStore) -> Iterator[str]:
    keys = [one.key for one in upstreams if one.key != DIRECT]
    yield " ".join(["acl sk_upstream_rendered note upstream_ default direct", *keys])
    for upstream in upstreams:
        if upstream.parent is not None:
            yield f"acl sk_to_{upstream.name} note upstream_ {upstream.key}"
            yield from _peer_lines(upstream.name, upstream.parent, _login(upstream.parent, secrets))


def _default_lines(url: str) -> Iterator[str]:
    """Write the parent of every request whose upstream is not chosen by the policy."""
    yield f"# --upstream {url}"
    yield "acl sk_upstream_is_default note upstream_ default"
    yield "acl sk_to_default any-of !sk_chooses_upstream sk_upstream_is_default"
    yield from _peer_lines(DEFAULT, Parent(*parse_upstream_url(url)), "")


def _peer_lines(name: str, parent: Parent, login: str) -> Iterator[str]:
    """Write a peer for the requests of one ACL; what may not be fetched directly may not be fetched by it either."""
    options = f"{_PEER_OPTIONS} login={login}" if login else _PEER_OPTIONS
    yield f"cache_peer {parent.host.text} parent {parent.port} 0 name=sk_{name} {options}"
    yield f"cache_peer_access sk_{name} allow sk_to_{name} !sk_closed"
    yield f"cache_peer_access sk_{name} deny all"
    # The page of a failure. The second line never matches: it annotates the connection.
    yield f"acl sk_through_parent any-of sk_to_{name}"
    yield f"never_direct allow CONNECT sk_to_{name} sk_marks_parent !all"
    yield f"never_direct allow sk_to_{name}"
    # The tunnel of a host with rewrites is opened by the first request in it. Squid would send the headers of that
    # request to the parent, credentials included, with its CONNECT.
    yield f"adapted_http_access deny !CONNECT sk_https sk_connects_by_request sk_to_{name} sk_denied_as_not_rendered"
