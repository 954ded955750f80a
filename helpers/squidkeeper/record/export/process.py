"""The process of one or more exports: a thread each, until SIGTERM."""

import logging
import os
import resource
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from typing import Final

from squidkeeper.base.errors import InvalidEntry, InvalidExport, describe
from squidkeeper.base.squid_account import refused_to_root
from squidkeeper.policy.destination import Transport
from squidkeeper.record.chain.chain import HEAD
from squidkeeper.record.chain.entries import Head, parse_head
from squidkeeper.record.export.delivery import Delivery
from squidkeeper.record.export.facts import ExportOptions
from squidkeeper.record.export.file import FileSender
from squidkeeper.record.export.formats import MessageEncoder
from squidkeeper.record.export.https import Body, HttpsSender, tls_context
from squidkeeper.record.export.messages import Sender
from squidkeeper.record.export.syslog import PAYLOAD_BYTES, SyslogSender
from squidkeeper.record.export.targets import ExportTarget
from squidkeeper.record.export_status import ExportStore
from squidkeeper.record.usage_ledger import ledger_file

_NICENESS: Final = 10  # Squid and its helpers go first
_SYSLOG: Final = (Transport.SYSLOG_TCP, Transport.SYSLOG_TLS)
_END_SECONDS: Final = 20.0  # for what was sent to be confirmed
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportProcess:
    """What all exports of a process share: the log, the state folder, the archive, and
    the name of the gateway.
    """

    access_log: Path
    state: Path
    archive: Path
    gateway: str


def run_exports(targets: Sequence[ExportTarget], process: ExportProcess) -> None:
    """Run until SIGTERM or SIGINT; `StateInUse`, `InvalidExport` or an OSError if it
    cannot start.
    """
    if refused := refused_to_root(process.state):
        raise InvalidExport(refused)
    # it would hold headers with tokens
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        os.nice(_NICENESS)
    ending = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with ExitStack() as stack:
        stores = [
            stack.enter_context(ExportStore(process.state, target.name))
            for target in targets
        ]
        threads = [
            _started(delivery_of(target, store, process, ending))
            for target, store in zip(targets, stores, strict=True)
        ]
        ending.wait()
        for thread in threads:
            thread.join(_END_SECONDS)


def delivery_of(
    target: ExportTarget, store: ExportStore, process: ExportProcess, ending: Event
) -> Delivery:
    """Make the delivery of an export; `InvalidExport` if its CA cannot be used."""
    longest = PAYLOAD_BYTES if target.destination.transport in _SYSLOG else None
    options = ExportOptions(
        version=version("squidkeeper"),
        gateway=process.gateway,
        full_urls=target.full_urls,
        longest=longest,
    )
    encoder = MessageEncoder(target.format, options)
    sender = _sender(target, encoder, process.gateway)
    return Delivery(
        process.access_log,
        store,
        encoder,
        sender,
        ending,
        lambda: read_head(process.archive),
        ledger_file(process.state),
    )


def _sender(target: ExportTarget, encoder: MessageEncoder, gateway: str) -> Sender:
    destination, body = (
        target.destination,
        Body(encoder.content_type, encoder.body, encoder.rejected),
    )
    match destination.transport:
        case Transport.FILE:
            return FileSender(Path(destination.target))
        case Transport.SYSLOG_TCP:
            return SyslogSender(destination, None, gateway)
        case Transport.SYSLOG_TLS:
            return SyslogSender(destination, tls_context(target.ca), gateway)
        case Transport.HTTP:
            return HttpsSender(destination, None, body, target.headers)
        case Transport.HTTPS:
            return HttpsSender(
                destination, tls_context(target.ca), body, target.headers
            )


def read_head(archive: Path) -> Head | None:
    """Read the head of the archive, its signature unchecked; None if there is none, or
    its time is no time.
    """
    try:
        head = parse_head((archive / HEAD).read_bytes())[0]
        datetime.fromisoformat(head.time).timestamp()
    except (OSError, InvalidEntry, ValueError, OverflowError):
        return None
    return head


def _started(delivery: Delivery) -> Thread:
    thread = Thread(target=_run, args=(delivery.run,), daemon=True)
    thread.start()
    return thread


def _run(work: Callable[[], None]) -> None:
    """Run to the end.

    A bug ends the process, so that it restarts instead of sending nothing.
    """
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - whatever it is
        _log.critical("the export exits: %s", describe(error))
        os._exit(1)
