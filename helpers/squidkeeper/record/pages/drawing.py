"""Pieces of SVG, which the style of the pages colours for light and dark, and a bar made of them."""

from collections.abc import Iterable

from markupsafe import Markup

_BAR_WIDTH, _BAR_HEIGHT = 140, 9


def split_bar(allowed: int, denied: int, most: int) -> Markup:
    """Draw one row's allowed and denied requests as a bar, on the scale of the row with the most."""
    if not allowed + denied:
        return Markup("")
    first, second = (share(count, most, _BAR_WIDTH) for count in (allowed, denied))
    return picture(
        _BAR_WIDTH,
        _BAR_HEIGHT,
        f"{allowed:,} allowed, {denied:,} denied",
        [rect("allow", 0, 0, first, _BAR_HEIGHT), rect("deny", first, 0, second, _BAR_HEIGHT)],
    )


def picture(width: float, height: float, words: str, drawn: Iterable[Markup], title: str = "") -> Markup:
    """Put shapes into a picture; `words` describe it for screen readers."""
    named = Markup("<title>{}</title><desc>{}</desc>").format(title, words) if title else _hint(words)
    summary = f"{title}: {words}" if title else words
    size = Markup('width="{0:.0f}" height="{1:.0f}" viewBox="0 0 {0:.0f} {1:.0f}"').format(width, height)
    frame = Markup('<svg {} role="img" aria-label="{}">{}{}</svg>')
    return frame.format(size, summary, named, Markup("").join(drawn))


def _hint(words: str) -> Markup:
    return Markup("<title>{}</title>").format(words)


def rect(kind: str, x: float, y: float, width: float, height: float, words: str = "") -> Markup:
    """Draw a rectangle, which shows its words when the pointer rests on it."""
    shape = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>')
    return shape.format(kind, x, y, width, height, _hint(words) if words else "")


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """Draw a line."""
    shape = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return shape.format(kind, x1, y1, x2, y2)


def label(x: float, y: float, words: str, anchor: str) -> Markup:
    """Write words; `anchor` is the part of them at x: start, middle or end."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, words)


def share(count: int, most: int, whole: float) -> float:
    """Return the length of a count on the scale of the most; at least 1 unless the count is 0."""
    return max(1.0, whole * count / most) if count else 0.0
