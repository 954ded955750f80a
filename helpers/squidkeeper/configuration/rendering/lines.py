"""The sources of Squid's configuration with their values: templates, a gateway's own
values, and the lines that placeholders expand to.

`@NAME@` is a placeholder. One that stands alone on a line goes with its line where it
expands to nothing. The core includes the parts by name; the line of a part that is not
in force is left out.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from textwrap import wrap
from typing import Final

import msgspec

from squidkeeper.configuration.rendering.values import Peer, Values
from squidkeeper.policy.language.headers import (
    HOST_HEADERS,
    INJECTABLE_HEADERS,
    METHOD_HEADERS,
    PATH_HEADERS,
    UNKNOWN_HEADERS,
    spellings,
)
from squidkeeper.policy.language.quotas import SMALL_ANSWER
from squidkeeper.policy.protocol.request_headers import FIRST_COPY_HEADERS, READ_HEADERS
from squidkeeper.policy.url import LONG_URL, PRIVATE_NETWORKS, UNUSUAL_CHARACTER
from squidkeeper.serving.parts import SESSIONS, Part
from squidkeeper.serving.replies import header_annotation

_WIDTH: Final = 110
# a line of Squid's configuration ends at 8 KB, and a key has up to 100 characters
_KEYS_A_LINE: Final = 40
# What a client has sent with its CONNECT would go to the parent with ours. It could
# take that for the gateway's.
_PASSED_IN_CONNECT: Final = ("Host", "Proxy-Authorization", "Via")
# Squid's own, or of no use to whoever wants to send a text. Beside these, only what
# helpers read passes.
_UNREAD: Final = (
    "Host",
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Expect",
    "Max-Forwards",
)
# No query of any kind: a peer is used where it is chosen. Squid gives up a connection
# to one after three seconds.
_PEER_OPTIONS: Final = "no-query no-digest no-netdb-exchange connect-timeout=3"


def _in_force(values: Values) -> str:
    keys = values.in_force
    lines = (
        ",".join(keys[start : start + _KEYS_A_LINE])
        for start in range(0, len(keys), _KEYS_A_LINE)
    )
    return " \\\n    --in-force ".join(lines)


def _private_networks(_: Values) -> Iterator[str]:
    ipv4 = sorted(
        network for network in PRIVATE_NETWORKS if isinstance(network, IPv4Network)
    )
    ipv6 = sorted(
        network for network in PRIVATE_NETWORKS if isinstance(network, IPv6Network)
    )
    for networks in (ipv4, ipv6):
        lines = wrap(" ".join(map(str, networks)), _WIDTH - 19)
        yield f"acl sk_ask_private dst {_continued(lines)}"


def _address(values: Values) -> Iterator[str]:
    """Tell whether a host has an address; a parent proxy may resolve a name that the
    gateway cannot (`resolve: upstream`).
    """
    if Part.UPSTREAMS not in values.parts:
        yield "acl sk_ask_address dst all"
        return
    yield "acl sk_ask_resolved dst all"
    yield "acl sk_is_resolved_upstream note resolve_ upstream"
    yield "acl sk_ask_address any-of sk_ask_resolved sk_is_resolved_upstream"


def _read_headers(_: Values) -> str:
    headers = " ".join(f"%#{{{header}}}>h" for header in READ_HEADERS)
    return _continued(wrap(headers, _WIDTH, break_on_hyphens=False))


def _override_headers(_: Values) -> Iterator[str]:
    yield from _removed((*METHOD_HEADERS, *PATH_HEADERS), "!sk_is_override_allowed")
    yield from _removed(HOST_HEADERS, "all")


def _inject(values: Values) -> Iterator[str]:
    headers = {name.lower(): name for name in (*INJECTABLE_HEADERS, *values.injects)}
    for number, header in enumerate(headers.values()):
        annotation = header_annotation(header)
        yield from _removed([header], "sk_is_injected")
        if Part.UPSTREAMS in values.parts:
            yield from _removed([header], "CONNECT")
        yield f"acl sk_is_added_{number} note {annotation}"
        yield f"""request_header_add {header} "%'{{{annotation}}}note" sk_is_https !sk_is_final sk_is_added_{number}"""


def _signatures(values: Values) -> Iterator[str]:
    """Let no header pass beside a signature that no helper reads.

    Servers take more names than X-Amz-Copy-Source for it, such as X_Amz_Copy_Source.
    `Other` are the headers that Squid does not know and that have no line of their own.
    """
    if not values.signs:
        return
    yield f"acl sk_is_signed note {header_annotation('X-Amz-Date')}"
    yield "request_header_access Other deny sk_is_signed"
    yield "request_header_access Other deny CONNECT"
    yield from (
        f"request_header_access {one} deny CONNECT"
        for one in sorted({*READ_HEADERS} - {*_PASSED_IN_CONNECT})
    )
    removed = {
        name
        for header in values.strips
        if header != _UNKNOWN
        for name in spellings(header)
    }
    yield from (
        f"request_header_access {name} deny sk_is_signed"
        for name in sorted(removed)
        if name not in _READ
    )


def _watched_headers(values: Values) -> Iterator[str]:
    if values.searches:
        yield from _only_read_headers(values, "all")


def _only_read_headers(values: Values, acl: str) -> Iterator[str]:
    """Remove each header that no helper reads from the requests of an ACL.

    `All` are the headers without lines of their own, `Other` those of them that Squid
    does not know.
    """
    yield f"request_header_access All deny {acl}"
    yield f"request_header_access Other deny {acl}"
    for name in _PASSED_IN_CONNECT:
        yield f"request_header_access {name} allow all"
    passing = {*READ_HEADERS, *_UNREAD} - {*_PASSED_IN_CONNECT}
    yield from (
        f"request_header_access {name} deny CONNECT" for name in sorted(passing)
    )
    others = {
        name
        for header in {*INJECTABLE_HEADERS, *values.strips, *values.injects}
        for name in spellings(header)
    }
    known = {name.lower() for name in passing} | {_UNKNOWN}
    yield from (
        f"request_header_access {other} deny {acl}"
        for other in sorted(others)
        if other.lower() not in known
    )


def _first_copies(values: Values) -> Iterator[str]:
    """Forward no copy of a header but the one that helpers have read.

    A header that a rule removes, or that a credential replaces, is not added again.
    """
    reads = "all"
    if Part.WATCH not in values.parts:
        reads = "sk_is_read_for_credential"
        yield "acl sk_is_by_headers note headers_ yes"
        yield f"acl {reads} all-of !sk_is_final sk_is_by_headers"
    for name in FIRST_COPY_HEADERS:
        yield from _first_copy(values, name, reads)
        yield f"request_header_access {name} deny CONNECT"


def _one_login(values: Values) -> Iterator[str]:
    """Forward the first login alone on a shared connection; the part `read-headers`
    may do so already.
    """
    if Part.WATCH not in values.parts:
        done = "!sk_is_read_for_credential"
        others = [done] if Part.READ_HEADERS in values.parts else []
        yield from _first_copy(values, "Authorization", "sk_is_from_pool", *others)


def _first_copy(
    values: Values, name: str, condition: str, *others: str
) -> Iterator[str]:
    injects = Part.CREDENTIALS in values.parts
    injectable = {name.lower() for name in (*INJECTABLE_HEADERS, *values.injects)}
    # Without the first, Squid would add `-` where the header is absent.
    sent = f"sk_is_with_{name.lower().replace('-', '_')}"
    acls = [sent, condition, *others]
    yield f"acl {sent} req_header {name} ."
    if injects and name.lower() in injectable:
        acls.append("!sk_is_injected")
    if name.lower() in values.strips:
        key = values.strips[name.lower()]
        acls.append(f"!{_stripped(key)}")
        yield f"acl {_stripped(key)} note strip_header_ {key}"
    yield f"request_header_access {name} deny {condition}"
    yield f"""request_header_add {name} "%'{{{name}}}>h" !CONNECT {" ".join(acls)}"""


def _strip(values: Values) -> Iterator[str]:
    """Write one ACL for each header, by its own key: a request that is under way loses
    what it has to.
    """
    for header, key in sorted(values.strips.items()):
        yield f"acl {_stripped(key)} note strip_header_ {key}"
        if header == _UNKNOWN:
            yield from _only_read_headers(values, _stripped(key))
            continue
        yield from _removed([header], _stripped(key))
        if Part.UPSTREAMS in values.parts:
            yield from _removed([header], "CONNECT")


def _stripped(key: str) -> str:
    return f"sk_is_stripped_{key}"


def _body_bound(values: Values) -> Iterator[str]:
    """Bound the body of one request where a quota counts the bytes that leave: they are
    counted when it ends.
    """
    if values.bytes_out:
        yield f"{BODY_BOUND} {values.bytes_out} bytes"


def _answer_bound(values: Values) -> Iterator[str]:
    """Bound answers where a quota counts their bytes: they are counted when a request
    ends. An answer of unknown length is cut at its share. Message 58 is that Squid does
    not know the answer yet, which it then takes from the check.
    """
    if not values.largest_answer:
        return
    yield "cache_log_message id=58 level=2"
    yield "icap_service sk_too_large respmod_precache icap://127.0.0.1:1/ bypass=off"
    yield "adaptation_access sk_too_large allow !CONNECT sk_is_large_answer !sk_ask_answer"
    yield f"{_ANSWER_SIZE} 1 bytes sk_is_answer_refused"
    share = 2 * SMALL_ANSWER
    while share <= values.largest_answer:
        yield f"acl sk_is_answer_{share} note answer_ {share}"
        yield f"{_ANSWER_SIZE} {share} bytes sk_is_answer_{share}"
        share *= 2
    yield f"{_ANSWER_SIZE} {SMALL_ANSWER} bytes sk_is_answer_counted !sk_is_answer_whole"


def _continued_uploads(values: Values) -> Iterator[str]:
    """Have uploads to the hosts of the service go on.

    Squid takes no name beside one that covers it.
    """
    if values.asked_hosts is None:
        yield "force_request_body_continuation allow !CONNECT"
        return
    names = {*values.asked_hosts}
    kept = (name for name in values.asked_hosts if not names & {*_trees_over(name)})
    yield from (f"acl sk_is_body_host dstdomain -n {name}" for name in kept)
    if names:
        yield "force_request_body_continuation allow !CONNECT sk_is_body_host"


def _trees_over(name: str) -> Iterator[str]:
    """Yield the names with a dot ahead that cover a name, but for itself."""
    labels = name.removeprefix(".").split(".")
    trees = (f".{'.'.join(labels[start:])}" for start in range(len(labels)))
    return (tree for tree in trees if tree != name)


def _content_type(values: Values) -> str:
    """Write how the record tells the media type of an answer: the part of the
    credentials decides whether it may.
    """
    return "%.128{type_}note" if Part.CREDENTIALS in values.parts else "%#.128mt"


def _upstreams(values: Values) -> Iterator[str]:
    yield " ".join(
        [
            "acl sk_is_upstream_rendered note upstream_ default direct",
            *(peer.key for peer in values.peers),
        ]
    )
    # A client can hold a tunnel back until its parent is there no more.
    yield "never_direct allow sk_is_for_upstream !sk_is_upstream_rendered"
    for peer in values.peers:
        name = peer.key.replace(":", "_")
        yield f"acl sk_is_to_{name} note upstream_ {peer.key}"
        yield from _peer_lines(name, peer)
    if values.default:
        yield "acl sk_is_upstream_default note upstream_ default"
        yield "acl sk_is_to_default any-of !sk_is_for_upstream sk_is_upstream_default"
        yield from _peer_lines("default", values.default)


def _peer_lines(name: str, peer: Peer) -> Iterator[str]:
    """Write a peer for the requests of one ACL; what may not be fetched directly may
    not be fetched by it either.
    """
    options = f"{_PEER_OPTIONS} login={peer.login}" if peer.login else _PEER_OPTIONS
    yield f"cache_peer {peer.host} parent {peer.port} 0 name=sk_{name} {options}"
    yield f"cache_peer_access sk_{name} allow sk_is_to_{name} !sk_is_closed !sk_is_bumped_first"
    yield f"cache_peer_access sk_{name} deny all"
    yield f"never_direct allow sk_is_to_{name}"
    denied = f"sk_is_own_connection sk_is_to_{name} sk_note_through_parent sk_page_denied sk_page_sent"
    yield f"adapted_http_access deny !CONNECT sk_is_https {denied}"


def _removed(headers: Iterable[str], acl: str) -> Iterator[str]:
    return (
        f"request_header_access {name} deny {acl}"
        for header in headers
        for name in spellings(header)
    )


def _continued(lines: Iterable[str]) -> str:
    return " \\\n    ".join(lines)


_UNKNOWN: Final = UNKNOWN_HEADERS.lower()
_READ: Final = {name.lower() for name in READ_HEADERS}
_ANSWER_SIZE: Final = "reply_body_max_size"
BODY_BOUND: Final = "request_body_max_size"
# What each placeholder of squid/squidkeeper.conf and squid/parts/ expands to;
# setup/configuration.py has those of a gateway.
PLACEHOLDERS: Final[Mapping[str, Callable[[Values], str | Iterator[str]]]] = {
    "IN_FORCE": _in_force,
    # a session that was just made is allowed at once
    "DENIAL_TTL": lambda values: "0" if SESSIONS in values.keys else "1",
    "PRIVATE_NETWORKS": _private_networks,
    "ADDRESS": _address,
    "OVERRIDE_HEADERS": _override_headers,
    "LONG_URL": lambda _: str(LONG_URL),
    "UNUSUAL_URL": lambda _: f"^(.*{UNUSUAL_CHARACTER.pattern}|.{{{LONG_URL}}})",
    "READ_HEADERS": _read_headers,
    "INJECT": _inject,
    "SIGNATURES": _signatures,
    "WATCHED_HEADERS": _watched_headers,
    "FIRST_COPIES": _first_copies,
    "ONE_LOGIN": _one_login,
    "STRIP": _strip,
    "ANSWER_BOUND": _answer_bound,
    "BODY_BOUND": _body_bound,
    "CONTINUED_UPLOADS": _continued_uploads,
    "CONTENT_TYPE": _content_type,
    "UPSTREAMS": _upstreams,
}


FRAGMENT: Final = "squidkeeper.conf"  # the core, and what it is rendered to
_PLACEHOLDER: Final = re.compile(r"@([A-Za-z_]+)@")
_ALONE: Final = re.compile(r"^@([A-Za-z_]+)@\n", re.MULTILINE)
_INCLUDE: Final = re.compile(
    r"^include \S+/squidkeeper\.d/([a-z-]+)\.conf\n", re.MULTILINE
)
_BODIES_LAST: Final = "BODIES_LAST"  # in the core
# A line of adapted_http_access about requests, with its continuations.
_DENIED_AFTER: Final = re.compile(
    r"^adapted_http_access deny (?!CONNECT )((?:.*\\\n)*.*)$", re.MULTILINE
)
_BY_REWRITER: Final = "sk_is_with_final_url"  # it comes after the service
_OWN_BODY_BOUND: Final = re.compile(rf"^\s*{BODY_BOUND}\s", re.MULTILINE)


def part_file(part: Part) -> str:
    """Name the file of a part among the templates."""
    return f"squidkeeper.d/{part}.conf"


def fill(text: str, values: Mapping[str, str]) -> str:
    """Fill in placeholders by name, in one pass; others stay."""
    text = _ALONE.sub(lambda found: _line(found, values), text)
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def expand(
    templates: Mapping[str, str], values: Values, own: str = ""
) -> dict[str, str]:
    """Fill values into the core and the parts that they need, by their file names.

    KeyError for a placeholder that is unknown.

    `own` are lines of the operator's. Where they bound the body of a request, ours do
    not: the last line would count.
    """
    bounded = (
        msgspec.structs.replace(values, bytes_out=None)
        if _OWN_BODY_BOUND.search(own)
        else values
    )
    parts = {part_file(part): part for part in Part}
    wanted = {part_file(part) for part in values.parts}
    texts = {
        name: text
        for name, text in templates.items()
        if name in wanted or name not in parts
    }
    included = {parts[name] for name in texts if name in parts}
    rendered = {
        name: _rendered(text, included, bounded) for name, text in texts.items()
    }
    others = (
        rendered[name] for name in sorted(rendered) if name != part_file(Part.BODIES)
    )
    last = "\n".join(_asked_before_bodies(others, included))
    return {name: fill(text, {_BODIES_LAST: last}) for name, text in rendered.items()}


def _rendered(template: str, included: set[Part], values: Values) -> str:
    text = _INCLUDE.sub(
        lambda found: found[0] if found[1] in included else "", template
    )
    names = {found[1] for found in _PLACEHOLDER.finditer(text)} - {_BODIES_LAST}
    return fill(text, {name: _expanded(name, values) for name in names})


def _asked_before_bodies(texts: Iterable[str], included: set[Part]) -> Iterator[str]:
    """Ask ahead of the service of bodies what the other texts deny after it, for the
    requests that it judges.

    At last the notes are set that hold without an answer of the service. One line tests
    the annotation, as each test of one is dear.
    """
    if Part.BODIES not in included:
        return
    found = (line for text in texts for line in _DENIED_AFTER.findall(text))
    lines = [line for line in found if _BY_REWRITER not in line]
    first = "sk_is_adding_parameters sk_note_ahead !all"
    last = "sk_note_no_answer sk_note_body_unanswered !all"
    for number, line in enumerate((first, *lines, last)):
        kind = next((kind for kind in ("page", "ask") if f"sk_{kind}_" in line), "is")
        yield f"acl sk_{kind}_ahead_{number} all-of {line}"
        yield f"acl sk_page_ahead any-of sk_{kind}_ahead_{number}"
    yield "http_access deny !CONNECT !sk_is_final sk_is_by_body sk_page_ahead"


def _expanded(name: str, values: Values) -> str:
    found = PLACEHOLDERS[name](values)
    return found if isinstance(found, str) else "\n".join(found)


def _line(found: re.Match[str], values: Mapping[str, str]) -> str:
    text = values.get(found[1])
    if text is None:
        return found[0]
    return f"{text}\n" if text else ""
