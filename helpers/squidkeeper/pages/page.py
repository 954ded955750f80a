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
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from squidkeeper.formatting import ago, byte_size, duration, milliseconds, percent, quantity, thousands, timestamp

_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})  # controls, bidi marks, what no font has, line ends
_WRITERS = (ago, byte_size, duration, milliseconds, percent, quantity, thousands, timestamp)


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
        **{write.__name__: write for write in _WRITERS},
        "breakable": breakable,
        "visible": visible,
        "with_code": with_code,
    }
    return environment


_environment = _made()
