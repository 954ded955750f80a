"""Renders Squid's configuration: templates, in which a gateway's own values are filled in, and typed values.

`@NAME@` is a placeholder. One that stands alone on a line goes with its line where it expands to nothing. The core
includes the parts by name; the line of a part that is not in force is left out.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from squidkeeper.serving.parts import Part
from squidkeeper.serving.rendering.lines import BODY_BOUND, PLACEHOLDERS
from squidkeeper.serving.rendering.values import Values

_PLACEHOLDER: Final = re.compile(r"@([A-Za-z_]+)@")
_ALONE: Final = re.compile(r"^@([A-Za-z_]+)@\n", re.MULTILINE)
_INCLUDE: Final = re.compile(r"^include \S+/squidkeeper\.d/([a-z-]+)\.conf\n", re.MULTILINE)
_OWN_BODY_BOUND: Final = re.compile(rf"^\s*{BODY_BOUND}\s", re.MULTILINE)


def part_file(part: Part) -> str:
    """Name the file of a part, below the folder of squidkeeper.conf."""
    return f"squidkeeper.d/{part}.conf"


def fill(text: str, values: Mapping[str, str]) -> str:
    """Fill in placeholders by name, in one pass; others stay."""
    text = _ALONE.sub(lambda found: _line(found, values), text)
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def render(templates: Mapping[str, str], values: Values, own: str = "") -> dict[str, str]:
    """Render templates, by their file names, with values. KeyError for a placeholder that is unknown.

    `own` are lines of the operator's. Where they bound the body of a request, ours do not: the last line would count.
    """
    bounded = msgspec.structs.replace(values, bytes_out=None) if _OWN_BODY_BOUND.search(own) else values
    parts = {part_file(part): part for part in Part}
    wanted = {part_file(part) for part in values.parts}
    texts = {name: text for name, text in templates.items() if name in wanted or name not in parts}
    included = {parts[name] for name in texts if name in parts}
    return {name: _rendered(text, included, bounded) for name, text in texts.items()}


def _rendered(template: str, included: set[Part], values: Values) -> str:
    text = _INCLUDE.sub(lambda found: found[0] if found[1] in included else "", template)
    names = {found[1] for found in _PLACEHOLDER.finditer(text)}
    return fill(text, {name: _expanded(name, values) for name in names})


def _expanded(name: str, values: Values) -> str:
    found = PLACEHOLDERS[name](values)
    return found if isinstance(found, str) else "\n".join(found)


def _line(found: re.Match[str], values: Mapping[str, str]) -> str:
    text = values.get(found[1])
    if text is None:
        return found[0]
    return f"{text}\n" if text else ""
