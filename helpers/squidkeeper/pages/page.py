"""What the pages have in common (floor 5): their frame, and how what comes from outside is shown.

What stands in the record was chosen by hostile code. Jinja escapes it for HTML; here it is made plain to the eye too:
no query, nothing that is invisible or turns the line around, no length without end.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})  # controls, bidi marks, what no font has, line ends
_THOUSAND = 1000
_SMALLEST_SHARE, _SMALL_SHARE = 0.001, 0.1
_SIZES = ("KB", "MB", "GB", "TB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def visible(value: object) -> str:
    r"""Show what cannot be seen, or turns the text around, as its escape: `\u202e`."""
    return "".join(_escape(character) for character in str(value))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"


def breakable(words: str) -> Markup:
    """Let a host or an address break after its dots and colons alone, and what cannot be seen be seen."""
    return Markup("<wbr>").join(re.findall(r"[^.:]*[.:]+|[^.:]+", visible(words)))


def whole(number: int) -> str:
    """Write a number with its thousands apart."""
    return f"{number:,}"


def size(count: int) -> str:
    """Write a number of bytes in the unit that leaves two or three digits."""
    if count < _THOUSAND:
        return f"{count} B"
    power = min((len(str(count)) - 1) // 3, len(_SIZES))
    value = count / _THOUSAND**power
    return f"{value:.{1 if value < 10 else 0}f} {_SIZES[power - 1]}"


def milliseconds(value: int) -> str:
    """Write a length of time to two or three digits: `7 ms`, `1.2 s`, `95 s`."""
    if value < _THOUSAND:
        return f"{value} ms"
    return f"{value / _THOUSAND:.{1 if value < 10 * _THOUSAND else 0}f} s"


def percent(share: float) -> str:
    """Write a share: `4.2 %`, `37 %`; one too small to be seen as that."""
    if 0 < share < _SMALLEST_SHARE:
        return f"< {_SMALLEST_SHARE:.1%}".replace("%", " %")
    return f"{share:.{1 if 0 < share < _SMALL_SHARE else 0}%}".replace("%", " %")


def moment(at: datetime) -> str:
    """Write a time as the pages do, to the second; they say once that it is UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


def span(seconds: float) -> str:
    """Write a length of time in its one or two largest units: `3 s`, `4 min`, `2 h 5 min`, `3 days`."""
    whole_seconds = int(abs(seconds))
    if whole_seconds < _MINUTE:
        return f"{whole_seconds} s"
    if whole_seconds < _HOUR:
        return f"{whole_seconds // _MINUTE} min"
    if whole_seconds < _DAY:
        hours, minutes = whole_seconds // _HOUR, whole_seconds % _HOUR // _MINUTE
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days = whole_seconds // _DAY
    return "1 day" if days == 1 else f"{days:,} days"


def ago(at: datetime, now: datetime) -> str:
    """Write how long ago, or in how long, a time is."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {span(seconds)}" if seconds < 0 else f"{span(seconds)} ago"


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Write a number with its noun: `1 rule`, `2 rules`."""
    return f"{whole(number)} {noun if number == 1 else nouns or noun + 's'}"


def with_code(words: str) -> Markup:
    """Set what stands between backticks as code."""
    code, plain = Markup("<code>{}</code>"), Markup("{}")
    parts = words.split("`")
    return Markup("").join((code if place % 2 else plain).format(part) for place, part in enumerate(parts))


def render(template: str, values: Mapping[str, object]) -> str:
    """Render one of the templates, with the style of all pages and a policy that lets nothing else in."""
    return _environment.get_template(template).render(values, style=Markup(_STYLE), security=_SECURITY)  # noqa: S704 - our own file


_STYLE = resources.files(__package__).joinpath("templates/style.css").read_text("utf-8")
_DIGEST = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# No script, image, font or connection, and no style but the one that has this digest: even where escaping failed.
_SECURITY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"


def _made() -> Environment:
    environment = Environment(
        loader=PackageLoader("squidkeeper.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ago": ago,
        "breakable": breakable,
        "counted": counted,
        "milliseconds": milliseconds,
        "moment": moment,
        "percent": percent,
        "size": size,
        "span": span,
        "visible": visible,
        "whole": whole,
        "with_code": with_code,
    }
    return environment


_environment = _made()
