"""`squidkeeper login`: whose token is this?

Squid's helper of basic authentication. It answers at once, whatever the answer: Squid
lets a wrong token pass for a right one of the same name while a lookup is under way, so
none may be slow (squid.conf also keeps the credentials apart, by `key_extras`). It
names the token by its ID alone; the acl helper checks that ID again for each request,
so a token that is revoked opens nothing more, whatever Squid remembers of its login.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.base.helper_metrics import LOGIN_RESULTS, LOGINS
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.model import Token
from squidkeeper.policy.protocol.lines import Reply, Result, parse_tokens
from squidkeeper.policy.url import Address, parse_address
from squidkeeper.serving.counters.layout import counter_key

# name, token, client and the header; Squid may end a line by `-`
TOKENS: Final = (
    4,
    5,
)
# what the token of an unknown name is compared with, so that it takes as long
_NOBODY: Final = (Token("0" * 64),)


class Logins:
    """The clients of one policy, and the sessions, that have tokens, by name."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._sessions = policy.sessions
        self._clients = {
            client.name: client
            for client in policy.source.clients
            if client.tokens is not None
        }

    def check(
        self, name: str, text: str, address: Address | None, at: datetime
    ) -> tuple[str, Token | None]:
        """Return the result of a login, one of `LOGIN_RESULTS`, and the token that it
        was made with.
        """
        client = self._clients.get(name)
        token = _same(text, client.tokens or () if client else _NOBODY)
        if client is None:
            return self._of_session(name, text, address)
        if token is None:
            return "wrong_token", None
        if token.lapsed(at):
            return "expired", token
        return (
            "accepted" if client.within_networks(address) else "other_network"
        ), token

    def _of_session(
        self, name: str, text: str, address: Address | None
    ) -> tuple[str, Token | None]:
        if self._sessions is None:
            return "unknown_client", None
        token = Token.of(text)
        return self._sessions.active.log_in(name, token.sha256, address), token


def _same(text: str, tokens: Sequence[Token]) -> Token | None:
    """Find the token of a text; each is compared, in the same time whether it is the
    one or not.
    """
    digest = sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    found = None
    for token in tokens:
        if compare_digest(token.sha256, digest):
            found = token
    return found


def answer(logins: Logins | None, line: bytes) -> Reply:
    """Answer one line: name, token, address of the client, and the header, which only
    sets it apart for Squid.
    """
    name, text, client, *_ = parse_tokens(line, TOKENS)
    if logins is None:
        return _REFUSALS["no_policy"]
    result, token = logins.check(
        name or "", text or "", _address(client), datetime.now(UTC)
    )
    if token is None or result != _ACCEPTED:
        return _REFUSALS[result]
    return Reply(Result.OK, (("token_", token.id),), counts=_COUNTED)


def _address(text: str | None) -> Address | None:
    try:
        return parse_address(text or "")
    except InvalidUrl:
        return None


_ACCEPTED = "accepted"
_COUNTED = (counter_key(LOGINS, _ACCEPTED),)
_REFUSALS = {
    result: Reply(Result.ERR, counts=(counter_key(LOGINS, result),))
    for result in LOGIN_RESULTS
    if result != _ACCEPTED
}
