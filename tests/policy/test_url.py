"""One authority and every reading of a URL."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.url import (
    Host,
    Reading,
    ReadPath,
    Url,
    is_private,
    parse_address,
    parse_authority,
    parse_host,
    parse_port,
    parse_url,
    read,
    readings,
    sent,
)

NAMES = {
    "EXAMPLE.com": "example.com",
    "example.com.": "example.com",
    "bücher.example": "xn--bcher-kva.example",
    "XN--BCHER-KVA.example": "xn--bcher-kva.example",
    "ｅxample.com": "example.com",
    "_dmarc.example.com": "_dmarc.example.com",
    "1e100.net": "1e100.net",
}
ADDRESSES = {
    "192.0.2.1": "192.0.2.1",
    "2130706433": "127.0.0.1",
    "0x7f.1": "127.0.0.1",
    "0177.0.0.1": "127.0.0.1",
    "127.1": "127.0.0.1",
    "0": "0.0.0.0",
    "127.0.0.1.": "127.0.0.1",
    "[::1]": "::1",
    "::": "::",
    "[::ffff:127.0.0.1]": "127.0.0.1",
    "[2001:DB8::1]": "2001:db8::1",
}
NOT_HOSTS = [
    *(
        "",
        ".",
        "a..b",
        ".a",
        "a b",
        "a\tb",
        "a\nb",
        "a\x00b",
        "a%00b",
        "a/b",
        "a\\b",
        "a@b",
    ),
    *(
        "[name]",
        "[::1",
        "::1]",
        "::1",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "1.2.3.4.5",
        "256.1.1.1",
        "foo.1",
    ),
    *(
        "foo.0x1",
        "a" * 64,
        "é" * 300,
        ".".join(["a" * 60] * 5),
        "\udce9.example",
        "a*b",
        "*.example.com",
    ),
    *("example.com:443", "e\u200dxample.com."),
]


@pytest.mark.parametrize(
    ("text", "host"),
    [
        *((text, Host(name)) for text, name in NAMES.items()),
        *(
            (text, Host(address, ip_address(address)))
            for text, address in ADDRESSES.items()
        ),
    ],
)
def test_a_name_or_an_address_has_one_spelling(text: str, host: Host) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", NOT_HOSTS)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(InvalidUrl):
        parse_host(text)


PRIVATE = [
    *("168.63.129.16", "::10.0.0.5", "::127.0.0.1", "::ffff:0:10.0.0.5"),
    *(
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
    ),
    *(
        "192.0.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ),
    *(
        "::",
        "::1",
        "fc00::1",
        "fd00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "64:ff9b:1::1",
        "::ffff:10.0.0.1",
    ),
    *("64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:a00:1::", "2002:7f00:1::"),
    *("2001:0:a00:1::f5ff:fffe", "2001:0:5db8:d822::f5ff:fffe"),
]
PUBLIC = [
    *(
        "1.1.1.1",
        "93.184.216.34",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
    ),
    *(
        "198.17.0.1",
        "198.20.0.1",
        "203.0.113.1",
        "223.255.255.255",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
    ),
    *("64:ff9b::1.1.1.1", "2002:101:101::", "2001:db8::1"),
]


@pytest.mark.parametrize(
    ("text", "private"),
    [*((one, True) for one in PRIVATE), *((one, False) for one in PUBLIC)],
)
def test_private_addresses_and_those_that_embed_one_are_private(
    text: str, private: bool
) -> None:
    assert is_private(ip_address(text)) is private


def test_a_client_address_is_dotted_or_bare_ipv6_and_nothing_else() -> None:
    assert parse_address("::ffff:192.0.2.7") == ip_address("192.0.2.7")
    assert parse_address("fd00:137::10") == ip_address("fd00:137::10")
    for text in ("", "192.0.2", "localhost", "[::1]", "192.0.2.7/32"):
        with pytest.raises(InvalidUrl):
            parse_address(text)


@pytest.mark.parametrize(
    "text", ["0", "65536", "", "-1", "+80", "8 0", "٣", "80a", "00000000080"]
)
def test_ports_outside_1_to_65535_are_refused(text: str) -> None:
    with pytest.raises(InvalidUrl):
        parse_port(text)


def test_leading_zeros_of_a_port_make_no_difference() -> None:
    assert parse_port("00443") == 443
    assert parse_authority("EXAMPLE.com:00443") == (Host("example.com"), 443)
    assert parse_authority("[::1]") == (Host("::1", ip_address("::1")), None)


URLS = {
    "https://Example.COM": Url("https", Host("example.com"), 443, "/"),
    "HTTP://example.com.:80/a%7eb?x=%7e": Url(
        "http", Host("example.com"), 80, "/a~b", "x=%7e"
    ),
    "https://example.com:8443/é?é": Url(
        "https", Host("example.com"), 8443, "/%C3%A9", "%C3%A9"
    ),
    "https://example.com?x": Url("https", Host("example.com"), 443, "/", "x"),
    "https://example.com/?\x01\x02": Url(
        "https", Host("example.com"), 443, "/", "%01%02"
    ),
    "https://example.com/a?x=[1]|{y}": Url(
        "https", Host("example.com"), 443, "/a", "x=%5B1%5D%7C%7By%7D"
    ),
}
NOT_URLS = {
    "example.com/": "absolute URL",
    "/path": "absolute URL",
    "*": "absolute URL",
    "ftp://example.com/": "scheme",
    "file:///etc/passwd": "scheme",
    "https://user@example.com/": "userinfo",
    "https://user:pw@example.com/": "userinfo",
    "https://evil.example\\@example.com/": "userinfo",
    "https://example.com/#top": "fragment",
    "https://example.com/a#": "fragment",
    "https://example.com:port/": "authority",
    "https://example.com:0/": "port",
    "https://example.com:65536/": "port",
    "https://example.com/%00": "control character",
    "https://example.com/a%0d%0ab": "control character",
    "https://example.com/\x01": "control character",
    "https://example.com/%C2%85": "control character",
    "https://example.com/%": "hexadecimal",
    "https://example.com/%u002e": "hexadecimal",
    "https://example.com/%ff": "UTF-8",
    "https://example.com/\udcff": "UTF-8",
    "https://example.com/%c0%ae%c0%ae/": "UTF-8",
    "https://example.com/%25ff": "UTF-8",
    "https://example.com/%252500": "control character",
    "https://example.com/%25252525252e": "four times",
    "https://example.com/" + "\ufdfa" * 1000: "longer than 8191 characters",
}


@pytest.mark.parametrize(("text", "url"), URLS.items())
def test_a_url_is_taken_apart(text: str, url: Url) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(("text", "why"), NOT_URLS.items())
def test_what_is_no_request_target_is_refused_with_the_reason(
    text: str, why: str
) -> None:
    with pytest.raises(InvalidUrl, match=why):
        readings(parse_url(text).path)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/",
        "http://example.com:8080/a?b=c",
        "https://[2001:db8::1]:8443/",
    ],
)
def test_a_url_is_written_as_it_is_read(url: str) -> None:
    assert str(parse_url(url)) == url


READINGS = {
    "/": ["sent /"],
    "/a/b.c": ["sent /a/b.c"],
    "/a%7Eb": ["sent /a~b"],
    "/a%2fb": ["sent /a%2Fb", "plain /a/b"],
    "/@scope%2fname": ["sent /@scope%2Fname", "plain /@scope/name"],
    "/a/../b": ["sent /a/../b", "resolved /b"],
    "/a/%2e%2e/b": ["sent /a/../b", "resolved /b"],
    "/../../a/.": ["sent /../../a/.", "resolved /a/"],
    "/a//b": ["sent /a//b", "merged /a/b"],
    "/a//../b": ["sent /a//../b", "resolved /a/b", "merged /a/../b", "merged /b"],
    "/a\\b": ["sent /a%5Cb", "decoded /a\\b", "plain /a/b"],
    "/a;v=1/b": ["sent /a;v=1/b", "plain /a/b"],
    "/..;/a": ["sent /..;/a", "plain /../a", "plain /a"],
    "/a%2fb/../c": ["sent /a%2Fb/../c", "resolved /c", "plain /a/b/../c", "plain /a/c"],
    "/a;v=%2f/b": [
        "sent /a;v=%2F/b",
        "decoded /a;v=//b",
        "plain /a/b",
        "decoded /a;v=/b",
        "plain /a//b",
    ],
    "/a;v/%2f": [
        "sent /a;v/%2F",
        "decoded /a;v//",
        "stripped /a/%2F",
        "decoded /a;v/",
        "plain /a//",
        "plain /a/",
    ],
    "/a%5cb": ["sent /a%5Cb", "decoded /a\\b", "plain /a/b"],
    "/a%3bb": ["sent /a%3Bb", "decoded /a;b", "plain /a"],
    "/a%252fb": ["sent /a%252fb", "plain /a%2fb", "twice /a/b"],
    "/%25252541": [
        "sent /%25252541",
        "plain /%252541",
        "twice /%2541",
        "twice /%41",
        "twice /A",
    ],
    "/%c3%a9": ["sent /%C3%A9", "plain /é"],
    "/100%25": ["sent /100%25", "plain /100%"],
    # what Windows drops from the name of a file
    "/admin.": ["sent /admin.", "file /admin"],
    "/admin%20": ["sent /admin%20", "plain /admin ", "plain-file /admin"],
    "/admin...%20./x": [
        *("sent /admin...%20./x", "plain /admin... ./x", "file /admin...%20/x"),
        *("plain-file /admin/x", "plain-file /admin... /x"),
    ],
    "/admin::$DATA": ["sent /admin::$DATA", "file /admin"],
    "/admin:$I30:$INDEX_ALLOCATION/x": [
        "sent /admin:$I30:$INDEX_ALLOCATION/x",
        "file /admin/x",
    ],
    "/%20.%20": ["sent /%20.%20", "plain / . ", "plain-file / ."],
    "/a/..%20/b": [
        "sent /a/..%20/b",
        "plain /a/.. /b",
        "plain-file /a/../b",
        "plain-file /b",
    ],
    "/a%2fb.": ["sent /a%2Fb.", "plain /a/b.", "file /a%2Fb", "plain-file /a/b"],
    "/a;v.": ["sent /a;v.", "plain /a", "file /a;v"],
    "/a/...": ["sent /a/..."],
    "/v1/models/x:get": ["sent /v1/models/x:get"],
    "/x::y/$batch": ["sent /x::y/$batch"],
    # compatibility forms and invisible characters
    "/ａｄｍ": [
        "sent /%EF%BD%81%EF%BD%84%EF%BD%8D",
        "plain /ａｄｍ",
        "plain-file /adm",
    ],  # full-width
    "/a／b": ["sent /a%EF%BC%8Fb", "plain /a／b", "plain-file /a/b"],
    "/a/‥/b": [
        "sent /a/%E2%80%A5/b",
        "plain /a/‥/b",
        "plain-file /a/../b",
        "plain-file /b",
    ],
    "/a；x/b": [
        "sent /a%EF%BC%9Bx/b",
        "plain /a；x/b",
        "decoded-file /a;x/b",
        "plain-file /a/b",
    ],
    "/％41": ["sent /%EF%BC%8541", "plain /％41", "plain-file /%41", "twice-file /A"],
    "/adm\u200bin": ["sent /adm%E2%80%8Bin", "plain /adm\u200bin", "plain-file /admin"],
    "/adm\u00adin": ["sent /adm%C2%ADin", "plain /adm\u00adin", "plain-file /admin"],
    "/e\u0301": ["sent /e%CC%81", "plain /e\u0301", "plain-file /é"],
}


@pytest.mark.parametrize(("path", "expected"), READINGS.items())
def test_every_reading_of_a_path_that_differs_is_given(
    path: str, expected: list[str]
) -> None:
    assert [
        f"{reading.reading} {reading.path}" for reading in readings(sent(path))
    ] == expected


def test_a_path_pattern_is_read_the_way_a_path_is() -> None:
    assert read(Reading.PLAIN, sent("/@scope%2fname")) == "/@scope/name"
    assert read(Reading.SENT, sent("/@scope%2fname")) == "/@scope%2Fname"
    assert read(Reading.FILE, sent("/a./b::$DATA")) == "/a/b"
    assert read(Reading.PLAIN_FILE, sent("/a%20/ｂ\u200b")) == "/a/b"  # full-width
    assert all(read(reading, "/x") == "/x" for reading in Reading)


@pytest.mark.parametrize(
    "unit",
    [
        "/",
        "/..",
        "/%2e%2e",
        "//a;b",
        "/%252f",
        "%2f..",
        "\\..\\",
        "/a%2f..//",
        "a.",
        ":$",
        "%EF%BC%8F",
    ],
)
def test_a_path_of_8191_bytes_that_is_all_dots_slashes_and_escapes_is_read_or_refused(
    unit: str,
) -> None:
    path = ("/" + unit * 8191)[:8191]
    path = path[: len(path) - 3] if "%" in path[-2:] else path
    assert len(readings_or_none(path) or ()) <= 24


@pytest.mark.parametrize(
    "path",
    [
        "/日本（株）./x;y//z",
        "/a;v=1//b%20c/Inc.",
        "/a/../../b//c%2f..",
        "/e\u0301\u200b/a//b;c",
    ],
)
def test_an_odd_path_in_honest_use_has_few_enough_readings(path: str) -> None:
    assert readings_or_none(path) is not None


hostile = st.lists(
    st.sampled_from(
        [
            *(
                "/",
                "//",
                ".",
                "..",
                "a",
                "%2f",
                "%2F",
                "%5c",
                "\\",
                ";x",
                "%2e",
                "%252e",
                "%25",
                "é",
                "~",
                "%41",
            ),
            *(
                "%20",
                "::$DATA",
                ":",
                "$",
                "／",
                "．",
                "％2e",
                "\u200b",
                "\u00ad",
                "e\u0301",
                "ﾠ",
            ),
        ]
    ),
    max_size=12,
).map(lambda parts: "/" + "".join(parts))


def readings_or_none(path: str) -> tuple[ReadPath, ...] | None:
    try:
        return readings(sent(path))
    except InvalidUrl:
        return None


@pytest.mark.parametrize(
    ("path", "served"),
    [
        (
            "/x%2f..%2fadmin/b%5c..%5c..%5c..%5cc",
            "/admin/b\\..\\..\\..\\c",
        ),  # nginx: a backslash is a character of a name
        (
            "/x%2f..%2fadmin/b/..;/..;/..;/c",
            "/admin/b/..;/..;/..;/c",
        ),  # nginx: no parameters
        (
            "/admin;x%2f..%2fb",
            "/admin",
        ),  # a servlet container: parameters end at a slash as it was sent
        (
            "/admin%2fb/../../c",
            "/admin/b/../../c",
        ),  # a WSGI program: the path is decoded and no more
        ("/q/..;/admin%2f..;/../c", "/admin/c"),  # the second behind the first
        ("/admin./x;y", "/admin/x;y"),  # IIS: no parameters
        ("/ａdmin./x", "/ａdmin/x"),  # Windows: full-width characters are others
        (
            "/admin./b%2fx",
            "/admin/b%2Fx",
        ),  # a server on Windows that leaves an escaped slash as it is
        ("/adm%E2%80%8Bin./x", "/admin./x"),  # HFS+: no dots are dropped
    ],
)
def test_what_one_server_makes_of_a_path_is_a_reading_though_another_makes_something_else(
    path: str, served: str
) -> None:
    assert served in [reading.path for reading in readings(sent(path))]


@given(hostile)
def test_what_a_reading_can_be_read_as_is_a_reading_too(path: str) -> None:
    found = readings_or_none(path)
    if found is None:
        return
    assert found[0].path == sent(sent(path))
    paths = {reading.path for reading in found}
    assert len(paths) == len(found) <= 24
    for other in paths:
        assert other.startswith("/")
        assert {again.path for again in readings(other)} <= paths


@given(hostile)
def test_no_reading_with_an_escape_left_is_the_last_word(path: str) -> None:
    escape = re.compile("%[0-9A-Fa-f]{2}")
    found = [reading.path for reading in readings_or_none(path) or ()]
    assert not any(escape.search(reading) for reading in found) or any(
        not escape.search(reading) for reading in found
    )
