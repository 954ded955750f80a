"""Faults and warnings of a policy: where, which kind, and what was expected."""

from dataclasses import dataclass
from enum import StrEnum


class FaultCode(StrEnum):
    """The kinds of faults and warnings.

    The codes are stable; policy/editor/fault_codes.yaml says what they mean.
    """

    # Files
    NO_POLICY = "no-policy"
    UNREADABLE = "unreadable"
    PERMISSION_DENIED = "permission-denied"
    BEING_WRITTEN = "being-written"
    NOT_PUBLISHED = "not-published"
    NOT_READ = "not-read"
    TRUNCATED = "truncated"
    END_NOT_LAST = "end-not-last"
    # YAML
    NOT_YAML = "not-yaml"
    UNSUPPORTED_YAML = "unsupported-yaml"
    TOO_LARGE = "too-large"
    # Keys and values
    UNKNOWN_KEY = "unknown-key"
    MISSING_KEY = "missing-key"
    DUPLICATE_KEY = "duplicate-key"
    KEY_CHOICE = "key-choice"
    EMPTY_VALUE = "empty-value"
    WRONG_TYPE = "wrong-type"
    INVALID_TEXT = "invalid-text"
    INVALID_NAME = "invalid-name"
    UNKNOWN_NAME = "unknown-name"
    DUPLICATE_NAME = "duplicate-name"
    INVALID_HOST = "invalid-host"
    INVALID_NETWORK = "invalid-network"
    INVALID_PORT = "invalid-port"
    INVALID_METHOD = "invalid-method"
    INVALID_PATH = "invalid-path"
    INVALID_URL = "invalid-url"
    INVALID_QUERY = "invalid-query"
    INVALID_TIME = "invalid-time"
    INVALID_TARGET = "invalid-target"
    INVALID_HEADER = "invalid-header"
    INVALID_TEMPLATE = "invalid-template"
    INVALID_UPSTREAM = "invalid-upstream"
    INVALID_TOKEN = "invalid-token"  # noqa: S105 - a code
    INVALID_SOURCE = "invalid-source"
    INVALID_REQUEST = "invalid-request"
    INVALID_BODY = "invalid-body"
    INVALID_VARIABLE = "invalid-variable"
    # The policy as a whole
    TOO_WIDE = "too-wide"
    LIST_EXCEPTION = "list-exception"
    ALLOW_ONLY = "allow-only"
    OBSERVE_CONFLICT = "observe-conflict"
    PASSTHROUGH_CONFLICT = "passthrough-conflict"
    CONNECTIONS_CONFLICT = "connections-conflict"
    BODY_CONFLICT = "body-conflict"
    METER_CONFLICT = "meter-conflict"
    SECRET_EXPOSED = "secret-exposed"  # noqa: S105 - a code
    SECRET_CYCLE = "secret-cycle"  # noqa: S105 - a code
    SECRET_HOST = "secret-host"  # noqa: S105 - a code
    LOCAL_ONLY = "local-only"
    ANY_CLIENT = "any-client"
    CLOSED_TO_SQUID = "closed-to-squid"
    TEST_FAILED = "test-failed"
    RELOAD_GATED = "reload-gated"
    INTERNAL_ERROR = "internal-error"
    # Warnings
    RULE_UNREACHABLE = "rule-unreachable"
    DENY_TOO_LATE = "deny-too-late"
    NARROWS_NOTHING = "narrows-nothing"
    EVERY_HOST = "every-host"
    WEBSOCKET_NEVER = "websocket-never"
    GRPC_PATH = "grpc-path"
    GIT_PATH = "git-path"
    PRIVATE_CLOSED = "private-closed"
    PUBLIC_SUFFIX = "public-suffix"
    UNKNOWN_METHOD = "unknown-method"
    UNMATCHABLE_REGEX = "unmatchable-regex"
    RULE_LAPSED = "rule-lapsed"
    WHEN_NEVER = "when-never"
    CLIENT_HIDDEN = "client-hidden"
    GRANT_FOR_NOBODY = "grant-for-nobody"
    QUOTA_NEVER = "quota-never"
    QUOTA_BELOW_RESERVE = "quota-below-reserve"
    UNCOUNTED = "uncounted"
    PRICE_NEVER = "price-never"
    TEST_LAPSED = "test-lapsed"
    OBSERVING_DEFAULT = "observing-default"
    UNUSED = "unused"
    NEVER_SENT = "never-sent"
    NOT_SHARED = "not-shared"
    RESOLVED_UPSTREAM = "resolved-upstream"
    REWRITE_UPSTREAM = "rewrite-upstream"
    TEXT_CUT = "text-cut"
    LIST_LINES_IGNORED = "list-lines-ignored"
    LIST_EMPTY = "list-empty"
    SECRET_UNSET = "secret-unset"  # noqa: S105 - a code
    SECRET_EMPTY = "secret-empty"  # noqa: S105 - a code
    SECRET_UNREADABLE = "secret-unreadable"  # noqa: S105 - a code
    SECRET_INVALID = "secret-invalid"  # noqa: S105 - a code
    SECRET_UNWATCHED = "secret-unwatched"  # noqa: S105 - a code
    NOT_RENDERED = "not-rendered"
    RELOAD_UNJUDGED = "reload-unjudged"
    EXTRA_MISSING = "extra-missing"
    NO_CEILING = "no-ceiling"
    SESSIONS_MISMATCH = "sessions-mismatch"


SECRET_UNAVAILABLE = frozenset(
    {
        FaultCode.SECRET_UNSET,
        FaultCode.SECRET_EMPTY,
        FaultCode.SECRET_UNREADABLE,
        FaultCode.SECRET_INVALID,
    }
)


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A position in a policy file.

    Line and column count from 1; line 0 means the file as a whole.
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """A fault or a warning: where, which kind, and what is wrong and was expected."""

    location: Location
    code: FaultCode
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.text}"

    @property
    def text(self) -> str:
        """The message with its code, as people read it."""
        return f"{self.message} [{self.code}]"
