"""`squidkeeper certificate`: the leaf for a host.

Squid's `sslcrtd_program` asks for each tunnel.

Leaves are kept in memory by the whole request, and nothing on disk. All under one kind
of CA have one key, which this process makes and keeps. Where none can be made that says
what the request asks for, the answer is a leaf that no client accepts, so that the
client fails at once: without an answer Squid keeps it waiting (`request_timeout`).
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.errors import LeafRefused
from squidkeeper.base.helper_metrics import CERTIFICATE, CERTIFICATES, PROTOCOL_ERRORS
from squidkeeper.policy.protocol.certificate_request import (
    LeafReply,
    LeafRequest,
    LeafRequestBuffer,
    Signing,
    format_leaf_reply,
    leaf_channel,
    parse_leaf_request,
)
from squidkeeper.policy.protocol.lines import Result
from squidkeeper.serving.certificates.leaf import (
    Leaf,
    LeafKey,
    Signer,
    leaf_like,
    leaf_of_host,
    leaf_of_nobody,
    load_certificate,
    load_signer,
    sign_leaf,
)
from squidkeeper.serving.counters.layout import Key, counter_key
from squidkeeper.serving.helpers.cache_log import write_to_cache_log
from squidkeeper.serving.helpers.helper_counters import HelperCounters, StuckWatchdog
from squidkeeper.serving.helpers.loop import (
    Answering,
    restrict_process,
    serve_requests,
    take_output,
)

_KEPT_FOR: Final = timedelta(days=1)  # far less than a leaf is valid
_REPLIES_BYTES: Final = 8_000_000
_SIGNERS_BYTES: Final = (
    100_000  # Squid has two: the CA, and one that signs what is not trusted
)
_OBJECTS_BYTES: Final = 500
_log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    reply: LeafReply
    since: datetime


class Certificates:
    """The leaves of one helper process: from a request to a reply.

    A repeated request takes 2 us. Without what is kept it takes 90, 350 or 860 us: the
    signature by a key of P-256, RSA-2048 or RSA-3072. Loading the CA for each new host
    would add 0.03, 29 or 92 ms: an RSA key is checked.
    """

    def __init__(
        self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._clock = clock
        # by whether it is an RSA key, which takes a while to make
        self._keys = {False: LeafKey()}
        # by the hash of the request
        self._replies: BoundedCache[bytes, _Kept] = BoundedCache(_REPLIES_BYTES)
        self._signers: BoundedCache[tuple[bytes, bytes], Signer] = BoundedCache(
            _SIGNERS_BYTES
        )

    def answer(self, request: bytes) -> LeafReply:
        """Answer a request, from memory where the same was answered in the last day."""
        digest, now = (
            sha256(request.removeprefix(leaf_channel(request)).lstrip()).digest(),
            self._clock(),
        )
        kept = self._replies.get(digest)
        if kept and timedelta() <= now - kept.since < _KEPT_FOR:
            return kept.reply
        reply = self._make(request, now)
        repeated = replace(
            reply, counts=_KEPT if reply.counts == _MADE else reply.counts
        )
        self._replies.add(
            digest, _Kept(repeated, now), len(digest) + len(reply.text) + _OBJECTS_BYTES
        )
        return reply

    def _make(self, request: bytes, now: datetime) -> LeafReply:
        wanted = parse_leaf_request(request)
        try:
            signer = self._signer(wanted)
            leaf = _describe(wanted, signer, now)
            by_ca = None if wanted.signing is Signing.SELF else signer
            key = self._key_under(signer)
            pem = sign_leaf(leaf, key, by_ca, wanted.hash_name)
        except LeafRefused as error:
            _log.warning(
                "no certificate for %.253s: %.300s",
                ascii(wanted.host),
                ascii(str(error)),
            )
            key = self._keys[False]
            return LeafReply(
                Result.OK, sign_leaf(leaf_of_nobody(now), key, None) + key.pem, _REFUSED
            )
        return LeafReply(Result.OK, pem + key.pem, _MADE)

    def _key_under(self, signer: Signer) -> LeafKey:
        if signer.is_rsa not in self._keys:
            self._keys[signer.is_rsa] = LeafKey(is_rsa=signer.is_rsa)
        return self._keys[signer.is_rsa]

    def _signer(self, wanted: LeafRequest) -> Signer:
        pair = wanted.ca, wanted.key
        signer = self._signers.get(pair)
        if signer is None:
            signer = load_signer(*pair)
            self._signers.add(pair, signer, sum(map(len, pair)) + _OBJECTS_BYTES)
        return signer


def _describe(wanted: LeafRequest, signer: Signer, now: datetime) -> Leaf:
    if wanted.origin is None:
        return leaf_of_host(wanted.host, signer.certificate, now)
    return leaf_like(
        load_certificate(wanted.origin),
        signer.certificate,
        now,
        wanted.host if wanted.replaces_names else None,
        ignores_start=wanted.ignores_start,
        ignores_end=wanted.ignores_end,
    )


def run(state: Path) -> None:
    """Run the helper; the start has the same deadline as a request, because Squid has
    asked already.
    """
    restrict_process()
    output = take_output()
    once = write_to_cache_log()
    counting = HelperCounters(CERTIFICATE, state)
    StuckWatchdog(lambda: counting.at).start()
    counting.start()
    once.open(state)
    answering = Answering(Certificates().answer, format_leaf_reply, _broken)
    counting.ready()

    def reply(request: bytes, counts: list[Key]) -> bytes:
        return answering.reply(request, leaf_channel(request), counts)

    serve_requests(LeafRequestBuffer().feed, reply, output, counting)


def _broken(message: str) -> LeafReply:
    return LeafReply(Result.ERR, message.encode(), _BROKEN)


_MADE = (counter_key(CERTIFICATES, "made"),)
_KEPT = (counter_key(CERTIFICATES, "kept"),)
_BROKEN = (
    counter_key(CERTIFICATES, "refused"),
    counter_key(PROTOCOL_ERRORS, CERTIFICATE),
)
_REFUSED = (counter_key(CERTIFICATES, "refused"),)
