"""What the tests of the pages share: hostile texts, and what a browser makes
of a page.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</title></style></svg><script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "]]><script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202egnp.exe\u2066",
    "\x1b[2J\r\n\x00",
    "\ud800",
    "A" * 8000,
)

INVISIBLE = re.compile(
    "[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
)


def keys_in(value: object) -> set[str]:
    """Collect the keys of JSON, at every depth."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_in, value.values()))
    return set().union(*map(keys_in, value)) if isinstance(value, list) else set()


def keys_told(section: str) -> set[str]:
    """Collect what the tables of a section of Markdown write as code."""
    rows = (line for line in section.splitlines() if line.startswith("| "))
    return {key for row in rows for key in re.findall("`([a-z_-]+)`", row)}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# All that our templates and charts make. Nothing here loads, links, runs or styles.
TAGS = _words(
    """
    html head meta title style body header main section footer nav h1 h2 h3 p time dl div dt dd span b i br wbr code
    ul li table thead tbody tfoot tr th td details summary svg desc text rect line path circle
    """
)
ATTRIBUTES = _words(
    """
    lang charset http-equiv content name class id datetime scope role title aria-label
    width height viewbox x y x1 y1 x2 y2 cx cy data-of r d text-anchor
    """
)


APART = _words("td th li dt dd p br h1 h2 h3 summary code text title desc")


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and
    its text.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in APART else ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}

    def attributes(self) -> set[str]:
        return {name for _, attributes in self.tags for name in attributes}
