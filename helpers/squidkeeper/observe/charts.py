"""Charts as inline SVG (floor 5): drawn here, coloured by the pages' style, for light and dark."""

from __future__ import annotations

from markupsafe import Markup

_BAR_WIDTH, _BAR_HEIGHT = 140, 9


def split_bar(allowed: int, denied: int, most: int) -> Markup:
    """Draw one row's requests as a bar, allowed and denied, on the scale of the row that has the most."""
    if not allowed + denied:
        return Markup("")
    widths = [_width(count, most) for count in (allowed, denied)]
    return Markup(
        '<svg width="{width}" height="{height}" role="img" aria-label="{allowed:,} allowed, {denied:,} denied">'
        '<rect class="allow" width="{first:.1f}" height="{height}"/>'
        '<rect class="deny" x="{first:.1f}" width="{second:.1f}" height="{height}"/></svg>'
    ).format(width=_BAR_WIDTH, height=_BAR_HEIGHT, allowed=allowed, denied=denied, first=widths[0], second=widths[1])


def _width(count: int, most: int) -> float:
    return max(1.0, _BAR_WIDTH * count / most) if count else 0.0
