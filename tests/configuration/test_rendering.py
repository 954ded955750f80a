"""Squid's configuration from templates and typed values: no text of a policy becomes a
directive.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.error_pages import files, placeholders
from squidkeeper.configuration.log_format import log_formats
from squidkeeper.configuration.rendering import (
    LADDERS,
    PEERS,
    Values,
    decode_values,
    encode_values,
    expand,
    fill,
    merge,
    part_file,
    read_lines,
    render,
    values_of,
    without_numbers,
)
from squidkeeper.configuration.rendering.arrangement import Line
from squidkeeper.configuration.rendering.lines import PLACEHOLDERS
from squidkeeper.configuration.rendering.values import Peer
from squidkeeper.operate.setup.entries import File
from squidkeeper.operate.setup.part_additions import add_parts
from squidkeeper.operate.setup.rendering import named_values, template_folder
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.services.bodies.answers import _ALIVE_SECONDS
from squidkeeper.services.bodies.connection import SILENT_SECONDS
from squidkeeper.services.bodies.denials import _LONGEST_SECONDS
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.parts import Part, needed_keys
from squidkeeper.serving.replies import header_annotation
from tests.conftest import NOW, write_policy

SQUID = Path(__file__).parents[2] / "squid"
CORE = "squidkeeper.conf"
TEMPLATES = {CORE: (SQUID / CORE).read_text()} | {
    part_file(Part(path.stem)): path.read_text()
    for path in (SQUID / "parts").glob("*.conf")
}
# setup/configuration.py fills them in
GATEWAYS = {
    "WORKERS",
    "RATE",
    "BURST",
    "SQUID_ERRORS",
    "BODIES",
    "REQUEST_ID",
    "UNLESS_TRANSPARENT",
}
PEER = Peer("corp:0123456789ab", "proxy.example", 3128, "user:pass%20word")
FULL = Values(
    keys=frozenset(Part)
    | {
        "core",
        "strip.x-debug",
        "inject.x-own",
        "upstream.corp:0123456789ab",
        "watch.secrets",
    },
    strips={"x-debug": "0a1b2c3d", "all": "5ef5ef03"},
    injects=("X-Own",),
    peers=(PEER,),
    signs=True,
    searches=True,
    bytes_out=5_000_000,
    largest_answer=2**20,
    asked_hosts=("api.example",),
    default=Peer("default", "[2001:db8::1]", 8080),
)


def templates(*, pages: bool = False) -> dict[str, str]:
    given = placeholders() if pages else {}
    return {
        name: fill(text, dict.fromkeys(_gateways(text), "") | given)
        for name, text in TEMPLATES.items()
    }


def rendered(values: Values, own: str = "", *, pages: bool = False) -> dict[str, str]:
    """The core and its parts, with what the values fill in."""
    return expand(templates(pages=pages), values, own)


def _gateways(text: str) -> set[str]:
    return {
        name
        for name in re.findall(r"@([A-Za-z_]+)@", text)
        if name in GATEWAYS or name.startswith("PAGE_")
    }


def test_each_placeholder_of_the_committed_files_is_known_and_each_known_one_is_used() -> (
    None
):
    named = {
        name
        for text in TEMPLATES.values()
        for name in re.findall(r"@([A-Za-z_]+)@", text)
    }
    named |= {"CONTENT_TYPE"}  # in the format of the log
    named -= {"BODIES_LAST"}  # made from the other files
    assert {
        name for name in named if name not in GATEWAYS and not name.startswith("PAGE_")
    } == {*PLACEHOLDERS}
    assert all(
        "@" not in line
        for text in rendered(FULL).values()
        for line in text.splitlines()
        if line[:1] != "#"
    )


def test_only_the_parts_that_are_needed_are_there_and_included_in_their_order() -> None:
    texts = rendered(Values(keys=frozenset({"core", Part.STRIP, Part.WATCH})))
    assert texts.keys() == {CORE, part_file(Part.STRIP), part_file(Part.WATCH)}
    included = re.findall(
        r"^include /etc/squid/(squidkeeper\.d/\S+)$", texts[CORE], re.MULTILINE
    )
    assert included == [part_file(Part.WATCH), part_file(Part.STRIP)]
    everything = re.findall(
        r"^include /etc/squid/(squidkeeper\.d/\S+)$", rendered(FULL)[CORE], re.MULTILINE
    )
    # FULL has a parent
    assert {*everything} == {
        part_file(part) for part in Part if part is not Part.SHARED
    }


def test_a_denial_is_not_kept_where_a_session_may_begin(tmp_path: Path) -> None:
    roles = "roles: {agent: {ttl: 1h}}\nsession_networks: [10.0.0.0/8]\n"
    rule = "rules: [{name: a, action: allow, clients: [agent], hosts: [a.example]}]"
    texts = []
    for number, text in enumerate((f"{roles}{rule}", rule.replace("agent", "vm"))):
        clients = "" if number == 0 else "clients: {vm: {networks: [10.0.0.0/8]}}\n"
        policy = load(write_policy(tmp_path / f"{number}", clients + text), NOW)
        values, _ = values_of(policy.compiled.source, SecretStore({}, {}))
        texts.append(rendered(values))
    with_roles, without = texts
    assert "sk_host ipv4 ttl=1 negative_ttl=0 grace=0" in with_roles[CORE]
    assert "sk_host ipv4 ttl=1 negative_ttl=1 grace=0" in without[CORE]
    assert with_roles.keys() - without.keys() == {part_file(Part.LOGIN)}


def test_squid_waits_longer_for_the_service_than_the_service_for_its_turn() -> None:
    [waits] = re.findall(
        r"(?m)^icap_io_timeout (\d+) seconds$", TEMPLATES[part_file(Part.BODIES)]
    )
    assert max(_ALIVE_SECONDS, _LONGEST_SECONDS) < int(waits) <= 20
    assert int(waits) < SILENT_SECONDS


def test_what_denies_after_the_service_of_bodies_is_asked_ahead_of_it() -> None:
    texts = rendered(FULL, pages=True)
    later = [
        line.removeprefix("adapted_http_access deny ")
        for name, text in texts.items()
        for line in text.replace("\\\n   ", "").splitlines()
        if line.startswith("adapted_http_access deny ")
        and name != part_file(Part.BODIES)
    ]
    core = texts[CORE].replace("\\\n   ", "")
    ahead = dict(
        re.findall(r"^acl (sk_[a-z]+_ahead_\d+) all-of (.*)$", core, re.MULTILINE)
    )
    assert len(ahead) > 5
    assert sorted(ahead.values()) == sorted(
        [
            "sk_is_adding_parameters sk_note_ahead !all",
            "sk_note_no_answer sk_note_body_unanswered !all",
            *(
                line
                for line in later
                if not line.startswith("CONNECT ")
                and "sk_is_with_final_url" not in line
            ),
        ]
    )
    assert re.findall(r"^acl sk_page_ahead any-of (\S+)$", core, re.MULTILINE) == [
        *ahead
    ]
    assert [*ahead.values()][-1] == "sk_note_no_answer sk_note_body_unanswered !all", (
        "what holds without an answer of the service is noted last"
    )
    assert re.findall(r"^http_access .*$", core, re.MULTILINE)[-1].endswith(
        " sk_is_by_body sk_page_ahead"
    )
    without = rendered(Values(keys=FULL.keys - {Part.BODIES}), pages=True)
    assert not any("sk_is_by_body" in text for text in without.values())


def test_without_a_rule_about_bodies_squid_has_no_line_about_them() -> None:
    others = Values(keys=frozenset({"core", *Part} - {Part.BODIES}))
    assert [
        line
        for text in rendered(others).values()
        for line in text.splitlines()
        if re.search("sk_bod|sk_[a-z]+_(by_body|body_)", line)
    ] == []
    assert "sk_bodies" in rendered(FULL)[part_file(Part.BODIES)]


def test_the_order_in_which_templates_are_read_changes_nothing() -> None:
    """A folder lists its files in any order."""
    texts = templates()
    assert render(texts, FULL) == render(dict(reversed(texts.items())), FULL)


SHARING = replace(FULL, default=None)  # a parent for all would see what is shared
TOGETHER_OR_APART = {"with a parent": FULL, "with shared connections": SHARING}


def in_squids_order(texts: Mapping[str, str]) -> list[Line]:
    """The lines of the core, with those of each part where it is included; a test that
    two parts have is there once, one that no line names is not.
    """
    whole = re.sub(
        r"(?m)^include \S+/(squidkeeper\.d/\S+)$",
        lambda found: texts[found[1]],
        texts[CORE],
    )
    lines = [*read_lines(whole)]
    tests = {line.text: line for line in reversed(lines) if line.name == "acl"}
    named = {word.strip("!") for line in lines for word in line.text.split()[2:]}
    return [
        line
        for line in lines
        if line.name != "acl"
        or (tests[line.text] is line and line.text.split()[1] in named)
    ]


def by_directive(lines: Iterable[Line]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(line.name, []).append(line.text)
    return found


@pytest.mark.parametrize("name", TOGETHER_OR_APART)
def test_each_line_is_in_the_one_file_and_those_of_a_directive_keep_their_order(
    name: str,
) -> None:
    values = TOGETHER_OR_APART[name]
    texts = render(templates(pages=True), values)
    assert texts.keys() == {CORE, PEERS}
    before = by_directive(in_squids_order(rendered(values, pages=True)))
    after = by_directive(read_lines(texts[CORE]))
    after |= by_directive(read_lines(texts[PEERS]))
    assert after.pop("include") == [f"include /etc/squid/{PEERS}"]
    assert after == before


@pytest.mark.parametrize("name", TOGETHER_OR_APART)
def test_what_others_name_is_defined_ahead_of_them(name: str) -> None:
    lines = read_lines(render(templates(pages=True), TOGETHER_OR_APART[name])[CORE])
    names = [line.name for line in lines]
    assert [*dict.fromkeys(names)] == [name for name, _ in groupby(names)], (
        "the lines of each directive are together"
    )
    first_test, last_test = names.index("acl"), len(names) - names[::-1].index("acl")
    for definition in ("auth_param", "external_acl_type", "icap_service"):
        assert names.index(definition) < first_test
    assert names.index("logformat") < names.index("access_log")
    assert all(names.index(ladder) >= last_test for ladder in {*names} & {*LADDERS})


@pytest.mark.parametrize("name", TOGETHER_OR_APART)
def test_each_line_of_a_ladder_has_its_number_and_a_reason(name: str) -> None:
    text = render(templates(pages=True), TOGETHER_OR_APART[name])[CORE]
    for ladder, group in groupby(read_lines(text), key=lambda line: line.name):
        if ladder not in LADDERS:
            continue
        reasons = [line.reason for line in group]
        assert all(without_numbers(reason) for reason in reasons), ladder
        numbers = [re.match(r"(\d+)(?: to (\d+))?\. ", one[0]) for one in reasons]
        for number, found in enumerate(numbers, 1):
            assert found, (ladder, number)
            assert int(found[1]) <= number <= int(found[2] or found[1])


def test_what_the_policy_does_not_use_is_not_in_the_one_file() -> None:
    texts = render(templates(), Values(keys=frozenset({"core", *ALWAYS})))
    assert texts.keys() == {CORE}
    for word in ("include", "sk_bodies", "sk_watch", "cache_peer", "sk_is_sharing"):
        assert not re.search(rf"(?m)^[^#\n]*{word}", texts[CORE]), word


def test_a_password_of_a_parent_is_in_the_file_of_the_parents_alone() -> None:
    texts = render(templates(), FULL)
    assert [name for name, text in texts.items() if "pass%20word" in text] == [PEERS]
    assert {line.name for line in read_lines(texts[PEERS])} == {"cache_peer"}


@pytest.mark.parametrize("name", TOGETHER_OR_APART)
def test_no_test_of_a_header_is_of_two_headers(name: str) -> None:
    """Squid ends at a second header in an ACL of the same name."""
    tested: dict[str, set[str]] = {}
    for line in in_squids_order(rendered(TOGETHER_OR_APART[name])):
        match line.text.split():
            case ["acl", acl, "req_header" | "rep_header" | "note" as kind, header, *_]:
                tested.setdefault(acl, set()).add(f"{kind} {header}")
    assert {acl: found for acl, found in tested.items() if len(found) > 1} == {}


def test_the_helpers_are_told_what_is_in_force() -> None:
    texts = rendered(FULL)
    stated = re.findall(r" --in-force (\S+)", texts[CORE])
    assert stated == [",".join(FULL.in_force)] * 3
    assert ",".join(FULL.in_force) in texts[part_file(Part.CREDENTIALS)]


def test_without_a_rule_with_meter_nothing_is_asked_about_answers() -> None:
    texts = rendered(replace(FULL, keys=FULL.keys - {Part.METER}))
    assert "/usage " in rendered(FULL)[part_file(Part.METER)]
    assert [
        name for name, text in texts.items() if "/usage" in text or "metered_" in text
    ] == []


def test_many_keys_do_not_make_a_line_longer_than_squid_reads() -> None:
    keys = frozenset(f"strip.{'x' * 60}-{number}" for number in range(500))
    longest = max(len(line) for line in rendered(Values(keys=keys))[CORE].splitlines())
    assert longest < 8192


CONTINUES = {
    "[api.example, '*.b.example', '**.b.example']": [".b.example", "api.example"],
    "[api.example, .example, b.c.example, c.example]": [".example"],
    "[example, .b.example, b.example]": [".b.example", "example"],
    "[192.0.2.7]": None,
    "[192.0.2.0/24, api.example]": None,
    "['*']": None,
}


@pytest.mark.parametrize("hosts", CONTINUES)
def test_an_upload_goes_on_ahead_of_the_decision_where_the_host_may_ask_the_service(
    tmp_path: Path, hosts: str
) -> None:
    """Squid refuses a configuration in which a name stands beside one that
    covers it.
    """
    rules = "rules: [{name: a, action: allow, hosts: [other.example]}, {name: b, action: deny, hosts: %s, %s}]"
    text = rules % (hosts, "body: {json: {/x: [1]}}")
    directory = write_policy(tmp_path / "policy", text)
    policy = load(directory, datetime.now(UTC)).compiled.source
    values, _ = values_of(policy, SecretStore({}, {}))
    lines = rendered(values)[part_file(Part.BODIES)]
    named = re.findall(r"^acl sk_is_body_host dstdomain -n (\S+)$", lines, re.MULTILINE)
    assert named == (CONTINUES[hosts] or [])
    continues = re.findall(
        r"^force_request_body_continuation (.*)$", lines, re.MULTILINE
    )
    assert continues == [f"allow !CONNECT{' sk_is_body_host' if named else ''}"]


def test_hosts_whose_uploads_go_on_stay_while_squid_runs() -> None:
    one, two, every = (
        Values(asked_hosts=hosts) for hosts in (("a.example",), ("b.example",), None)
    )
    assert merge(one, two).asked_hosts == ("a.example", "b.example")
    assert merge(one, every).asked_hosts is merge(every, one).asked_hosts is None


HOSTILE = st.text(
    alphabet="\n\r\t \"'#\\${}@%,;=aZ-_.:/\0é", min_size=1, max_size=12
) | st.sampled_from(
    [
        "X\nhttp_access allow all",
        "x allow all",
        "@UPSTREAMS@",
        "${process_name}",
        'a"b',
        "a#b",
        "a\\",
        "all\n",
        "proxy.example login=x",
        "a b",
    ]
)
NAMES = re.compile(r"[A-Za-z0-9_.:%~\[\]-]*\Z")


def json_with(path: str, value: str) -> str:
    """The full values as JSON, with one text of them replaced."""
    found = json.loads(encode_values(FULL))
    match path:
        case "key":
            found["keys"] = [value]
        case "strip":
            found["strips"] = {value: "0a"}
        case "strip key":
            found["strips"] = {"x-a": value}
        case "inject":
            found["injects"] = [value]
        case "asked host":
            found["asked_hosts"] = [value]
        case "default":
            found["default"]["host"] = value
        case name:
            found["peers"][0][name] = value
    return json.dumps(found)


PLACES = (
    "key",
    "strip",
    "strip key",
    "inject",
    "key",
    "host",
    "login",
    "default",
    "asked host",
)


@given(place=st.sampled_from(PLACES), value=HOSTILE)
def test_no_text_of_a_policy_becomes_a_directive(place: str, value: str) -> None:
    """A hostile text is refused.

    One that is not stands in as many directives of the same kind as a plain text does.
    """
    try:
        values = decode_values(json_with(place, value))
    except ValueError:
        return
    assert NAMES.match(value), f"{value!r} was taken for {place}"
    plain = {
        line.split(" ")[0]
        for text in rendered(FULL).values()
        for line in text.splitlines()
    }
    for name, text in rendered(values).items():
        assert {line.split(" ")[0] for line in text.splitlines()} <= plain, name


@pytest.mark.parametrize("place", sorted({*PLACES}))
@pytest.mark.parametrize(
    "value",
    ["x\n", "x\nhttp_access allow all", "x y", 'x"', "x#", "x\\", "${x}", "@X@", "x'"],
)
def test_each_text_with_a_meaning_for_squid_is_refused(place: str, value: str) -> None:
    with pytest.raises(ValueError, match="what may stand in Squid's configuration"):
        decode_values(json_with(place, value))


@pytest.mark.parametrize(
    "text",
    ['{"port": 1}', "[]", "", '{"keys": ["core"], "more": 1}', '{"bytes_out": 0}'],
)
def test_what_is_not_values_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Squid's configuration"):
        decode_values(text)


def test_values_survive_their_writing() -> None:
    assert decode_values(encode_values(FULL)) == FULL
    assert "pass%20word" not in repr(FULL)


POLICY = """
secrets: {pass: {file: pass}, gone: {file: gone}}
rules: [{name: a, action: allow, hosts: [a.example], strip: [X-Debug], headers: known}]
upstreams:
  - {name: corp, hosts: [a.example], url: "http://proxy.example:3128", basic: {username: u, password: pass}}
  - {name: shut, hosts: [b.example], url: "http://proxy.example:3129", basic: {username: u, password: gone}}
"""


def test_a_policy_gives_its_values_and_a_parent_without_its_password_is_left_out(
    tmp_path: Path,
) -> None:
    directory = write_policy(tmp_path / "policy", POLICY)
    (directory / "pass").write_text("p:#\n")
    (directory / "pass").chmod(0o640)
    policy = load(directory, datetime.now(UTC)).compiled.source
    values, problems = values_of(policy, SecretStore(policy.secrets, {}))
    assert [(peer.name, peer.login) for peer in values.peers] == [("corp", "u:p%3A%23")]
    assert len(problems) == 1
    assert "gone" in problems[0]
    [left_out] = needed_keys(policy) - values.keys
    assert left_out.startswith("upstream.shut:")
    assert values.strips.keys() == {"x-debug", "all"}
    assert decode_values(encode_values(values)) == values


def test_nothing_is_removed_while_squid_runs_and_an_edit_that_is_taken_back_changes_nothing() -> (
    None
):
    less = Values(keys=frozenset({"core"}), bytes_out=5_000_000, largest_answer=2**20)
    both = merge(FULL, less)
    assert both == merge(both, less) == merge(both, replace(FULL, default=None))
    assert (both.keys, both.peers, both.default) == (
        FULL.keys,
        FULL.peers,
        FULL.default,
    )


def test_a_password_and_a_bound_are_replaced() -> None:
    new = replace(FULL, peers=(replace(PEER, login="user:other"),), bytes_out=7)
    assert merge(FULL, new).peers == new.peers
    assert merge(FULL, new).bytes_out == 7
    old = Values(keys=frozenset({"quotas.bytes_out-5"}))
    assert merge(old, Values(keys=frozenset({"quotas.bytes_out-7"}))).keys == {
        "quotas.bytes_out-7"
    }


def test_the_bound_of_a_body_is_left_to_the_operators_own_line() -> None:
    assert (
        "request_body_max_size 5000000 bytes\n"
        in rendered(FULL)[part_file(Part.QUOTAS)]
    )
    own = rendered(FULL, "request_body_max_size 1 KB\n")[part_file(Part.QUOTAS)]
    assert "request_body_max_size" not in own


# --- what the files name --------------------------------------------------------------

TOGETHER = {  # what a policy that needs a part needs too
    Part.CREDENTIALS_BY_HEADERS: {Part.CREDENTIALS, Part.READ_HEADERS},
    Part.REWRITES: {Part.CREDENTIALS},
    Part.WATCH: {Part.READ_HEADERS},
}
ALWAYS = {Part.CERTIFICATES, Part.OVERRIDE_HEADERS, Part.PAGES}


def whole(values: Values) -> str:
    """All lines of a gateway, without comments and with continued lines joined."""
    others = (
        (SQUID / name).read_text()
        for name in ("squid.conf", "squidkeeper-logformat.conf")
    )
    formats = "\n".join(log_formats().values())
    text = "\n".join((*others, formats, *rendered(values, pages=True).values()))
    return "\n".join(
        line
        for line in text.replace("\\\n", " ").splitlines()
        if not line.startswith("#")
    )


def acls_of(text: str) -> tuple[set[str], set[str]]:
    """The ACLs that are defined, and those that are named elsewhere."""
    defined = {*re.findall(r"^acl (\S+)", text, re.MULTILINE)}
    types = {
        *re.findall(r"^(?:external_acl_type|icap_service) (\S+)", text, re.MULTILINE)
    }
    rest = re.sub(
        r"^(acl \S+ external \S+|acl \S+|external_acl_type.*)",
        "",
        text,
        flags=re.MULTILINE,
    )
    return defined, {*re.findall(r"(?<![\w=/])!?(sk_\w+)", rest)} - types - {
        *re.findall(r" name=(sk_\w+)", text)
    }


@pytest.mark.parametrize("part", Part)
def test_each_acl_that_a_part_names_is_defined_where_the_part_is(part: Part) -> None:
    parts = ALWAYS | {part} | TOGETHER.get(part, set())
    values = replace(FULL, keys=(FULL.keys - {*Part}) | parts, default=None)
    defined, used = acls_of(whole(values))
    peers = {name for name in used if name.startswith("sk_corp")}
    tags = {*re.findall(r"tag ((?:sk_\w+ ?)+)", whole(values))}
    assert (
        used - defined - peers - {name for names in tags for name in names.split()}
        == set()
    )


def test_each_acl_that_is_defined_is_used() -> None:
    defined, used = acls_of(whole(FULL))
    assert {name for name in defined if name.startswith("sk_")} - used == set()


STRIPPED = replace(FULL, strips={"cookie": "0c00c1e0"})
KINDS = TOGETHER_OR_APART | {"with removed headers that helpers read": STRIPPED}
ALONE = {
    part: Values(keys=frozenset({"core", part} | ALWAYS | TOGETHER.get(part, set())))
    for part in Part
}


def acls_in(values: Values) -> dict[str, list[str]]:
    """What Squid has under each of our names: kind and values, line by line."""
    files = [SQUID / "squid.conf", SQUID / "squidkeeper-logformat.conf"]
    text = "".join(re.sub(r"(?m)^@.*", "", path.read_text()) for path in files)
    text += render(templates(pages=True), values)[CORE]
    found: dict[str, list[str]] = {}
    for line in read_lines(text):
        match line.text.split(maxsplit=2):
            case ["acl", name, what] if name.startswith("sk_"):
                found.setdefault(name, []).append(what)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_no_test_stands_twice_not_even_by_two_names(name: str) -> None:
    tests = acls_in(KINDS[name])
    assert all(len(whats) == len({*whats}) for whats in tests.values())
    names: dict[tuple[str, ...], list[str]] = {}
    for acl, whats in tests.items():
        names.setdefault(tuple(sorted(whats)), []).append(acl)
    assert [found for found in names.values() if len(found) > 1] == []


@pytest.mark.parametrize("name", [*KINDS, *ALONE])
def test_no_group_has_one_member(name: str) -> None:
    tests = acls_in((KINDS | ALONE)[name])
    members = {
        acl: [member for what in whats for member in what.split()[1:]]
        for acl, whats in tests.items()
        if whats[0].startswith(("any-of ", "all-of "))
    }
    lone = {acl for acl, found in members.items() if len(found) < 2}
    # squid.conf names it in any case; the part `watch` adds to it
    assert lone <= {"sk_is_withheld"}


def kind_of(acl: str, tests: Mapping[str, list[str]], pages: set[str]) -> str:
    """Say what an ACL does, which is how its name begins."""
    kind, *members = " ".join(tests.get(acl, [""])).split()
    if kind in ("any-of", "all-of"):
        ours = (one.removeprefix("!") for one in members if "sk_" in one)
        kinds = {kind_of(one, tests, pages) for one in ours}
        return next((one for one in ("page", "ask") if one in kinds), "is")
    if kind in ("external", "proxy_auth", "dst"):
        return "ask"
    if kind.startswith("annotate_"):
        shows = acl in pages or any(one.startswith("page_=") for one in members)
        return "page" if shows else "note"
    return "is"


@pytest.mark.parametrize("name", [*KINDS, *ALONE])
def test_a_name_begins_with_what_its_test_does(name: str) -> None:
    """`is`: it tests, at once. `note`: it always matches, and notes something. `ask`:
    it may wait, for a helper or for DNS. `page`: it writes a page. A group is what one
    of its members is: a page, else one that asks, else a test.
    """
    values = (KINDS | ALONE)[name]
    tests = acls_in(values)
    shown = re.findall(r"(?m)^deny_info \S+ (.*)$", whole(values))
    pages = {acl for acls in shown for acl in acls.split()}
    told = {acl: acl.split("_")[1] for acl in tests}
    assert told == {acl: kind_of(acl, tests, pages) for acl in tests}


def test_answers_are_bounded_only_where_a_quota_counts_their_bytes() -> None:
    def lines(values: Values) -> list[str]:
        found = whole(values).splitlines()
        return [line for line in found if "reply_body_max_size" in line.split()[:1]]

    assert lines(replace(FULL, largest_answer=None)) == []
    assert "sk_too_large" not in whole(replace(FULL, largest_answer=None))
    assert lines(replace(FULL, largest_answer=2**16)) == [
        "reply_body_max_size 1 bytes sk_is_answer_refused",
        "reply_body_max_size 32768 bytes sk_is_answer_32768",
        "reply_body_max_size 65536 bytes sk_is_answer_65536",
        "reply_body_max_size 16384 bytes sk_is_answer_counted !sk_is_answer_whole",
    ]


WRITES = (
    "serving/replies.py",
    "serving/helpers/asking.py",
    "serving/helpers/login.py",
    "serving/helpers/throttle.py",
    "policy/protocol/lines.py",
)
PACKAGE = SQUID.parent / "helpers/squidkeeper"


def annotations_written() -> set[str]:
    texts = [(PACKAGE / name).read_text() for name in WRITES]
    return {name for text in texts for name in re.findall(r'"([a-z][a-z_]*_)"', text)}


def test_squid_reads_each_annotation_that_helpers_write_and_no_others() -> None:
    text = whole(FULL) + "\n".join(page for _, page in files())
    noted = {*re.findall(r"(?<= )([a-z][a-z_]*_)=", text)}
    read = {
        *re.findall(r"note\{([a-z_]+_)\}", text),
        *re.findall(r"\{([a-z_]+_)\}note", text),
    }
    read |= {*re.findall(r"^acl \S+ note ([a-z_]+_)", text, re.MULTILINE)}
    headers = {
        header_annotation(name) for name in (*INJECTABLE_HEADERS, "X-Own", "X-Amz-Date")
    }
    assert read - headers - annotations_written() - noted == set()
    assert annotations_written() - read == set()


def test_no_part_shares_connections_with_bump_documented_or_a_default_parent() -> None:
    shares = Values(keys=frozenset({"core", Part.SHARED}))
    assert Part.SHARED in shares.parts
    for other in (
        replace(shares, documented=True),
        shares.with_default("http://proxy.example:3128"),
    ):
        assert (Part.SHARED in other.parts, Part.SHARED in other.in_force) == (
            False,
            False,
        )
        assert part_file(Part.SHARED) not in rendered(other)
        assert merge(other, shares).parts == other.parts


# --- what Squid's account may answer to root ------------------------------------------

ACCOUNT = Account("squid", 13, 13)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | HOSTILE,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(HOSTILE, inner, max_size=4)
    ),
)
FIELDS = sorted(Values.__struct_fields__)
ANSWERS = (
    st.binary(max_size=64)
    | st.builds(lambda value: json.dumps(value).encode(), JSON)
    | st.builds(lambda value: json.dumps([value, None]).encode(), JSON)
    | st.builds(
        lambda text, problems: json.dumps([[text, problems, False], None]).encode(),
        JSON,
        JSON,
    )
    | st.builds(
        lambda name, value: json.dumps(
            [[json.dumps({name: value}), [], False], None]
        ).encode(),
        st.sampled_from(FIELDS) | HOSTILE,
        JSON,
    )
    | st.sampled_from(
        [
            b"[" * 100_000,
            b'[["' + b"[" * 100_000 + b'", [], false], null]',
            b"[null, 5]",
            b"[null, null]",
        ]
    )
)


def answering(data: bytes) -> Callable[[object, object, int], None]:
    """What takes the place of the child: it has the account, so it can write
    anything.
    """

    def answer(_: object, __: object, sender: int) -> None:
        with open(sender, "wb") as file:
            file.write(data)
        os._exit(0)

    return answer


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The files of a gateway, without a Squid."""
    layout = Layout.of(tmp_path_factory.mktemp("gateway"))
    for folder in (layout.templates, layout.parts, layout.state):
        folder.mkdir(parents=True)
    for name, file in template_folder(TEMPLATES).entries.items():
        assert isinstance(file, File)
        (layout.templates / name).write_bytes(file.content)
    layout.rendered.parent.mkdir(parents=True, exist_ok=True)
    layout.rendered.write_text(encode_values(FULL))
    return layout


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.system
@given(data=ANSWERS)
def test_root_refuses_what_is_malformed_and_changes_nothing(
    gateway: Layout, data: bytes
) -> None:
    before = contents(gateway.prefix)
    with patch("squidkeeper.base.squid_account._answer", answering(data)):
        try:
            named = named_values(ACCOUNT, gateway, gateway.policy, gateway.state)
        except (OSError, ValueError):
            with pytest.raises((OSError, ValueError)):
                add_parts(gateway, ACCOUNT)
        else:
            assert decode_values(encode_values(named.values)) == named.values
            assert all(problem.isprintable() for problem in named.problems)
    assert contents(gateway.prefix) == before


@pytest.mark.system
def test_an_answer_without_an_end_is_not_read_to_its_end(gateway: Layout) -> None:
    def answer(_: object, __: object, sender: int) -> None:
        while True:
            os.write(sender, b"[" * 65_536)

    with (
        patch("squidkeeper.base.squid_account._answer", answer),
        pytest.raises(OSError, match="no answer of the kind"),
    ):
        named_values(ACCOUNT, gateway, gateway.policy, gateway.state)
