"""What a call was refused for, as a problem document of RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TYPE: Final = "application/problem+json"
_URN: Final = "urn:squidkeeper:problem"


class ProblemCode(StrEnum):
    """The kinds of problems. They are stable: programs match them, not the text."""

    INVALID_REQUEST = "invalid-request"
    NOT_JSON = "not-json"
    INVALID_QUERY = "invalid-query"
    UNKNOWN_CALLER = "unknown-caller"
    SESSION_OF_ANOTHER = "session-of-another"
    TOKEN_REFUSED = "token-refused"  # noqa: S105 - a code
    NO_SUCH_CALL = "no-such-call"
    NO_SESSION = "no-session"
    NO_TICKET = "no-ticket"
    MAY_NOT_APPROVE = "may-not-approve"
    ANSWERED_OTHERWISE = "answered-otherwise"
    NOTHING_TO_ANSWER = "nothing-to-answer"
    INVALID_ANSWER = "invalid-answer"
    TOO_MANY_ANSWERS = "too-many-answers"
    WRONG_METHOD = "wrong-method"
    OTHER_CONTENT = "other-content"
    NAME_TAKEN = "name-taken"
    ADDRESS_TAKEN = "address-taken"
    TOKEN_USED = "token-used"  # noqa: S105 - a code
    CHANGED_MEANWHILE = "changed-meanwhile"
    TOO_LARGE = "too-large"
    INVALID_SESSION = "invalid-session"
    IF_MATCH_MISSING = "if-match-missing"
    TOO_MANY_SESSIONS = "too-many-sessions"
    TOO_MUCH_AT_ONCE = "too-much-at-once"
    HEAD_TOO_LARGE = "head-too-large"
    FAILED = "failed"
    NOT_IMPLEMENTED = "not-implemented"
    KEYS_UNAVAILABLE = "keys-unavailable"
    NO_POLICY = "no-policy"
    SETTINGS_FAULTY = "settings-faulty"
    STORE_UNAVAILABLE = "store-unavailable"


_KINDS: Final[dict[ProblemCode, tuple[int, str]]] = {
    ProblemCode.INVALID_REQUEST: (400, "The request is not HTTP as this service reads"),
    ProblemCode.NOT_JSON: (400, "The body is not one JSON object"),
    ProblemCode.INVALID_QUERY: (400, "A parameter of the query is wrong"),
    ProblemCode.UNKNOWN_CALLER: (403, "The caller is no orchestrator"),
    ProblemCode.SESSION_OF_ANOTHER: (403, "The session is another orchestrator's"),
    ProblemCode.TOKEN_REFUSED: (403, "The token opens no session"),
    ProblemCode.NO_SUCH_CALL: (404, "There is no such call"),
    ProblemCode.NO_SESSION: (404, "There is no such session"),
    ProblemCode.NO_TICKET: (404, "There is no such ticket"),
    ProblemCode.MAY_NOT_APPROVE: (403, "The orchestrator may not answer it"),
    ProblemCode.ANSWERED_OTHERWISE: (409, "The ticket has another answer"),
    ProblemCode.NOTHING_TO_ANSWER: (409, "The policy decides the request"),
    ProblemCode.INVALID_ANSWER: (422, "The answer is not as it has to be"),
    ProblemCode.TOO_MANY_ANSWERS: (429, "The session has too many answers"),
    ProblemCode.WRONG_METHOD: (405, "The call has other methods"),
    ProblemCode.OTHER_CONTENT: (409, "A session of this name has other content"),
    ProblemCode.NAME_TAKEN: (409, "The name is taken"),
    ProblemCode.ADDRESS_TAKEN: (409, "The address is taken"),
    ProblemCode.TOKEN_USED: (409, "The session of the token has ended"),
    ProblemCode.CHANGED_MEANWHILE: (412, "The session has changed meanwhile"),
    ProblemCode.TOO_LARGE: (413, "The body is too large"),
    ProblemCode.INVALID_SESSION: (422, "The session is not as it has to be"),
    ProblemCode.IF_MATCH_MISSING: (428, "The header If-Match is missing"),
    ProblemCode.TOO_MANY_SESSIONS: (429, "The orchestrator has too many sessions"),
    ProblemCode.TOO_MUCH_AT_ONCE: (429, "The orchestrator has too much under way"),
    ProblemCode.HEAD_TOO_LARGE: (431, "The head is too large"),
    ProblemCode.FAILED: (500, "The service failed"),
    ProblemCode.NOT_IMPLEMENTED: (501, "The service does not do this"),
    ProblemCode.KEYS_UNAVAILABLE: (503, "The keys of the issuer cannot be read"),
    ProblemCode.NO_POLICY: (503, "No policy is in force"),
    ProblemCode.SETTINGS_FAULTY: (503, "sessions.yaml is faulty"),
    ProblemCode.STORE_UNAVAILABLE: (503, "The store of sessions cannot be written"),
}


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one field: a JSON pointer to it, and what was expected."""

    pointer: str
    detail: str


@dataclass(frozen=True, slots=True)
class CallProblem:
    """Why a call was refused; `fields` has all faults of a body at once."""

    code: ProblemCode
    detail: str
    fields: tuple[FieldProblem, ...] = ()
    allow: str = ""  # the methods of the call

    @property
    def status(self) -> int:
        """The status of the answer."""
        return _KINDS[self.code][0]

    def as_object(self) -> dict[str, object]:
        """Return the members of the document."""
        found: dict[str, object] = {
            "type": f"{_URN}:{self.code}",
            "title": _KINDS[self.code][1],
            "status": self.status,
            "code": str(self.code),
            "detail": self.detail,
        }
        if self.fields:
            found["errors"] = [
                {"pointer": field.pointer, "detail": field.detail}
                for field in self.fields
            ]
        return found

    def document(self) -> bytes:
        """Write the document."""
        return json.dumps(self.as_object()).encode() + b"\n"


class CallRefused(Exception):
    """A call that is answered with a problem; `facts` are for the audit log."""

    def __init__(
        self,
        code: ProblemCode,
        detail: str,
        fields: Sequence[FieldProblem] = (),
        allow: str = "",
    ) -> None:
        super().__init__(detail)
        self.problem = CallProblem(code, detail, tuple(fields), allow)
        self.facts: Mapping[str, object] = {}


def pointer(*steps: object) -> str:
    """Write a JSON pointer (RFC 6901)."""
    return "".join(
        f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps
    )
