"""The text of the repository is plain English: none of these phrases, and what to write
instead.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HELD = {
    ".md",
    ".py",
    ".sh",
    ".conf",
    ".yaml",
    ".html",
    ".service",
    ".json",
    ".toml",
    ".txt",
    ".c",
    ".lua",
    "",
}
# other people's text, what changed long ago, faulty policies, and this table
LEFT_OUT = (
    "LICENSE",
    "CHANGELOG.md",
    "tests/data/",
    "policy/lists/",
    "tests/test_words.py",
)

# a regular expression, whose spaces may also be line breaks → what to write
INSTEAD = {
    r"by a part of itself": "truncated",
    r"(stays?|left) without an answer": "is not answered",
    r"(not get|gets?|getting) on( with)?": "is stuck; continues with",
    r"looks? where": "uses the path",
    r"comes? too late where": "is never reached",
    r"mend(s|ed|ing)?": "fix",
    r"be had": "is unavailable; cannot be read",
    r"sa(y|ys|id) of": "says about",
    r"(is|are|was|were|be) told of": "is informed about; learns",
    r"in the place of": "instead of; replaces",
    r"as ever": "as before",
    r"so that none": "so no",
    r"of those that": "of the ones that; name them",
    r"look(s|ed|ing)? at": "reads; checks",
    r"asked once a second": "at most one lookup per second per key",
    r"anew": "again",
    r"whose it is": "its owner",
    r"goes on by": "continues with",
    r"on record": "in the access log; logged",
    r"h(eld|old|olds|olding) (\S+ ){0,4}against": "compared with; compare … with",
    r"without end": "forever",
    r"no \w+( \w+)? but (?!no)": "only",
    r"by halves": "partly",
    r"at hand": "available",
    r"of its own accord": "automatically",
    r"lest": "so that … not",
    r"(there|where|here)(by|upon|of|in|after|to)": "plain words: by this, then, of it",
    r"hence|thence|whence|whither|thither": "so; from there; where",
    r"shall": "must; will",
    r"heeds?|heeded|heeding": "obey; follow",
}
IN_DOCUMENTS = {
    r"the record(?!s)": "the access log (the file); a record is one line of it"
}


# also across lines, and across the marks of comments, tables and quotes
BETWEEN_WORDS = r"[ \t]*\s[#/*|>]*[ \t]*"


def expression(phrase: str) -> str:
    return rf"\b(?:{phrase.replace(' ', BETWEEN_WORDS)})\b"


def held_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return [
        name
        for name in sorted(listed)
        if Path(name).suffix in HELD
        and not name.startswith(LEFT_OUT)
        and (REPOSITORY / name).is_file()
    ]


def words_to_replace(name: str, text: str) -> list[str]:
    phrases = INSTEAD | (IN_DOCUMENTS if name.endswith(".md") else {})
    if not re.search("|".join(map(expression, phrases)), text, re.IGNORECASE):
        return []
    return [
        f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {' '.join(found[0].split())!r}: write {instead}"
        for phrase, instead in phrases.items()
        for found in re.finditer(expression(phrase), text, re.IGNORECASE)
    ]


def test_the_text_is_plain_english() -> None:
    texts = {name: (REPOSITORY / name).read_text() for name in held_files()}
    assert [
        found for name, text in texts.items() for found in words_to_replace(name, text)
    ] == []


def test_only_one_module_sleeps() -> None:
    texts = {
        name: (REPOSITORY / name).read_text()
        for name in held_files()
        if name.endswith(".py")
    }
    sleeps = re.compile(r"\bsleep\(|\bimport sleep\b")
    sleeping = [
        name
        for name, text in texts.items()
        if name.startswith("tests/") and sleeps.search(text)
    ]
    assert sleeping == ["tests/waiting.py"]


@pytest.mark.parametrize(
    "phrase",
    [
        "it cannot be had",
        "It looks\n    at it",
        "# so that\n# none is",
        "no rule but one",
        "hold it against",
    ],
)
def test_a_phrase_is_found_across_lines_and_in_any_case(phrase: str) -> None:
    assert len(words_to_replace("a.py", f"first line\n{phrase}\n")) == 1
