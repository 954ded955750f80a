"""Counts of several gateways: in Valkey, changed by one function, whose clock is the
server's.

The function is squid/quotas.lua, which the operator loads. A gateway's user can call
it, and change no other user's counts. Listing and forgetting takes the operator's user.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from squidkeeper.base.deadline import whole_exchange
from squidkeeper.base.errors import CountsUnavailable, ExtraMissing
from squidkeeper.base.untrusted_file import read_regular
from squidkeeper.policy.extras import require
from squidkeeper.policy.language.quotas import QuotaUnit, Window
from squidkeeper.serving.quotas.counts import LARGEST, QuotaCount, QuotaUse, Taken
from squidkeeper.serving.quotas.store_settings import QuotaStoreSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PREFIX: Final = "squidkeeper:quota:"
_SECONDS: Final = 0.25  # for one step: to connect, to send, to receive
_ANSWER_SECONDS: Final = (
    1.0  # for a whole exchange; a server that drips would hold a helper
)
_LIST_SECONDS: Final = 60.0  # for one that reads all counts
_POLICY: Final = "noeviction"  # else a full server forgets counts
_CHECK_EVERY_SECONDS: Final = 60.0
_LISTED_AT_MOST: Final = 100_000
_FUNCTION: Final = "squidkeeper_take"
_CA_BYTES: Final = 1 << 20
_AT_ONCE: Final = 1000  # keys in one command
_ADVICE: Final = (  # what to do about an error of Valkey, by a part of its text
    ("permissions", "give the user {user} the rights that squid/FLEET.md lists"),
    ("Function not found", "load squid/quotas.lua as squid/FLEET.md shows"),
    (
        "arithmetic",
        "load squid/quotas.lua of this version, which knows weeks and months",
    ),
    (
        "counts no user",
        "load squid/quotas.lua with the names of all users, as squid/FLEET.md shows",
    ),
)


class ValkeyCounts:
    """The counts of one Valkey server.

    An exchange takes a second at most, each read and write a quarter of one.
    """

    def __init__(self, settings: QuotaStoreSettings) -> None:
        self._settings = settings
        self._client: Any = None  # its types are those of its asynchronous twin too
        self._check_at = 0.0

    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:
        """Hand out up to so many units of what is left."""
        return self._run(count, limit, asked, 0)

    def add(self, count: QuotaCount, amount: int) -> None:
        """Add what was used already."""
        self._run(count, 0, 0, min(amount, LARGEST))

    def uses(self) -> list[QuotaUse]:
        """List what is used in the windows of now, by all gateways together."""
        return list(self._do(_uses, _LIST_SECONDS))

    def forget(self, quota: str, holder: str | None = None) -> int:
        """Forget the counts of a quota, or of one holder of it."""
        return int(
            self._do(lambda client: _forget(client, quota, holder), _LIST_SECONDS)
        )

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _run(self, count: QuotaCount, limit: int, asked: int, added: int) -> Taken:
        arguments = [
            self._settings.user,
            _name_of(count),
            windows_of(count.window),
            limit,
            asked,
            added,
        ]
        given, used, milliseconds = self._do(
            lambda client: client.fcall(_FUNCTION, 0, *arguments),
            is_repeatable=not added,
        )
        return Taken(given, used, max(0, limit - used), milliseconds / 1000)

    def _do(
        self,
        ask: Callable[[Any], Any],
        seconds: float = _ANSWER_SECONDS,
        *,
        is_repeatable: bool = True,
    ) -> Any:
        """Ask the server; `CountsUnavailable` for whatever goes wrong, and it is
        connected again the next time.

        A server that was restarted is asked again. A lease that is asked for twice is
        wasted; what is added is not repeated, because the server may have counted it.
        """
        try:
            require("valkey")
            import valkey
        except ExtraMissing as error:
            raise CountsUnavailable(str(error)) from None
        try:
            try:
                return self._exchange(ask, seconds)
            except valkey.ConnectionError:
                self.close()
                if not is_repeatable:
                    raise
                return self._exchange(ask, seconds)
        except (
            valkey.ValkeyError,
            OSError,
            ValueError,
            RecursionError,
        ) as error:  # an answer can be deeply nested
            self.close()
            raise CountsUnavailable(
                f"Valkey on {self._place}: {self._shown(error)}"
            ) from None

    def _exchange(self, ask: Callable[[Any], Any], seconds: float) -> Any:
        with whole_exchange(seconds, self._cut):
            return ask(self._connected())

    def _cut(self) -> None:
        if self._client is not None:
            self._client.connection_pool.disconnect()

    @property
    def _place(self) -> str:
        return f"{self._settings.address} port {self._settings.port}"

    def _shown(self, error: Exception) -> str:
        """Write what a server or a library says, in one short line, and what to do
        about it.
        """
        text = " ".join(str(error).split())[:200] or type(error).__name__
        advice = [
            advice.format(user=self._settings.user)
            for part, advice in _ADVICE
            if part in text
        ]
        return ": ".join([text, *advice])

    def _connected(self) -> Any:
        if self._client is None:
            self._client = _client(self._settings)
            self._check_at = 0.0
        if time.monotonic() >= self._check_at:
            found = self._client.info("memory").get("maxmemory_policy")
            if found != _POLICY:
                raise ValueError(
                    f"its maxmemory-policy is {found}, expected {_POLICY}: it would forget counts"
                )
            self._check_at = time.monotonic() + _CHECK_EVERY_SECONDS
        return self._client


def _certificates(ca: Path) -> str:
    """Read the CA without waiting for anybody: a FIFO would hold a helper."""
    return read_regular(ca, _CA_BYTES).decode("ascii", "replace")


def _client(settings: QuotaStoreSettings) -> Any:
    from valkey import Valkey
    from valkey.backoff import NoBackoff
    from valkey.retry import Retry

    return Valkey(
        host=str(settings.address),
        port=settings.port,
        username=settings.user,
        password=settings.password,
        decode_responses=True,
        encoding_errors="replace",  # a hostile gateway can name a key as it likes
        socket_timeout=_SECONDS,
        socket_connect_timeout=_SECONDS,
        retry=Retry(NoBackoff(), 0),
        ssl=settings.tls_ca is not None,
        ssl_ca_data=_certificates(settings.tls_ca) if settings.tls_ca else None,
        ssl_cert_reqs="required",
        ssl_check_hostname=True,
    )


def _uses(client: Any) -> list[QuotaUse]:
    now, microseconds = client.time()
    scanned = (
        (key, one)
        for key, one in _scan(client)
        if one[0].window.begin(one[1] - 1) <= now < one[1]
    )
    found = dict(islice(scanned, _LISTED_AT_MOST))
    used: Counter[tuple[QuotaCount, int]] = Counter()
    for keys in _parts([*found]):
        for key, value in zip(keys, client.mget(keys), strict=True):
            used[found[key]] += max(0, int(value or 0))
    return [
        QuotaUse(count, amount, ends - now - microseconds / 1e6)
        for (count, ends), amount in used.items()
        if amount
    ]


def _forget(client: Any, quota: str, holder: str | None) -> int:
    found = dict(
        _scan(
            client,
            quote(quota, safe=""),
            "*" if holder is None else quote(holder, safe=""),
        )
    )
    for keys in _parts([*found]):
        client.delete(*keys)
    return len({count for count, _ in found.values()})


def _scan(
    client: Any, quota: str = "*", holder: str = "*"
) -> Iterator[tuple[str, tuple[QuotaCount, int]]]:
    """List the keys of all users, each with its count and the end of its window.

    One may come twice.
    """
    for key in client.scan_iter(
        match=f"{_PREFIX}*:*:*:{quota}:{holder}:*", count=_AT_ONCE
    ):
        if counted := _count_of(key):
            yield key, counted


def _parts(keys: list[str]) -> Iterator[list[str]]:
    return (keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE))


def windows_of(window: Window) -> int | str:
    """Return what tells the function when windows end: their length, or the name of
    those without one in seconds.
    """
    return str(window) if window in (Window.WEEK, Window.MONTH) else window.end(0)


def _name_of(count: QuotaCount) -> str:
    """Name a count in its keys: `squidkeeper:quota:USER:NAME:END`, where END is that of
    the window, in seconds.
    """
    return f"{count.unit}:{count.window}:{quote(count.quota, safe='')}:{quote(count.holder, safe='')}"


def _count_of(key: str) -> tuple[QuotaCount, int] | None:
    try:
        _, unit, window, quota, holder, ends = key.removeprefix(_PREFIX).rsplit(":", 5)
        return QuotaCount(
            unquote(quota), QuotaUnit(unit), Window(window), unquote(holder)
        ), int(ends)
    except ValueError:
        return None
