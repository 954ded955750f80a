"""Text with wildcards, matched in linear time.

Patterns are the operator's, the text is the attacker's: RE2 never backtracks.
"""

from collections.abc import Callable, Mapping
from functools import cache

import re2

Matcher = Callable[[str], bool]


def glob_matcher(parts: tuple[str, ...], wildcards: Mapping[str, str]) -> Matcher:
    """Make a matcher for whole texts out of literal parts and wildcards.

    `wildcards` has the RE2 expression of each wildcard; any other part is literal.
    Matching without RE2, and checking the beginning and end of a text first, is a
    hundred times as fast on a long text. An RE2 program, made at the first match, costs
    a policy of ten thousand rules megabytes and half a second.
    """
    if not any(part in wildcards for part in parts):
        return "".join(parts).__eq__
    if all(wildcards.get(part, ANYTHING) == ANYTHING for part in parts):
        return _matcher_of_literals(parts, wildcards)
    prefix, suffix = (
        "" if part in wildcards else part for part in (parts[0], parts[-1])
    )
    matches = regex_matcher(
        "".join(wildcards.get(part) or re2.escape(part) for part in parts)
    )
    return lambda text: (
        text.startswith(prefix) and text.endswith(suffix) and matches(text)
    )


def _matcher_of_literals(
    parts: tuple[str, ...], wildcards: Mapping[str, str]
) -> Matcher:
    literals = [""]
    for part in parts:
        if part in wildcards:
            literals.append("")
        else:
            literals[-1] += part
    prefix, *between, suffix = literals
    if not any(between) and not suffix:
        return lambda text: text.startswith(prefix)

    def matches(text: str) -> bool:
        at, end = len(prefix), len(text) - len(suffix)
        if end < at or not text.startswith(prefix) or not text.endswith(suffix):
            return False
        for literal in between:
            at = text.find(literal, at, end)
            if at < 0:
                return False
            at += len(literal)
        return True

    return matches


def regex_matcher(expression: str) -> Matcher:
    """Make a matcher for whole texts out of an RE2 expression; it is compiled on first
    use.
    """

    @cache
    def program() -> re2._Regexp:
        return compile_regex(expression)

    return lambda text: program().fullmatch(text) is not None


def compile_regex(expression: str) -> re2._Regexp:
    """Compile an RE2 expression in which `.` means any character; `re2.error` where it
    is not one.

    Without named groups nothing is captured: RE2 that has to capture takes up to fifty
    times as long.
    """
    regex = re2.compile(expression, _CAPTURING)
    return regex if regex.groupindex else re2.compile(expression, _NOT_CAPTURING)


def _options(*, capture: bool) -> re2.Options:
    options = re2.Options()
    options.dot_nl = True
    options.log_errors = False
    options.max_mem = 4 << 20
    options.never_capture = not capture
    return options


ANYTHING = ".*"
_CAPTURING, _NOT_CAPTURING = _options(capture=True), _options(capture=False)
