"""What a person approves of a request: its URL, its path or its host, by its method."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.language.exact_urls import parse_exact_url
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.methods import parse_method
from squidkeeper.policy.language.model import APPROVED, Match, Rule
from squidkeeper.policy.language.paths import PathPattern, parse_path_pattern
from squidkeeper.policy.url import Url, parse_url


class ApprovalScope(StrEnum):
    """What an approval allows, by the method that was asked for."""

    URL = "url"  # exactly that URL
    PATH = "path"  # that path, with any query
    HOST = "host"  # every path of the host


def approved_rule(
    method: str, url: str, scope: ApprovalScope, expires: datetime
) -> Rule:
    """Make the rule of an approval for a session; `PatternError` where none can say
    it.
    """
    return replace(APPROVED, match=approved_match(method, url, scope), expires=expires)


def approved_match(method: str, url: str, scope: ApprovalScope) -> Match:
    """Return what an approval holds for; `PatternError` where nothing can say it."""
    try:
        parsed = parse_url(url)
    except InvalidUrl as error:
        raise PatternError(f"{url[:200]!r} is no URL: {error}") from error
    is_url = scope is ApprovalScope.URL
    return Match(
        hosts=(parse_host_pattern(parsed.host.text),),
        schemes=frozenset({parsed.scheme}) if is_url else None,
        ports=(range(parsed.port, parsed.port + 1),),
        methods=frozenset({parse_method(method)}),
        paths=_paths(parsed, scope),
        urls=(parse_exact_url(url),) if is_url else None,
    )


def _paths(url: Url, scope: ApprovalScope) -> tuple[PathPattern, ...] | None:
    if scope is not ApprovalScope.PATH:
        return None
    if "*" in url.path:
        raise PatternError("the path holds a *, which would match more, expected a URL")
    return (parse_path_pattern(url.path),)
