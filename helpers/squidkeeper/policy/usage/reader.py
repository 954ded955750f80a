"""Reads the usage from an answer while the answer passes.

A reader keeps the counts that it has found, and what has not come whole: at most 4 KB
of an event and 16 KB of a usage. So an answer may be of any length. A usage that an API
reports too small cannot be told from a true one.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from typing import Final

from squidkeeper.policy.usage.counting import Counts, read_counts, read_text, usage_of
from squidkeeper.policy.usage.forms import UsageForm, form_of
from squidkeeper.policy.usage.members import Found, MemberScanner, path_of
from squidkeeper.policy.usage.tokens import NOTHING_USED, Unmetered, Usage

_FIRST_ERROR: Final = 400
# somebody on the way: the model may have generated until then
_GAVE_UP: Final = frozenset({408, 499, 504, 524})
_LATE: Final = Unmetered("the answer did not come in time")
_UNKNOWN: Final = Unmetered("no form of answers is known for this path")
_ENCODED: Final = Unmetered("the answer is encoded")
_TYPE: Final = Unmetered("the answer is neither JSON nor a stream of events")
_NO_USAGE: Final = "the answer reports no usage"
_NOT_PLAIN: Final = "the answer is not plainly of this API"
_CUT: Final = "the answer was cut off"
_LATER: Final = "the answer is still being generated"
_UNFINISHED: Final = frozenset({"queued", "in_progress"})
_JSON, _EVENTS = "application/json", "text/event-stream"


class UsageReader:
    """Reads one answer. It raises nothing, whatever the bytes are.

    `is_read_again`: the answer may have been counted before.
    """

    __slots__ = ("_body", "_report", "_settled")

    def __init__(
        self,
        form: UsageForm | None,
        *,
        is_stream: bool = False,
        is_read_again: bool = False,
    ) -> None:
        self._settled: Usage | Unmetered = _UNKNOWN
        self._report = (
            _ReportedUsage(form, is_read_again=is_read_again)
            if form is not None
            else None
        )
        self._body = (
            (_Events if is_stream else _Document)(self._report)
            if self._report is not None
            else None
        )

    @classmethod
    def settled(cls, outcome: Usage | Unmetered) -> UsageReader:
        """Return the reader of an answer whose body tells nothing."""
        reader = cls(None)
        reader._settled = outcome
        return reader

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body, cut anywhere."""
        if self._body is not None:
            self._body.feed(data)

    def end(self, *, whole: bool) -> Usage | Unmetered:
        """Return what the answer reports. `whole`: all of the body has come."""
        if self._body is None or self._report is None:
            return self._settled
        self._body.end(whole=whole)
        return self._report.outcome(whole=whole)


def reader_for(
    method: str, target: str, status: int, headers: Iterable[tuple[str, str]]
) -> UsageReader:
    """Return the reader of an answer, by its request (`target` is path and query), its
    status and its headers.

    An answer of status 400 or more uses nothing, and its reader ends with a `Usage` of
    zero. That is not so where somebody gave up waiting for it.
    """
    form = form_of(method, target)
    if status in _GAVE_UP:
        return UsageReader.settled(_LATE)
    if status >= _FIRST_ERROR or (form is not None and form.uses_nothing):
        return UsageReader.settled(NOTHING_USED)
    fields = [(name.lower(), value.strip().lower()) for name, value in headers]
    if any(value != "identity" for name, value in fields if name == "content-encoding"):
        return UsageReader.settled(_ENCODED)
    types = [
        value.partition(";")[0].strip()
        for name, value in fields
        if name == "content-type"
    ]
    if form is not None and types not in ([_JSON], [_EVENTS]):
        return UsageReader.settled(_TYPE)
    return UsageReader(
        form, is_stream=types == [_EVENTS], is_read_again=method != "POST"
    )


class _ReportedUsage:
    """What an answer has reported until now."""

    __slots__ = (
        *(
            "_answer_id",
            "_counts",
            "_is_background",
            "_is_final",
            "_is_read_again",
            "_model",
            "_reason",
        ),
        *("events", "form", "is_finished"),
    )

    def __init__(self, form: UsageForm, *, is_read_again: bool) -> None:
        self.form = form
        self.events = 0
        self.is_finished = False  # nothing follows that could report another usage
        self._model = ""
        self._answer_id = ""
        self._counts: Counts | None = {}
        self._is_final = False  # the usage is that of the whole answer
        self._is_background = True  # for all that is known
        self._is_read_again = is_read_again
        self._reason = _NO_USAGE

    def add(self, found: Found) -> None:
        """Read the members of an answer, or of an event."""
        self._model = read_text(self._written(found, self.form.model)) or self._model
        if self.form.can_be_read_again:
            self._answer_id = read_text(self._written(found, "id")) or self._answer_id
            self._is_background = self._written(found, "background") != b"false"
            if read_text(self._written(found, "status")) in _UNFINISHED:
                self._reason = _LATER
                return
        written = self._written(found, self.form.usage)
        if written != b"null":
            self._add_usage(written, in_envelope=path_of(self.form.usage) not in found)

    def _written(self, found: Found, name: str) -> bytes:
        member = found.get(path_of(f"{self.form.envelope}.{name}")) or found.get(
            path_of(name)
        )
        return b"null" if member is None else member.value

    def _add_usage(self, written: bytes, *, in_envelope: bool) -> None:
        counts = read_counts(self.form, written)
        if counts is None or self._counts is None:
            self.spoil()
        elif self.form.is_cumulative:
            self._counts.update(counts)
            self._is_final = not in_envelope
        else:
            self._counts, self._is_final = counts, True
            self.is_finished = in_envelope

    def spoil(self) -> None:
        """Note that the answer is not plain, so that nothing of it counts."""
        self._counts, self._reason = None, _NOT_PLAIN

    def outcome(self, *, whole: bool) -> Usage | Unmetered:
        """Return what the answer reports."""
        is_polled = self._reason == _LATER and not self.events
        if self._is_read_again and (is_polled or not self._is_background):
            # an answer counts where it was generated; one in the background when it is
            # done
            return NOTHING_USED
        answer_id = self._answer_id if self._is_background else ""
        usage = usage_of(self.form, self._counts or {}, self._model, answer_id)
        is_whole = whole or self.is_finished
        if usage is not None and self._is_final and is_whole:
            return usage
        reason = _NOT_PLAIN if self._counts and usage is None else self._reason
        least = usage or NOTHING_USED
        return Unmetered(
            reason if is_whole else _CUT,
            least.tokens_in,
            max(self.events, least.tokens_out),
            answer_id,
        )


class _Document:
    """Reads an answer in JSON: one object, or an array of them where the form streams
    that.
    """

    __slots__ = ("_report", "_scanner")

    def __init__(self, report: _ReportedUsage) -> None:
        self._report = report
        self._scanner = MemberScanner(report.form.wanted, is_array=report.form.is_array)

    def feed(self, data: bytes) -> None:
        self._scanner.feed(data)
        for found in self._scanner.objects:
            self._report.add(found)
        self._scanner.objects.clear()

    def end(self, *, whole: bool) -> None:
        if whole and not self._scanner.is_whole:
            self._report.spoil()


_HELD_AT_MOST: Final = 4096  # bytes of an event; a longer one is read as it comes
_FIELD: Final = b"data:"
_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?!\n)")
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")


class _Events:
    """Reads a stream of server-sent events (HTML Standard, 9.2).

    Only events that can have a usage are parsed.
    """

    __slots__ = (
        "_head",
        "_is_data",
        "_is_first",
        "_last",
        "_report",
        "_rest",
        "_scanner",
    )

    def __init__(self, report: _ReportedUsage) -> None:
        self._report = report
        self._rest = b""
        self._last = b""  # the last event with a usage, as long as it is not read
        self._is_first = True
        self._scanner: MemberScanner | None = None  # of the event that is being read
        self._head = b""  # of the line that is being read
        self._is_data: bool | None = (
            None  # whether it is one of data; None: the head does not tell
        )

    def feed(self, data: bytes) -> None:
        data = self._without_mark(self._rest + data)
        *events, rest = _EVENT_END.split(data) if b"\r" in data else data.split(b"\n\n")
        for event in events:
            self._add(event)
        if self._scanner is None:
            rest = rest.lstrip(b"\r\n")
        # a line may end here in two bytes, and the event with one more
        length = len(rest.rstrip(b"\r\n"))
        if self._scanner is not None or length > _HELD_AT_MOST:
            self._read_long(rest[:length])
            rest = rest[length:]
        self._rest = rest

    def end(self, *, whole: bool) -> None:
        """Read the events that are left. Some servers do not end the last one."""
        if whole and (self._rest or self._scanner is not None):
            self.feed(b"\n\n")
        self._read_last()

    def _add(self, event: bytes) -> None:
        event = event if self._scanner is not None else event.lstrip(b"\r\n")
        if self._scanner is not None or len(event) > _HELD_AT_MOST:
            self._read_long(event)
            self._end_event()
            return
        form = self._report.form
        self._report.events += event[:1] not in (b"", b":")
        if form.mark in event and form.marked.search(event):
            if form.is_cumulative:
                self._read_last()
            self._last = event
        elif form.last_event and event.startswith(form.last_event):
            self._report.is_finished = True

    def _read_long(self, part: bytes) -> None:
        """Read a part of a long event, after the last one with a usage."""
        if self._scanner is None:
            self._report.events += not part.startswith(b":")
            self._read_last()
        self._read(part)

    def _read_last(self) -> None:
        if self._last:
            self._read(self._last)
            self._last = b""
            self._end_event()

    def _without_mark(self, data: bytes) -> bytes:
        """Take off the byte order mark that a stream may begin with."""
        if not self._is_first or codecs.BOM_UTF8.startswith(data):
            return data
        self._is_first = False
        return data.removeprefix(codecs.BOM_UTF8)

    def _read(self, part: bytes) -> None:
        """Read a part of an event, which does not end within the end of a line."""
        self._scanner = self._scanner or MemberScanner(self._report.form.wanted)
        first, *lines = _LINE_END.split(part)
        self._read_line(first)
        for line in lines:
            self._end_line()
            self._read_line(line)

    def _read_line(self, part: bytes) -> None:
        if self._is_data is None:
            part = self._head + part
            self._head = part[: len(_FIELD)]
            if len(self._head) < len(_FIELD):
                return
            self._is_data = self._head == _FIELD
            part = part[len(_FIELD) :]
        if self._is_data and self._scanner is not None:
            self._scanner.feed(part)

    def _end_line(self) -> None:
        self._head, self._is_data = b"", None

    def _end_event(self) -> None:
        scanner, self._scanner = self._scanner, None
        self._end_line()
        if scanner is None:
            return
        if not scanner.is_whole:
            self._report.spoil()
        for found in scanner.objects:
            self._report.add(found)
