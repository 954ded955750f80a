"""The `to` of a rewrite: an absolute URL with placeholders, taken apart and checked."""

import re
from collections.abc import Iterable, Sequence

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.language.model import Target
from squidkeeper.policy.language.paths import PathPattern
from squidkeeper.policy.url import parse_authority, sent

_ABSOLUTE = re.compile(r"(https?)://(.*)", re.DOTALL)
_AUTHORITY = re.compile(r"((?:(?!\{path\}|\{query\})[^/?#])*)(.*)", re.DOTALL)
_PATH = re.compile(r"((?:(?!\{query\})[^?])*)(.*)", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_OWN = frozenset({"host", "path", "query"})  # not the names of groups


def parse_target(text: str) -> Target:
    """Parse `to`; `PatternError` where it is not an absolute http or https URL with its
    placeholders in place.
    """
    match = _ABSOLUTE.fullmatch(text)
    if not match:
        raise PatternError(
            f"target {text!r} is not absolute, expected a URL such as https://{{host}}{{path}}{{query}}"
        )
    if "#" in text or any(
        character.isspace() or not character.isprintable() for character in text
    ):
        raise PatternError(
            f"target {text!r} holds a '#', a space or a control character, which cannot be fetched"
        )
    scheme, rest = match.groups()
    authority, rest = _groups(_AUTHORITY, rest)
    path, query = _groups(_PATH, rest)
    # {path} has a '/' of its own
    target = Target(text, scheme, authority, path.replace("/{path}", "{path}"), query)
    _check_authority(target)
    _check_path(target)
    return target


def check_target(
    target: Target, schemes: Iterable[str] | None, paths: Sequence[PathPattern] | None
) -> None:
    """Check a target against its rewrite's fields; `PatternError` where it opens https
    or names a missing group.
    """
    if target.scheme == "http" and (schemes is None or "https" in schemes):
        raise PatternError(
            f"target {target.text!r} could take an https request to http, expected https (or schemes: [http])"
        )
    for name in dict.fromkeys(_PLACEHOLDER.findall(target.path + target.query)):
        if name not in _OWN:
            _check_group(name, paths)
    shadowing = _OWN & {group for pattern in paths or () for group in pattern.groups}
    if shadowing:
        raise PatternError(
            f"a group of 'paths' is named {min(shadowing)!r}, which has a meaning of its own in 'to'"
        )


def _groups(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    match = pattern.fullmatch(text)
    return (match[1], match[2]) if match else ("", text)


def _check_authority(target: Target) -> None:
    if "@" in target.authority:
        raise PatternError(
            f"target {target.text!r} carries userinfo, expected none (credentials have their own section)"
        )
    text = target.authority.replace("{host}", "host.example")
    placeholder = _PLACEHOLDER.search(text)
    if placeholder:
        raise PatternError(
            f"{placeholder[0]} is in the authority of target {target.text!r}, where only {{host}} may: "
            "an authority ends at '/', {path} or {query}"
        )
    try:
        parse_authority(text)
    except InvalidUrl as error:
        raise PatternError(f"target {target.text!r} leads nowhere: {error}") from error


def _check_path(target: Target) -> None:
    if "{host}" in target.path + target.query:
        raise PatternError(
            f"{{host}} is outside the authority of target {target.text!r}, where it is not allowed"
        )
    _check_joints(target)
    path = _PLACEHOLDER.sub("x", target.path.removeprefix("{path}"))
    if set(path + _PLACEHOLDER.sub("", target.query)) & set("{}"):
        raise PatternError(
            f"target {target.text!r} has a brace alone, expected {{path}}, {{query}} or a named group"
        )
    try:
        sent(path if path.startswith("/") else f"/{path}")
    except InvalidUrl as error:
        raise PatternError(
            f"target {target.text!r} cannot be fetched: {error}"
        ) from error


def _check_joints(target: Target) -> None:
    before, placeholder, after = target.query.partition("{query}")
    if placeholder and (after or before.endswith(("?", "&"))):
        bare = target.text.replace("{query}&", "?").replace("{query}", "").rstrip("?&")
        raise PatternError(
            f"{{query}} has to end target {target.text!r}, and brings its own '?' or '&': expected {bare + '{query}'!r}"
        )


def _check_group(name: str, paths: Sequence[PathPattern] | None) -> None:
    without = next(
        (pattern for pattern in paths or () if name not in pattern.groups), None
    )
    if not paths:
        raise PatternError(
            f"{{{name}}} is not known: expected {{path}}, {{query}} or a named group of a regex: in paths"
        )
    if without:
        raise PatternError(
            f"{{{name}}} is not known: path pattern {without.text!r} has no group of that name"
        )
