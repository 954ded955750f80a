"""What the pages have in common: what comes from outside is made plain, and can be read
in light and dark.
"""

from __future__ import annotations

import re
from importlib import resources

import pytest

from squidkeeper.record.log.record import redacted_url
from squidkeeper.record.pages import page
from squidkeeper.record.pages.page import split_bar

STYLE = (
    resources.files("squidkeeper.record.pages")
    .joinpath("templates/style.css")
    .read_text("utf-8")
)

# On each of these, each of those is text.
READABLE = {
    "paper": ("ink", "soft", "allow", "deny", "well", "soon"),
    "faint": ("ink", "soft"),
    "well-faint": ("ink", "well"),
    "deny-faint": ("ink", "deny", "soon"),
    "soon-faint": ("ink", "soon"),
    "heat1": ("ink", "deny"),
    "heat2": ("ink", "deny"),
    "heat3": ("ink", "deny"),
    "heat4": ("ink", "deny"),
}


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block))


LIGHT, DARK = map(colours, re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL))


def luminance(colour: str) -> float:
    """WCAG 2.2: relative luminance."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("ground", "texts"), READABLE.items(), ids=READABLE)
def test_every_text_has_the_contrast_of_wcag_aa(
    theme: dict[str, str], ground: str, texts: tuple[str, ...]
) -> None:
    for text in texts:
        low, high = sorted(luminance(theme[name]) for name in (ground, text))
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {ground}"


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_mark_of_a_chart_has_the_contrast_of_wcag_aa(
    theme: dict[str, str],
) -> None:
    for mark in ("mark", "allow"):
        low, high = sorted(luminance(theme[name]) for name in ("paper", mark))
        assert (high + 0.05) / (low + 0.05) >= 3, mark


def test_both_themes_have_the_same_colours() -> None:
    assert LIGHT.keys() == DARK.keys()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/x?q=1#f", "https://a.example/x"),
        ("https://a.example/x#f?q", "https://a.example/x"),
        ("https://a.example?q=1", "https://a.example"),
        ("http://user:secret@a.example/x@y", "http://***@a.example/x@y"),
        ("http://user:se@cret@a.example/", "http://***@a.example/"),
        ("HTTP://user@a.example", "HTTP://***@a.example"),
        ("user:secret@a.example:443", "***@a.example:443"),
        ("a.example:443", "a.example:443"),
        (
            "https://a.example/100%/%41 b\u202e\x1b\n",
            "https://a.example/100%/%41%20b%E2%80%AE%1B%0A",
        ),
        ("https://a.example/\ud800", "https://a.example/%ED%A0%80"),
    ],
)
def test_a_url_is_shown_without_what_could_be_secret_or_mislead(
    url: str, shown: str
) -> None:
    assert redacted_url(url) == shown


def test_what_cannot_be_seen_is_shown_as_its_escape() -> None:
    assert (
        page.visible("a\u202eb\x00\n\U000e0041\ud800é日")
        == "a\\u202eb\\u0000\\u000a\\U000e0041\\ud800é日"
    )
    assert page.breakable("a.b\u202e.c:1") == "a.<wbr>b\\u202e.<wbr>c:<wbr>1"
    assert page.breakable("<b>.x") == "&lt;b&gt;.<wbr>x"
    assert page.with_code("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"


def test_a_bar_is_to_scale_and_never_too_small_to_be_seen() -> None:
    assert split_bar(0, 0, 100) == ""
    widths = re.findall(r'width="([0-9.]+)" height="9.0"', split_bar(50, 1, 100_000))
    assert widths == ["1.0", "1.0"]
    assert 'aria-label="50 allowed, 1 denied"' in split_bar(50, 1, 100)
