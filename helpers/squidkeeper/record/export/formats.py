"""The formats of an export: one row each."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

import msgspec

from squidkeeper.policy.url import RECORDED_URL_LENGTH
from squidkeeper.record.export import cef, ecs, ocsf, otlp
from squidkeeper.record.export.facts import ExportOptions
from squidkeeper.record.export.messages import (
    ArchiveHead,
    Gap,
    Notice,
    archive_head_notice,
    gap_notice,
    usage_notice,
)
from squidkeeper.record.log.record import (
    LENGTHS,
    NONE,
    Record,
    decode_field,
    redacted_url,
)
from squidkeeper.record.usage_ledger import UsageEntry

_encoder = msgspec.json.Encoder()
_SHORTEST: Final = 16  # characters that are left of a text in any case


def _record_as_json(record: Record, _: ExportOptions) -> bytes:
    return _encoder.encode(record)


def _notice_as_json(notice: Notice, options: ExportOptions) -> bytes:
    """Write a notice; it has `notice` in place of the `v` of a record."""
    return _encoder.encode(
        {
            "notice": notice.kind,
            "time": notice.time,
            "gateway": options.gateway,
            "message": notice.message,
        }
        | dict(notice.details)
    )


def _lines(messages: Sequence[bytes], _: ExportOptions) -> bytes:
    return b"".join(message + b"\n" for message in messages)


def _none(_: bytes) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Format:
    """How a record that is `leaving` and a notice are written, and several of them as
    one body over https.
    """

    of_record: Callable[[Record, ExportOptions], bytes]
    of_notice: Callable[[Notice, ExportOptions], bytes]
    content_type: str = "application/x-ndjson"
    body: Callable[[Sequence[bytes], ExportOptions], bytes] = _lines
    rejected: Callable[[bytes], int] = (
        _none  # in a good answer: how many of the messages are not taken
    )
    is_text: bool = True  # a message is a line; else it can only be a part of a body


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "ocsf": Format(ocsf.of_record, ocsf.of_notice),
        "ecs": Format(ecs.of_record, ecs.of_notice),
        "cef": Format(cef.of_record, cef.of_notice, "text/plain; charset=utf-8"),
        "otlp": Format(
            otlp.of_record,
            otlp.of_notice,
            otlp.CONTENT_TYPE,
            otlp.body,
            otlp.rejected,
            is_text=False,
        ),
        "json": Format(_record_as_json, _notice_as_json),
    }
)


class MessageEncoder:
    """Writes messages in one format."""

    def __init__(self, name: str, options: ExportOptions) -> None:
        self._format = FORMATS[name]
        self._options = options
        self.content_type = self._format.content_type
        self.rejected = self._format.rejected

    def record(self, record: Record) -> bytes:
        """Write a record; one that is longer than a message may be has its texts cut
        off.
        """
        record = leaving(record, full_urls=self._options.full_urls)
        message, characters = (
            self._format.of_record(record, self._options),
            RECORDED_URL_LENGTH,
        )
        while (
            self._options.longest
            and len(message) > self._options.longest
            and characters > _SHORTEST
        ):
            characters //= 2
            message = self._format.of_record(
                shortened(record, characters), self._options
            )
        return message

    def gap(self, gap: Gap) -> bytes:
        """Write the notice about a gap."""
        return self._format.of_notice(gap_notice(gap), self._options)

    def archive_head(self, head: ArchiveHead) -> bytes:
        """Write the notice about the head of the archive."""
        return self._format.of_notice(archive_head_notice(head), self._options)

    def usage(self, entry: UsageEntry) -> bytes:
        """Write the notice about what a metered request used."""
        return self._format.of_notice(usage_notice(entry), self._options)

    def body(self, messages: Sequence[bytes]) -> bytes:
        """Write messages as the body of one request over https."""
        return self._format.body(messages, self._options)


_PLAIN: Final = re.compile(r"https?://[^/\\?#\s]", re.IGNORECASE)
_UNESCAPED: Final = "".join(
    chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%<>\\'
)


def leaving(record: Record, *, full_urls: bool) -> Record:
    """Return a record without what must not leave."""
    return msgspec.structs.replace(
        record,
        url=record.url if full_urls else redacted_url(record.url),
        fetched=record.fetched if full_urls else _changed(record.fetched, redacted_url),
        referrer=_changed(record.referrer, redacted_url)
        if _is_plain(record.referrer)
        else NONE,
    )


def shortened(record: Record, characters: int) -> Record:
    """Cut off each text that others choose at a number of characters.

    An escape may be cut too, as Squid does it.
    """
    cut = {
        name: value[:characters]
        for name in LENGTHS
        if len(value := getattr(record, name)) > characters
    }
    return msgspec.structs.replace(record, **cut)


def _changed(field: str, change: Callable[[str], str]) -> str:
    url = decode_field(field)
    return NONE if url is None else quote(change(url), safe=_UNESCAPED)


def _is_plain(referrer: str) -> bool:
    """Whether a referrer is an http(s) URL, and not cut off so early that a password in
    it does not end in `@`.
    """
    url = decode_field(referrer) or ""
    return bool(_PLAIN.match(url)) and (
        len(referrer) < LENGTHS["referrer"] or "/" in url.partition("://")[2]
    )
