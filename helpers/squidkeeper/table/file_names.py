"""How SQL writes a text, and names a file (floor 6)."""

import re
from pathlib import Path


def quoted(text: str | Path) -> str:
    """Write a text, or the name of a file, as a text of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def quoted_literally(path: Path) -> str:
    """Write the name of one file, whatever its characters are: for DuckDB, `*`, `?` and `[` are a pattern."""
    return quoted(Path(re.sub(r"([*?[])", r"[\1]", str(path))))
