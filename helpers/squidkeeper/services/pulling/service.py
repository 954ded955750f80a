"""The process that pulls again and again."""

import logging
import random
import signal
import time
from typing import NoReturn

from squidkeeper.services.pull_settings import EVERY_SECONDS
from squidkeeper.services.pull_status import PullStatus
from squidkeeper.services.pulling.puller import Puller

_SPREAD = 0.2  # of the interval: gateways that start together do not ask together
_log = logging.getLogger(__name__)


def run_pulling(puller: Puller) -> None:
    """Pull until SIGTERM. What changes is logged: a version that is put in place, a refusal, a failure."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    told = ""
    while True:
        seconds = EVERY_SECONDS
        try:
            status = puller.pull()
            seconds, text = status.every_seconds or EVERY_SECONDS, outcome(status)
        except OSError as error:
            text = f"the report cannot be written: {error.strerror}"
        if text != told:
            _log.info("%s", text)
        told = text
        time.sleep(seconds * random.uniform(1 - _SPREAD, 1))  # noqa: S311 - no secret


def outcome(status: PullStatus, *, is_in_force: bool = True) -> str:
    """Tell in one line what a pull has come to."""
    altered = ", with other files than the source has" if status.altered else ""
    not_in_force = "" if is_in_force else ", not in force"
    in_place = f"{status.version} is in place{not_in_force}{altered}" if status.version else "nothing is in place"
    if status.failure:
        return f"the source cannot be pulled from, {in_place}: {status.failure}"
    if status.refused:
        return f"{status.refused} is refused, {in_place}: {status.reason}"
    return f"{in_place}, signed by {status.signer}" if status.signer else in_place


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
