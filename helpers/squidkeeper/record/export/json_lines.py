"""The format `json`: records as in the access log, with the same fields in percent-encoding."""

import msgspec

from squidkeeper.record.export.notices import Notice
from squidkeeper.record.export.options import ExportOptions
from squidkeeper.record.log.record import Record

_encoder = msgspec.json.Encoder()


def of_record(record: Record, _: ExportOptions) -> bytes:
    """Write a record as the access log has it."""
    return _encoder.encode(record)


def of_notice(notice: Notice, options: ExportOptions) -> bytes:
    """Write a notice; it has `notice` in place of the `v` of a record."""
    return _encoder.encode(
        {"notice": notice.kind, "time": notice.time, "gateway": options.gateway, "message": notice.message}
        | dict(notice.details)
    )
