"""Parent proxies: how a policy, and install.sh, name one."""

import re
from typing import Final

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.url import Host, parse_authority

DEFAULT: Final = "default"  # the name of the parent of install.sh --upstream
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)/?")
# goes into Squid's configuration as it is
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_EXPECTED = "expected http://HOST:PORT, such as http://proxy.example:3128"


def parse_upstream_url(text: str) -> tuple[Host, int]:
    """Read where a parent proxy listens; `PatternError` for what is not one.

    No text of a user name is repeated.
    """
    match = _URL.fullmatch(text)
    if not match:
        raise PatternError(f"this is not the URL of a parent proxy, {_EXPECTED}")
    scheme = match["scheme"].lower()
    if scheme != "http":
        why = (
            ": Squid sends no https through a parent that speaks TLS itself"
            if scheme == "https"
            else ""
        )
        raise PatternError(
            f"a parent cannot have the scheme {match['scheme']}{why}, {_EXPECTED}"
        )
    if "@" in match["authority"]:
        where = "'basic' of an upstream in the policy, whose password is a secret"
        raise PatternError(
            f"the URL holds a user name, which goes into {where}; {_EXPECTED}"
        )
    try:
        host, port = parse_authority(match["authority"])
    except InvalidUrl as error:
        raise PatternError(f"{error}, {_EXPECTED}") from None
    if port is None:
        raise PatternError(f"the URL has no port, {_EXPECTED}")
    return host, port


def parse_upstream_name(text: str) -> str:
    """Read the name of an upstream."""
    if not _NAME.fullmatch(text):
        expected = "up to 32 letters, digits and . _ -, the first one a letter or digit: Squid's configuration holds it"
        raise PatternError(
            f"name {text[:32]!r} cannot be one of an upstream, expected {expected}"
        )
    if text.lower() == DEFAULT:
        raise PatternError(
            f"name {text!r} is that of the parent of install.sh --upstream, expected another one"
        )
    return text
