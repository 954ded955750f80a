"""Path patterns: globs, which are read in the same way as the path, and `regex:`
expressions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import re2

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.language.globs import (
    ANYTHING,
    Matcher,
    compile_regex,
    glob_matcher,
)
from squidkeeper.policy.language.variables import (
    REFERENCE,
    VariableValues,
    named_variables,
    with_values,
)
from squidkeeper.policy.url import Reading, ReadPath, normalize_escapes, read

_REGEX = "regex:"
# * and ** while a glob is read: no path can hold them
IN_SEGMENT, OVER_SEGMENTS = (
    "\x01",
    "\x02",
)
FOLDERS = f"{OVER_SEGMENTS}/"  # between two slashes also nothing
_WILDCARDS = {IN_SEGMENT: "[^/]*", OVER_SEGMENTS: ANYTHING, FOLDERS: "(?:.*/)?"}
_PART = re.compile(
    f"(?<=/){FOLDERS}|{OVER_SEGMENTS}|{IN_SEGMENT}|[^{IN_SEGMENT}{OVER_SEGMENTS}]+"
)
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2}|[0-9A-Fa-f]?\*)")
_NAMED_GROUP = re.compile(r"\(\?P?<\w+>")
_EVERYTHING = ("/**", "**")


class Beginning(NamedTuple):
    """What a path must begin with, or be as a whole."""

    text: str
    whole: bool


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A path pattern: a glob, or a `regex:` whose named groups can be used in the
    target of a rewrite.

    A glob with `variables` matches nothing until it has the values of a session.
    """

    text: str
    groups: tuple[str, ...] = ()
    _regex: re2._Regexp | None = field(default=None, repr=False, compare=False)
    # the same without its groups
    _ungrouped: re2._Regexp | None = field(default=None, repr=False, compare=False)
    _matchers: dict[str, Matcher] = field(
        default_factory=dict, repr=False, compare=False
    )
    variables: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether it matches every path, whatever the reading."""
        return self.text in _EVERYTHING

    @property
    def beginning(self) -> Beginning | None:
        """What decides about a path that has one reading; None where more than its
        beginning does.
        """
        if self._regex is not None or self.variables:
            return None
        literal, *rest = self.parts(Reading.SENT)
        if literal in _WILDCARDS or rest not in ([], [OVER_SEGMENTS]):
            return None
        return Beginning(literal, whole=not rest)

    @property
    def is_glob(self) -> bool:
        """Whether it is a glob, and no expression."""
        return self._regex is None

    def parts(self, reading: Reading) -> tuple[str, ...]:
        """Return a glob's literal texts and wildcards, as they are compared with this
        reading of a path. A variable stands for any text.
        """
        return tuple(_PART.findall(_read_glob(_any_values(self.text), reading)))

    def with_values(self, values: VariableValues) -> Iterator[PathPattern]:
        """Yield the globs that it stands for where its variables have these values."""
        return map(PathPattern, with_values(self.text, values))

    def match(self, path: ReadPath) -> Mapping[str, str] | None:
        """Match a whole path; gives the named groups, or None where it does
        not match.
        """
        if self._regex is None:
            matches = self._matchers.get(path.reading) or self._matcher(path.reading)
            return {} if matches(path.path) else None
        if self._ungrouped is not None and self._ungrouped.fullmatch(path.path) is None:
            return None
        match = self._regex.fullmatch(path.path)
        return (
            None
            if match is None
            else {name: match.group(name) or "" for name in self.groups}
        )

    def _matcher(self, reading: Reading) -> Matcher:
        if self.variables:
            return _matches_nothing
        glob = _read_glob(self.text, reading)
        matcher = self._matchers.get(glob) or glob_matcher(
            tuple(_PART.findall(glob)), _WILDCARDS
        )
        self._matchers[glob] = self._matchers[reading] = matcher
        return matcher


def parse_path_pattern(text: str) -> PathPattern:
    """Parse a path pattern; `PatternError` where it is none, or can never match."""
    variables = named_variables(text)
    if text.startswith(_REGEX):
        if variables:
            raise PatternError(
                f"path pattern {text!r} names a variable of sessions in an expression, expected it in a glob"
            )
        return _parse_regex(text)
    if not text.startswith(("/", "**")):
        raise PatternError(
            f"path pattern {text!r} can never match: a path starts with '/'"
        )
    if "?" in text or "#" in text:
        raise PatternError(
            f"path pattern {text!r} can never match: paths hold no '?' or '#' (use query: for a query)"
        )
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise PatternError(
            f"path pattern {text!r} can never match: such a control character is always denied"
        )
    if _STRAY_PERCENT.search(text):
        raise PatternError(
            f"path pattern {text!r} can never match: its '%' is not followed by two hexadecimal digits"
        )
    for reading in (
        Reading if "%" in text else ()
    ):  # nothing but an escape can fail to be read
        _check_readable(text, reading)
    return PathPattern(text, variables=variables)


def _parse_regex(text: str) -> PathPattern:
    try:
        regex = compile_regex(text.removeprefix(_REGEX))
    except re2.error as error:
        raise PatternError(
            f"{text!r} is not an RE2 expression: {_re2_message(error)}"
        ) from error
    if not _can_begin(text.removeprefix(_REGEX), "/"):
        raise PatternError(
            f"path pattern {text!r} can never match: it is for the whole path, which starts with '/'"
        )
    groups = tuple(regex.groupindex)
    return PathPattern(
        text, groups, regex, _without_groups(text.removeprefix(_REGEX), len(groups))
    )


def _can_begin(expression: str, first: str) -> bool:
    try:
        least, most = compile_regex(f"^(?:{expression})").possiblematchrange(1)
    except re2.error:  # RE2 gives no range
        return True
    return bool(least[:1] <= first.encode() <= most[:1])


def _without_groups(expression: str, groups: int) -> re2._Regexp | None:
    """Compile an expression without its named groups, which matches ten times as fast;
    None if it has none.

    A text that only looks like a group (escaped, or in a class) makes the numbers
    differ: None then too.
    """
    plain, found = _NAMED_GROUP.subn("(?:", expression)
    if not groups or found != groups:
        return None
    return compile_regex(plain)


def sample_path(text: str) -> str | None:
    """Return a path that a glob matches; a `regex:` is no help."""
    if text.startswith("regex:"):
        return None
    path = text.replace("/**/", "/").replace("**", "").replace("*", "x")
    return path if path.startswith("/") else f"/{path}"


def _re2_message(error: re2.error) -> str:
    message = error.args[0] if error.args else "it does not compile"
    text = (
        message.decode("utf-8", "replace")
        if isinstance(message, bytes)
        else str(message)
    )
    # it quotes what it was given
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _check_readable(text: str, reading: Reading) -> None:
    try:
        _read_glob(text, reading)
    except InvalidUrl as error:
        raise PatternError(f"path pattern {text!r} can never match: {error}") from error


def _matches_nothing(_: str) -> bool:
    return False


def _any_values(text: str) -> str:
    return REFERENCE.sub("**", text)


def _read_glob(text: str, reading: Reading) -> str:
    # every path is: `**/x` means `/**/x`
    rooted = text if text.startswith("/") else f"/{text}"
    return read(
        reading,
        normalize_escapes(rooted.replace("**", OVER_SEGMENTS).replace("*", IN_SEGMENT)),
    )
