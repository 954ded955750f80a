"""The ledger of usage: what its lines add up to, how they are written and read."""

from __future__ import annotations

import os
import random
import re
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidEntry
from squidkeeper.base.rotated_logs import rotated
from squidkeeper.record import usage_ledger
from squidkeeper.record.usage_ledger import (
    Amounts,
    MeteredRequest,
    UsageEntry,
    UsageState,
    append_entry,
    latest,
    ledger_file,
    ledger_files,
    parse_entry,
    read_entries,
    recorded_text,
    usage_entry,
)

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
RESERVE = Amounts(1000, 4096, 900)
USED = Amounts(800, 120, 70, cached_in=512)


def request(number: int) -> MeteredRequest:
    return MeteredRequest(
        f"1.2.3.{number}", "192.168.137.2", "-", "models", "0123456789ab", "api.example"
    )


def opened(number: int, reserve: Amounts = RESERVE, at: datetime = NOON) -> UsageEntry:
    return usage_entry(request(number), at, "gpt-4o", reserve)


def settled(
    number: int,
    used: Amounts = USED,
    reserve: Amounts = RESERVE,
    state: UsageState = UsageState.METERED,
    at: datetime = NOON,
) -> UsageEntry:
    return usage_entry(request(number), at, "gpt-4o-2024-08-06", used, reserve, state)


def tokens(entry: UsageEntry) -> int:
    return entry.tokens_in + entry.tokens_out


# --- what the lines add up to ---------------------------------------------------------

AMOUNTS = st.builds(Amounts, *[st.integers(0, 10**6)] * 3)
# killed ahead of its end; not readable; metered
END = st.one_of(st.none(), st.just("reserved"), AMOUNTS)


@given(
    st.lists(st.tuples(AMOUNTS, END), max_size=12),
    st.randoms(use_true_random=False),
    st.data(),
)
def test_the_lines_add_up_to_what_a_store_counts_wherever_they_are_cut(
    requests: list[tuple[Amounts, Amounts | str | None]],
    order: random.Random,
    data: st.DataObject,
) -> None:
    """A store holds a reserve, and at the end adds what was used and releases it."""
    steps = [
        (number, step)
        for number, (_, end) in enumerate(requests)
        for step in ("open", "end")[: 1 + bool(end)]
    ]
    steps.sort(
        key=lambda step: (
            (order.random(), step) if step[1] == "open" else (2 + order.random(), step)
        )
    )
    lines, held, added = [], dict[int, Amounts](), [0, 0]
    for number, step in steps[: data.draw(st.integers(0, len(steps)))]:
        reserve, end = requests[number]
        if step == "open":
            held[number] = reserve
            lines.append(opened(number, reserve))
            continue
        used = end if isinstance(end, Amounts) else reserve
        state = UsageState.METERED if isinstance(end, Amounts) else UsageState.RESERVED
        del held[number]
        added = [added[0] + used.tokens_in + used.tokens_out, added[1] + used.cost]
        lines.append(settled(number, used, reserve, state))
    counted = [
        added[0] + sum(one.tokens_in + one.tokens_out for one in held.values()),
        added[1] + sum(one.cost for one in held.values()),
    ]
    order.shuffle(lines)
    assert counted == [
        sum(tokens(line) - line.reserved_in - line.reserved_out for line in lines),
        sum(line.cost - line.reserved_cost for line in lines),
    ]
    kept = latest(lines).values()
    assert counted == [sum(map(tokens, kept)), sum(line.cost for line in kept)]


def test_the_line_of_the_document_has_the_fields_of_an_entry() -> None:
    document = (
        (Path(__file__).parents[2] / "squid/observe/RECORD.md")
        .read_text()
        .partition("\n## Usage\n")[2]
    )
    line = next(line for line in document.splitlines() if line.startswith("{"))
    assert msgspec.json.encode(parse_entry(line.encode())).decode() == line
    assert set(re.findall(r"`(\w+)`", document)) >= {
        "state",
        "settled",
        "model",
        "tokens_in",
        "tokens_out",
        "cost",
    }


# --- writing and reading --------------------------------------------------------------


def test_a_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = ledger_file(tmp_path)
    file.parent.parent.mkdir()
    written = [opened(1), settled(1), opened(2)]
    for entry in written:
        append_entry(file, entry)
    assert list(read_entries(ledger_files(tmp_path))) == written
    assert file.read_bytes().startswith(
        b'{"v":1,"time":"2026-11-25T12:00:00.000Z","request_id":"1.2.3.1",'
    )
    assert file.stat().st_mode & 0o777 == 0o640


def test_nothing_is_read_where_nothing_was_metered(tmp_path: Path) -> None:
    assert list(read_entries(ledger_files(tmp_path))) == []


def test_a_line_that_was_cut_costs_no_other_line(tmp_path: Path) -> None:
    file = ledger_file(tmp_path)
    file.parent.mkdir(parents=True)
    append_entry(file, opened(1))
    with file.open("ab") as writing:
        writing.write(b'{"v":1,"time":"2026-11-25T1')
    append_entry(file, opened(2))
    assert [entry.request_id for entry in read_entries([file])] == [
        "1.2.3.1",
        "1.2.3.2",
    ]


def _append_many(file: Path, numbers: range) -> None:
    for number in numbers:
        append_entry(file, opened(number))


@pytest.mark.system
def test_processes_write_at_once_and_lose_no_line_when_the_file_is_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ledger_file(tmp_path)
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(usage_ledger, "FILE_BYTES", 1_000)
    with ProcessPoolExecutor(4) as pool:
        list(
            pool.map(
                _append_many,
                [file] * 4,
                [range(start, start + 100) for start in range(0, 400, 100)],
            )
        )
    assert len(latest(read_entries(ledger_files(tmp_path)))) == 400
    assert len(rotated(file)) > 3


def test_a_day_has_its_own_file_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, now = ledger_file(tmp_path), datetime.now(UTC)
    file.parent.mkdir(parents=True)
    for days_ago in (100, 2, 1, 0):
        at = now - timedelta(days=days_ago)
        append_entry(file, opened(days_ago, at=at))
        os.utime(file, (at.timestamp(), at.timestamp()))
    assert [entry.request_id[-1] for entry in read_entries(ledger_files(tmp_path))] == [
        "2",
        "1",
        "0",
    ]
    assert [path.name[:20] for path in rotated(file)] == [
        f"usage.jsonl-{now - timedelta(days=days):%Y%m%d}" for days in (1, 0)
    ]
    monkeypatch.setattr(usage_ledger, "LEDGER_BYTES", 100)
    append_entry(file, opened(9, at=now + timedelta(days=1)))
    assert rotated(file) == []


def test_one_client_removes_its_own_lines_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the bound, and not the lines of everybody."""
    file = ledger_file(tmp_path)
    file.parent.mkdir(parents=True)
    line = len(msgspec.json.encode(opened(1))) + 1
    monkeypatch.setattr(usage_ledger, "FILE_BYTES", 40 * line)
    monkeypatch.setattr(usage_ledger, "LEDGER_BYTES", 200 * line)
    others = [
        msgspec.structs.replace(opened(number), client=f"192.0.2.{number % 6}")
        for number in range(60)
    ]
    for entry in others:
        append_entry(file, entry)
    for number in range(600):  # from all addresses of its network
        client = f"2001:db8::{number:x}"
        append_entry(file, msgspec.structs.replace(opened(number), client=client))
    kept = [*read_entries(ledger_files(tmp_path))]
    assert [entry for entry in kept if ":" not in entry.client] == others
    assert 100 < len(kept) < 300
    for number in range(600):  # nobody has more than a share: the oldest go
        client = f"198.51.100.{number % 200}"
        append_entry(file, msgspec.structs.replace(opened(number), client=client))
    assert len([*read_entries(ledger_files(tmp_path))]) < 300


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    file = ledger_file(tmp_path)
    file.parent.mkdir(parents=True)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="usage"):
        append_entry(file, opened(1))
    (tmp_path / "elsewhere").touch()
    with pytest.raises(OSError, match="usage"):
        list(read_entries([file]))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("gpt-4o", "gpt-4o"),
        ("models/gemini-2.5-pro", "models/gemini-2.5-pro"),
        ("-", "%2D"),
        ("", "-"),
        (None, "-"),
        ('a"b\n\x1b[31m', "a%22b%0A%1B[31m"),
        ("é\ud800", "%C3%A9%ED%A0%80"),
        ("x" * 1_000_000, "x" * 100),
    ],
)
def test_the_name_of_a_model_is_cut_and_encoded(name: str | None, shown: str) -> None:
    entry = usage_entry(request(1), NOON, name, USED)
    assert entry.model == shown == recorded_text(name)
    assert parse_entry(msgspec.json.encode(entry)) == entry


def test_no_number_is_written_that_cannot_be_read() -> None:
    entry = usage_entry(
        request(1), NOON, "m", Amounts(-1, 10**30, 7), RESERVE, UsageState.METERED
    )
    assert (entry.tokens_in, entry.tokens_out, entry.cost) == (0, 2**53 - 1, 7)
    assert parse_entry(msgspec.json.encode(entry)) == entry


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"v":2',
        msgspec.json.encode({"v": 1, "time": "2026-11-25"}),
    ],
)
def test_other_lines_are_no_entries(line: bytes) -> None:
    with pytest.raises(InvalidEntry):
        parse_entry(line)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("v", 2),
        ("time", "noon"),
        ("tokens_in", -1),
        ("tokens_in", "5"),
        ("cost", 2**53),
        ("state", "free"),
    ],
)
def test_a_line_with_another_value_is_no_entry(field: str, value: object) -> None:
    line = msgspec.json.encode(msgspec.to_builtins(settled(1)) | {field: value})
    with pytest.raises(InvalidEntry):
        parse_entry(line)
