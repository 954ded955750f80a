"""Long host lists: what their lines mean, and the compiled file that all
helpers share.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.host_lists import HostList, ListLine
from squidkeeper.policy.language.hosts import parse_network
from squidkeeper.policy.policy_store import list_compiler
from squidkeeper.policy.policy_store.list_compiler import (
    ListChangedError,
    list_digest,
    load_list,
    prune_cache,
)
from squidkeeper.policy.policy_store.list_lines import LineReader
from squidkeeper.policy.url import Host, parse_host
from tests.waiting import pause, wait_for

LINES = """\ufeff# a list\r
plain.example.com\r
.tree.example.com   # with a comment
*.label.example.com
**.under.example.com
UPPER.example.com.
münchen.example
203.0.113.0/24
2001:db8::/32
198.51.100.7
0.0.0.0 hosts.example.com other.example.com
127.0.0.1\ttab.example.com
::1 six.example.com
fe80::1%lo0 zone.example.com
127.0.0.1 localhost localhost.localdomain local
255.255.255.255 broadcasthost
::1 ip6-localhost ip6-loopback
0.0.0.0 ip6-dotted.example.com IP6-upper.example.com # no local names
0.0.0.0 0.0.0.0

\t
last.example.com"""
IN = [
    *("ip6-dotted.example.com", "ip6-upper.example.com"),
    *(
        "plain.example.com",
        "tree.example.com",
        "a.b.tree.example.com",
        "a.label.example.com",
        "a.b.under.example.com",
    ),
    *(
        "upper.example.com",
        "xn--mnchen-3ya.example",
        "203.0.113.9",
        "[2001:db8::1]",
        "198.51.100.7",
    ),
    *(
        "hosts.example.com",
        "other.example.com",
        "tab.example.com",
        "six.example.com",
        "zone.example.com",
    ),
    *("last.example.com", "[::ffff:203.0.113.9]"),
]
OUT = [
    *(
        "www.plain.example.com",
        "label.example.com",
        "a.b.label.example.com",
        "under.example.com",
        "example.com",
    ),
    *(
        "203.0.114.9",
        "198.51.100.8",
        "[2001:db9::1]",
        "localhost",
        "localhost.localdomain",
        "local",
        "broadcasthost",
    ),
    *("ip6-localhost", "127.0.0.1", "0.0.0.0", "255.255.255.255"),
]


def load(tmp_path: Path, text: str | bytes, cache: Path | None = None) -> HostList:
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_list(path, list_digest(path), cache)


# --- what lines mean ------------------------------------------------------------------


def test_every_form_of_a_line_is_understood(tmp_path: Path) -> None:
    hosts = load(tmp_path, LINES)
    assert hosts.summary.strange == 0
    assert [host for host in IN if parse_host(host) not in hosts] == []
    assert [host for host in OUT if parse_host(host) in hosts] == []


FORMATS = {
    "adblock": (
        "||ads.example^",
        "||ads.example^$important",
        "||Ads.Example^$all",
        "||ads.example^ # a comment",
    ),
    "dnsmasq": (
        *(
            "address=/ads.example/",
            "address=/ads.example/#",
            "address=/ads.example/0.0.0.0",
            "local=/ads.example/",
        ),
        *(
            "server=/ads.example/",
            "address=/.ads.example/::",
            "address=/ADS.example/10.0.0.1 # a comment",
        ),
        "address=/other.example/ads.example/127.0.0.1",
    ),
    "rpz": (
        "ads.example CNAME .\n*.ads.example CNAME .",
        "*.ads.example 300 IN CNAME .\nads.example IN 300 CNAME . ; a comment",
        "Ads.example\tcname\t.\r\n*.Ads.example\tcname\t.\r\n",
    ),
}


@pytest.mark.parametrize("line", [line for lines in FORMATS.values() for line in lines])
def test_a_line_of_another_format_is_its_host_and_all_under_it(
    tmp_path: Path, line: str
) -> None:
    hosts = load(tmp_path, f"# a list\n{line}\n")
    assert (hosts.summary.strange, hosts.summary.exception) == (0, None)
    for host in ("ads.example", "a.ads.example", "b.a.ads.example"):
        assert parse_host(host) in hosts
    for host in ("bads.example", "example", "ads.example.com", "127.0.0.1", "10.0.0.1"):
        assert parse_host(host) not in hosts


ZONE = """\
$TTL 2h ; of every record
@ IN SOA localhost. root.localhost. (
        2026112401 ; serial
        1h 15m 30d
        2h )
      IN NS localhost.
@  60 NS ns.example.
; hosts
ads.example CNAME .
"""
ABSOLUTE = """\
rpz.local. 300 IN SOA localhost. root.localhost. 1 2 3 4 5
rpz.local. 300 IN NS localhost.
ads.example.rpz.local. 300 IN CNAME .
*.ads.example.rpz.local. 300 IN CNAME .
elsewhere.example. 300 IN CNAME .
rpz.local. 300 IN SOA localhost. root.localhost. 1 2 3 4 5
"""
ORIGINS = """\
$ORIGIN .
$TTL 300
rpz.local IN SOA localhost. root.localhost. ( 1 2 3 4 5 )
$ORIGIN example.rpz.local.
ads CNAME .
$ORIGIN rpz.local.
more.example CNAME .
$ORIGIN elsewhere.
more CNAME .
"""
CONDITION = """\
!#if a
||b.example^
!#if c
||d.example^
!#endif
e.example
! a comment
!#endif
||f.example^
"""
ADBLOCK = "[Adblock Plus 2.0]\n! Title\n# a comment\n||ads.example^\n.click.\na.example\n0.0.0.0 b.example\n"
ADDRESSES = "||203.0.113.7^\n||[2001:db8::1]^\n||203.0.113^\n||0x7f000001^\n"
UNDER = "host.example CNAME .\n*.under.example CNAME .\n*.both.example CNAME .\nboth.example CNAME .\n"


@pytest.mark.parametrize(
    ("text", "patterns", "strange", "held", "others"),
    [
        (ADDRESSES, 2, [3, 4], "203.0.113.7 [2001:db8::1]", "203.0.0.113 127.0.0.1"),
        (
            "a.example CNAME .\n*.a.example CNAME .\nb.example CNAME .\n",
            2,
            [],
            "b.example x.a.example",
            "x.b.example",
        ),
        (
            UNDER,
            4,
            [],
            "host.example b.a.under.example both.example b.a.both.example",
            "a.host.example under.example",
        ),
        (ZONE, 1, [], "ads.example", "localhost ns.example"),
        (
            ABSOLUTE,
            1,
            [5],
            "ads.example a.ads.example",
            "ads.example.rpz.local elsewhere.example",
        ),
        (ORIGINS, 2, [9], "ads.example more.example", "ads more"),
        # an SOA that does not end swallows nothing
        (
            "@ SOA a. b. (\n1 2 3\nads.example CNAME .\nmore.example\n4711\n",
            2,
            [5],
            "ads.example more.example",
            "a",
        ),
        (
            ADBLOCK,
            1,
            [5, 6, 7],
            "ads.example",
            "a.example b.example click",
        ),  # there a bare word is no host
        (
            CONDITION,
            1,
            [1, 2, 3],
            "f.example",
            "b.example d.example e.example",
        ),  # and what holds under one is left out
    ],
)
def test_lines_mean_what_the_lines_above_them_say(
    tmp_path: Path, text: str, patterns: int, strange: list[int], held: str, others: str
) -> None:
    hosts = load(tmp_path, text)
    assert hosts.summary.patterns == patterns
    assert [line.number for line in hosts.summary.first_strange] == strange
    assert hosts.summary.strange == (7 if text is CONDITION else len(strange))
    assert hosts.summary.wide is None
    assert [host for host in held.split() if parse_host(host) not in hosts] == []
    assert [host for host in others.split() if parse_host(host) in hosts] == []


STRANGE = [
    *(
        "a b",
        "https://example.com/",
        "*.*.com",
        "0.0.0.0 .example.com",
        "0.0.0.0 *.example.com",
        "4711",
        "é" * 300,
    ),
    *(
        "||ads.example",
        "||ads.example/path^",
        "||ads.example^path",
        "||ads.example:80^",
        "||*.ads.example^",
        "||*^",
    ),
    *(
        "||^",
        "||.ads.example^",
        "||ads.*^",
        "|https://ads.example^",
        "ads.example^",
        "/ads/",
        "||ads.example^|",
        "||a b^",
    ),
    *(
        "||ads.example^$third-party",
        "||ads.example^$document",
        "||ads.example^$all,third-party",
        "*$denyallow=a.example",
    ),
    *(
        "ads.example##.banner",
        "ads.example###banner",
        "##.banner",
        "###banner",
        "##iframe[src]",
        "#@#.banner",
    ),
    *(
        "ads.example#@#.b",
        "ads.example#?#b",
        "ads.example#$#b",
        "ads.example#%#b",
        "ads.example#@$?#b",
        "a.b$$script[c]",
    ),
    *("!#include more.txt", "!#safari_cb_affinity", "ads.example,!x"),
    *(
        "address=/#/",
        "address=//0.0.0.0",
        "address=/ads.example/host",
        "address=/*.ads.example/",
        "address=/*/0.0.0.0",
    ),
    *(
        "address=/203.0.113.7/",
        "address=/ads.example",
        "local=/ads.example",
        "cache-size=100",
        "conf-file=/etc/x",
    ),
    *(
        "ipset=/ads.example/set",
        "nftset=/ads.example/4#a#b",
        "server=203.0.113.7",
        "cname=a.example,b.example",
    ),
    *(
        "ads.example CNAME *.",
        "ads.example CNAME rpz-drop.",
        "ads.example CNAME rpz-tcp-only.",
        "ads.example A 0.0.0.0",
    ),
    *(
        "ads.example CNAME walled.example.",
        "32.7.113.0.203.rpz-ip CNAME .",
        "8.0.0.0.10.rpz-client-ip CNAME .",
    ),
    *(
        "ns.example.rpz-nsdname CNAME .",
        "* CNAME .",
        "@ CNAME .",
        "  CNAME .",
        "ads.example. CNAME .",
        "*.*.a.example CNAME .",
    ),
    *(
        "$INCLUDE more.zone",
        "$GENERATE 1-9 a$ CNAME .",
        "203.0.113.7 CNAME .",
        "203.0.113.7 IN CNAME rpz-drop.",
    ),
    *(
        "\x00",
        "ads.example\x00",
        "\x00ads.example",
        "ads\x00.example",
        "||ads\x00.example^",
        "a.example\u2028b.example",
    ),
    *(
        "ads.example " * 5000,
        "a" * 1_000_000,
        "||" + "a." * 500_000 + "example^",
        "0.0.0.0 " + "a.example " * 10_000,
    ),
]
EXCEPTIONS = [
    *(
        "@@||good.example^",
        "@@||good.example^$important",
        "@@good",
        "||good.example^$badfilter",
        "||a.b^$all,badfilter",
    ),
    *(
        "good.example CNAME rpz-passthru.",
        "*.good.example 60 IN CNAME RPZ-PASSTHRU.",
        "203.0.113.7 CNAME rpz-passthru.",
    ),
    *(
        "server=/good.example/#",
        "server=/good.example/203.0.113.7",
        "local=/good.example/203.0.113.7#53",
    ),
]


@pytest.mark.parametrize("line", [*STRANGE, *EXCEPTIONS], ids=lambda line: line[:30])
def test_a_line_that_is_not_understood_is_counted_and_left_out(
    tmp_path: Path, line: str
) -> None:
    hosts = load(tmp_path, f"first.example.com\n{line}\nlast.example.com\n")
    shown = line[:60].strip()
    assert (hosts.summary.patterns, hosts.summary.strange) == (2, 1)
    assert hosts.summary.first_strange == (ListLine(2, shown),)
    assert hosts.summary.exception == (
        ListLine(2, shown) if line in EXCEPTIONS else None
    )
    assert hosts.summary.wide is hosts.summary.widest is None
    assert parse_host("last.example.com") in hosts
    for host in ("ads.example", "a.example", "good.example", "203.0.113.7", "x.y.z"):
        assert parse_host(host) not in hosts


@pytest.mark.parametrize(
    "line",
    [
        b"ads\xff.example",
        b"||ads.example\xc3^",
        b"\xfe\xff\x00a\x00.\x00b",
        b"address=/\xe9t\xe9.example/",
    ],
)
def test_a_line_that_is_no_utf_8_is_not_understood(tmp_path: Path, line: bytes) -> None:
    hosts = load(tmp_path, b"first.example.com\n" + line + b"\nlast.example.com\n")
    assert (hosts.summary.patterns, hosts.summary.strange) == (2, 1)


@pytest.mark.parametrize(
    "line",
    [
        "||com^",
        "address=/com/",
        "local=/com/",
        "*.com CNAME .",
        "*.com",
        ".com",
        "**.com",
    ],
)
def test_a_whole_top_level_domain_is_noted_in_every_format(
    tmp_path: Path, line: str
) -> None:
    assert load(tmp_path, f"a.example\n{line}\n").summary.wide == ListLine(2, line)


def test_a_line_without_an_end_takes_bounded_memory_and_what_follows_is_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "list.txt"
    with path.open("wb") as file:
        file.write(b"first.example.com\n")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\nlast.example.com\n")
    tracemalloc.start()
    hosts = load_list(path, list_digest(path))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (hosts.summary.patterns, hosts.summary.strange) == (2, 1)
    assert parse_host("last.example.com") in hosts
    assert peak_bytes < 8 << 20


def test_a_binary_file_is_lines_that_are_not_understood(tmp_path: Path) -> None:
    hosts = load(tmp_path, bytes(range(256)) * 4096)
    assert hosts.summary.patterns == 0
    assert hosts.summary.strange > 4000
    assert len(hosts.summary.first_strange) == 3


LABELS = st.text("ab-_0é", min_size=1, max_size=4)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
TEXTS = st.one_of(
    st.tuples(
        st.sampled_from(
            [
                "",
                ".",
                "*.",
                "**.",
                "0.0.0.0 ",
                "127.0.0.1\t",
                "0.0.0.0  *.",
                "||",
                "address=/",
                "server=/",
                "local=/",
            ]
        ),
        NAMES,
        st.sampled_from(
            [
                "",
                "^",
                "/",
                "/0.0.0.0",
                "/10.0.256.1",
                "/10.0.255.01",
                "/10.20.255.1",
                "/#",
                " CNAME .",
                "\tIN CNAME .",
                " 300 CNAME .",
                ".a. 60 IN CNAME .",
                ". CNAME .",
                " CNAME rpz-passthru.",
                ".rpz-ip CNAME .",
            ]
        ),
        st.sampled_from(["", "\r", " ", "#a", " # a"]),
    ).map("".join),
    st.sampled_from(
        [
            "[Adblock]",
            "!#if a",
            "!#endif",
            "$ORIGIN a.",
            "$ORIGIN b.a.",
            "@ SOA a b (",
            "1 2 )",
            "a. SOA a b",
        ]
    ),
    st.text(max_size=20),
)


@given(st.lists(TEXTS, max_size=8))
@example(["a.localhost", "0.0.0.0 a.localhost", "0.0.0.0 localhost.localdomain"])
@example(["127.0.0.1 a.b\r", ".a\r", "a.b.", "a.0x1"])
@example(
    [
        ".a.b CNAME .",
        "**.a.b CNAME .",
        "*.a.b CNAME .",
        "a.b CNAME .",
        "a.rpz-ip CNAME .",
    ]
)
@example(
    [
        "$ORIGIN a.",
        "a.b CNAME .",
        "$ORIGIN b.a.",
        "a.b CNAME .",
        "$ORIGIN a.",
        "a.b CNAME .",
    ]
)
@example(
    ["a.b CNAME .", "*.a.b CNAME .", "$ORIGIN a.", "$ORIGIN b.a.", "*.a.b CNAME ."]
)
@example(
    [
        "a. 300 SOA b. c. 1",
        "a.b.a. 300 IN CNAME .",
        "*.a.b.a. 300 IN CNAME .",
        "b.a. CNAME .",
        "a. CNAME .",
    ]
)
@example(
    [
        "a. SOA b. c. 1",
        "a.local.a. CNAME .",
        "a.rpz-ip.a. CNAME .",
        ".a.b.a. CNAME .",
        "**.a.b.a. CNAME .",
    ]
)
@example(
    [
        "address=/a.b/10.0.255.01",
        "address=/a.b/10.0.256.1",
        "address=/a.b/10.0.255.1",
        "address=/a.b/1.2.3",
    ]
)
@example(["a.b. CNAME .", "@ SOA b. c. 1", "a.b. CNAME .", "a.b.none. CNAME ."])
@example(["[Adblock]", "a.b", "||a.b^", "!#if a", "||a.b^", "!#endif", "||a.b^"])
@settings(max_examples=500)
def test_the_short_way_for_most_lines_means_what_the_long_way_means(
    texts: list[str],
) -> None:
    short, long = LineReader(), LineReader()
    for line in [line for text in texts for line in text.split("\n")]:
        key = short.plain_key(line)
        expected = read(long, line)
        if key is not None:
            assert expected == [key]
        else:
            assert read(short, line) == expected


def read(reader: LineReader, line: str) -> list[str] | str:
    try:
        return [pattern.key for pattern in reader.patterns(line)]
    except PatternError as error:
        return str(error)


def test_a_network_is_covered_by_a_wider_one(tmp_path: Path) -> None:
    hosts = load(tmp_path, "203.0.112.0/23\n2001:db8::/32\n")
    assert hosts.covers_network(parse_network("203.0.113.0/24"))
    assert hosts.covers_network(parse_network("2001:db8:1::/48"))
    assert not hosts.covers_network(parse_network("203.0.0.0/16"))
    assert not hosts.covers_network(parse_network("2001:db9::/48"))


# --- the cache ------------------------------------------------------------------------


def cached_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.hosts"))


def test_a_list_is_compiled_once_and_then_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "state" / "lists"
    first = load(tmp_path, LINES, cache)
    monkeypatch.setattr(list_compiler, "_compile", None)  # would fail if it were called
    second = load(tmp_path, LINES, cache)
    assert first.summary == second.summary
    assert [host for host in IN if parse_host(host) not in second] == []
    assert [host for host in OUT if parse_host(host) in second] == []


def test_a_cache_file_that_is_torn_or_has_one_wrong_byte_is_made_again(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    load(tmp_path, LINES, cache)
    (file,) = cached_files(cache)
    whole = file.read_bytes()
    torn = [whole[:size] for size in (0, 1, 10, 200)]
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        for at in range(0, len(whole), 97)
    ]
    for content in (*torn, *flipped):
        file.write_bytes(content)
        assert parse_host("last.example.com") in load(tmp_path, LINES, cache)
        assert file.read_bytes() == whole


@pytest.mark.parametrize("obstacle", ["a file", "no permission"])
def test_without_a_cache_that_can_be_written_a_list_is_in_memory(
    tmp_path: Path, obstacle: str
) -> None:
    cache = tmp_path / "cache"
    if obstacle == "a file":
        cache.touch()
    else:
        cache = Path("/proc/1/lists")
    assert parse_host("last.example.com") in load(tmp_path, LINES, cache)


def test_the_cache_keeps_all_that_is_known_of_a_list(tmp_path: Path) -> None:
    text = "*\n.com\n@@||good.example^\n203.0.113.0/24\n2001:db8::/32\na b\n"
    first, second = (
        load(tmp_path, text, tmp_path / "cache"),
        load(tmp_path, text, tmp_path / "cache"),
    )
    assert first.summary == second.summary
    assert (second.summary.widest, second.summary.wide) == (
        ListLine(1, "*"),
        ListLine(2, ".com"),
    )
    assert second.summary.exception == ListLine(3, "@@||good.example^")
    assert second.summary.prefixes == ((4, 24), (6, 32))
    assert parse_host("x.y.z") in second
    assert parse_host("192.0.2.1") in second


@pytest.mark.system
def test_a_long_list_is_compiled_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(list_compiler, "_LONG_BYTES", 0)
    # would fail if it were called in this process
    monkeypatch.setattr(list_compiler, "_compile", None)
    hosts = load(tmp_path, LINES, cache)
    assert [host for host in IN if parse_host(host) not in hosts] == []


def test_a_list_that_changed_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.example\n")
    digest = list_digest(path)
    path.write_text("b.example\n")
    with pytest.raises(ListChangedError):
        load_list(path, digest, tmp_path / "cache")
    assert cached_files(tmp_path / "cache") == []


def _load_in_child(
    path: Path, digest: str, cache: Path, compiled: Path, together: Any
) -> None:
    make = list_compiler._compile

    def noted(*arguments: Any) -> Any:
        (compiled / str(os.getpid())).touch()
        pause(0.3, "all others ask meanwhile")
        return make(*arguments)

    pytest.MonkeyPatch().setattr(list_compiler, "_compile", noted)
    together.wait(60)
    assert parse_host("host-999.example.com") in load_list(path, digest, cache)


def test_of_several_processes_that_start_together_one_compiles(tmp_path: Path) -> None:
    path, cache, compiled = (
        tmp_path / "list.txt",
        tmp_path / "cache",
        tmp_path / "compiled",
    )
    path.write_text("".join(f"host-{number}.example.com\n" for number in range(1000)))
    compiled.mkdir()
    context = multiprocessing.get_context("spawn")
    arguments = (path, list_digest(path), cache, compiled, context.Barrier(4))
    children = [
        context.Process(target=_load_in_child, args=arguments) for _ in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert len(list(compiled.iterdir())) == 1
    assert sorted(file.suffix for file in cache.iterdir()) == ["", ".hosts"]


def _compile_and_die(path: Path, digest: str, cache: Path, patch: str) -> None:
    def die(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pytest.MonkeyPatch().setattr(patch, die)
    load_list(path, digest, cache)


@pytest.mark.parametrize(
    ("patch", "left"),
    [
        ("squidkeeper.policy.policy_store.list_compiler._Compiler.summary", 0),
        ("squidkeeper.policy.published.list_file.zlib.crc32", 1),
    ],
)
def test_a_process_that_dies_while_it_compiles_leaves_it_to_the_next(
    tmp_path: Path, patch: str, left: int
) -> None:
    path, cache = tmp_path / "list.txt", tmp_path / "cache"
    path.write_text(LINES)
    arguments = (path, list_digest(path), cache, patch)
    child = multiprocessing.get_context("spawn").Process(
        target=_compile_and_die, args=arguments
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert cached_files(cache) == []
    assert len(list(cache.glob("*.part"))) == left
    assert parse_host("last.example.com") in load_list(path, list_digest(path), cache)
    assert len(cached_files(cache)) == 1


@pytest.mark.system
def test_who_comes_after_a_process_that_died_waits_for_the_list_it_had_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "list.txt", tmp_path / "cache"
    path.write_text(
        "".join(f"host-{number}.example.com\n" for number in range(200_000))
    )
    arguments = (path, list_digest(path), cache)
    child = multiprocessing.get_context("spawn").Process(
        target=load_list, args=arguments
    )
    child.start()
    wait_for(lambda: _compiles_for(child.pid), "a process that compiles")
    child.kill()
    child.join()
    for way in ("_compile", "_compile_long"):
        monkeypatch.setattr(
            list_compiler, way, lambda *_: pytest.fail("it was compiled again")
        )
    assert parse_host("host-199999.example.com") in load_list(*arguments)


def _compiles_for(pid: int | None) -> bool:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(
        load_list.__module__ in Path(f"/proc/{child}/cmdline").read_text()
        for child in children
    )


def test_a_compiled_list_is_mapped_from_its_file_and_shared(tmp_path: Path) -> None:
    hosts = load(tmp_path, LINES, tmp_path / "cache")
    (file,) = cached_files(tmp_path / "cache")
    mapped = [
        line.split()
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(file))
    ]
    assert [(columns[1], columns[4]) for columns in mapped] == [
        ("r--s", str(file.stat().st_ino))
    ]
    assert parse_host("last.example.com") in hosts


def test_a_list_in_use_outlives_its_file_and_the_next_one_in_its_place(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    hosts = load(tmp_path, LINES, cache)
    (file,) = cached_files(cache)
    load(tmp_path, "other.example.com\n", cache)
    (cache / "new").write_bytes(b"")
    (cache / "new").replace(file)
    assert [host for host in IN if parse_host(host) not in hosts] == []


@pytest.mark.system
def test_a_long_list_of_each_format_compiles_to_the_same_lookups(
    tmp_path: Path,
) -> None:
    names = [f"host-{number}.example{number % 9}.com" for number in range(20_000)]
    for form in ("||{}^\n", "address=/{}/\n", ".{}\n", "{0} CNAME .\n*.{0} CNAME .\n"):
        hosts = load(
            tmp_path, "".join(form.format(name) for name in names), tmp_path / "cache"
        )
        assert (hosts.summary.patterns, hosts.summary.strange) == (20_000, 0)
        assert all(
            Host(name) in hosts and Host(f"a.{name}") in hosts for name in names[::7]
        )
        assert Host("example1.com") not in hosts
    assert len({file.read_bytes() for file in cached_files(tmp_path / "cache")}) == 1


def test_pruning_keeps_what_is_used_and_the_newest_few(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    names = [f"{number:02}" for number in range(20)]
    for age, name in enumerate(names):
        (cache / f"{name}.hosts").touch()
        os.utime(cache / f"{name}.hosts", (time.time() - age, time.time() - age))
    (cache / "old.1.part").touch()
    os.utime(cache / "old.1.part", (1, 1))
    (cache / "new.2.part").touch()
    (cache / "lock").touch()
    prune_cache(cache, ["19"])
    prune_cache(tmp_path / "gone", [])
    assert sorted(file.name for file in cache.iterdir()) == [
        *(f"{name}.hosts" for name in [*names[:8], "19"]),
        "lock",
        "new.2.part",
    ]
