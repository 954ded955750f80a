"""The record: one definition for Squid, for the program and for the documentation."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from squidkeeper.base.errors import InvalidRecord
from squidkeeper.configuration.log_format import log_formats
from squidkeeper.configuration.rendering.lines import PLACEHOLDERS
from squidkeeper.configuration.rendering.values import Values
from squidkeeper.policy.url import (
    LONG_URL,
    RECORDED_URL_LENGTH,
    is_unusual,
    recorded_url,
)
from squidkeeper.record.log.record import (
    GATEWAY_LENGTH,
    LENGTHS,
    LINE_LENGTH,
    NONE,
    VERSION,
    Record,
    decode_field,
    parse_record,
    truncated_fields,
)

REPOSITORY = Path(__file__).parents[2]
FIELDS = {field.name: field.type for field in msgspec.structs.fields(Record)}
PLAIN = {  # what Squid makes itself, or writes in percent-encoding in any case
    "%{user_}note",  # the helper writes it so
    "%err_code",  # one of Squid's names
    *("%>a", "%>ru", "%<a", "%<pt", "%Ss/%Sh", "%transport::>connection_id"),
    *("gateway.%tS.%master_xaction.%>p", "%>p"),
    *(
        "-",
        "${process_number}",
    ),  # the name of the gateway, as install.sh writes it; a number
    "%Y-%m-%dT%H:%M:%S}tg.%03tuZ",
}


def logformat() -> str:
    content_type = str(PLACEHOLDERS["CONTENT_TYPE"](Values()))
    return (
        log_formats()["LOG_FORMAT"]
        .replace("@CONTENT_TYPE@", content_type)
        .replace("\\\n", "")
        .removeprefix("logformat squidkeeper %{")
    )


def logged() -> list[tuple[str, str]]:
    """The fields of the logformat, each with its code; a text's code in its quotes."""
    return re.findall(r'"([a-z_]+)":("[^"]*"|[^,}"]+)', logformat())


def documented() -> list[list[str]]:
    """The rows of the documentation's table: field, type, meaning, when there is none,
    how it is written.
    """
    page = (REPOSITORY / "squid/observe/RECORD.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    return [row for row in rows if len(row) == 4]


def test_squid_logs_the_fields_of_a_record_in_their_order() -> None:
    assert [name for name, _ in logged()] == list(FIELDS)


def test_squid_quotes_text_and_only_text() -> None:
    assert {name: code.startswith('"') for name, code in logged()} == {
        name: kind is str for name, kind in FIELDS.items()
    }


def test_text_that_a_client_can_choose_is_percent_encoded() -> None:
    codes = {
        name: without_length(code) for name, code in logged() if code.startswith('"')
    }
    assert {
        name: code
        for name, code in codes.items()
        if not code.startswith("%#") and code not in PLAIN
    } == {}


def without_length(code: str) -> str:
    return re.sub(r"^(%#?)\.\d+", r"\1", code.strip('"'))


def test_every_text_that_others_choose_is_cut_off_at_its_length_and_so_is_the_line() -> (
    None
):
    lengths = {name: re.match(r'"%#?\.(\d+)', code) for name, code in logged()}
    assert {
        name: int(length[1]) for name, length in lengths.items() if length
    } == LENGTHS
    assert {
        name for name in FIELDS if name not in LENGTHS and FIELDS[name] is str
    } == OF_SQUIDS_CHOICE
    assert sum(LENGTHS.values()) + len(logformat()) + OF_SQUID_AT_MOST < LINE_LENGTH


OF_SQUIDS_CHOICE = {
    "time",
    "client",
    "upstream",
    "upstream_ms",
    "squid",
    "connection",
    "request_id",
    "client_port",
    "gateway",
    "worker",
    "session",
}
# a time, addresses, numbers, a result and a way, a connection, a request ID, a port, a
# worker, the gateway twice
OF_SQUID_AT_MOST = 24 + 2 * 45 + 6 * 20 + 60 + 20 + 45 + 5 + 5 + 2 * GATEWAY_LENGTH


def test_squid_asks_about_long_and_unusual_urls_as_the_program_takes_it() -> None:
    unusual = str(PLACEHOLDERS["UNUSUAL_URL"](Values()))
    assert RECORDED_URL_LENGTH // 3 < LONG_URL <= RECORDED_URL_LENGTH // 3 + 1
    samples = [
        "",
        "a" * (LONG_URL - 1),
        "a" * LONG_URL,
        *(f"a{chr(code)}b" for code in range(0x21, 0x7F)),
    ]
    for sample in samples:
        decoded = sample.replace("%", "\x00")  # it stays, as it escapes nothing
        assert is_unusual(sample) == (re.match(unusual, decoded) is not None), sample
    assert is_unusual("%61" * LONG_URL)
    assert not is_unusual("%61" * (LONG_URL - 1))
    assert is_unusual("%2561")


def test_a_url_is_recorded_as_squid_writes_it() -> None:
    every_byte = bytes(range(0x21, 0x100)).decode("utf-8", "surrogateescape")
    assert recorded_url(every_byte) == (
        "!%22%23$%&%27()*+,-./0123456789:;%3C=%3E?@ABCDEFGHIJKLMNOPQRSTUVWXYZ%5B%5C%5D%5E_%60abcdefghijklmnopqrstuvwxyz"
        "%7B%7C%7D%7E" + "".join(f"%{code:02X}" for code in range(0x7F, 0x100))
    )


OLDEST = (
    *(
        "v",
        "time",
        "client",
        "user",
        "method",
        "url",
        "status",
        "bytes",
        "duration_ms",
        "verdict",
        "rule",
        "revision",
    ),
    *(
        "credential",
        "fetched",
        "sni",
        "tunnel",
        "upstream",
        "upstream_ms",
        "error",
        "user_agent",
        "squid",
        "connection",
    ),
)


def test_a_line_of_before_the_newest_fields_is_read() -> None:
    newer = [name for name in FIELDS if name not in OLDEST]
    old = {name: value for name, value in json.loads(LINE).items() if name not in newer}
    record = parse_record(json.dumps({**old, "url": "u" * 8000}).encode())
    assert {name for name in newer if getattr(record, name) != NONE} == {
        "request_bytes"
    }
    assert record.request_bytes == 0
    assert truncated_fields(record) == ()


@pytest.mark.parametrize(
    "name", ["url", "fetched", "sni", "tunnel", "user", "credential", "method"]
)
def test_a_field_as_long_as_a_line_has_room_for_is_taken_for_one_that_is_cut_off(
    name: str,
) -> None:
    record = msgspec.structs.replace(
        parse_record(LINE.encode()), **{name: "x" * LENGTHS[name]}
    )
    assert truncated_fields(record) == (name,)
    assert (
        truncated_fields(
            msgspec.structs.replace(record, **{name: "x"}, user_agent="x" * 256)
        )
        == ()
    )


def test_the_documentation_has_every_field_with_its_type() -> None:
    kinds = {"number": int, "text": str}
    assert [(row[0].strip("`"), kinds[row[1]]) for row in documented()] == list(
        FIELDS.items()
    )


def test_the_documentation_shows_a_record_that_parses() -> None:
    page = (REPOSITORY / "squid/observe/RECORD.md").read_text()
    of_records = page.partition("\n## Usage\n")[0]
    shown = [
        parse_record(line.encode())
        for line in of_records.splitlines()
        if line.startswith('{"v":')
    ]
    assert shown
    assert f"`v` is {VERSION}" in page


LINE = json.dumps({name: 1 if kind is int else "x" for name, kind in FIELDS.items()})


def test_a_field_that_a_later_release_adds_is_no_fault() -> None:
    assert parse_record(
        json.dumps({**json.loads(LINE), "later": 1}).encode()
    ) == parse_record(LINE.encode())


INVALID = {
    "": "not a squidkeeper record",
    "{": "not a squidkeeper record",
    "[]": "not a squidkeeper record",
    "1764000000.000 5 10.0.0.1 TCP_MISS/200 500 GET http://x/ - HIER_DIRECT/1.2.3.4 -": "not a squidkeeper record",
    LINE.replace('"v": 1', '"v": 2'): "version 2 of the record format, expected 1",
    LINE.replace('"status": 1', '"status": "1"'): "not a squidkeeper record",
    LINE.replace('"url": "x", ', ""): "not a squidkeeper record",
    LINE.replace('"url": "x"', '"url": "\x1b"'): "not a squidkeeper record",
    LINE[:-1]: "not a squidkeeper record",
    f'{LINE[:-1]}, "later": {"[" * 100_000}{"]" * 100_000}}}': "not a squidkeeper record",
}


@pytest.mark.parametrize("line", INVALID, ids=range(len(INVALID)))
def test_what_is_no_record_is_refused_with_the_reason(line: str) -> None:
    with pytest.raises(InvalidRecord) as error:
        parse_record(line.encode())
    assert str(error.value).startswith(INVALID[line])


def test_bytes_that_are_not_utf_8_are_no_record() -> None:
    with pytest.raises(InvalidRecord):
        parse_record(LINE.encode().replace(b'"url": "x"', b'"url": "\xff"'))


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (NONE, None),
        ("a%20b", "a b"),
        ("%E2%82%AC", "€"),
        ("%ff", "\ufffd"),
        ("%", "%"),
        ("", ""),
    ],
)
def test_a_value_is_decoded_for_people(value: str, meant: str | None) -> None:
    assert decode_field(value) == meant
