"""Every error of squidkeeper. Each says what its text holds.

A denial is not an error: it is a `Decision` with its reason.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from squidkeeper.base.faults import Fault, FaultCode


class SquidkeeperError(Exception):
    """Any error of ours."""


class InvalidUrl(SquidkeeperError):
    """A request target, host or port that is not valid; the text tells why."""


class InvalidLine(SquidkeeperError):
    """A line from Squid that is not what squid.conf makes it; the text says what was expected."""





class InvalidIcap(SquidkeeperError):
    """Bytes on a connection of ICAP that are none of Squid's; the text says what was expected, and nothing of them."""
