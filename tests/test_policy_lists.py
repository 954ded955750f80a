"""Long host lists: what their lines mean, and the compiled file that all helpers share."""

from __future__ import annotations

import io
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from squidkeeper.errors import PatternError
from squidkeeper.policy import lists
from squidkeeper.policy.faults import Location
from squidkeeper.policy.hosts import HostPattern, parse_network
from squidkeeper.policy.lists import HostList, Line, ListChangedError, list_digest, load_list, parse_line, prune_cache
from squidkeeper.url import Host, parse_host

PLACE = Location("policy.yaml", 3, 3)
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
0.0.0.0 0.0.0.0

\t
last.example.com"""
IN = [
    *("plain.example.com", "tree.example.com", "a.b.tree.example.com", "a.label.example.com", "a.b.under.example.com"),
    *("upper.example.com", "xn--mnchen-3ya.example", "203.0.113.9", "[2001:db8::1]", "198.51.100.7"),
    *("hosts.example.com", "other.example.com", "tab.example.com", "six.example.com", "zone.example.com"),
    *("last.example.com", "[::ffff:203.0.113.9]"),
]
OUT = [
    *("www.plain.example.com", "label.example.com", "a.b.label.example.com", "under.example.com", "example.com"),
    *("203.0.114.9", "198.51.100.8", "[2001:db9::1]", "localhost", "localhost.localdomain", "local", "broadcasthost"),
    *("ip6-localhost", "127.0.0.1", "0.0.0.0", "255.255.255.255"),
]


def load(tmp_path: Path, text: str | bytes, cache: Path | None = None) -> HostList:
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_list(path, list_digest(path), PLACE, cache)


# --- what lines mean ----------------------------------------------------------------------------------------------


def test_every_form_of_a_line_is_understood(tmp_path: Path) -> None:
    hosts = load(tmp_path, LINES)
    assert hosts.summary.strange == 0
    assert [host for host in IN if parse_host(host) not in hosts] == []
    assert [host for host in OUT if parse_host(host) in hosts] == []


def test_any_host_and_whole_top_level_domains_are_noted(tmp_path: Path) -> None:
    hosts = load(tmp_path, "a.example\n.com\n*\n*.org\n")
    assert hosts.summary.wide == Line(2, ".com")
    assert hosts.summary.widest == Line(3, "*")
    assert parse_host("x.y.z") in hosts
    assert parse_host("192.0.2.1") in hosts


@pytest.mark.parametrize(
    "line", ["a b", "||ads.example^", "https://example.com/", "*.*.com", "0.0.0.0 .example.com", "\x00", "é" * 300]
)
def test_a_line_that_is_not_understood_is_counted_and_left_out(tmp_path: Path, line: str) -> None:
    hosts = load(tmp_path, f"good.example.com\n{line}\nbetter.example.com\n")
    assert (hosts.summary.patterns, hosts.summary.strange) == (2, 1)
    assert hosts.summary.first_strange == (Line(2, line[:60]),)
    assert parse_host("better.example.com") in hosts


def test_a_binary_file_is_lines_that_are_not_understood(tmp_path: Path) -> None:
    hosts = load(tmp_path, bytes(range(256)) * 4096)
    assert hosts.summary.patterns == 0
    assert hosts.summary.strange > 4000
    assert len(hosts.summary.first_strange) == 3


LABELS = st.text("ab-_0é", min_size=1, max_size=4)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
TEXTS = st.one_of(
    st.tuples(st.sampled_from(["", ".", "*.", "**.", "0.0.0.0 ", "127.0.0.1\t", "0.0.0.0  *."]), NAMES).map("".join),
    st.text(max_size=20),
)


@given(st.lists(TEXTS, max_size=8))
@example(["a.localhost", "0.0.0.0 a.localhost", "0.0.0.0 localhost.localdomain"])
@example(["127.0.0.1 a.b\r", ".a\r", "a.b.", "a.0x1"])
@settings(max_examples=300)
def test_the_short_way_for_most_lines_means_what_the_long_way_means(texts: list[str]) -> None:
    lines = [line for text in texts for line in text.split("\n")]
    long: list[HostPattern] = []
    strange = 0
    for line in lines:
        try:
            long += parse_line(line.removeprefix("\ufeff").strip())
        except PatternError:
            strange += 1
    compiler = lists._Compiler()
    keys = list(compiler.keys(io.BytesIO("\n".join(lines).encode())))
    expected = [pattern.key for pattern in long if pattern.network is None]
    assert [key for key in keys if not key.startswith("/")] == expected
    assert (compiler.patterns, compiler.strange) == (len(long), strange)


def test_a_network_is_covered_by_a_wider_one(tmp_path: Path) -> None:
    hosts = load(tmp_path, "203.0.112.0/23\n2001:db8::/32\n")
    assert hosts.covers_network(parse_network("203.0.113.0/24"))
    assert hosts.covers_network(parse_network("2001:db8:1::/48"))
    assert not hosts.covers_network(parse_network("203.0.0.0/16"))
    assert not hosts.covers_network(parse_network("2001:db9::/48"))


# --- the cache ----------------------------------------------------------------------------------------------------


def cached_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.hosts"))


def test_a_list_is_compiled_once_and_then_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "state" / "lists"
    first = load(tmp_path, LINES, cache)
    monkeypatch.setattr(lists, "_compile", None)  # would fail if it were called
    second = load(tmp_path, LINES, cache)
    assert first.summary == second.summary
    assert [host for host in IN if parse_host(host) not in second] == []
    assert [host for host in OUT if parse_host(host) in second] == []


@pytest.mark.parametrize("size", [0, 1, 10, 200])
def test_a_torn_cache_file_is_made_again(tmp_path: Path, size: int) -> None:
    cache = tmp_path / "cache"
    load(tmp_path, LINES, cache)
    (file,) = cached_files(cache)
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    assert parse_host("last.example.com") in load(tmp_path, LINES, cache)
    assert file.read_bytes() == whole


def test_a_cache_file_with_one_wrong_byte_is_made_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load(tmp_path, LINES, cache)
    (file,) = cached_files(cache)
    whole = file.read_bytes()
    for position in range(0, len(whole), 97):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert parse_host("last.example.com") in load(tmp_path, LINES, cache)
        assert file.read_bytes() == whole


@pytest.mark.parametrize("obstacle", ["a file", "no permission"])
def test_without_a_cache_that_can_be_written_a_list_is_in_memory(tmp_path: Path, obstacle: str) -> None:
    cache = tmp_path / "cache"
    if obstacle == "a file":
        cache.touch()
    else:
        cache = Path("/proc/1/lists")
    assert parse_host("last.example.com") in load(tmp_path, LINES, cache)


def test_a_long_list_is_compiled_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(lists, "_LONG_BYTES", 0)
    monkeypatch.setattr(lists, "_compile", None)  # would fail if it were called in this process
    hosts = load(tmp_path, LINES, cache)
    assert [host for host in IN if parse_host(host) not in hosts] == []


def test_a_list_that_changed_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.example\n")
    digest = list_digest(path)
    path.write_text("b.example\n")
    with pytest.raises(ListChangedError):
        load_list(path, digest, PLACE, tmp_path / "cache")
    assert cached_files(tmp_path / "cache") == []


def _load_in_child(path: Path, digest: str, cache: Path) -> None:
    assert parse_host("host-999.example.com") in load_list(path, digest, PLACE, cache)


def test_several_processes_load_the_same_list_at_once(tmp_path: Path) -> None:
    path, cache = tmp_path / "list.txt", tmp_path / "cache"
    path.write_text("".join(f"host-{number}.example.com\n" for number in range(1000)))
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_load_in_child, args=(path, list_digest(path), cache)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0, 0]
    assert len(cached_files(cache)) == 1
    assert sorted(file.suffix for file in cache.iterdir()) == ["", ".hosts"]


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
    assert sorted(file.name for file in cache.iterdir()) == [
        *(f"{name}.hosts" for name in [*names[:8], "19"]),
        "lock",
        "new.2.part",
    ]


def test_pruning_a_cache_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    prune_cache(tmp_path / "gone", [])


def test_a_long_list_is_fast(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    text = "".join(f"0.0.0.0 host-{number}.example{number % 9}.com\n" for number in range(200_000))
    started = time.perf_counter()
    hosts = load(tmp_path, text, cache)
    compiled = time.perf_counter()
    again = load_list(tmp_path / "list.txt", cached_files(cache)[0].stem, PLACE, cache)
    loaded = time.perf_counter()
    assert hosts.summary.patterns == again.summary.patterns == 200_000
    assert compiled - started < 5
    assert loaded - compiled < 0.1
    assert Host("host-199999.example1.com") in again
