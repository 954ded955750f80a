"""Counts of several gateways (floor 4): in Valkey, changed by one script, whose clock is the server's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from squidkeeper.errors import CountsUnavailable, ExtraMissing
from squidkeeper.extras import require
from squidkeeper.policy.quotas import QuotaUnit, Window
from squidkeeper.quotas.counts import SHARE, QuotaCount, QuotaUse, Taken
from squidkeeper.quotas.store_settings import QuotaStoreSettings

if TYPE_CHECKING:
    from collections.abc import Callable

_PREFIX: Final = "squidkeeper:quota:"
_SECONDS: Final = 0.25  # for one step: to connect, to send, to receive
_POLICY: Final = "noeviction"  # else a full server forgets counts
_CHECK_EVERY_SECONDS: Final = 60.0
_LISTED_AT_MOST: Final = 100_000
# A window that has begun goes on when the clock is set back. Numbers are exact up to 2^53, which no limit reaches.
_SCRIPT: Final = f"""
local now = redis.call('TIME')
local seconds, limit, asked, added = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local began = now[1] - now[1] % seconds
local used, given = 0, 0
local kept = redis.call('HMGET', KEYS[1], 'began', 'used')
if kept[1] and tonumber(kept[1]) >= began and tonumber(kept[1]) <= began + seconds then
    began, used = tonumber(kept[1]), tonumber(kept[2])
end
local left = limit - used
if left > 0 then given = math.min(asked, math.max(1, math.floor(left / {SHARE}))) end
if given > 0 or added > 0 then
    used = used + given + added
    redis.call('HSET', KEYS[1], 'began', began, 'used', used)
    redis.call('EXPIRE', KEYS[1], 2 * seconds)
end
return {{given, used, (began + seconds - now[1]) * 1000 - math.floor(now[2] / 1000)}}
"""


class ValkeyCounts:
    """The counts of one Valkey server. Each read and write of the network takes a quarter of a second at most."""

    def __init__(self, settings: QuotaStoreSettings) -> None:
        self._settings = settings
        self._client: Any = None  # its types are those of its asynchronous twin too
        self._script: Any = None
        self._check_at = 0.0

    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:
        """Give up to so many units of what is left."""
        return self._run(count, limit, asked, 0)

    def add(self, count: QuotaCount, amount: int) -> None:
        """Add what was used already."""
        self._run(count, 0, 0, amount)

    def uses(self) -> list[QuotaUse]:
        """List what is used in the windows of now."""
        keys = [str(key) for key, _ in zip(self._do(_keys), range(_LISTED_AT_MOST), strict=False)]
        counts = [one for one in map(_count_of, keys) if one is not None]
        found = [(one, self._run(one, 0, 0, 0)) for one in counts]
        return [QuotaUse(one, taken.used, taken.ends_in) for one, taken in found if taken.used]

    def forget(self, quota: str) -> int:
        """Forget the counts of a quota."""
        of_quota = [key for key in self._do(_keys) if (count := _count_of(str(key))) and count.quota == quota]
        return int(self._do(lambda client: sum(client.delete(key) for key in of_quota)))

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _run(self, count: QuotaCount, limit: int, asked: int, added: int) -> Taken:
        arguments = [count.window.seconds, limit, asked, added]
        given, used, milliseconds = self._do(
            lambda _: self._script(keys=[_key_of(count)], args=arguments), is_repeatable=not added
        )
        return Taken(given, used, max(0, limit - used), milliseconds / 1000)

    def _do(self, ask: Callable[[Any], Any], *, is_repeatable: bool = True) -> Any:
        """Ask the server; `CountsUnavailable` for whatever goes wrong, and it is connected again the next time.

        A server that was restarted is asked again. A lease that is asked for twice is wasted; what is added is not
        repeated, because the server may have counted it.
        """
        try:
            require("valkey")
            import valkey
        except ExtraMissing as error:
            raise CountsUnavailable(str(error)) from None
        try:
            try:
                return ask(self._connected())
            except valkey.ConnectionError:
                self.close()
                if not is_repeatable:
                    raise
                return ask(self._connected())
        except (valkey.ValkeyError, OSError, ValueError) as error:
            self.close()
            raise CountsUnavailable(f"Valkey on {self._place}: {_shown(error)}") from None

    @property
    def _place(self) -> str:
        return f"{self._settings.address} port {self._settings.port}"

    def _connected(self) -> Any:
        if self._client is None:
            self._client = _client(self._settings)
            self._script = self._client.register_script(_SCRIPT)
            self._check_at = 0.0
        if time.monotonic() >= self._check_at:
            found = self._client.info("memory").get("maxmemory_policy")
            if found != _POLICY:
                raise ValueError(f"its maxmemory-policy is {found}, expected {_POLICY}: it would forget counts")
            self._check_at = time.monotonic() + _CHECK_EVERY_SECONDS
        return self._client


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
        socket_timeout=_SECONDS,
        socket_connect_timeout=_SECONDS,
        retry=Retry(NoBackoff(), 0),
        ssl=settings.tls_ca is not None,
        ssl_ca_certs=str(settings.tls_ca),
        ssl_cert_reqs="required",
        ssl_check_hostname=True,
    )


def _keys(client: Any) -> list[str]:
    return [*client.scan_iter(match=f"{_PREFIX}*", count=1000)]


def _key_of(count: QuotaCount) -> str:
    return f"{_PREFIX}{count.unit}:{count.window}:{quote(count.quota, safe='')}:{quote(count.holder, safe='')}"


def _count_of(key: str) -> QuotaCount | None:
    try:
        unit, window, quota, holder = key.removeprefix(_PREFIX).split(":")
        return QuotaCount(unquote(quota), QuotaUnit(unit), Window(window), unquote(holder))
    except ValueError:
        return None


def _shown(error: Exception) -> str:
    """Write what a server or a library says, in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
