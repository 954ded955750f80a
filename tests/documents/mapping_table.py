"""The table of squid/observe/EXPORT.md: what stands where in each format.

After a change of a format: `python -m tests.documents.mapping_table
squid/observe/EXPORT.md`.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from squidkeeper.record.export import cef, ecs, ocsf, otlp
from squidkeeper.record.log.record import Record

DERIVED: Final = {  # facts that are no field of a record
    "time_ms": "`time`, in milliseconds since 1970",
    "start": "the beginning: `time` less `duration_ms`",
    "start_ms": "the beginning, in milliseconds since 1970",
    "duration_ns": "`duration_ms`, in nanoseconds",
    "action": "`verdict`: `allowed` or `denied`",
    "outcome": "`success`, `failure` (denied, or a status of 400 or more) or `unknown`",
    "status_text": "`status`, as text",
    "total_bytes": "`bytes` and `request_bytes` together",
    "url_full": "`url`, unless it is the `host:port` of a CONNECT",
    "url_scheme": "the scheme of `url`",
    "url_host": "the host of `url`",
    "url_port": "the port of `url`, also where the scheme implies it",
    "url_path": "the path of `url`",
    "url_query": "the query of `url`, with `--urls full`",
    "message": "verdict, method, URL, status and rule as one text",
    "product_version": "the version of squidkeeper",
}
_BEGIN, _END = "<!-- rendered: mapping -->\n", "<!-- end -->"
_SECTION: Final = re.compile(f"(?<={_BEGIN}).*?(?={_END})", re.DOTALL)


def render(text: str) -> str:
    """Render the table of a document again, and leave all else as it is."""
    table = "".join(f"{line}\n" for line in _lines())
    return _SECTION.sub(lambda _: table, text)


def _lines() -> Iterator[str]:
    columns = (_names(ocsf.ROWS), _names(ecs.ROWS), _of_cef(), _names(otlp.ROWS))
    yield "| a field of a record, or what is made of it | OCSF | ECS | CEF | OTLP |"
    yield "|---|---|---|---|---|"
    for fact in (*Record.__struct_fields__, *DERIVED):
        places = [names.get(fact, []) for names in columns]
        cells = ["<br>".join(f"`{name}`" for name in names) for names in places]
        if any(cells) and places != _usual_places(fact):
            what = DERIVED.get(fact, f"`{fact}`")
            yield (
                "|"
                + "|".join(f" {cell} " if cell else " " for cell in (what, *cells))
                + "|"
            )


def _usual_places(fact: str) -> list[list[str]]:
    """Return where a field is that no format has a name for.

    The document says so once, above the table.
    """
    return [
        [f"unmapped.{fact}"],
        [f"squidkeeper.{fact}"],
        ["cs6"],
        [f"squidkeeper.{fact}"],
    ]


def _names(rows: Mapping[str, str]) -> dict[str, list[str]]:
    """Turn a table around: the names in a format by the fact."""
    names: dict[str, list[str]] = {}
    for name, fact in rows.items():
        names.setdefault(fact, []).append(name)
    return names


def _of_cef() -> dict[str, list[str]]:
    labelled = {fact: [key] for key, (_, fact) in cef.LABELLED.items() if fact}
    addresses = {fact: [key, key6] for fact, (key, key6, _) in cef.ADDRESSES.items()}
    return (
        _names(cef.ROWS) | labelled | addresses | {fact: ["cs6"] for fact in cef.OTHER}
    )


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(render(path.read_text()))
