"""What is wrong in Squid's configuration.

Each finder yields a place and a detail, which shows no value.
"""

import os
import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from squidkeeper.configuration.squid_conf import Directive
from squidkeeper.operate.doctor.inspection import (
    Found,
    Inspection,
    annotations_in,
    critical,
    warning,
)
from squidkeeper.operate.setup import checks
from squidkeeper.operate.setup.entries import text_at
from squidkeeper.operate.setup.generations import LOCAL, shown_path
from squidkeeper.operate.setup.rendering import outdated_files
from squidkeeper.operate.setup.settings_file import settings_in_force
from squidkeeper.policy.language.headers import (
    HOST_HEADERS,
    METHOD_HEADERS,
    PATH_HEADERS,
)
from squidkeeper.serving.parts import Part
from squidkeeper.serving.replies import header_annotation

_LOCAL: Final = "Remove the line, or move it behind the include of squidkeeper.conf."
_INSTALL: Final = "Run `./install.sh`, which writes the file again."
_FEW_DESCRIPTORS: Final = 4096
_LONGEST_TTL: Final = 10
_NEVER: Final = "!all"  # a line with it never matches
# Tokens that no client chooses the text of.
_PLAIN_TOKENS: Final = frozenset(
    {"%>a", "%>p", "%>la", "%>lp", "%la", "%lp", "%<a", "%<p"}
)
# The sections of Squid's debugging that print headers, helper answers or keys, from
# level 2 on.
_TALKATIVE: Final = frozenset(
    {
        "ALL",
        "9",
        "11",
        "23",
        "28",
        "29",
        "33",
        "44",
        "55",
        "61",
        "73",
        "74",
        "82",
        "84",
        "93",
    }
)
_DEBUGGING: Final = re.compile(r"(ALL|\d+),(\d+)", re.ASCII | re.IGNORECASE)
_WARNS_WITH_TEXT: Final = ("11", "23", "29", "33", "55")  # those that do so at level 1
# How the exporter's request passes.
_OF_OWN_SCRAPE: Final = (
    *(
        "http_access",
        "allow",
        "localhost",
        "sk_is_own_name",
        "sk_is_counters_page",
        "sk_is_get",
        "!sk_is_from_proxy",
        "sk_note_scrape",
    ),
)
_OWN_ALLOWS: Final = (_OF_OWN_SCRAPE, ("adapted_http_access", "allow", "sk_is_scrape"))
# Actions of ssl_bump after which Squid judges the requests of a tunnel, or ends it.
_JUDGED: Final = frozenset(
    {"bump", "client-first", "server-first", "stare", "terminate"}
)
_UNVERIFIED: Final = re.compile(r"DONT_VERIFY_(?:PEER|DOMAIN)")
# What keeps a value that the policy watches for out of an access_log line: an ACL, or a
# format without URLs.
_WITHHOLD: Final = frozenset(
    {
        "!sk_is_withheld",
        "squidkeeper_withheld",
        "logformat=squidkeeper_withheld",
        "logformat=squidkeeper_unsent",
    }
)
# of what Squid says about a faulty line
_VALUE: Final = re.compile(r"( line \d+: \S+ ).*|'[^']*'")
_HEADER_VALUE: Final = re.compile(r'(\S+)\s+("(?:\\.|[^"\\])*"|\S+)\s*(.*)')


def _at(directive: Directive, detail: str = "") -> Found:
    return Found(
        detail or f"{directive.name} {' '.join(directive.words)}", directive.place
    )


@critical(
    "squid-conf-rejected",
    "Squid does not accept its configuration",
    "Run `squid -k parse`, and fix the line that it names. Squid does not start with it.",
    as_root=True,
)
def _rejected(seen: Inspection) -> Iterator[Found]:
    """Ask Squid itself, whose words are cut off where a value could begin."""
    good, told = checks.squid_parses(seen.layout.squid_service, seen.layout.conf)
    if not good:
        for line in checks.faults_of(told).splitlines():
            yield Found(_VALUE.sub(r"\1…", line.partition("| ")[2]))


@critical(
    "squid-conf-incomplete",
    "Squid's configuration cannot be read as a whole",
    "Fix the line. Squid does not start with it.",
)
def _incomplete(seen: Inspection) -> Iterator[Found]:
    yield from (
        Found(problem.text, problem.place)
        for problem in seen.conf.problems
        if not problem.denied
    )


@critical(
    "policy-not-included",
    "Squid does not ask the policy",
    f"{_INSTALL} In a squid.conf of yours, include the file ahead of the http_access lines.",
)
def _policy_not_included(seen: Inspection) -> Iterator[Found]:
    if seen.layout.fragment not in seen.conf.files:
        yield Found(f"include {seen.layout.fragment} is missing", str(seen.layout.conf))


@critical(
    "allowed-ahead-of-policy", "Requests are allowed before the policy is asked", _LOCAL
)
def _allowed_ahead(seen: Inspection) -> Iterator[Found]:
    for directive in seen.ahead:
        words = directive.words
        decides = (
            directive.name in ("http_access", "adapted_http_access")
            and _NEVER not in words
        )
        if (
            decides
            and words[:1] == ("allow",)
            and (directive.name, *words) not in _OWN_ALLOWS
        ):
            yield _at(directive)


@critical(
    "private-addresses-open",
    "Requests take a way that does not close private addresses",
    "Name parent proxies by `upstreams` in the policy, or by `./install.sh --upstream URL`.",
)
def _closing_passed_by(seen: Inspection) -> Iterator[Found]:
    for directive in seen.named("cache_peer", "always_direct"):
        ours = any(word.startswith("name=sk_") for word in directive.words)
        if not ours and directive.words[:1] != ("deny",):
            yield _at(directive, f"{directive.name} {directive.first}")


@critical(
    "certificate-errors-allowed",
    "Servers with invalid certificates are accepted",
    "Remove the line. For a private CA, use `tls_outgoing_options cafile=FILE`.",
)
def _certificate_errors_allowed(seen: Inspection) -> Iterator[Found]:
    for directive in seen.named("sslproxy_cert_error"):
        if directive.words[:1] == ("allow",) and _NEVER not in directive.words:
            yield _at(directive)


@critical(
    "verification-off",
    "Certificates of servers are not verified",
    "Remove the flag. For a private CA, use `cafile=FILE`.",
)
def _unverified(seen: Inspection) -> Iterator[Found]:
    for directive in seen.named("tls_outgoing_options", "sslproxy_flags", "cache_peer"):
        if found := _UNVERIFIED.search(directive.rest):
            yield _at(directive, f"{directive.name} … {found[0]}")


@critical(
    "tunnel-not-bumped",
    "Tunnels pass without their requests being judged",
    "Remove the line, or add ssl-bump to the port as in squid.conf. For single hosts, use `tls: passthrough`.",
)
def _passed_on_encrypted(seen: Inspection) -> Iterator[Found]:
    first_step = _first_step(seen)
    for directive in seen.named("ssl_bump"):
        documented = directive.first == "peek" and first_step & set(directive.words[1:])
        if (
            directive.first not in _JUDGED
            and not documented
            and not _is_ours(seen, directive.file)
        ):
            yield _at(directive)
    for directive in seen.named("on_unsupported_protocol"):
        if directive.first == "tunnel" and _NEVER not in directive.words:
            yield _at(directive)
    for directive in seen.named("http_port", "https_port"):
        if (
            "ssl-bump" not in directive.words
            and directive.first != seen.layout.transparent_http
        ):
            yield _at(directive, f"{directive.name} {directive.first} has no ssl-bump")


def _first_step(seen: Inspection) -> set[str]:
    """Name the ACLs of the step ahead of TLS: after a peek in the second one, Squid
    cannot bump.
    """
    steps: dict[str, set[str]] = {}
    for name, kind, *values in (
        line.words for line in seen.named("acl") if line.words[1:]
    ):
        steps.setdefault(name, set()).update(values if kind == "at_step" else {"any"})
    return {name for name, values in steps.items() if values == {"SslBump1"}}


@critical(
    "credentials-cached",
    "Answers that a credential opened can be cached and served to others",
    _INSTALL,
)
def _cached_credentials(seen: Inspection) -> Iterator[Found]:
    place, asked = str(seen.layout.fragment), Part.CREDENTIALS in seen.parts
    for name in ("store_miss", "send_hit") if asked else ():
        for directive in seen.named(name):
            if directive.words == (
                "deny",
                "!sk_is_final",
                "sk_is_https",
                "sk_is_injected",
            ):
                break
            if directive.first == "allow" and not {_NEVER, "!sk_is_injected"} & set(
                directive.words
            ):
                yield _at(directive)
        else:
            yield Found(
                f"{name} deny !sk_is_final sk_is_https sk_is_injected is missing", place
            )
    if not any(line.words == ("deny", "all") for line in seen.named("cache")):
        yield Found("cache deny all is missing", place)


@critical(
    "header-unguarded",
    "A header is made of an annotation without its guard",
    'Write `request_header_add NAME "%\'{KEY}note" ACL`, with `acl ACL note KEY`.',
)
def _added_headers(one: Inspection) -> Iterator[Found]:
    guards = {
        line.first: line.words[2]
        for line in one.named("acl")
        if line.words[1:2] == ("note",) and line.words[2:]
    }
    for directive in one.named("request_header_add"):
        found = _HEADER_VALUE.match(directive.rest)
        keys = set(annotations_in(found[2])) if found else set()
        if not found or not keys:
            continue
        name, value, acls = found.groups()
        if not (value.startswith('"') and "%'" in value):
            yield _at(directive, f'{name}: write "%\'{{KEY}}note", in double quotes')
        if not keys & {guards.get(acl) for acl in acls.split()}:
            yield _at(directive, f"{name} has no ACL `note {min(keys)}`")


@warning(
    "counter-unlike-lines",
    "Squid's own counter of requests does not fit the lines of the access log",
    "Write `stats_collection deny sk_is_scrape` behind `acl sk_is_scrape` as in squid.conf, and no other such line."
    " Otherwise `squidkeeper archive verify` reports faults that are none.",
)
def _counter_unlike_lines(seen: Inspection) -> Iterator[Found]:
    if not any(
        (line.name, *line.words) == _OF_OWN_SCRAPE for line in seen.named("http_access")
    ):
        return  # nothing of ours reads them
    left_out = False
    for directive in seen.named("stats_collection"):
        ours = directive.words == ("deny", "sk_is_scrape")
        decides = not ours and _NEVER not in directive.words
        if decides and (directive.first == "deny" or not left_out):
            yield _at(directive)
        left_out = left_out or ours
    if not left_out:
        yield Found(
            "stats_collection deny sk_is_scrape is missing", str(seen.layout.conf)
        )


@critical(
    "client-header-kept",
    "The client's own copy of a header that can be injected is let through",
    _LOCAL,
)
def _client_headers_kept(seen: Inspection) -> Iterator[Found]:
    yield from _headers_allowed_ahead(seen, (*seen.injected, "all", "other"))


@warning(
    "override-header-kept",
    "A header is let through by which some servers answer for another request than was judged",
    "Remove the line, unless no server that clients reach reads the header: see squid/README.md.",
)
def _override_headers_kept(seen: Inspection) -> Iterator[Found]:
    yield from _headers_allowed_ahead(
        seen, (*METHOD_HEADERS, *PATH_HEADERS, *HOST_HEADERS)
    )


def _headers_allowed_ahead(seen: Inspection, headers: Iterable[str]) -> Iterator[Found]:
    names = {header.lower().replace("_", "-") for header in headers}
    for directive in seen.ahead:
        allows = directive.name == "request_header_access" and directive.words[1:2] == (
            "allow",
        )
        if (
            allows
            and _NEVER not in directive.words
            and directive.first.lower().replace("_", "-") in names
        ):
            yield _at(directive)


def _formats(seen: Inspection) -> Iterator[tuple[Directive, tuple[str, ...]]]:
    for directive in seen.conf.directives:
        words = directive.words
        if directive.name == "external_acl_type":
            yield directive, tuple(word for word in words[1:] if word.startswith("%"))
        elif directive.name in ("url_rewrite_extras", "store_id_extras"):
            yield directive, tuple(" ".join(words).split())
        elif directive.name == "auth_param" and words[1:2] == ("key_extras",):
            yield directive, tuple(" ".join(words[2:]).split())


@critical(
    "token-not-encoded",
    "A helper reads text of a client that is not encoded, so that a newline in it is a second question",
    "Write `%#` in place of `%`, such as `%#ssl::>sni`.",
)
def _raw_tokens(seen: Inspection) -> Iterator[Found]:
    for directive, tokens in _formats(seen):
        raw = [
            token
            for token in tokens
            if not token.startswith("%#") and token not in _PLAIN_TOKENS
        ]
        if raw:
            yield _at(directive, f"{directive.name} {directive.first}: {' '.join(raw)}")


def _asks_us(directive: Directive) -> bool:
    return any(Path(word).name == "squidkeeper" for word in directive.words)


@critical(
    "wrong-passwords-pass",
    "Wrong passwords pass as a name while the right one of this name is in use",
    'Add `auth_param basic key_extras "%>a %#{Proxy-Authorization}>h"`.',
)
def _passwords_shared(seen: Inspection) -> Iterator[Found]:
    """Find basic authentication without key_extras: Squid then has one entry for each
    name, whatever the password.
    """
    keys = [
        line.rest
        for line in seen.named("auth_param")
        if line.words[:2] == ("basic", "key_extras")
    ]
    for directive in seen.named("auth_param"):
        if directive.words[:2] == ("basic", "program") and not any(
            "Proxy-Authorization" in key for key in keys
        ):
            yield _at(
                directive,
                f"auth_param basic program {' '.join(directive.words[2:3])} has no key_extras",
            )


@warning(
    "answers-kept-too-long",
    "Squid keeps the answers of a helper, so edits of the policy come into force late",
    "Set `ttl=1 negative_ttl=1`.",
)
def _kept_answers(seen: Inspection) -> Iterator[Found]:
    for directive in seen.named("external_acl_type"):
        if not _asks_us(directive):
            continue
        given = dict(
            word.split("=", 1)
            for word in directive.words
            if re.match(r"(negative_)?ttl=\d+$", word)
        )
        ttl = int(given.get("ttl", 3600))
        seconds = max(ttl, int(given.get("negative_ttl", ttl)))
        if seconds > _LONGEST_TTL:
            yield _at(
                directive,
                f"external_acl_type {directive.first} keeps answers for {seconds} s",
            )


@warning(
    "rewriter-bypassed",
    "Squid goes past a busy rewriter, and denies the request then",
    "Set `url_rewrite_bypass off`.",
)
def _rewriter_bypassed(seen: Inspection) -> Iterator[Found]:
    yield from _switched_on(seen, "url_rewrite_bypass")


@warning(
    "half-closed-clients",
    "Squid 6 ends itself under server-sent events (Squid's bug 4156)",
    "Set `half_closed_clients off`.",
)
def _half_closed(seen: Inspection) -> Iterator[Found]:
    yield from _switched_on(seen, "half_closed_clients")


@warning(
    "answers-kept-in-memory",
    "Squid 6 keeps a part of each answer in memory until it ends: 2 KB of a usual one, 147 KB of a large head",
    "Remove the line. Deny requests by `http_access` instead of answers by `http_reply_access`.",
)
def _kept_answers_of_origins(seen: Inspection) -> Iterator[Found]:
    """Find `http_reply_access`: Squid 6 then locks each answer once more than it
    unlocks it.
    """
    yield from map(_at, seen.named("http_reply_access"))


@warning(
    "error-pages-show-headers",
    "Stock error pages carry headers of the request in a link (CVE-2025-62168)",
    "Set `email_err_data off`.",
)
def _mail_links(seen: Inspection) -> Iterator[Found]:
    """Find `email_err_data on`, which is Squid's default."""
    if seen.last("email_err_data") is None:
        yield Found("email_err_data off is missing", str(seen.layout.fragment))
    yield from _switched_on(seen, "email_err_data")


def _switched_on(seen: Inspection, name: str) -> Iterator[Found]:
    directive = seen.last(name)
    if directive and directive.is_on:
        yield _at(directive)


@critical(
    "annotations-printed",
    "A value that is injected is printed or sent elsewhere",
    "Name the annotations that the line needs, and none of a header.",
)
def _printed_annotations(seen: Inspection) -> Iterator[Found]:
    secret = set(map(header_annotation, seen.injected))
    for directive in seen.conf.directives:
        shown = set(annotations_in(directive.rest))
        if directive.name == "logformat" and "*" in shown:
            yield _at(
                directive, f"logformat {directive.first}: %note prints every annotation"
            )
        if directive.name != "request_header_add" and shown & secret:
            yield _at(
                directive,
                f"{directive.name} {directive.first}: {', '.join(sorted(shown & secret))}",
            )
    for page in sorted(seen.layout.errors.glob("*")):
        if shown := {*annotations_in(page.read_text(errors="replace"))} & {
            *secret,
            "*",
        }:
            yield Found(f"an error page: {', '.join(sorted(shown))}", str(page))


def _debug_levels(directive: Directive | None) -> dict[str, int]:
    levels = {"ALL": 1}
    for word in directive.words if directive else ():
        if found := _DEBUGGING.match(word):
            section, level = found[1].upper(), int(found[2])
            levels = (
                {"ALL": level}
                if section == "ALL"
                else levels | {str(int(section)): level}
            )
    return levels


@critical(
    "debugging-prints-headers",
    "Debugging writes headers or helper answers into cache.log, credentials included",
    "Set `debug_options ALL,1 11,0 23,0 29,0 33,0 55,0`, and delete the cache.log that was written with it.",
)
def _debugging(seen: Inspection) -> Iterator[Found]:
    directive = seen.last("debug_options")
    for section, level in _debug_levels(directive).items():
        if directive and section in _TALKATIVE and level > 1:
            yield _at(directive, f"debug_options {section},{level}")


@warning(
    "requests-in-warnings",
    "Warnings in cache.log can hold text of requests: a login, or a secret in the URL that is fetched",
    "Let the last `debug_options` end in `11,0 23,0 29,0 33,0 55,0`.",
)
def _warnings_with_requests(seen: Inspection) -> Iterator[Found]:
    directive = seen.last("debug_options")
    levels = _debug_levels(directive)
    loud = [number for number in _WARNS_WITH_TEXT if levels.get(number, levels["ALL"])]
    if loud:
        detail = "debug_options lacks " + " ".join(f"{number},0" for number in loud)
        yield _at(directive, detail) if directive else Found(detail)


@critical(
    "forwarded-for-believed",
    "A client can name any address as its own in X-Forwarded-For",
    "Remove the line. Only a proxy on this machine may name clients: `follow_x_forwarded_for allow localhost`.",
)
def _forwarded_for_believed(seen: Inspection) -> Iterator[Found]:
    for directive in seen.named("follow_x_forwarded_for"):
        if directive.words[:1] == ("allow",) and "localhost" not in directive.words[1:]:
            yield _at(directive)


@critical(
    "proxy-protocol-open",
    "Any client can claim another client's address by a PROXY header",
    "Name the load balancer's address: `acl NAME src ADDRESS`, `proxy_protocol_access allow NAME`.",
)
def _proxy_protocol_open(seen: Inspection) -> Iterator[Found]:
    sources = [line for line in seen.named("acl") if line.words[1:2] == ("src",)]
    open_to_all = {
        line.first for line in sources if any(map(_is_everything, line.words[2:]))
    }
    narrow = {"localhost", *(line.first for line in sources)} - open_to_all
    for directive in seen.named("proxy_protocol_access"):
        if directive.words[:1] == ("allow",) and not narrow & set(directive.words[1:]):
            yield _at(directive)


@critical(
    "proxy-header-from-nobody",
    "No client gets through: Squid requires a PROXY header, and takes one from nobody",
    "Name the load balancers: `./install.sh --behind ADDRESS`; or `./install.sh --behind none`, without any.",
)
def _proxy_header_from_nobody(seen: Inspection) -> Iterator[Found]:
    allowed = {
        word
        for line in seen.named("proxy_protocol_access")
        if line.first == "allow"
        for word in line.words[1:]
    }
    if allowed - {"localhost"} or (
        allowed and (seen.layout.haproxy.exists() or seen.layout.dns.exists())
    ):
        return
    for port in seen.named("http_port"):
        if "require-proxy-header" in port.words:
            yield _at(port, f"http_port {port.first} require-proxy-header")


def _is_ours(seen: Inspection, file: Path) -> bool:
    return file == seen.layout.fragment or file.parent == seen.layout.parts


def _is_everything(value: str) -> bool:
    try:
        return value == "all" or ip_network(value, strict=False).prefixlen == 0
    except ValueError:
        return False


@warning(
    "two-resolvers",
    "Squid asks name servers of two lines",
    "Remove one. After an edit of local.conf, run `./install.sh`: it takes its own line out.",
)
def _two_resolvers(seen: Inspection) -> Iterator[Found]:
    places = [*seen.named("dns_nameservers")]
    for directive in places[1:]:
        yield _at(
            directive,
            f"{' '.join(directive.words)}, beside {' '.join(places[0].words)} in {places[0].place}",
        )


@warning(
    "error-pages-not-ours",
    "Clients get other error pages than squidkeeper's",
    "Remove your error_directory line.",
)
def _other_error_pages(seen: Inspection) -> Iterator[Found]:
    directive, shown = seen.last("error_directory"), shown_path(seen.layout)
    if directive is None or shown(Path(directive.first)) != seen.layout.errors:
        place = directive.place if directive else str(seen.layout.fragment)
        yield Found(f"expected error_directory {seen.layout.errors}", place)


@critical(
    "no-access-log", "Requests are not logged where squidkeeper reads them", _INSTALL
)
def _no_record(seen: Inspection) -> Iterator[Found]:
    expected = {
        f"stdio:{seen.layout.access_log}",
        str(seen.layout.access_log),
        f"daemon:{seen.layout.access_log}",
    }
    logs = [line.words for line in seen.named("access_log")]
    if not any(
        expected & set(words[:1])
        and {"squidkeeper", "logformat=squidkeeper"} & set(words)
        for words in logs
    ):
        yield Found(
            f"access_log stdio:{seen.layout.access_log} squidkeeper is missing",
            str(seen.layout.conf),
        )


@critical(
    "watched-requests-logged",
    "A log shows URLs of requests that hold what the policy watches for",
    "End an access_log of yours in `!sk_is_withheld` (see squid/INSTALL.md). For ours, run `./install.sh`.",
)
def _logs_what_is_watched_for(seen: Inspection) -> Iterator[Found]:
    if seen.policy is None or not seen.policy.watches_requests:
        return
    logs = [line for line in seen.named("access_log") if line.first != "none"]
    for line in logs:
        if not _WITHHOLD & set(line.words):
            yield _at(line, f"access_log {line.first}")
    for acl in ("!sk_is_withheld", "sk_is_withheld"):
        if not any(acl in line.words for line in logs):
            yield Found(
                f"squidkeeper's access_log line with {acl} is missing",
                str(seen.layout.conf),
            )


@warning(
    "few-descriptors",
    "Squid can have few connections",
    "Set `max_filedescriptors 16384`.",
)
def _few_descriptors(seen: Inspection) -> Iterator[Found]:
    directive = seen.last("max_filedescriptors")
    if directive is None:
        yield Found(
            "max_filedescriptors is missing: Squid takes what it is started with",
            str(seen.layout.conf),
        )
    elif (directive.number or 0) < _FEW_DESCRIPTORS:
        yield _at(directive)


@warning(
    "workers-overridden",
    "Squid has another number of workers than the gateway is installed for",
    "Remove the line, and run `./install.sh --workers N`: the throttle and the alerts depend on the number.",
)
def _workers_overridden(seen: Inspection) -> Iterator[Found]:
    directive, rendered = (
        seen.last("workers"),
        settings_in_force(seen.layout).workers,
    )
    if directive and directive.number != rendered:
        yield _at(directive)


@warning(
    "worker-port-shared",
    "Workers share the queue of a port: one that starts again may listen no more",
    "Add `worker-queues` to the line, and restart Squid.",
)
def _worker_port_shared(seen: Inspection) -> Iterator[Found]:
    directive = seen.last("workers")
    if directive and (directive.number or 0) > 1:
        ports = seen.named("http_port", "https_port")
        yield from (
            _at(port, f"{port.name} {port.first}")
            for port in ports
            if "worker-queues" not in port.words
        )


@warning(
    "rendered-lines-outdated",
    "Squid's configuration is of another version than the program, or was edited",
    _INSTALL,
)
def _outdated_lines(seen: Inspection) -> Iterator[Found]:
    for path, why in outdated_files(seen.layout):
        yield Found(why, str(path))


@warning(
    "settings-not-applied",
    "gateway.yaml or local.conf differs from what is in force",
    "Run `./install.sh --dry-run`, then `./install.sh`.",
)
def _settings_not_applied(seen: Inspection) -> Iterator[Found]:
    layout = seen.layout
    copies = {
        layout.settings: layout.settings_in_force,
        layout.local: layout.generation / LOCAL,
    }
    for file, copy in copies.items():
        if os.access(copy, os.R_OK) and text_at(file.resolve()) != text_at(copy):
            yield Found("it was edited, and not applied", str(file))
