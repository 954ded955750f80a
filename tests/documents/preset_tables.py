"""The table of policy/PRESETS.md.

After a change of a preset: `python -m tests.documents.preset_tables policy/PRESETS.md`.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from squidkeeper.change.learning.uses import newest_presets
from squidkeeper.policy.presets.summary import PresetSummary, ShippedRule, summarize

_BEGIN, _END = "<!-- rendered: presets -->\n", "<!-- end -->"
_SECTION: Final = re.compile(f"(?<={_BEGIN}).*?(?={_END})", re.DOTALL)


def render(text: str) -> str:
    """Render the table of a document again, and leave all else as it is.

    It has the newest version of each preset.
    """
    table = "".join(
        f"{line}\n"
        for name in sorted(newest_presets())
        for line in _lines(summarize(name))
    )
    return _SECTION.sub(lambda _: table, text)


def _lines(preset: PresetSummary) -> Iterator[str]:
    yield f"### {preset.name}\n"
    yield f"{preset.opens} Not in it: {preset.leaves_out}\n"
    yield "| rule | methods | URLs |"
    yield "|---|---|---|"
    for rule in preset.rules:
        body = (
            f"<br>with the body that `squidkeeper preset show {preset.name}` has"
            if rule.body
            else ""
        )
        yield f"| `{rule.name}` | {', '.join(rule.methods)} | {'<br>'.join(map(_code, _urls(rule)))}{body} |"
    yield f"\nFrom {', '.join(f'<{url}>' for url in preset.documents)}, read on {preset.read}.\n"


def _urls(rule: ShippedRule) -> Iterator[str]:
    query = "&".join(f"{key}={value}" for key, value in rule.query.items())
    for host in rule.hosts:
        for path in rule.paths or ("/**",):
            yield f"{_schemes(rule.schemes)}://{host}{path}{query and f'?{query}'}"


def _schemes(schemes: Sequence[str]) -> str:
    return "|".join(schemes or ("http", "https")).replace("http|https", "http(s)")


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(render(page.read_text()))
