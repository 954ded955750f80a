"""The frame of the pages and the filters of their templates.

Hostile code chose much of what the access log contains. Jinja escapes it for HTML. The filters also make it readable:
invisible characters and those that change the direction of text are shown as escapes.
"""

import hashlib
import re
import unicodedata
from base64 import b64encode
from collections.abc import Mapping
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from squidkeeper.base.formatting import ago, byte_size, duration, milliseconds, percent, quantity, thousands, timestamp

_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})  # controls, bidi marks, unassigned, line ends
_WRITERS = (ago, byte_size, duration, milliseconds, percent, quantity, thousands, timestamp)


def visible(value: object) -> str:
    r"""Escape invisible characters and those that change the direction of text: `\u202e`."""
    return "".join(_escape(character) for character in str(value))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"


def breakable(words: str) -> Markup:
    """Allow line breaks in a host or an address after dots and colons only; escape invisible characters."""
    return Markup("<wbr>").join(re.findall(r"[^.:]*[.:]+|[^.:]+", visible(words)))


def with_code(words: str) -> Markup:
    """Format text between backticks as code."""
    code, plain = Markup("<code>{}</code>"), Markup("{}")
    parts = words.split("`")
    return Markup("").join((code if place % 2 else plain).format(part) for place, part in enumerate(parts))


def render(template: str, values: Mapping[str, object]) -> str:
    """Render a template with the style of all pages and a content security policy that allows nothing else."""
    return _environment.get_template(template).render(values, style=Markup(_STYLE), security=_SECURITY)  # noqa: S704 - our own file


_STYLE = resources.files(__package__).joinpath("templates/style.css").read_text("utf-8")
_DIGEST = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# No script, image, font or connection, and only the style with this digest, even if escaping should fail.
_SECURITY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"


def _made() -> Environment:
    environment = Environment(
        loader=PackageLoader("squidkeeper.record.pages"),
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
