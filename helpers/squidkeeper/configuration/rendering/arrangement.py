"""Squid's configuration in Squid's order: one file, with all lines of a directive
together.

The core and the parts are written by feature. Squid reads by directive: the order
counts among the lines of one, and definitions come before their use. So the lines of
each directive keep their order, and the directives get a place. `cache_peer` lines can
hold a password: they stay in a file of their own.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from squidkeeper.configuration.rendering.lines import FRAGMENT, expand, part_file
from squidkeeper.configuration.rendering.values import Values
from squidkeeper.serving.parts import Part

PEERS: Final = part_file(Part.UPSTREAMS)
# What others name: ACLs name helpers and services, logs name formats.
_DEFINITIONS: Final = (
    "auth_param",
    "external_acl_type",
    "url_rewrite_program",
    "url_rewrite_extras",
    "url_rewrite_children",
    "url_rewrite_bypass",
    "icap_enable",
    "icap_service",
    "logformat",
)
# Lists whose first line that matches decides, in the order of a request.
LADDERS: Final[Mapping[str, str]] = {
    "force_request_body_continuation": "uploads that go on ahead of the decision",
    "http_access": "whether a request passes, by its own URL",
    "url_rewrite_access": "what the rewriter is asked about",
    "adaptation_access": "what goes to an ICAP service: requests, then answers",
    "adapted_http_access": "whether a request passes, by the URL that leaves",
    "ssl_bump": "what happens to a tunnel",
    "sslproxy_cert_error": "certificates of origins that Squid does not accept",
    "never_direct": "what goes to a parent proxy or nowhere",
    "cache_peer_access": "what a parent proxy takes",
    "tcp_outgoing_address": "what takes no connection from the pool",
    "http_upgrade_request_protocols": "what may become another protocol",
    "cache": "what may be answered from the cache",
    "store_miss": "what may be stored",
    "send_hit": "what may be answered from what is stored",
    "reply_body_max_size": "how much an answer may have",
}
# The others that name ACLs.
_TABLES: Final[Mapping[str, str]] = {
    "adaptation_meta": "what an ICAP service is told",
    "request_header_access": "headers that are removed from requests",
    "request_header_add": "headers that are added to requests",
    "reply_header_access": "headers that are removed from answers",
    "reply_header_add": "headers that are added to answers",
    "deny_info": "the page of a denial, by its last test",
    "note": "what is noted for the log",
    "access_log": "logs",
}
_INCLUDE: Final = re.compile(r"include \S+/(squidkeeper\.d/[a-z-]+\.conf)")
_HEADING: Final = re.compile(r"# (?:---|>>>|<<<)")
_NUMBERS: Final = re.compile(r"[0-9]+(?: to [0-9]+)?\. ")


@dataclass(frozen=True, slots=True)
class Line:
    """A line with those that continue it, as they are written.

    `reason`: the comment above it, or above the lines that it belongs to.
    """

    number: int
    text: str
    reason: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its directive."""
        return self.text.split(maxsplit=1)[0]

    @property
    def test(self) -> str:
        """The name of the test that an `acl` line defines."""
        return self.text.split(maxsplit=2)[1]

    @property
    def values(self) -> list[str]:
        """What follows the name, of a test or of the directive."""
        return self.text.split()[2 if self.name == "acl" else 1 :]


def read_lines(text: str, about: tuple[str, ...] = ()) -> Iterator[Line]:
    """Yield each line with its reason; `about` is the reason of what has none."""
    reason, in_comment = about, False
    rows = enumerate(text.splitlines(), 1)
    for number, row in rows:
        if row.startswith("# ") and not _HEADING.match(row):
            comment = row.removeprefix("# ")
            reason = (*reason, comment) if in_comment else (comment,)
            in_comment = True
            continue
        in_comment = False
        if not row.strip() or row.startswith("# ---"):
            reason = about
        elif not row.startswith("#"):
            whole = row
            while whole.endswith("\\"):
                whole += "\n" + next(rows, (0, ""))[1]
            yield Line(number, whole, reason)


def without_numbers(reason: tuple[str, ...]) -> str:
    """Write a reason as one text, without the numbers of its lines."""
    return _NUMBERS.sub("", " ".join(reason), count=1)


def render(
    templates: Mapping[str, str], values: Values, own: str = ""
) -> dict[str, str]:
    """Render what Squid reads, by the names of its files."""
    return arrange(expand(templates, values, own))


def arrange(texts: Mapping[str, str]) -> dict[str, str]:
    """Make one file of the core and the parts that it includes, beside the one of the
    parent proxies.
    """
    others = {name: text for name, text in texts.items() if "/" not in name}
    if FRAGMENT not in texts:
        return others
    lines = _named(_tests_once(_in_order(texts)))
    peers = [line for line in lines if line.name == "cache_peer"]
    if peers:
        others[PEERS] = "".join(f"{line.text}\n" for line in peers)
    sections = _sections(texts[FRAGMENT], lines, has_peers=bool(peers))
    return others | {FRAGMENT: "\n".join(sections)}


def _in_order(texts: Mapping[str, str]) -> Iterator[Line]:
    """Yield the lines of the core, with those of a part where it is included."""
    for line in read_lines(texts[FRAGMENT]):
        included = _INCLUDE.fullmatch(line.text)
        if included is None:
            yield line
        else:
            text = texts[included[1]]
            about = text.split("\n", 1)[0].removeprefix("# ")
            yield from read_lines(text, (about,))


def _tests_once(lines: Iterable[Line]) -> Iterator[Line]:
    """Leave out a test that is there already: two parts may use one."""
    seen: set[str] = set()
    for line in lines:
        if line.name != "acl" or line.text not in seen:
            yield line
        seen.add(line.text)


def _named(lines: Iterable[Line]) -> list[Line]:
    """Leave out tests that no line names."""
    found = [*lines]
    named = {word.removeprefix("!") for line in found for word in line.values}
    kept = [line for line in found if line.name != "acl" or line.test in named]
    return kept if len(kept) == len(found) else _named(kept)


def _sections(core: str, lines: list[Line], *, has_peers: bool) -> Iterator[str]:
    by_name: dict[str, list[Line]] = {}
    for line in lines:
        by_name.setdefault(line.name, []).append(line)
    by_name.pop("cache_peer", None)
    formats, tests = by_name.pop("include", []), by_name.pop("acl", [])
    yield "".join(f"{line.text}\n" for line in formats) + _about(core)
    definitions = [line for name in _DEFINITIONS for line in by_name.pop(name, [])] + (
        [_peers(core)] if has_peers else []
    )
    ladders = {name: by_name.pop(name, []) for name in LADDERS}
    tables = {name: by_name.pop(name, []) for name in _TABLES}
    told = _told(lines)
    yield _section("Helpers and services", _explained(definitions))
    yield _section("Settings", _explained([*_flat(by_name.values())]))
    yield _section("Tests, which the lists below name", _tests(tests, told))
    for name, rungs in ladders.items():
        if rungs:
            yield _section(f"{name}: {LADDERS[name]}", _numbered(rungs))
    for name, rows in tables.items():
        if rows:
            yield _section(f"{name}: {_TABLES[name]}", _explained(rows))


def _flat(lists: Iterable[list[Line]]) -> Iterator[Line]:
    for lines in lists:
        yield from lines


def _about(core: str) -> str:
    """Return the head of the core, up to its first empty line."""
    head = core.split("\n\n", 1)[0]
    return "".join(f"{row}\n" for row in head.splitlines() if row.startswith("# "))


def _peers(core: str) -> Line:
    [place] = (
        line
        for line in read_lines(core)
        if (found := _INCLUDE.fullmatch(line.text)) and found[1] == PEERS
    )
    return Line(0, place.text, ("Parent proxies, which can have passwords.",))


def _section(title: str, rows: Iterable[str]) -> str:
    return f"# --- {title} ---\n" + "".join(f"{row}\n" for row in rows)


def _explained(lines: list[Line]) -> Iterator[str]:
    for reason, group in groupby(lines, key=lambda line: line.reason):
        yield from _comment(reason)
        yield from (line.text for line in group)


def _told(lines: list[Line]) -> dict[tuple[str, ...], str]:
    """Say where a reason is told: at a line of a ladder, or else a directive."""
    told = {line.reason: line.name for line in reversed(lines) if line.name != "acl"}
    numbers = Counter[str]()
    rungs: dict[tuple[str, ...], str] = {}
    for line in lines:
        if line.name in LADDERS:
            numbers[line.name] += 1
            rungs.setdefault(line.reason, f"{line.name} {numbers[line.name]}")
    return told | rungs


def _tests(lines: list[Line], told: Mapping[tuple[str, ...], str]) -> Iterator[str]:
    """Write tests; the reason that a list tells is not told twice."""
    for reason, group in groupby(lines, key=lambda line: line.reason):
        place = told.get(reason)
        yield from _comment((f"For {place}.",) if place else reason)
        yield from (line.text for line in group)


def _numbered(lines: list[Line]) -> Iterator[str]:
    first = 1
    for reason, group in groupby(lines, key=lambda line: line.reason):
        rungs = [line.text for line in group]
        last = first + len(rungs) - 1
        numbers = f"{first}" if first == last else f"{first} to {last}"
        yield from _comment((f"{numbers}. {''.join(reason[:1])}", *reason[1:]))
        yield from rungs
        first = last + 1


def _comment(reason: tuple[str, ...]) -> Iterator[str]:
    return (f"# {row}" for row in reason)
