"""The forms of a credential: what it puts into a request, and where; its value as text
with {secret} in it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS
from squidkeeper.policy.language.parameters import plain_parameter

SHIPPED = tuple(header.lower() for header in INJECTABLE_HEADERS)
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_RENDERED = "(rendered)"  # no header has this name


@dataclass(
    frozen=True, slots=True, eq=False
)  # looked up for each request: hashing the fields takes 0.6 us
class InjectedValue:
    """One value under a name: `template` with {secret} in it; with `username`, the
    whole is a basic credential.

    `bearer: s` is the template `Bearer {s}`; `basic` has `username` and the template of
    the password; `value` is its own template. Literal braces are doubled, as in
    Python's str.format. A value is equal to itself alone.
    """

    name: str
    template: str
    secrets: tuple[str, ...]
    username: str | None = None


@dataclass(frozen=True, slots=True)
class Headers:
    """One header or more.

    `rendered` are those that squid.conf adds by lines that are rendered from the
    policy.

    Of two credentials with a common claim a request gets one: they share a header, or
    both have rendered ones.
    """

    values: tuple[InjectedValue, ...]
    rendered: tuple[str, ...] = field(init=False, compare=False)
    claims: frozenset[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        rendered = tuple(name for name in self.places if name.lower() not in SHIPPED)
        names = [name.lower() for name in self.places]
        object.__setattr__(self, "rendered", rendered)
        object.__setattr__(
            self, "claims", frozenset([*names, _RENDERED] if rendered else names)
        )

    @property
    def places(self) -> tuple[str, ...]:
        """Where it puts something into a request, as that is shown."""
        return tuple(value.name for value in self.values)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that it needs."""
        return _secrets(self.values)


@dataclass(frozen=True, slots=True)
class SealedHeader:
    """The header that a sealed token of the request holds, with its value."""

    name: str
    value: str = field(repr=False)

    @property
    def places(self) -> tuple[str, ...]:
        """The header."""
        return (self.name,)

    @property
    def secrets(self) -> tuple[str, ...]:
        """None of the policy."""
        return ()

    @property
    def claims(self) -> frozenset[str]:
        """As of `Headers`."""
        return frozenset({self.name.lower()})

    @property
    def rendered(self) -> tuple[str, ...]:
        """None: a sealed token has a header that squid.conf has."""
        return ()


@dataclass(frozen=True, slots=True)
class QueryParameters:
    """One parameter of the query or more, which the rewriter adds."""

    values: tuple[InjectedValue, ...]
    claims: frozenset[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "claims",
            frozenset(f"?{plain_parameter(value.name)}" for value in self.values),
        )

    @property
    def places(self) -> tuple[str, ...]:
        """Where it puts something into a request, as that is shown."""
        return tuple(f"?{value.name}=" for value in self.values)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that it needs."""
        return _secrets(self.values)

    @property
    def rendered(self) -> tuple[str, ...]:
        """None: the rewriter adds it."""
        return ()


_SIGNATURE = (
    "Authorization",
    "X-Amz-Date",
    "X-Amz-Content-Sha256",
    "X-Amz-Security-Token",
)
_SIGNED = Headers(tuple(InjectedValue(name, "", ()) for name in _SIGNATURE))


@dataclass(frozen=True, slots=True)
class AwsSigV4:
    """AWS Signature Version 4 of the request that is fetched.

    The keys are names of secrets.
    """

    access_key_id: str
    secret_access_key: str
    session_token: str | None
    region: str
    service: str

    @property
    def places(self) -> tuple[str, ...]:
        """Its headers: the client's own values of all of them are removed."""
        return _SIGNED.places

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that it needs."""
        return tuple(
            filter(
                None, (self.access_key_id, self.secret_access_key, self.session_token)
            )
        )

    @property
    def claims(self) -> frozenset[str]:
        """As of `Headers`."""
        return _SIGNED.claims

    @property
    def rendered(self) -> tuple[str, ...]:
        """As of `Headers`."""
        return _SIGNED.rendered


Form = Headers | QueryParameters | SealedHeader | AwsSigV4


def signs(form: Form) -> bool:
    """Whether a form signs the request, its headers included."""
    return isinstance(form, AwsSigV4)


def values_of(templates: Mapping[str, str]) -> tuple[InjectedValue, ...]:
    """Make the values of templates by name."""
    return tuple(
        InjectedValue(name, text, parse_template(text))
        for name, text in templates.items()
    )


def _secrets(values: tuple[InjectedValue, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(secret for value in values for secret in value.secrets))


def parse_template(text: str) -> tuple[str, ...]:
    """List the secrets that a template names, in order; `PatternError` where it is
    none.

    Literal braces are doubled. The rest is sent in a header unchanged, so it must be
    printable ASCII.
    """
    for match in _PART.finditer(text):
        if match[0] in ("{", "}"):
            raise PatternError(
                f"the value has a {match[0]!r} alone, expected {{secret}}, or braces doubled"
            )
    if not _PRINTABLE.fullmatch(_PART.sub("", text)):
        raise PatternError(
            "the value holds something else than printable ASCII, which no header can carry"
        )
    return tuple(dict.fromkeys(fields_of(text)))


def fields_of(text: str) -> tuple[str, ...]:
    """List the names in braces, each as often as it stands there."""
    return tuple(match[1] for match in _PART.finditer(text) if match[1] is not None)
