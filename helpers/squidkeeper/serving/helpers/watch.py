"""`squidkeeper watch`: does this request hold what must not leave?

Squid asks it about every request of a policy that watches, denied ones included: what
is found is not in the log. It searches what Squid states of a request, its URL and the
headers that helpers read, for secrets and canaries of the policy, for what its own
session has brought, and for placeholders of credentials that the request does not get.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.errors import SecretUnavailable
from squidkeeper.base.helper_metrics import WATCH
from squidkeeper.policy.engine import CompiledPolicy, Stage, decide, deny
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.language.secret_sources import NamedSecret, session_secrets
from squidkeeper.policy.protocol.lines import (
    LINE_LIMIT,
    Reply,
    decode_token,
    parse_tokens,
    split_tokens,
)
from squidkeeper.policy.protocol.request import REQUEST_TOKENS, parse_request
from squidkeeper.policy.protocol.request_headers import READ_HEADERS
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.brought_values import read_brought
from squidkeeper.serving.credentials.watched_values import WatchedValues
from squidkeeper.serving.helpers.host_matches import HostMatches, decision_time
from squidkeeper.serving.replies import (
    HEADER_TOO_LONG,
    found_reply,
    no_policy_reply,
    nothing_found_reply,
)

_TOKENS = tuple(REQUEST_TOKENS + 1 + len(READ_HEADERS) + more for more in (0, 1))
_READ_EVERY_SECONDS = 1.0
# Digests of a session take 20 KB, and 0.5 ms once.
_SESSIONS_BYTES, _SESSION_BYTES = 20 * 1024 * 1024, 20 * 1024
_SECRET, _CANARY, _PLACEHOLDER = "secret:", "canary:", "placeholder:"

_LEAVING = deny(
    "secret-leaving",
    'The URL or a header holds a "secret" that this gateway keeps for itself.',
)
_MISDIRECTED = deny(
    "placeholder-misdirected",
    'The request holds a "placeholder" of a credential that is not for it: the gateway puts the value in elsewhere.',
)


class Watch:
    """One policy, and digests of what it watches for.

    The values are read again every second, and not kept.

    `values` outlives the policy, so that the former value of a secret is known after
    its file was replaced.
    """

    def __init__(
        self,
        policy: CompiledPolicy,
        values: WatchedValues,
        fetched: Path | None = None,
        brought: Path | None = None,
    ) -> None:
        self.policy = policy
        self._fetched = fetched
        self._matches = HostMatches(policy)
        self._values = values
        self._read_next = 0.0
        self._brought = brought
        self._names_of_sessions = (
            session_secrets(policy.source.secrets)
            if policy.source.watch is not None
            else frozenset()
        )
        self._of_sessions: BoundedCache[int, WatchedValues] = BoundedCache(
            _SESSIONS_BYTES
        )

    def answer(self, line: bytes) -> Reply:
        """Answer a line."""
        source = self.policy.source
        tokens, url, *_ = split_tokens(line, REQUEST_TOKENS, _TOKENS)
        if not source.watches_requests:
            return nothing_found_reply()
        self._read()
        found = self._find(line, tokens)
        leaving = [name for name in found if not name.startswith(_PLACEHOLDER)]
        if leaving:
            in_user = bool(self._find(tokens.split(b" ", 2)[1], tokens))
            return found_reply(
                _LEAVING,
                self.policy,
                _stated(tokens),
                leaving,
                withheld=True,
                hide_user=in_user,
            )
        misdirected = (
            found - self._placeholders(tokens, decode_token(url)) if found else found
        )
        if misdirected:
            return found_reply(_MISDIRECTED, self.policy, _stated(tokens), misdirected)
        return nothing_found_reply()

    def _find(self, text: bytes, tokens: bytes) -> frozenset[str]:
        found = self._values.find(text)
        if not self._names_of_sessions:
            return found
        session = self._matches.find(tokens).facts.session
        return found if session is None else found | self._own(session).find(text)

    def _own(self, session: Session) -> WatchedValues:
        """Return what a session has brought itself, as it is now."""
        own = self._of_sessions.get(session.number)
        if own is None:
            own = WatchedValues()
            self._of_sessions.add(session.number, own, _SESSION_BYTES)
        brought = read_brought(self._brought, session.number)
        names = self._names_of_sessions
        values = {_SECRET + name: brought[name] for name in names & brought.keys()}
        own.update((_SECRET + name for name in names), values)
        return own

    def _placeholders(self, tokens: bytes, url: str) -> frozenset[str]:
        match = self._matches.find(tokens)
        if match.facts.method is None:  # a CONNECT: any request in the tunnel
            credentials = match.candidates.credentials
        else:
            credentials = decide(
                self.policy, match, decision_time(self.policy), Stage.URL, url
            ).credentials
        return frozenset(_PLACEHOLDER + credential.name for credential in credentials)

    def _read(self) -> None:
        now = time.monotonic()
        if now < self._read_next:
            return
        self._read_next = now + _READ_EVERY_SECONDS
        source = self.policy.source
        values = {
            _PLACEHOLDER + held.name: held.placeholder
            for held in source.credentials
            if held.placeholder
        }
        names = {*values}
        if source.watch is not None:
            for prefix, named in (
                (_SECRET, source.secrets),
                (_CANARY, source.canaries),
            ):
                values |= self._values_of(named, prefix)
                names |= {prefix + name for name in named}
        self._values.update(names, values)

    def _values_of(
        self, named: Mapping[str, NamedSecret], prefix: str
    ) -> dict[str, str]:
        # of this moment alone, as it keeps what it reads
        store = SecretStore(named, os.environ, self._fetched)
        values: dict[str, str] = {}
        for name in named:
            try:
                values[prefix + name] = store.get(name).reveal()
            except SecretUnavailable:
                continue  # which is reported where it is needed
        return values


def answer(watch: Watch | None, line: bytes) -> Reply:
    """Answer one line: the nine tokens, the URL and the headers."""
    if len(line) > LINE_LIMIT:
        policy = None if watch is None else watch.policy
        return found_reply(HEADER_TOO_LONG, policy, _stated(line), (), withheld=True)
    if watch is None:
        return no_policy_reply(WATCH, parse_request(parse_tokens(line, _TOKENS)))
    return watch.answer(line)


def _stated(line: bytes) -> list[str | None]:
    return parse_tokens(
        b" ".join(line.split(b" ", REQUEST_TOKENS)[:REQUEST_TOKENS]), (REQUEST_TOKENS,)
    )
