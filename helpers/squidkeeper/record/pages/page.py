"""The frame of the pages, the filters of their templates, and pieces of SVG.

Hostile code chose much of what the access log contains. Jinja escapes it for HTML. The
filters also make it readable: invisible characters and those that change the direction
of text are shown as escapes.
"""

import hashlib
import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Mapping
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from squidkeeper.base.formatting import (
    ago,
    byte_size,
    duration,
    milliseconds,
    percent,
    quantity,
    thousands,
    timestamp,
)

# controls, bidi marks, unassigned, line ends
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
_WRITERS = (
    ago,
    byte_size,
    duration,
    milliseconds,
    percent,
    quantity,
    thousands,
    timestamp,
)
_BAR_WIDTH, _BAR_HEIGHT = 140, 9


def visible(value: object) -> str:
    r"""Escape invisible characters and those that change the direction of text:
    `\u202e`.
    """
    return "".join(_escape(character) for character in str(value))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    return (
        f"\\u{ord(character):04x}"
        if ord(character) <= 0xFFFF
        else f"\\U{ord(character):08x}"
    )


def breakable(words: str) -> Markup:
    """Allow line breaks in a host or an address after dots and colons only; escape
    invisible characters.
    """
    return Markup("<wbr>").join(re.findall(r"[^.:]*[.:]+|[^.:]+", visible(words)))


def with_code(words: str) -> Markup:
    """Format text between backticks as code."""
    code, plain = Markup("<code>{}</code>"), Markup("{}")
    parts = words.split("`")
    return Markup("").join(
        (code if place % 2 else plain).format(part) for place, part in enumerate(parts)
    )


def render(template: str, values: Mapping[str, object]) -> str:
    """Render a template with the style of all pages and a content security policy that
    allows nothing else.
    """
    return _environment.get_template(template).render(
        values,
        style=Markup(_STYLE),  # noqa: S704 - our own file
        security=_SECURITY,
    )


_STYLE = resources.files(__package__).joinpath("templates/style.css").read_text("utf-8")
_DIGEST = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# No script, image, font or connection, and only the style with this digest, even if
# escaping should fail.
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


def split_bar(allowed: int, denied: int, most: int) -> Markup:
    """Draw one row's allowed and denied requests as a bar, on the scale of the row with
    the most.
    """
    if not allowed + denied:
        return Markup("")
    first, second = (share(count, most, _BAR_WIDTH) for count in (allowed, denied))
    return picture(
        _BAR_WIDTH,
        _BAR_HEIGHT,
        f"{allowed:,} allowed, {denied:,} denied",
        [
            rect("allow", 0, 0, first, _BAR_HEIGHT),
            rect("deny", first, 0, second, _BAR_HEIGHT),
        ],
    )


def used_bar(used: int, limit: int, *, is_marked: bool) -> Markup:
    """Draw which part of a limit is used; more than all of it fills the bar."""
    return picture(
        _BAR_WIDTH,
        _BAR_HEIGHT,
        f"{used / limit:.0%} used",
        [
            rect("track", 0, 0, _BAR_WIDTH, _BAR_HEIGHT),
            rect(
                "deny" if is_marked else "allow",
                0,
                0,
                share(min(used, limit), limit, _BAR_WIDTH),
                _BAR_HEIGHT,
            ),
        ],
    )


def picture(
    width: float, height: float, words: str, drawn: Iterable[Markup], title: str = ""
) -> Markup:
    """Put shapes into a picture; `words` describe it for screen readers."""
    named = (
        Markup("<title>{}</title><desc>{}</desc>").format(title, words)
        if title
        else _hint(words)
    )
    summary = f"{title}: {words}" if title else words
    size = Markup(
        'width="{0:.0f}" height="{1:.0f}" viewBox="0 0 {0:.0f} {1:.0f}"'
    ).format(width, height)
    frame = Markup('<svg {} role="img" aria-label="{}">{}{}</svg>')
    return frame.format(size, summary, named, Markup("").join(drawn))


def _hint(words: str) -> Markup:
    return Markup("<title>{}</title>").format(words)


def rect(
    kind: str, x: float, y: float, width: float, height: float, words: str = ""
) -> Markup:
    """Draw a rectangle, which shows its words when the pointer rests on it."""
    shape = Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>'
    )
    return shape.format(kind, x, y, width, height, _hint(words) if words else "")


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """Draw a line."""
    shape = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return shape.format(kind, x1, y1, x2, y2)


def label(x: float, y: float, words: str, anchor: str) -> Markup:
    """Write words; `anchor` is the part of them at x: start, middle or end."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, words
    )


def share(count: int, most: int, whole: float) -> float:
    """Return the length of a count on the scale of the most; at least 1 unless the
    count is 0.
    """
    return max(1.0, whole * count / most) if count else 0.0
