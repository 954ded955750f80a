"""Every error of squidkeeper. Each says what its text holds.

A denial is not an error: it is a `Decision` with its reason.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from squidkeeper.base.faults import Fault, FaultCode
    from squidkeeper.base.helper_metrics import TransparentResult


class SquidkeeperError(Exception):
    """Any error of ours."""


class InvalidUrl(SquidkeeperError):
    """A request target, host or port that is not valid; the text tells why."""


class InvalidLine(SquidkeeperError):
    """A line from Squid that is not what squid.conf makes it; the text says what was
    expected.
    """


class UnreadableBody(SquidkeeperError):
    """A body of a request that servers could read in several ways; the text says why,
    and holds nothing of it.
    """


class InvalidIcap(SquidkeeperError):
    """Bytes on a connection of ICAP that are none of Squid's; the text says what was
    expected, and nothing of them.
    """


class HelloIncomplete(SquidkeeperError):
    """The first bytes of a TLS client, of which `needed` are needed in all to
    read on.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


class HelloRefused(SquidkeeperError):
    """The first bytes of a TLS client that name no server; `result` is what
    is counted.
    """

    def __init__(self, result: TransparentResult) -> None:
        super().__init__(result)
        self.result = result


class InvalidRecord(SquidkeeperError):
    """A line that is no line of the record of requests; the text says what was
    expected.
    """


class QueryRefused(SquidkeeperError):
    """A user's SQL that is not run, or fails; the text says what was expected."""


class UnreadableLog(SquidkeeperError):
    """An access log that cannot be read; the text names the file, says why and what to
    do.
    """


class UnreadableSessions(SquidkeeperError):
    """A store of sessions that cannot be read; the text names the file and says
    why.
    """


class DamagedLog(SquidkeeperError):
    """A compressed log whose content cannot be read any further; the text says why."""


class InvalidEntry(SquidkeeperError):
    """A line of an archive's chain, or its head, that is none; the text says what was
    expected.
    """


class InvalidArchiveKey(SquidkeeperError):
    """A key that seals or verifies no archive; the text names the file, and nothing of
    a private key.
    """


class ArchiveFailed(SquidkeeperError):
    """A rotated log that cannot be archived; the text says why."""


class ArchiveInUse(SquidkeeperError):
    """An archive that another run is changing; the text names it."""


class StoreFailed(SquidkeeperError):
    """An object store that an archive cannot be copied to or read from; the text says
    why, and shows no key.
    """


class ObjectTooLarge(StoreFailed):
    """Objects of a store that are more than is read into memory, or than a disk has
    room for.
    """


class StateInUse(SquidkeeperError):
    """A state folder that another process of the same kind uses; the text names it."""


class SessionTaken(SquidkeeperError):
    """A session whose `field`, its name or address, an active session has; `number` is
    that one's.
    """

    def __init__(self, field: str, number: int) -> None:
        super().__init__(f"an active session has the {field}")
        self.field = field
        self.number = number


class SessionGone(SquidkeeperError):
    """A session that is not active any longer; the text says which."""


class ListenFailed(SquidkeeperError):
    """An address that the exporter cannot listen on; the text says why."""


class ResolverFailed(SquidkeeperError):
    """The resolver that Squid asks cannot be set up; the text says why and
    what to do.
    """


class TlsPortFailed(SquidkeeperError):
    """HAProxy does not answer, or does not take its certificate; the text says what it
    answered.
    """


class TransparentFailed(SquidkeeperError):
    """Clients without proxy settings do not get through; the text says what does not
    answer.
    """


class WebhookFailed(SquidkeeperError):
    """People cannot be told that questions wait; the text says why, and shows neither
    the URL nor the key.
    """


class NotInstalled(SquidkeeperError):
    """A place without a gateway; the text says what is missing."""


class DemoFailed(SquidkeeperError):
    """A step of the demonstration that cannot be done, or whose result is unexpected;
    the text says which.
    """


class InvalidSetting(SquidkeeperError):
    """A proxy, path or host that a client's variables cannot hold; the text says what
    was expected.
    """


class ExtraMissing(SquidkeeperError):
    """An optional part whose Python packages are not installed; the text names the
    command that installs them.
    """


class EditRefused(SquidkeeperError):
    """An edit of the policy that was not made; the text says why, and what to do."""


class FleetFailed(SquidkeeperError):
    """A file of a fleet that is wrong; each line of the text names a place, and what
    was expected.
    """


class SetupFailed(SquidkeeperError):
    """An installation that cannot go on; the text says why.

    `advice` says what to do, where the step that failed does not; `details` are lines
    ahead of the text, such as those of a program that failed.
    """

    def __init__(self, text: str, advice: str = "", details: str = "") -> None:
        super().__init__(text)
        self.advice = advice
        self.details = (
            details if details.endswith("\n") or not details else f"{details}\n"
        )


class PullFailed(SquidkeeperError):
    """A source that no policy can be pulled from now; the text says why, and shows no
    token.
    """


class PullRefused(SquidkeeperError):
    """A version of a pulled policy that is not put in place; the text says why."""


class ReplyTooLong(SquidkeeperError):
    """A reply over the bound that keeps Squid's read buffer whole."""


class LeafRefused(SquidkeeperError):
    """A certificate of a host that is not made; the text says why."""


class SealedTokenRefused(SquidkeeperError):
    """A sealed token that is not used: the text, which the client sees, says why, and
    nothing of what it holds.
    """


class SigningRefused(SquidkeeperError):
    """A request that cannot be signed from its head: the text, which the client sees,
    says why.
    """


class PatternError(SquidkeeperError):
    """A pattern that cannot be understood; the text says what is wrong and what was
    expected.
    """


class SecretUnavailable(SquidkeeperError):
    """A credential's value is unavailable: which kind of problem, and a text that names
    the secret, never a value.

    `pending`: it is to be fetched, and no value has been seen yet.
    """

    def __init__(self, code: FaultCode, message: str, *, pending: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.pending = pending


class SessionValueMissing(SecretUnavailable):
    """A secret for which the session of a request has no value here."""

    def __init__(self, name: str) -> None:
        from squidkeeper.base.faults import FaultCode

        super().__init__(
            FaultCode.SECRET_UNSET,
            f"secret {name}: a session has no value for it here: it brought none, or the machine was restarted",
        )


class InvalidExport(SquidkeeperError):
    """An export that cannot be started; the text says why and what to do, and shows no
    secret.
    """


class DeliveryFailed(SquidkeeperError):
    """A receiver has not taken what was sent; the text says why, and shows no secret.

    `uncertain`: it may have taken some of it. `retry_seconds` is how long it asks to
    wait; None: it does not ask.
    """

    def __init__(
        self, text: str, *, uncertain: bool = False, retry_seconds: float | None = None
    ) -> None:
        super().__init__(text)
        self.uncertain = uncertain
        self.retry_seconds = retry_seconds


class MessagesRefused(SquidkeeperError):
    """A receiver refuses messages for what they hold, and has taken none of them; the
    text says how.
    """


class SourceFailed(SquidkeeperError):
    """A source of a secret gave no usable value; the text says what was expected, and
    nothing of what it answered.
    """


class CountsUnavailable(SquidkeeperError):
    """The counts of quotas cannot be read or written; the text says why, and shows no
    password.
    """


class InvalidPublication(SquidkeeperError):
    """A policy as it was published cannot be read; the text says why."""


class OtherPolicy(InvalidPublication):
    """What was published is the policy of another directory; the text names both."""


class CountsBusy(CountsUnavailable):
    """Other processes write the counts for longer than one waits."""


class PolicyError(SquidkeeperError):
    """A policy that does not load, with every fault found in it, and the warnings that
    were found beside them.
    """

    def __init__(self, faults: Sequence[Fault], warnings: Sequence[Fault] = ()) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)
        self.warnings = tuple(warnings)


def describe(error: BaseException) -> str:
    """Name an error and where it was raised, without what it says: that could hold a
    secret.
    """
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{type(error).__name__}{''.join(f' in {frame.name}, line {frame.lineno}' for frame in last)}"
