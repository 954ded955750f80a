"""Where a rewrite leads."""

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.language.model import Rewrite, Target
from squidkeeper.policy.url import (
    DEFAULT_PORTS,
    Host,
    ReadPath,
    Url,
    bracketed,
    parse_authority,
    read,
    readings,
    sent,
)

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
# For a URL that Squid cannot parse, as one of 8,191 bytes, it fetches what the client
# sent, with the annotations of the target: its credentials, and `private_`.
_LONGEST_URL = 8_000


def target_url(rewrite: Rewrite, host: Host, path: ReadPath, query: str | None) -> Url:
    """Fill in the target of a rewrite that matches.

    Raises `InvalidUrl` if the result is no URL, is too long for Squid, or has a path
    that a server could read as outside of what `to` writes ahead of a placeholder:
    whatever the client sends, `/python{path}` stays under `/python` and
    `/{owner}/public/{rest}` under the owner's `public/`.
    """
    target = rewrite.target
    groups = _groups(rewrite, path)
    target_host, port = parse_authority(
        _fill(target.authority, {"host": bracketed(host)})
    )
    url = Url(
        target.scheme,
        target_host,
        DEFAULT_PORTS[target.scheme] if port is None else port,
        _target_path(target, {**groups, "path": path.path}),
        _target_query(target, {**groups, "path": path.path}, query),
    )
    _check_length(str(url))
    return url


def _check_length(text: str) -> None:
    if len(text) > _LONGEST_URL:
        raise InvalidUrl(
            f"the URL that the rewrite makes is longer than {_LONGEST_URL} characters"
        )


def _groups(rewrite: Rewrite, path: ReadPath) -> Mapping[str, str]:
    matches = (pattern.match(path) for pattern in rewrite.match.paths or ())
    return next((groups for groups in matches if groups is not None), {})


def _target_path(target: Target, values: Mapping[str, str]) -> str:
    filled = _fill(target.path, values)
    _check_length(filled)
    path = sent(filled if filled.startswith("/") else f"/{filled}")
    paths = readings(path)
    for placeholder in _PLACEHOLDER.finditer(target.path):
        ahead = _fill(target.path[: placeholder.start()], values)
        # {path} begins with a slash: under /python is not beside it, in
        # /python-private.
        end = "/" if placeholder[1] == "path" and not ahead.endswith("/") else ""
        for reading in paths:
            if not f"{reading.path}{end}".startswith(
                f"{read(reading.reading, sent(ahead))}{end}" if ahead else "/"
            ):
                raise InvalidUrl(
                    f"the path leads out of {ahead!r}, where the rewrite would send it"
                )
    return path


def _target_query(
    target: Target, values: Mapping[str, str], query: str | None
) -> str | None:
    lead = "?" if target.query.startswith("{query}") else "&"
    named = set(_PLACEHOLDER.findall(target.query))
    quoted = {
        name: quote(unquote(value), safe="")
        for name, value in values.items()
        if name in named
    }
    filled = _fill(target.query, {**quoted, "query": f"{lead}{query}" if query else ""})
    return filled.removeprefix("?") if filled else None


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)
