"""What the codes of faults and warnings mean, as the reference and the manual page of
`check` have it.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

_LINK = re.compile(r"\[(.*?)\]\(.*?\)")
_NOT_IN_CHECK = " ¹"


@cache
def fault_codes() -> dict[str, dict[str, str]]:
    """Return the meanings of codes, for `faults` and for `warnings`."""
    text = Path(__file__).with_name("fault_codes.yaml").read_text("utf-8")
    tables: dict[str, dict[str, str]] = yaml.safe_load(text)
    return tables


def manual_rows(table: str) -> Iterator[tuple[str, str]]:
    """Yield the codes that `check` reports and their meaning, without links."""
    for codes, meaning in fault_codes()[table].items():
        if not codes.endswith(_NOT_IN_CHECK):
            yield codes, _LINK.sub(r"\1", meaning)
