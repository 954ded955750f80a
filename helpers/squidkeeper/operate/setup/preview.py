"""What `squidkeeper render` shows without a change: the lists that Squid decides by,
and what an edit of the policy would change in its configuration.
"""

import re
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from textwrap import wrap
from typing import Final

from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.rendering import (
    LADDERS,
    merge,
    read_lines,
    without_numbers,
)
from squidkeeper.configuration.squid_conf import Directive, Macros, read_squid_conf
from squidkeeper.operate.setup.entries import File, text_at
from squidkeeper.operate.setup.generations import VALUES, shown_path
from squidkeeper.operate.setup.rendering import (
    named_values,
    read_values,
    rendered_anew,
)

_PASSWORD: Final = re.compile(r"(?<=login=)\S+")
_NUMBERED: Final = re.compile(r"(?m)^# [0-9]+(?: to [0-9]+)?\. ")
_TOLD_AT: Final = re.compile(r"(?m)^(# For \w+) [0-9]+\.$")
_SPACES: Final = re.compile(r"\s+")
_WIDTH: Final = 100


def ladders(layout: Layout) -> Iterator[str]:
    """Yield each list of Squid's whose first line that matches decides, as Squid has
    read it: each line with its number, its reason and its place.

    OSError where squid.conf cannot be read.
    """
    macros = Macros(layout.squid_service)
    conf = read_squid_conf(layout.conf, macros, shown_path(layout))
    reasons = {
        (file, line.number): without_numbers(line.reason)
        for file in {*conf.files}
        for line in read_lines(text_at(file.resolve()))
    }
    for name, about in LADDERS.items():
        rungs = [one for one in conf.directives if one.name == name]
        if rungs:
            yield f"{name}: {about}"
        for number, rung in enumerate(rungs, 1):
            reason = reasons.get((rung.file, rung.line), "")
            yield f"{number:4}. {_SPACES.sub(' ', rung.text)}"
            yield from _about(rung, reason, layout.conf.parent)


def _about(rung: Directive, reason: str, folder: Path) -> Iterator[str]:
    place = rung.place.removeprefix(f"{folder}/")
    text = f"{reason} ({place})" if reason else f"({place})"
    indent = " " * 6
    yield from wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def difference(layout: Layout, account: Account, policy: Path) -> Iterator[str]:
    """Yield what a policy would change in the files that Squid reads, without passwords
    and without the numbers of lines.

    OSError where the policy does not load, ValueError where a value is not what it may
    be.
    """
    named = named_values(account, layout, policy, layout.state / "lists")
    for problem in named.problems:
        yield f"A parent proxy is left out, as its password is unavailable: {problem}"
    values = merge(read_values(layout), named.values)
    folder = layout.generation.resolve()
    for name, entry in rendered_anew(layout, values, account, folder).items():
        if isinstance(entry, File) and name != VALUES:
            path = layout.fragment.parent / name
            yield from _changes(path, text_at(folder / name), entry.content.decode())


def _changes(path: Path, before: str, after: str) -> Iterator[str]:
    former, new, place = _shown(before), _shown(after), str(path)
    passwords = (_PASSWORD.findall(before), _PASSWORD.findall(after))
    if former == new and passwords[0] != passwords[1]:
        yield f"{place}: a password changes"
    yield from unified_diff(former, new, place, place, lineterm="", n=1)


def _shown(text: str) -> list[str]:
    without = _TOLD_AT.sub(r"\1.", _NUMBERED.sub("# ", text))
    return _PASSWORD.sub("…", without).splitlines()
